"""Fisher information of inputs and parameters: against dense matrices, identities, and the divergence it measures."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lipscope
from helpers import PRECISE, gaussian, small_network
from lipscope import cli, load_labels
from lipscope.eigen import leading_eigenpairs, trace_estimate
from lipscope.errors import DataError, ModelError
from lipscope.graph import Graph
from lipscope.layers.activation import ReLU
from lipscope.layers.dense import Dense
from lipscope.layers.scaling import Scaling
from lipscope.quantities import fisher_embedding, input_fisher, parameter_fisher
from lipscope.report import print_report
from lipscope.results import FisherReport
from strategies import networks, seeds

# ---- eigenpairs from products ---------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), seeds())
@settings(max_examples=40)
def test_eigenpairs_are_those_of_the_matrix(size: int, rank: int, count: int, block: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, min(rank, size), generator=generator, dtype=torch.float64)
    matrix = factor @ factor.mT
    found = leading_eigenpairs(
        lambda v: v @ matrix, size, count, block=block, tolerance=1e-9, max_products=4000, basis_limit=12
    )
    expected = torch.linalg.eigvalsh(matrix).flip(0)[: len(found.values)]
    scale = float(expected[0])
    assert len(found.values) == min(count, size)
    torch.testing.assert_close(found.values, expected, rtol=1e-8, atol=1e-10 * scale)
    torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(len(found.values)).double())
    off = found.vectors @ matrix - found.values[:, None] * found.vectors
    torch.testing.assert_close(off.norm(dim=1), found.residuals, rtol=0.1, atol=1e-8 * scale)


def test_eigenpairs_of_multiples_and_of_zero() -> None:
    multiple = leading_eigenpairs(lambda v: 3 * v, 30, 5, block=2)
    torch.testing.assert_close(multiple.values, torch.full((5,), 3.0).double())
    nothing = leading_eigenpairs(lambda v: 0 * v, 30, 2, block=2)
    assert nothing.values.tolist() == [0, 0]


@given(seeds())
@settings(max_examples=20)
def test_the_trace_lies_within_its_error(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(60, 30, generator=generator, dtype=torch.float64)
    factor *= torch.logspace(1, -1, 30)
    matrix = factor @ factor.mT
    found = leading_eigenpairs(lambda v: v @ matrix, 60, 3, tolerance=1e-6)
    trace, error = trace_estimate(lambda v: ((v @ matrix) * v).sum(1), 60, found, probes=30, seed=seed)
    assert 0 < error < 0.1 * trace
    assert abs(trace - float(matrix.trace())) < 4.5 * error
    small = matrix[:5, :5]
    whole = leading_eigenpairs(lambda v: v @ small, 5, 5, tolerance=1e-12)
    known, error = trace_estimate(lambda v: ((v @ small) * v).sum(1), 5, whole)
    assert (known, error) == (pytest.approx(float(small.trace())), 0.0)


# ---- against brute force --------------------------------------------------------------------------------


def classifier(seed: int = 0, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, classes)
    ).double()


def hessian_of_likelihood(module: nn.Module, x: Tensor, likelihood: str, variance: float) -> Tensor:
    """H of one sample (*in)."""
    y = module(x[None])[0].detach()
    if likelihood == "gaussian":
        return torch.eye(len(y)).double() / variance
    p = y.softmax(0)
    return torch.diag(p) - torch.outer(p, p)


def input_information(module: nn.Module, x: Tensor, likelihood: str, variance: float) -> Tensor:
    """By the definition, from autograd's Jacobian."""
    j = torch.autograd.functional.jacobian(lambda x: module(x[None])[0], x)
    return j.mT @ hessian_of_likelihood(module, x, likelihood, variance) @ j


def parameter_jacobian(module: nn.Module, x: Tensor) -> Tensor:
    parameters = dict(module.named_parameters())
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(module, p, (x[None],))[0])(parameters)
    return torch.cat([j.detach().flatten(1) for j in jacobian.values()], 1)


LIKELIHOODS = [("gaussian", 1.0), ("gaussian", 0.3), ("softmax", 1.0)]


@pytest.mark.parametrize(("likelihood", "variance"), LIKELIHOODS)
def test_input_information_is_that_of_the_definition(likelihood: Any, variance: float) -> None:
    module = classifier()
    samples = gaussian(12, (6,))
    graph = lipscope.from_torch(module, (6,))
    found, vectors = input_fisher(
        graph, samples, likelihood, variance=variance, passes=12, tolerance=1e-9, **PRECISE
    )
    dense = torch.stack(
        [input_information(module, x, likelihood, variance) for x in samples.batch(range(12))]
    )
    eigenvalues, directions = torch.linalg.eigh(dense)
    assert found.eigenvalues == pytest.approx(eigenvalues[:, -1].tolist())
    assert found.traces == pytest.approx(dense.diagonal(dim1=1, dim2=2).sum(1).tolist())
    steepest = directions[found.largest, :, -1]
    assert abs(float(vectors["steepest"] @ steepest)) == pytest.approx(1)
    mean = torch.linalg.eigh(dense.mean(0))
    rank = min(4, len(found.mean.leading))
    assert found.mean.leading == pytest.approx(mean.eigenvalues.flip(0)[:rank].tolist(), rel=1e-6, abs=1e-12)
    assert abs(float(vectors["mean.0"] @ mean.eigenvectors[:, -1])) == pytest.approx(1)
    assert found.mean.trace == pytest.approx(float(dense.mean(0).trace()))
    assert (found.probes, found.mean.trace_error) == (None, 0.0)
    assert found.mean.value <= max(found.eigenvalues) <= found.bound


@pytest.mark.parametrize(("likelihood", "variance"), LIKELIHOODS)
def test_parameter_information_is_that_of_the_definition(likelihood: Any, variance: float) -> None:
    module = classifier()
    samples = gaussian(10, (6,))
    found, vectors = parameter_fisher(
        module,
        samples,
        likelihood,
        variance=variance,
        tolerance=1e-8,
        max_products=2000,
        probes=40,
        batch_size=4,
        **PRECISE,
    )
    dense = torch.zeros(found.size, found.size).double()
    for x in samples.batch(range(10)):
        j = parameter_jacobian(module, x)
        dense += j.mT @ hessian_of_likelihood(module, x, likelihood, variance) @ j / 10
    eigenvalues, directions = np.linalg.eigh(dense.numpy())
    assert found.leading == pytest.approx(eigenvalues[::-1][:4].tolist(), rel=1e-6)
    assert abs(found.trace - dense.trace()) <= 4 * found.trace_error
    assert found.trace_error < 0.2 * found.trace
    first = torch.cat([vectors[f"0.{name}"].flatten() for name, _ in module.named_parameters()])
    assert abs(float(first @ torch.from_numpy(directions[:, -1].copy()))) == pytest.approx(1)
    assert (found.which, found.samples) == ("true", 10)


def test_empirical_information_is_that_of_the_gradients() -> None:
    module = classifier()
    samples = gaussian(10, (6,))
    labels = load_labels(np.arange(10) % 4, samples)
    found, _ = parameter_fisher(
        module,
        samples,
        "softmax",
        labels=labels,
        tolerance=1e-8,
        max_products=2000,
        probes=40,
        batch_size=3,
        **PRECISE,
    )
    gradients = []
    for x, y in zip(samples.batch(range(10)), labels.outputs, strict=True):
        loss = module(x[None]).log_softmax(1)[0, int(y)]
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
        )
    dense = torch.stack(gradients).mT @ torch.stack(gradients) / 10
    assert found.which == "empirical"
    assert found.leading == pytest.approx(torch.linalg.eigvalsh(dense).flip(0)[:4].tolist(), rel=1e-6)
    assert abs(found.trace - float(dense.trace())) <= 4 * found.trace_error


def test_the_true_information_is_the_empirical_one_in_expectation_over_the_models_labels() -> None:
    """Σ_y p(y|x) ∇log p ∇log pᵀ, one empirical matrix for each label of one sample."""
    module, samples = classifier(), gaussian(1, (6,))
    p = module(samples.batch([0]))[0].softmax(0).detach()
    options = {"tolerance": 1e-9, "max_products": 500, "probes": 2, **PRECISE}
    true, _ = parameter_fisher(module, samples, "softmax", **options)
    parts = []
    for y in range(4):
        labels = load_labels([y], samples)
        parts.append(parameter_fisher(module, samples, "softmax", labels=labels, **options)[0])
    assert true.trace == pytest.approx(
        sum(float(w) * part.trace for w, part in zip(p, parts, strict=True)), rel=1e-6
    )


# ---- identities -----------------------------------------------------------------------------------------


@given(networks(most=4), seeds(), st.floats(0.01, 100.0))
@settings(max_examples=4)
def test_gaussian_information_is_the_squared_stretch(network, seed: int, variance: float) -> None:
    graph = network.graph
    samples = gaussian(2, network.shape, seed)
    found, _ = input_fisher(graph, samples, variance=variance, directions=1, tolerance=1e-8, **PRECISE)
    local, _ = lipscope.local(graph, samples, tolerance=1e-8, dtype=torch.float64)
    expected = [lip**2 / variance for lip in local.estimates]
    assert found.eigenvalues == pytest.approx(expected, rel=1e-5, abs=1e-20)
    assert found.stretches == pytest.approx(local.estimates, rel=1e-5, abs=1e-12)
    assert max(found.eigenvalues) <= found.bound * (1 + 1e-9)


@given(seeds(), st.floats(0.01, 30.0), st.integers(2, 40))
@settings(max_examples=8)
def test_softmax_information_is_at_most_half_the_squared_stretch(
    seed: int, scale: float, classes: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, last = (
        Dense(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
        for rows, columns in ((9, 6), (classes, 9))
    )
    graph = Graph.chain((6,), [first, ReLU(), last, Scaling(torch.tensor(scale, dtype=torch.float64))])
    found, _ = input_fisher(
        graph, gaussian(2, (6,), seed), "softmax", directions=1, tolerance=1e-8, **PRECISE
    )
    for value, lip in zip(found.eigenvalues, found.stretches, strict=True):
        assert value <= lip**2 / 2 * (1 + 1e-9)
    assert max(found.eigenvalues) <= found.bound


def test_half_the_squared_stretch_is_attained() -> None:
    """Two logits apart along one input, at equal odds."""
    pair = Graph.chain((1,), [Dense(torch.tensor([[3.0], [-3.0]], dtype=torch.float64))])
    zero = lipscope.load_samples(torch.zeros(1, 1, dtype=torch.float64))
    found, _ = input_fisher(pair, zero, "softmax", **PRECISE)
    assert found.eigenvalues == pytest.approx([9.0])
    assert found.stretches == pytest.approx([18**0.5])
    assert found.bound == pytest.approx(9.0)
    assert found.bound >= 9.0


def test_the_mean_is_the_second_moment() -> None:
    _, graph = small_network()
    samples = gaussian(20, (2, 8, 8))
    found, _ = input_fisher(graph, samples, variance=4.0, passes=3, **PRECISE)
    moment, _ = lipscope.second_moment(graph, samples, "active", passes=3, dtype=torch.float64)
    assert found.mean.value == pytest.approx(moment.value**2 / 4, rel=1e-3)


def test_a_shift_of_all_logits_changes_nothing() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = classifier()
            self.shift = nn.Linear(6, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.shift(x)

    samples = gaussian(5, (6,))
    plain, moved = (
        input_fisher(lipscope.from_torch(m, (6,)), samples, "softmax", tolerance=1e-8, **PRECISE)[0]
        for m in (classifier(), Shifted())
    )
    assert moved.eigenvalues == pytest.approx(plain.eigenvalues)
    assert moved.traces == pytest.approx(plain.traces)
    assert moved.stretches != pytest.approx(plain.stretches, rel=0.05)


@pytest.mark.parametrize(("likelihood", "variance"), LIKELIHOODS)
def test_information_is_the_curvature_of_the_divergence(likelihood: Any, variance: float) -> None:
    """KL(p_x ‖ p_{x + εv}) = ε² vᵀI v / 2 + O(ε³)."""
    module = classifier()
    graph = lipscope.from_torch(module, (6,))
    [x] = gaussian(1, (6,)).batch([0])
    embedded = fisher_embedding(graph, likelihood, variance)
    v = torch.randn(6, dtype=torch.float64)
    jacobian = lipscope.linearize(embedded, embedded.linearize_at(x[None])[1])
    quadratic = float(jacobian.matvec(v[None, None]).square().sum()) / 2

    def divergence(step: float) -> float:
        a, b = module(torch.stack([x, x + step * v])).detach()
        if likelihood == "gaussian":
            return float((a - b).square().sum()) / (2 * variance)
        return float((a.softmax(0) * (a.log_softmax(0) - b.log_softmax(0))).sum())

    errors = [abs(divergence(step) / step**2 - quadratic) for step in (1e-2, 1e-3)]
    assert errors[0] < 0.05 * quadratic
    assert errors[1] < 0.2 * errors[0] + 1e-6 * quadratic


def test_traces_of_wide_networks_are_estimated_within_their_error() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(80, 100), nn.ReLU(), nn.Linear(100, 90)).double()
    graph = lipscope.from_torch(module, (80,))
    samples = gaussian(30, (80,))
    found, _ = input_fisher(graph, samples, probes=60, passes=1, **PRECISE)
    assert found.probes == 60
    dense = lipscope.linearize(graph, graph.linearize_at(samples.batch(range(30)))[1], 30).dense()
    exact = dense.square().sum((1, 2))
    # The variance of one probe is at most 2‖JJᵀ‖_F².
    spread = (2 * (dense @ dense.mT).square().sum((1, 2)) / 60).sqrt()
    assert bool(((torch.tensor(found.traces) - exact).abs() < 4.5 * spread).all())
    assert abs(found.mean.trace - float(exact.mean())) < 4.5 * found.mean.trace_error
    assert found.mean.trace_error == pytest.approx(float(spread.mean()) / 30**0.5, rel=0.2)


def test_one_sample_alone_has_a_spectrum_of_its_own() -> None:
    module, samples = classifier(), gaussian(5, (6,))
    graph = lipscope.from_torch(module, (6,))
    found, _ = input_fisher(graph, samples.select([3]), "softmax", passes=8, **PRECISE)
    dense = input_information(module, samples.batch([3])[0], "softmax", 1.0)
    expected = torch.linalg.eigvalsh(dense).flip(0)[: len(found.mean.leading)]
    assert found.mean.leading == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-12)
    assert (found.mean.standard_error, found.mean.trace_error) == (None, 0.0)


# ---- what is refused, and what must not break -------------------------------------------------------------


def test_networks_that_do_not_fit_the_likelihood_are_refused() -> None:
    samples = gaussian(2, (6,))
    ends = nn.Sequential(classifier(), nn.Softmax(1))
    with pytest.raises(ModelError, match="without that layer"):
        input_fisher(lipscope.from_torch(ends, (6,)), samples, "softmax")
    one = nn.Sequential(nn.Linear(6, 1)).double()
    with pytest.raises(ModelError, match="vector of logits"):
        input_fisher(lipscope.from_torch(one, (6,)), samples, "softmax")
    with pytest.raises(ModelError, match="vector of logits"):
        parameter_fisher(one, samples, "softmax")
    with pytest.raises(ModelError, match="no parameters"):
        parameter_fisher(nn.Tanh(), samples)
    with pytest.raises(DataError, match="outputs 0 to 4"):
        parameter_fisher(classifier(), samples, "softmax", labels=load_labels([0, 4], samples))


def test_the_job_refuses_before_it_computes() -> None:
    samples = gaussian(2, (6,))
    ends = nn.Sequential(classifier(), nn.Softmax(1))
    with pytest.raises(ModelError, match="without that layer"):
        lipscope.fisher(ends, samples, likelihood="softmax", space="parameters")
    with pytest.raises(DataError, match="positive number, not nan"):
        lipscope.fisher(classifier(), samples, variance=float("nan"))


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_and_says_where_no_bound_is_known(width: int) -> None:
    module = nn.Sequential(nn.Linear(6, 4), Square()).double()
    report = lipscope.fisher(module, gaussian(3, (6,)), name="[net]")
    assert report.inputs is not None
    assert report.inputs.bound == math.inf
    assert FisherReport.from_json(report.to_json()) == report
    for encoding in ("utf-8", "ascii"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
        print_report(report, Console(file=stream, width=width, color_system=None))
        stream.flush()
        text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert max(map(len, text.splitlines())) <= width
        for words in ("[net]", "inputs, most", "parameters", "no certified constant"):
            assert words in " ".join(text.split())


def test_attention_and_training_mode_are_left_as_they_are() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    module = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3)).double().train()
    before = {name: p.clone() for name, p in module.named_parameters()}
    one, other = (
        parameter_fisher(module, gaussian(3, (3, 8)), "softmax", probes=2, **PRECISE)[0] for _ in range(2)
    )
    assert one.leading == other.leading  # no dropout
    assert module.training
    assert layer.dropout.training
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())


# ---- the job and the command ----------------------------------------------------------------------------

NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "net.py").write_text(NET)
    x = np.random.default_rng(0).normal(size=(12, 6)).astype("f4")
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(12) % 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def command(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lipscope", "fisher", "net.py:build", "--data", "data.npz", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out + written.err

    return command


def test_the_command_prints_and_writes_all_parts(run, tmp_path: Path) -> None:
    code, text = run("--likelihood", "softmax", "--labels", "data.npz", "--output", "r", "--figure", "f.svg")
    assert code == 0, text
    for words in ("softmax output", "inputs, mean", "parameters, empirical", "λ_max ≤ L²/2 ≤"):
        assert words in text
    report = FisherReport.from_json((tmp_path / "r" / "fisher.json").read_bytes())
    assert report.inputs is not None
    assert [part.which for part in report.parameters] == ["true", "empirical"]
    assert "<svg" in (tmp_path / "f.svg").read_text()
    assert "wrote r/fisher.json and r/report.html" in text
    assert (tmp_path / "r" / "report.html").exists()
    vectors = load_file(tmp_path / "r" / "witness.safetensors")
    for key in [*report.inputs.mean.directions, report.inputs.steepest]:
        assert vectors[key].norm() == pytest.approx(1)
    for part in report.parameters:
        assert part.file == "witness.safetensors"
        assert part.size == 6 * 9 + 9 + 9 * 3 + 3
        for key in part.directions:
            pieces = [v.square().sum() for name, v in vectors.items() if name.startswith(f"{key}.")]
            assert float(sum(pieces)) == pytest.approx(1, rel=1e-5)
    again = run("--likelihood", "softmax", "--labels", "data.npz", "--output", "r")
    assert again[0] == 0
    assert FisherReport.from_json((tmp_path / "r" / "fisher.json").read_bytes()) == report


def test_the_command_takes_one_space_and_fewer_samples(run, tmp_path: Path) -> None:
    code, text = run("--space", "inputs", "--variance", "0.5", "--samples", "5", "--output", "r")
    assert code == 0, text
    assert "Gaussian output, σ² = 0.5" in text
    report = FisherReport.from_json((tmp_path / "r" / "fisher.json").read_bytes())
    assert (report.data.samples, report.parameters) == (5, [])
    assert report.inputs is not None
    assert report.inputs.eigenvalues == pytest.approx(
        [2 * lip**2 for lip in report.inputs.stretches], rel=1e-4
    )


def test_the_command_says_what_is_wrong(run) -> None:
    code, text = run("--labels", "data.npz")
    assert code == 5
    assert "softmax likelihood" in text
    code, text = run("--likelihood", "softmax", "--labels", "folders")
    assert code == 5
    assert "no class sub-folder" in text


# ---- labels ---------------------------------------------------------------------------------------------


def test_labels_of_any_source_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array([2, 5, 2, 11, 5, 2])
    samples = gaussian(6, (3,))
    monkeypatch.chdir(tmp_path)
    np.save("y.npy", values)
    np.savez("y.npz", x=np.zeros(6), labels=values[:, None])
    torch.save({"targets": torch.from_numpy(values)}, "y.pt")
    save_file({"label": torch.from_numpy(values)}, "y.safetensors")
    Path("mine.py").write_text("def labels():\n    return [2, 5, 2, 11, 5, 2]\n")
    for source in (
        "y.npy",
        "y.npz",
        "y.pt",
        "y.safetensors",
        "mine.py:labels",
        values.astype(float),
        values.tolist(),
    ):
        labels = load_labels(source, samples)
        assert labels.classes == ("2", "5", "11")
        assert labels.outputs.tolist() == values.tolist()
        assert labels.counts.tolist() == [3, 2, 1]
    few = labels.select([1, 3, 4])
    assert (few.classes, few.index.tolist()) == (("5", "11"), [0, 1, 0])
    names = load_labels(["b", "a", "b", "b", "a", "c"], samples)
    assert (names.classes, names.outputs.tolist()) == (("a", "b", "c"), [1, 0, 1, 1, 0, 2])


def test_labels_are_the_sub_folders_of_images(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "dog/deep/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    labels = load_labels(None, lipscope.load_samples(tmp_path, (3, 4, 4)))
    assert (labels.classes, labels.index.tolist()) == (("cat", "dog"), [0, 1, 1])


def test_labels_of_a_hugging_face_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra lipscope[datasets] is not installed")
    datasets.disable_progress_bars()
    columns = {"x": [[0.0], [1.0], [2.0]], "label": [4, 0, 4], "name": ["b", "a", "b"]}
    held = datasets.Dataset.from_dict(columns)
    held.save_to_disk(str(tmp_path / "hub"))
    samples = lipscope.load_samples(tmp_path / "hub")
    assert load_labels(tmp_path / "hub", samples).outputs.tolist() == [4, 0, 4]
    held.remove_columns("label").rename_column("name", "y").save_to_disk(str(tmp_path / "text"))
    assert load_labels(tmp_path / "text", samples).classes == ("a", "b")


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(1, 60), seeds())
@settings(max_examples=40)
def test_a_share_keeps_every_class(values: list[int], count: int, seed: int) -> None:
    labels = load_labels(values, gaussian(len(values), (1,)))
    chosen = labels.share(count, seed)
    assert chosen == sorted(set(chosen))
    kept = labels.select(chosen)
    assert kept.classes == labels.classes
    for had, has in zip(labels.counts.tolist(), kept.counts.tolist(), strict=True):
        assert min(had, 2) <= has <= had
        assert abs(has - min(had, had * count / len(values))) <= 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([0, 1], "one label a sample"),
        ([0.5, 1, 2], "whole numbers or text"),
        (np.zeros((3, 4)), "one label a sample"),
        ("missing.npy", "does not exist"),
        (np.array([None, 1, 2]), "whole numbers or text"),
    ],
)
def test_labels_that_are_none_are_refused(source: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_labels(source, gaussian(3, (1,)))
