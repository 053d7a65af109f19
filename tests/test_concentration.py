"""Tails under noise: the formulas against exact ones, bounds against draws, and `lipscope concentration`."""

from __future__ import annotations

import itertools
import math
import sys
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

import lipscope
from lipscope import cli
from lipscope.errors import ModelError
from lipscope.graph import Graph
from lipscope.layers.activation import GELU, ReLU, Tanh
from lipscope.layers.dense import Dense
from lipscope.quantities.concentration import (
    NoiseBound,
    clopper_pearson,
    column_squares,
    exceeded,
    noise_ball,
    tail_bound,
)
from lipscope.results import ConcentrationReport
from strategies import seeds


@st.composite
def small_networks(draw, inputs: int | None = None) -> Graph:
    """Dense chains with random weights of a few units."""
    generator = torch.Generator().manual_seed(draw(seeds()))
    widths = [inputs or draw(st.integers(1, 12)), *draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))]
    layers: list = []
    for n, m in itertools.pairwise(widths):
        weight = torch.randn(m, n, generator=generator, dtype=torch.float64) * 2 / math.sqrt(n)
        layers += [Dense(weight, torch.randn(m, generator=generator, dtype=torch.float64))]
        layers += [draw(st.sampled_from([ReLU(), Tanh(), GELU()]))]
    return Graph.chain((widths[0],), layers if draw(st.booleans()) else layers[:-1])


@given(st.floats(0, 60), st.floats(0.01, 100), st.sampled_from([1, 2]))
def test_tail_bounds_are_rounded_up(deviation: float, variance: float, sides: int) -> None:
    bound = tail_bound(deviation, variance, sides)
    with localcontext() as context:
        context.prec = 50
        exact = sides * (-(Decimal(deviation) ** 2) / (2 * Decimal(variance))).exp()
        assert Decimal(bound) >= min(exact, 1)
        assert bound <= float(min(exact, 1)) * (1 + 1e-10) + 1e-300
        level = min(0.9, max(float(exact), 1e-9))
        reached = exceeded(level, variance, 0.0, sides)
        assert sides * (-(Decimal(reached) ** 2) / (2 * Decimal(variance))).exp() <= Decimal(level)


def test_intervals_of_clopper_and_pearson() -> None:
    for above, count in [(0, 50), (1, 50), (17, 50), (50, 50)]:
        exact = binomtest(above, count).proportion_ci(0.99, "exact")
        assert clopper_pearson(above, count) == pytest.approx((exact.low, exact.high), abs=1e-9)


@given(small_networks(), st.sampled_from(["gaussian", "uniform", "signs"]), st.booleans(), st.floats(0.01, 3))
@settings(max_examples=20)
def test_measured_tails_never_cross_the_bound(graph: Graph, law, in_ball: bool, sigma: float) -> None:
    center = torch.linspace(-1, 1, math.prod(graph.input_shape), dtype=torch.float64)
    bound = noise_ball(graph, center, sigma, law) if in_ball else None
    found = lipscope.concentration(
        graph, center, sigma, law=law, bound=bound, draws=400, batch_size=400, dtype=torch.float64
    )
    for tail in found.tails:
        for point in tail.points:
            # Each interval alone misses with probability 1/100; deviations are from a measured mean.
            assert clopper_pearson(round(point.measured * 400), 400)[0] == point.low
            assert point.low <= point.bound + 1e-3, (tail.statistic, point)
        for level in tail.levels:
            assert level.measured is None or level.measured <= level.proved + 3 * tail.center_error
    norm = found.tails[1]
    assert norm.spread**2 <= norm.offset**2 * (1 + 6 / math.sqrt(400)) + 1e-20


@given(small_networks(inputs=6), st.floats(0.05, 2))
@settings(max_examples=20)
def test_signs_by_enumeration(graph: Graph, sigma: float) -> None:
    noise = sigma * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    y = graph.evaluate(noise).flatten(1)
    away = y - y.mean(0)
    squares = column_squares(graph, lipscope.analytical(graph).value)
    proxy = squares * sigma**2
    assert float(away.square().sum(1).mean()) <= proxy * (1 + 1e-9)
    for t in np.linspace(0.01, float(away.norm(dim=1).max()) + 0.01, 25):
        assert float((away.abs() > t).double().mean(0).max()) <= tail_bound(t, proxy)
        assert float((away.norm(dim=1) > t).double().mean()) <= tail_bound(
            t - math.sqrt(proxy), proxy, sides=1
        )


@given(small_networks(), seeds())
@settings(max_examples=20)
def test_columns_have_their_constants(graph: Graph, seed: int) -> None:
    squares = column_squares(graph, lipscope.analytical(graph).value)
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(50, *graph.input_shape, generator=generator, dtype=torch.float64)
    jacobians = lipscope.linearize(graph, graph.linearize_at(x)[1], 50).dense()
    assert float(jacobians.square().sum(1).amax(0).sum()) <= squares * (1 + 1e-9)


def test_an_orthogonal_map_attains_what_is_proved() -> None:
    q, _ = torch.linalg.qr(
        torch.randn(30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    found = lipscope.concentration(Graph.chain((30,), [Dense(q)]), torch.zeros(30), 0.5, draws=4000)
    single, norm = found.tails
    assert found.lipschitz == pytest.approx(1)
    assert single.spread == pytest.approx(0.5, rel=0.06)
    assert norm.offset == pytest.approx(0.5 * math.sqrt(30))
    assert norm.spread == pytest.approx(norm.offset, rel=0.03)
    assert found.local_frobenius == pytest.approx(math.sqrt(30), rel=0.3)
    for point in single.points:
        exact = math.erfc(point.deviation / (0.5 * math.sqrt(2)))
        assert exact <= point.bound
        assert point.low <= exact + 0.01
        assert exact - 0.01 <= point.high


def test_the_narrowest_layer_bounds_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.eye(2, 40).double(), torch.randn(40, 2, generator=generator, dtype=torch.float64)
    graph = Graph.chain((40,), [Dense(down), Tanh(), Dense(up)])
    found = lipscope.concentration(graph, torch.zeros(40), 0.1, draws=10)
    assert found.rank == 2
    assert found.tails[1].offset == pytest.approx(0.1 * found.lipschitz * math.sqrt(2), rel=1e-6)


def test_gaussian_concentration_fails_for_signs() -> None:
    # The distance to A = {Σx ≤ 0} is 1-Lipschitz; on the cube it is twice the root of the signs to be turned.
    count = 10**6
    total = 2 * np.random.default_rng(0).binomial(count, 0.5, 20_000) - count
    distance = 2 * np.sqrt(np.ceil(np.maximum(total, 0) / 2))
    away = np.abs(distance - distance.mean())
    assert (away > 15).mean() > 0.3 > tail_bound(15.0, 1.0)
    # With bounded differences it is covered, at the price of the dimension.
    assert (away > 15).mean() <= tail_bound(15.0, float(count))


def test_a_larger_constant_than_needed_is_only_looser() -> None:
    graph = Graph.chain((3,), [Dense(torch.eye(3, dtype=torch.float64)), Tanh()])
    tight = lipscope.analytical(graph)
    loose = tight.model_copy(update={"value": 5.0})
    found = [
        lipscope.concentration(graph, torch.zeros(3), 1.0, bound=NoiseBound(bound), draws=20)
        for bound in (tight, loose)
    ]
    assert found[0].variance_proxy * 25 == pytest.approx(found[1].variance_proxy)
    with pytest.raises(ModelError, match="overflows"):
        lipscope.concentration(Graph.chain((3,), [Dense(torch.eye(3).double() * 1e38)]), torch.zeros(3), 1e3)
    with pytest.raises(ValueError, match="sigma"):
        lipscope.concentration(graph, torch.zeros(3), 0.0)
    with pytest.raises(ValueError, match="shape"):
        lipscope.concentration(graph, torch.zeros(4), 1.0)


def run(monkeypatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["lipscope", "concentration", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_writes_what_it_prints(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Gate(nn.Module):\n    def forward(self, x):\n        return x * x\n\n"
        "def build():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Linear(4, 3), Gate())\n"
    )
    np.save(tmp_path / "x.npy", np.zeros((2, 4), "f4"))
    monkeypatch.chdir(tmp_path)
    common = ("net.py:build", "--input-shape", "4", "--sigma", "0.1", "--draws", "100", "--output")
    assert run(monkeypatch, *common, "global") == 0
    printed, told = capsys.readouterr()
    assert "wrote global/concentration.json and global/report.html" in told
    assert (tmp_path / "global" / "report.html").exists()
    assert "Nothing is proved" in printed
    report = ConcentrationReport.from_json((tmp_path / "global" / "concentration.json").read_text("utf-8"))
    assert report.concentration.no_bound is not None
    assert all(point.bound == 1.0 for tail in report.concentration.tails for point in tail.points)
    assert run(monkeypatch, *common, "ball", "--ball", "--figure", "f.svg") == 0
    assert "left with probability" in capsys.readouterr().out
    report = ConcentrationReport.from_json((tmp_path / "ball" / "concentration.json").read_text("utf-8"))
    found = report.concentration
    assert found.rests_on == "ball"
    assert math.isfinite(found.lipschitz)
    assert 0 < found.outside < 1.1e-9
    assert all(point.bound >= found.outside for tail in found.tails for point in tail.points)
    assert "<svg" in (tmp_path / "f.svg").read_text("utf-8")
    assert run(monkeypatch, *common, "third", "--at", "x.npy", "--number", "2") == 5
    assert "2 samples, numbered from 0; 2 is none" in capsys.readouterr().err
