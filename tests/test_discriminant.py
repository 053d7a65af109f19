"""Class separation layer by layer: against scikit-learn and plain formulas, and what a stretch allows."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from sklearn.covariance import ledoit_wolf as reference_ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

import lipscope
from helpers import PRECISE, gaussian, small_network
from lipscope import Labels, Samples, cli, load_labels
from lipscope.errors import DataError
from lipscope.graph import Graph
from lipscope.layers.activation import LeakyReLU
from lipscope.quantities.discriminant import fisher_quotient, ledoit_wolf
from lipscope.report import print_report
from lipscope.results import Discriminant, DiscriminantReport
from strategies import networks, seeds


def clusters(
    count: int, size: int, classes: int, seed: int, apart: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes about Gaussian centres, of unequal sizes."""
    generator = np.random.default_rng(seed)
    y = np.concatenate([np.repeat(np.arange(classes), 3), generator.integers(0, classes, count)])
    centres = apart * generator.normal(size=(classes, size))
    return centres[y] + generator.normal(size=(len(y), size)), y


def labelled(x: np.ndarray, y: np.ndarray) -> tuple[Samples, Labels]:
    samples = lipscope.load_samples(x)
    return samples, load_labels(y, samples)


def scatters(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S_b and S_w by their definition."""
    between, within = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1],) * 2)
    for c in np.unique(y):
        mine = x[y == c]
        off = (mine.mean(0) - x.mean(0))[:, None]
        between += len(mine) / len(x) * off @ off.T
        within += len(mine) / len(x) * np.cov(mine.T, bias=True).reshape(within.shape)
    return between, within


# ---- linear discriminant analysis -----------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(2, 5), seeds())
@settings(max_examples=15)
def test_the_quotient_is_that_of_scikit_learn(size: int, classes: int, seed: int) -> None:
    x, y = clusters(40, size, classes, seed)
    samples, labels = labelled(x, y)
    found = lipscope.discriminant(Graph.chain((size,), []), samples, labels, **PRECISE).layers[0]
    between, within = scatters(x, y)
    eigenvalues = np.sort(np.linalg.eigvals(np.linalg.solve(within, between)).real)[::-1]
    assert found.quotient == pytest.approx(eigenvalues[0])
    lda = LinearDiscriminantAnalysis(solver="eigen").fit(x, y)
    w = lda.scalings_[:, 0]
    assert found.quotient == pytest.approx(float((w @ between @ w) / (w @ within @ w)))
    kept = min(classes - 1, size)
    assert lda.explained_variance_ratio_ == pytest.approx(
        eigenvalues[:kept] / eigenvalues[:kept].sum(), abs=1e-6
    )
    assert (found.between, found.within) == (
        pytest.approx(np.trace(between)),
        pytest.approx(np.trace(within)),
    )
    assert found.ratio == pytest.approx(np.trace(between) / np.trace(within))


@given(st.integers(2, 40), st.integers(1, 30), seeds())
@settings(max_examples=25)
def test_shrinkage_is_that_of_scikit_learn(count: int, size: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(count, size)) * np.linspace(1, 3, size)
    covariance, shrinkage = ledoit_wolf(x)
    expected, amount = reference_ledoit_wolf(x, assume_centered=True)
    if size > 1:
        assert shrinkage == pytest.approx(amount, abs=1e-9)
    np.testing.assert_allclose(covariance, expected, atol=1e-9)


def test_the_quotient_is_infinite_where_a_direction_has_no_scatter_within() -> None:
    x, y = clusters(10, 30, 3, 0)  # more dimensions than samples
    samples, labels = labelled(x, y)
    found = lipscope.discriminant(Graph.chain((30,), []), samples, labels, **PRECISE).layers[0]
    assert found.quotient == math.inf
    assert found.held_out is None or found.held_out < math.inf
    assert (
        fisher_quotient(
            np.array([[0.0, 1], [0, 2], [1, 1], [1, 3]]), load_labels([0, 0, 1, 1], gaussian(4, (1,)))
        )
        == math.inf
    )


def test_what_is_held_out_tells_noise_from_classes() -> None:
    """High-dimensional noise: infinite on the samples themselves, chance on others."""
    quotients = {}
    for apart in (0.0, 1.0):
        x, y = clusters(150, 300, 3, 1, apart)
        found = lipscope.discriminant(Graph.chain((300,), []), *labelled(x, y), **PRECISE)
        assert found.layers[0].quotient == math.inf
        quotients[apart] = found.layers[0].held_out
        assert found.chance == pytest.approx(2 / (len(y) / 2 - 3))
    assert quotients[0.0] < 5 * found.chance
    assert quotients[1.0] > 100 * found.chance


def test_accuracy_is_scikit_learns() -> None:
    x, y = clusters(90, 5, 3, 0, 3.0)
    found = lipscope.discriminant(Graph.chain((5,), []), *labelled(x, y), accuracy=True, **PRECISE).layers[0]
    assert found.accuracy is not None
    assert found.accuracy > 0.95
    turned = x @ np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    same = lipscope.discriminant(
        Graph.chain((5,), []), *labelled(turned, y), accuracy=True, **PRECISE
    ).layers[0]
    assert same.accuracy == found.accuracy
    noise = np.random.default_rng(0).normal(size=x.shape)
    other = lipscope.discriminant(
        Graph.chain((5,), []), *labelled(noise, y), accuracy=True, **PRECISE
    ).layers[0]
    assert other.accuracy is not None
    assert other.accuracy < 0.6


def test_accuracy_stands_where_dimensions_outnumber_samples() -> None:
    """Classes apart along the directions of most scatter, noise in many others."""
    x, y = clusters(60, 3, 3, 0, 4.0)
    wide = np.hstack([3 * x, np.random.default_rng(0).normal(size=(len(x), 200))])
    found = lipscope.discriminant(
        Graph.chain((203,), []), *labelled(wide, y), accuracy=True, **PRECISE
    ).layers[0]
    assert found.accuracy is not None
    assert found.accuracy > 0.9


# ---- what a stretch allows ------------------------------------------------------------------------------


@given(networks(most=4), seeds(), st.integers(2, 4))
@settings(max_examples=6)
def test_scatter_grows_by_no_more_than_the_squared_stretch(network, seed: int, classes: int) -> None:
    graph = network.graph
    x, y = clusters(10, math.prod(network.shape), classes, seed)
    samples, labels = labelled(x.reshape(-1, *network.shape), y)
    found = lipscope.discriminant(graph, samples, labels, **PRECISE)
    little = 1 + 1e-8
    for layer in found.layers:
        assert layer.attained <= layer.certified * little
        assert layer.total_stretch <= layer.attained * little + 1e-12
        assert layer.within_stretch <= layer.attained * little + 1e-12
        assert layer.certified_separation <= layer.attained_separation * little**2
        assert layer.attained_separation <= layer.ratio * little
        assert layer.attained_separation <= found.limit * little
        assert layer.attained_direction <= layer.attained_separation * little
        assert layer.direction_between <= layer.between * little
    first = found.layers[0]
    assert (first.layer, first.certified, first.attained) == ("input", 1.0, pytest.approx(1.0))
    assert first.ratio < found.limit < first.ratio + 1


def test_the_limit_is_attained_where_means_agree() -> None:
    """x = ±1 in one class, 0 in the other: |x| parts them."""
    samples, labels = labelled(np.array([[1.0], [-1], [0], [0]]), np.array([0, 0, 1, 1]))
    found = lipscope.discriminant(Graph.chain((1,), [LeakyReLU(-1.0)]), samples, labels, **PRECISE)
    before, after = found.layers
    assert (before.between, before.ratio) == (0.0, 0.0)
    assert before.quotient == pytest.approx(0.0, abs=1e-12)
    assert found.limit == pytest.approx(0.5)
    assert after.attained_separation == pytest.approx(found.limit)
    assert after.certified_separation == pytest.approx(found.limit)
    assert (after.ratio, after.quotient, after.between_stretch) == (math.inf, math.inf, math.inf)
    assert Discriminant.model_validate_json(found.model_dump_json()) == found


def test_scaling_and_rotating_separate_nothing() -> None:
    x, y = clusters(40, 6, 3, 5)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    module = nn.Linear(6, 6).double()
    with torch.no_grad():
        module.weight.copy_(7 * turn)
    found = lipscope.discriminant(lipscope.from_torch(module, (6,)), *labelled(x, y), **PRECISE)
    before, after = found.layers
    for name in (
        "ratio",
        "quotient",
        "held_out",
        "shrinkage",
        "attained_separation",
        "certified_separation",
        "rank",
    ):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-6), name
    assert after.attained == pytest.approx(7.0)
    assert (after.between_stretch, after.within_stretch) == (pytest.approx(7.0), pytest.approx(7.0))


# ---- streaming ------------------------------------------------------------------------------------------


def test_slices_of_any_size_give_the_same() -> None:
    _, graph = small_network()
    x = torch.randn(17, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples, labels = labelled(x.numpy(), np.arange(17) % 2)
    whole = lipscope.discriminant(graph, samples, labels, **PRECISE)
    small = lipscope.discriminant(graph, samples, labels, memory=17 * 8 * 50, batch_size=5, **PRECISE)
    assert small.cost.forward_passes > 5 * whole.cost.forward_passes
    assert [layer.place for layer in small.layers] == [layer.place for layer in whole.layers]
    assert not any("Flatten" in layer.place for layer in whole.layers)
    for one, other in zip(whole.layers, small.layers, strict=True):
        for name in ("between", "within", "attained", "held_out", "direction_between"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-8), (one.place, name)
    # Against the features themselves.
    features = graph.evaluate(x).numpy()
    between, within = scatters(features, np.arange(17) % 2)
    last = whole.layers[-1]
    assert (last.between, last.within) == (pytest.approx(np.trace(between)), pytest.approx(np.trace(within)))
    ratios = [
        np.linalg.norm(features[i] - features[j]) / float((x[i] - x[j]).norm())
        for i in range(17)
        for j in range(i)
    ]
    assert last.attained == pytest.approx(max(ratios))
    assert last.rank == np.linalg.matrix_rank(features - features.mean(0))


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([0] * 6, "two classes"),
        ([0, 0, 0, 1, 1, 2], "class 2 has a single sample"),
        ([0, 0, 0, 1], "labels for 6 samples"),
    ],
)
def test_labels_that_part_nothing_are_refused(y: list[int], words: str) -> None:
    samples = gaussian(6, (2,))
    labels = load_labels(y, gaussian(len(y), (2,)))
    with pytest.raises(DataError, match=words):
        lipscope.discriminant(Graph.chain((2,), []), samples, labels)


def test_samples_that_do_not_scatter_are_refused() -> None:
    samples, labels = labelled(np.array([[1.0], [1], [0], [0]]), np.array([0, 0, 1, 1]))
    with pytest.raises(DataError, match="nothing scatters"):
        lipscope.discriminant(Graph.chain((1,), []), samples, labels, **PRECISE)


@pytest.mark.parametrize("width", [50, 80, 120, 160])
def test_the_table_fits(width: int) -> None:
    _, graph = small_network()
    report = lipscope.separate(graph, gaussian(12, (2, 8, 8)), [0, 1, 2] * 4, name="[net]")
    for encoding in ("utf-8", "ascii"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
        print_report(report, Console(file=stream, width=width, color_system=None))
        stream.flush()
        text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert max(map(len, text.splitlines())) <= width
        for words in ("[net]", "3 classes", "input", "Held", "no map reaches more than"):
            assert words in " ".join(text.split())


# ---- the command ----------------------------------------------------------------------------------------

NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "net.py").write_text(NET)
    x, y = clusters(60, 6, 3, 0)
    np.savez(tmp_path / "data.npz", x=x.astype("f4"), y=y)
    monkeypatch.chdir(tmp_path)

    def command(width: int, *args: str) -> tuple[int, str]:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(
            sys, "argv", ["lipscope", "discriminant", "net.py:build", "--data", "data.npz", *args]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out + written.err

    return command


def test_the_command_prints_and_writes(run, tmp_path: Path) -> None:
    options = ("--labels", "data.npz", "--samples", "50", "--accuracy", "--output", "r")
    code, text = run(140, *options, "--figure", "f.svg")
    assert code == 0, text
    for words in ("3 classes", "2 (Linear)", "Held out", "L ≤", "no map reaches more than", "%"):
        assert words in text
    report = DiscriminantReport.from_json((tmp_path / "r" / "discriminant.json").read_bytes())
    assert [layer.node for layer in report.discriminant.layers] == [0, 1, 2, 3]
    assert abs(sum(c.samples for c in report.discriminant.classes) - 50) <= 2
    assert "<svg" in (tmp_path / "f.svg").read_text()
    assert "wrote r/discriminant.json and r/report.html" in text
    assert (tmp_path / "r" / "report.html").exists()
    code, text = run(60, *options)  # read back
    assert code == 0
    assert max(map(len, text.splitlines())) <= 60


def test_classes_are_the_folders_of_images(run, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(low, low + 100, (1, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    code, text = run(120, "--data", "photos", "--input-shape", "1x1x6", "--output", "r")
    assert code == 0, text
    report = DiscriminantReport.from_json((tmp_path / "r" / "discriminant.json").read_bytes())
    assert [(c.name, c.samples) for c in report.discriminant.classes] == [("dark", 4), ("light", 4)]
    assert report.discriminant.layers[0].ratio > 1


def test_the_command_says_what_is_wrong(run) -> None:
    code, text = run(120)
    assert code == 5
    assert "no class sub-folder" in text
    code, text = run(120, "--labels", "net.py")
    assert code == 5
    assert "is no file of labels" in text
