"""Mean-field theory against closed forms, dense matrices and random networks; and `lipscope mean-field`."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor, nn

import lipscope
from helpers import gaussian
from lipscope import cli
from lipscope.graph import Graph
from lipscope.layers import Layer
from lipscope.layers.activation import (
    ELU,
    GELU,
    Activation,
    Clamp,
    ErrorFunction,
    Hardswish,
    LeakyReLU,
    ReLU,
    SiLU,
    Tanh,
)
from lipscope.layers.convolution import Convolution
from lipscope.layers.dense import Dense
from lipscope.quantities.gaussian_laws import Law, Maximum, moments
from lipscope.quantities.spectral_edge import Diagonal, Weights, squared_edge
from lipscope.results import MeanFieldReport, Result
from strategies import (
    Residual,
    adaptive_pools,
    average_pools,
    convolutions,
    denses,
    import_lone,
    transposed_convolutions,
)

ACTIVATIONS = [ReLU(), LeakyReLU(-0.3), Clamp(-0.2, 1.5), ELU(1.7), Hardswish(), Tanh(), GELU(), SiLU()]


def law(mean: float, variance: float, *pairs: float, steps: tuple = ()) -> Law:
    return Law(mean, variance, torch.tensor(pairs, dtype=torch.float64), steps)


# ---- moments of functions of Gaussians ------------------------------------------------------------------


@given(st.sampled_from(ACTIVATIONS), st.floats(-2, 2), st.floats(0.01, 100))
@settings(max_examples=20)
def test_moments_are_integrals(layer: Activation, mean: float, variance: float) -> None:
    found = moments(law(mean, variance, steps=(layer,)))
    kinks = sorted({b.first for b in layer.bends or ()})

    def expected(f: Callable[[Tensor], Tensor]) -> float:
        def integrand(x: float) -> float:
            density = math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
            return density * float(f(torch.tensor(x, dtype=torch.float64)))

        reach = 9 * math.sqrt(variance)
        ends = [mean - reach, *(k for k in kinks if abs(k - mean) < reach), mean, mean + reach]
        ends.sort()
        return sum(quad(integrand, a, b)[0] for a, b in itertools.pairwise(ends))

    assert found.mean == pytest.approx(expected(layer.forward), abs=1e-8)
    assert found.square == pytest.approx(expected(lambda x: layer.forward(x) ** 2), abs=1e-8, rel=1e-8)
    assert found.slope == pytest.approx(expected(layer.derivative), abs=1e-8)
    assert found.square_slope == pytest.approx(expected(lambda x: layer.derivative(x) ** 2), abs=1e-8)


@given(st.floats(0.01, 10), st.floats(-1, 1))
@settings(max_examples=30)
def test_products_of_two_units_have_their_closed_forms(variance: float, correlation: float) -> None:
    covariance = correlation * variance
    angle = math.acos(correlation)
    # Y. Cho, L. Saul (2009): the arc-cosine kernel of degree 1.
    relu = variance / (2 * math.pi) * (math.sin(angle) + (math.pi - angle) * correlation)
    found = moments(law(0.0, variance, covariance, steps=(ReLU(),)), [0])
    assert float(found.pairs[0]) == pytest.approx(relu, abs=1e-8 * variance)
    # C. Williams (1997).
    erf = 2 / math.pi * math.asin(2 * covariance / (1 + 2 * variance))
    found = moments(law(0.0, variance, covariance, steps=(ErrorFunction(),)), [0])
    assert float(found.pairs[0]) == pytest.approx(erf, abs=1e-7)


@pytest.mark.parametrize(
    ("taps", "expected"), [(2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi)), (9, 1.4850131622)]
)
def test_the_largest_of_independent_gaussians(taps: int, expected: float) -> None:
    assert moments(law(0.0, 1.0, 0.0, steps=(Maximum(taps, 0),))).mean == pytest.approx(expected, abs=1e-8)


@given(st.floats(0, 0.95), st.floats(-1, 1), st.sampled_from([ReLU(), Tanh(), Clamp(-0.5, 1.0)]))
@settings(max_examples=4)
def test_pooled_windows_agree_with_draws(within: float, share: float, layer: Activation) -> None:
    between, taps, count, mean = within * share, 4, 40_000, 0.3
    found = moments(law(mean, 1.0, within, between, steps=(layer, Maximum(taps, 0))), [1])
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(count, *size, generator=generator, dtype=torch.float64)

    common, sign = draw(1), 1.0 if between >= 0 else -1.0

    def window(side: float) -> tuple[Tensor, Tensor]:
        shared = side * math.sqrt(abs(between)) * common + math.sqrt(within - abs(between)) * draw(1)
        h = mean + shared + math.sqrt(1 - within) * draw(taps)
        value, place = layer.forward(h).max(1)
        return value, layer.derivative(h.gather(1, place[:, None]))[:, 0]

    (first, slope), (second, _) = window(1.0), window(sign)
    for drawn, value in (
        (first, found.mean),
        (first.square(), found.square),
        (slope.square(), found.gain),
        (first * second, float(found.pairs[1])),
    ):
        assert float(drawn.mean()) == pytest.approx(
            value, abs=4.5 * float(drawn.std()) / math.sqrt(count) + 1e-9
        )


# ---- the recursion against dense matrices and random networks ------------------------------------------


@given(
    st.one_of(
        *(layers(dims) for dims in (1, 2) for layers in (convolutions, transposed_convolutions)), denses()
    )
)
@settings(max_examples=30)
def test_one_random_layer_has_the_frobenius_norm_of_its_matrix(lone) -> None:
    module, shape = lone
    graph = Graph.chain(shape, import_lone(module, shape))
    dense = lipscope.linearize(graph, {}).dense()[0]
    # A stride may skip inputs and padding cut windows: what is counted is what the weights really meet.
    weight = next(module.parameters())
    used = int((dense != 0).sum()) * float(weight.square().mean())
    assert lipscope.mean_field_theory(graph).frobenius == pytest.approx(used, rel=1e-9, abs=1e-12)


@given(st.one_of(average_pools(2), adaptive_pools(2)))
@settings(max_examples=20)
def test_average_pooling_of_independent_cells(lone) -> None:
    graph = Graph.chain(lone[1], import_lone(*lone))
    dense = lipscope.linearize(graph, {}).dense()[0]
    theory = lipscope.mean_field_theory(graph)
    assert theory.frobenius == pytest.approx(float(dense.square().sum()), rel=1e-9)


def redrawn(graph: Graph, seed: int, gain: float, bias: float) -> Graph:
    """The graph with new random weights: imported once, since tracing takes longer than all else."""
    generator = torch.Generator().manual_seed(seed)
    for node in graph.nodes:
        if isinstance(node.layer, (Dense, Convolution)):
            node.layer.weight.normal_(0, math.sqrt(gain / node.layer.weight[0].numel()), generator=generator)
            node.layer.offset.normal_(0, math.sqrt(bias), generator=generator)
    return graph


def imported(layers: list[nn.Module], *shape: int) -> Graph:
    return lipscope.from_torch(nn.Sequential(*layers).double().eval().requires_grad_(False), shape)


def dense_layers(activation: Callable[[], nn.Module]) -> list[nn.Module]:
    return [nn.Linear(150, 250), activation(), nn.Linear(250, 250), activation(), nn.Linear(250, 60)]


def convolutional_layers(activation: Callable[[], nn.Module]) -> list[nn.Module]:
    # No padding: the theory counts it on average only.
    return [
        nn.Conv2d(24, 100, 3), activation(), nn.MaxPool2d(2), nn.Conv2d(100, 100, 2), activation(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(100, 50),
    ]  # fmt: skip


def residual_layers(activation: Callable[[], nn.Module]) -> list[nn.Module]:
    def body() -> nn.Module:
        return nn.Sequential(activation(), nn.Linear(200, 200), activation(), nn.Linear(200, 200))

    return [nn.Linear(120, 200), Residual(body(), 0.7, False), Residual(body(), 0.7, True), activation()]


@pytest.mark.parametrize(
    ("layers", "activation", "shape"),
    [
        (dense_layers, nn.ReLU, (150,)),
        (dense_layers, nn.Tanh, (150,)),
        (dense_layers, nn.GELU, (150,)),
        (convolutional_layers, nn.ReLU, (24, 8, 8)),
        (convolutional_layers, nn.Tanh, (24, 8, 8)),
        (residual_layers, nn.ReLU, (120,)),
    ],
)
def test_wide_random_networks_do_what_the_theory_says(layers, activation, shape) -> None:
    ratios: dict[tuple[int, str], list[float]] = {}
    graph = imported(layers(activation), *shape)
    for seed in range(6):
        redrawn(graph, seed, gain=1.6, bias=0.2)
        found = lipscope.mean_field(graph, length=1.3, count=4, probes=4, seed=seed)
        assert not found.not_covered
        assert not any(row.approximated for row in found.layers)
        for row in found.layers:
            for name in ("length", "slope", "square_slope", "growth"):
                measured = getattr(row.measured, name)
                if measured is not None:
                    ratio = measured.value / getattr(row.predicted, name)
                    ratios.setdefault((row.node, name), []).append(ratio)
        ratios.setdefault((-1, "frobenius"), []).append(found.measured_frobenius.value / found.frobenius)
    for key, values in ratios.items():
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        # Four standard errors over networks, and the O(1/width) that the theory leaves out.
        assert np.mean(values) == pytest.approx(1, abs=4 * error + 1 / 100), key


def test_correlations_of_inputs_follow_the_correlation_map() -> None:
    torch.manual_seed(0)
    common = torch.randn(1, 400)
    samples = lipscope.load_samples(0.8 * common + 0.6 * torch.randn(40, 400))
    ratios = []
    layers = [nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400), nn.Tanh()]
    graph = imported(layers, 400)
    for seed in range(4):
        redrawn(graph, seed, gain=2.0, bias=0.0)
        found = lipscope.mean_field(graph, samples, count=40)
        assert found.input_correlation == pytest.approx(0.64, abs=0.05)
        ratios.append([row.measured.correlation.value / row.predicted.correlation for row in found.layers])
    assert np.mean(ratios, 0) == pytest.approx(1, abs=0.02)
    # ReLU without biases draws inputs together: correlations rise towards 1.
    predicted = [row.predicted.correlation for row in found.layers]
    assert predicted == sorted(predicted)


@pytest.mark.parametrize(("gain", "phase"), [(2.0, "critical"), (1.5, "ordered"), (3.0, "chaotic")])
def test_initialisation_of_he_is_critical(gain: float, phase: str) -> None:
    generator = torch.Generator().manual_seed(0)
    layers: list[Layer] = []
    for _ in range(12):
        weight = torch.randn(30, 30, generator=generator, dtype=torch.float64)
        layers += [Dense(weight * math.sqrt(gain / 30) / weight.square().mean().sqrt()), ReLU()]
    theory = lipscope.mean_field_theory(Graph.chain((30,), layers))
    assert [row.predicted.chi for row in theory.layers] == pytest.approx([gain / 2] * 12)
    assert theory.phase == phase
    assert theory.depth == 12
    expected = math.inf if gain == 2 else 1 / abs(math.log(gain / 2))
    assert theory.correlation_scale.predicted == pytest.approx(expected, rel=1e-6) or expected == math.inf
    # Without biases the length map of ReLU has the same slope.
    assert theory.length_scale.predicted == pytest.approx(theory.correlation_scale.predicted, rel=1e-4) or (
        theory.length_scale.predicted > 1e6
    )


# ---- the edge of the spectrum -------------------------------------------------------------------------------


def test_edges_have_their_closed_forms() -> None:
    for depth in (1, 2, 5):
        expected = 1.5**depth * (depth + 1) ** (depth + 1) / depth**depth
        assert squared_edge(100, [Weights(100, 100, 1.5)] * depth) == pytest.approx(expected, rel=1e-6)
    # V. Marchenko, L. Pastur (1967), rectangular.
    assert squared_edge(100, [Weights(300, 100, 2.0)]) == pytest.approx(2 * (1 + math.sqrt(3)) ** 2, rel=1e-6)
    # A mask that keeps half the rows leaves a matrix of half the height.
    half = Diagonal(200, torch.tensor([0.0, 1.0]).double(), torch.tensor([0.5, 0.5]).double())
    assert squared_edge(100, [Weights(200, 100, 2.0), half]) == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_the_largest_singular_value_of_a_wide_network_is_near_the_edge(activation) -> None:
    layers = [nn.Linear(500, 600), activation(), nn.Linear(600, 400), activation(), nn.Linear(400, 500)]
    graph = redrawn(imported(layers, 500), 1, gain=2.0, bias=0.1)
    found = lipscope.mean_field(graph, count=2, probes=1)
    # At finite width the largest one stays below by some N^{-2/3}.
    assert 0.93 < found.measured_norm.value / found.spectral_edge < 1.01


# ---- where the theory ends ------------------------------------------------------------------------------


def test_what_is_not_covered_is_named_and_ends_the_theory() -> None:
    softmax = nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Softmax(1), nn.Linear(4, 3), nn.ReLU()
    )
    theory = lipscope.mean_field_theory(lipscope.from_torch(softmax, (6,)))
    (end,) = theory.not_covered
    assert end.place.startswith("3 ")
    assert "softmax" in end.reason
    assert [row.predicted is None for row in theory.layers] == [False, True, True]
    assert theory.phase is theory.frobenius is theory.spectral_edge is None
    same = Residual(nn.ReLU(), 1.0, False)
    theory = lipscope.mean_field_theory(lipscope.from_torch(nn.Sequential(nn.Linear(6, 5), same), (6,)))
    assert "depend on each other" in theory.not_covered[0].reason
    channels = nn.Sequential(nn.Conv1d(1, 3, 2), nn.PReLU(3))
    theory = lipscope.mean_field_theory(lipscope.from_torch(channels, (1, 6)))
    assert theory.not_covered[0].reason == "PReLU differs between units"


def test_a_sum_behind_an_activation_is_marked() -> None:
    body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Residual(body, 1.0, False), nn.ReLU())
    theory = lipscope.mean_field_theory(lipscope.from_torch(module, (6,)))
    assert [row.approximated for row in theory.layers] == [False, False, True]
    assert theory.layers[-1].predicted.chi is None
    # The largest of units that are no monotone function of a Gaussian.
    pooled = nn.Sequential(nn.Conv2d(1, 3, 3), nn.SiLU(), nn.MaxPool2d(2))
    theory = lipscope.mean_field_theory(lipscope.from_torch(pooled, (1, 6, 6)))
    assert [row.approximated for row in theory.layers] == [False, True]


# ---- inputs, runs, the command ------------------------------------------------------------------------------


def test_moments_of_inputs_are_those_of_all_pairs_of_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 9, 8, generator=generator, dtype=torch.float64).cumsum(3) + 0.3
    module = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    graph = lipscope.from_torch(module, (2, 9, 8))
    found = lipscope.input_moments(graph, lipscope.load_samples(x), batch_size=2)
    assert found.mean == pytest.approx(float(x.mean()))
    assert found.square == pytest.approx(float(x.square().mean()))
    products = [float((x[i] * x[j]).mean()) for i in range(5) for j in range(5) if i != j]
    assert found.other == pytest.approx(np.mean(products))
    # Two cells of a 2×2 window on the grid of stride 2: two steps along rows, columns or diagonals.
    rows, columns = (x[:, :, 2:] * x[:, :, :-2]).mean(), (x[..., 2:] * x[..., :-2]).mean()
    down, up = (x[:, :, 2:, 2:] * x[:, :, :-2, :-2]).mean(), (x[:, :, 2:, :-2] * x[:, :, :-2, 2:]).mean()
    expected = float(2 * rows + 2 * columns + down + up) / 6
    assert found.windows == {3: pytest.approx(expected)}


def test_analyze_keeps_the_theory_beside_the_slopes() -> None:
    graph = redrawn(imported([nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 4)], 10), 0, gain=2.0, bias=0.1)
    options = lipscope.Options(effort="none", jacobians=0)
    result = lipscope.analyze(graph, gaussian(12, (10,)), options=options)
    (row,) = result.mean_field.layers
    assert row.measured.slope.value == result.slopes[0].active
    assert row.predicted.slope == pytest.approx(0.5)
    text = result.model_copy(update={"mean_field": None}).to_json()
    assert Result.from_json(text).mean_field is None
    assert Result.from_json(result.to_json()) == result


def test_the_command_writes_what_it_prints(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))\n"
    )
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(9, 8)).astype("f4"))
    monkeypatch.chdir(tmp_path)
    command = [
        "lipscope",
        "mean-field",
        "net.py:build",
        "--data",
        "x.npy",
        "--output",
        "run",
        "--figure",
        "f.svg",
    ]
    started = set()
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        printed, told = capsys.readouterr()
        assert "wrote run/mean-field.json and run/report.html" in told
        assert (tmp_path / "run" / "report.html").exists()
        assert "1 (Tanh)" in printed
        assert "σ_max(J)" in printed
        report = MeanFieldReport.from_json((tmp_path / "run" / "mean-field.json").read_text("utf-8"))
        assert report.data.samples == report.mean_field.samples == 9
        assert "<svg" in (tmp_path / "f.svg").read_text("utf-8")
        started.add(report.provenance.started)
    assert len(started) == 1
    monkeypatch.setattr(sys, "argv", [*command[:-3], "unused", "--figure", "f.gif"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "f.gif" in capsys.readouterr().err
    assert not (tmp_path / "unused").exists()
    monkeypatch.setattr(sys, "argv", ["lipscope", "mean-field", "net.py:build"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 5
    assert "--input-shape" in capsys.readouterr().err


def test_a_network_without_activations_has_no_phase() -> None:
    graph = Graph.chain((3,), [])
    theory = lipscope.mean_field_theory(graph)
    assert theory.phase is None
    assert theory.frobenius == 3.0
    assert lipscope.mean_field(graph, count=3).measured_frobenius.value > 0
