"""Stretch against distance: ratios below the certified bound, bins that partition, ends that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipscope
from helpers import Memory, gaussian
from lipscope.graph import Graph
from lipscope.layers.activation import ReLU
from lipscope.layers.dense import Dense
from lipscope.quantities.draws import CHUNK
from lipscope.quantities.mid_range import _curve, mid_range
from lipscope.results import MidRange, StretchCurve
from strategies import networks, seeds

PRECISE = {"dtype": torch.float64, "tolerance": 1e-10}


def smooth_network() -> tuple[nn.Module, Graph]:
    torch.manual_seed(4)
    module = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 36)).double()
    return module, lipscope.from_torch(module, (40,))


def curves(result: MidRange) -> dict[str, StretchCurve]:
    return {curve.name: curve for curve in result.curves}


def same(one: MidRange, other: MidRange) -> bool:
    return one.curves == other.curves and one.cost.forward_passes == other.cost.forward_passes


@given(networks(), seeds())
@settings(max_examples=40)
def test_ratios_lie_below_the_certified_bound(network, seed) -> None:
    graph = network.graph
    upper = lipscope.analytical(graph).value
    result = mid_range(graph, gaussian(9, network.shape, seed), pairs=20, bases=4, seed=seed)
    assert [curve.name for curve in result.curves] == ["steepest", "segments", "pairs"]
    for curve in result.curves:
        for found in curve.bins:
            values = list(found.quantiles.values())
            assert values == sorted(values)
            assert values[0] >= 0
            assert values[-1] <= upper * (1 + 1e-9) + 1e-9


@given(st.integers(1, 40), st.integers(1, 40), seeds())
@settings(max_examples=20)
def test_a_linear_network_has_one_steepest_stretch(rows, columns, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    graph = Graph.chain((columns,), [Dense(weight, torch.ones(rows, dtype=torch.float64))])
    largest = float(torch.linalg.matrix_norm(weight, 2))
    found = curves(mid_range(graph, gaussian(7, (columns,), seed), pairs=15, bases=5, **PRECISE))
    assert len(found["steepest"].bins) == 13
    for one in found["steepest"].bins:
        assert one.count == 5
        assert list(one.quantiles.values()) == pytest.approx([largest] * 7, rel=1e-9)
    for name in ("segments", "pairs"):
        assert max(one.quantiles["1"] for one in found[name].bins) <= largest * (1 + 1e-9)


def test_the_shortest_steps_show_lip() -> None:
    _, graph = smooth_network()
    samples = gaussian(24, (40,))
    lip = np.array(lipscope.local(graph, samples, tolerance=1e-10, dtype=torch.float64)[0].estimates)
    shortest = curves(mid_range(graph, samples, **PRECISE))["steepest"].bins[0]
    assert shortest.count == 24
    expected = [float(np.quantile(lip, float(q))) for q in shortest.quantiles]
    assert list(shortest.quantiles.values()) == pytest.approx(expected, rel=1e-6)


def test_the_ends_are_those_of_float64_though_directions_are_float32() -> None:
    """A step of 1e-4 beside outputs of 1e4: float32 outputs would be wrong by several per cent."""
    module, _ = smooth_network()
    with torch.no_grad():
        module[2].bias += 1e4
    graph = lipscope.from_torch(module, (40,))
    samples = gaussian(8, (40,))
    lip = lipscope.local(graph, samples, tolerance=1e-8, dtype=torch.float64)[0].estimates
    shortest = curves(mid_range(graph, samples, tolerance=1e-6))["steepest"].bins[0]
    assert shortest.quantiles["0"] == pytest.approx(min(lip), rel=1e-4)
    assert shortest.quantiles["1"] == pytest.approx(max(lip), rel=1e-4)


def test_pairs_are_secant_ratios_of_all_samples_if_all_are_asked_for() -> None:
    module, graph = smooth_network()
    samples = gaussian(12, (40,))
    found = curves(mid_range(graph, samples, pairs=66, batch_size=12))
    x = samples.batch(range(12))
    y = module(x).detach()
    i, j = np.triu_indices(12, 1)
    distances = (x[i] - x[j]).norm(dim=1).numpy()
    ratios = (y[i] - y[j]).norm(dim=1).numpy() / distances
    bins = found["pairs"].bins
    assert sum(one.count for one in bins) == 66
    for one in bins:
        inside = ratios[(distances >= one.low * (1 - 1e-12)) & (distances <= one.high * (1 + 1e-12))]
        assert len(inside) == one.count >= 10
        assert one.quantiles["0"] == pytest.approx(inside.min(), rel=1e-9)
        assert one.quantiles["0.5"] == pytest.approx(np.median(inside), rel=1e-9)
        assert one.quantiles["1"] == pytest.approx(inside.max(), rel=1e-9)


def test_segments_end_in_pairs_of_samples_and_begin_near_the_base() -> None:
    _, graph = smooth_network()
    samples = gaussian(20, (40,))
    segments = curves(mid_range(graph, samples, bases=20))["segments"].bins
    x = samples.batch(range(20))
    distances = torch.pdist(x)
    assert sum(one.count for one in segments) == 20 * 10
    assert segments[-1].high <= float(distances.max()) * (1 + 1e-12)
    assert segments[-1].high >= float(distances.median())
    assert float(distances.min()) * 0.999e-3 <= segments[0].low <= float(distances.median()) * 1.001e-3


@given(st.lists(st.floats(1e-6, 1e6), max_size=200), st.integers(1, 12), seeds())
def test_bins_partition_the_pairs(distances, least, seed) -> None:
    given_distances = np.array(distances)
    generator = np.random.default_rng(seed)
    ratios = generator.lognormal(size=len(distances))
    curve = _curve("pairs", given_distances, ratios, np.logspace(-5, 5, 11), least)
    assert sum(one.count for one in curve.bins) == len(distances)
    for one, following in zip(curve.bins, curve.bins[1:], strict=False):
        assert one.high < following.low
    for one in curve.bins:
        inside = (given_distances >= one.low) & (given_distances <= one.high)
        assert inside.sum() == one.count
        assert one.count >= min(least, len(distances))
        assert one.low <= one.distance <= one.high
        assert one.quantiles["1"] == ratios[inside].max()


@pytest.mark.usefixtures("every_save")
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_an_interrupted_run_ends_the_same(done: int) -> None:
    _, graph = smooth_network()
    samples = gaussian(700, (40,))
    options = {"pairs": 2800, "bases": 20, "batch_size": 10}
    checkpoint = Memory(done)
    with pytest.raises(KeyboardInterrupt):
        mid_range(graph, samples, checkpoint=checkpoint, **options)
    steps: list[tuple[str, int, int]] = []
    checkpoint.left = -1
    resumed = mid_range(
        graph, samples, checkpoint=checkpoint, progress=lambda *step: steps.append(step), **options
    )
    assert steps == [("mid-range", n, 4) for n in range(done + 1, 5)]
    assert same(resumed, mid_range(graph, samples, **options))


def test_the_seed_decides() -> None:
    _, graph = smooth_network()
    samples = gaussian(50, (40,))
    one, again, other = (mid_range(graph, samples, pairs=60, bases=5, seed=seed) for seed in (1, 1, 2))
    assert same(one, again)
    assert one.curves != other.curves


def test_a_large_data_set_costs_no_more_than_a_small_one() -> None:
    _, graph = smooth_network()
    small, large = (
        mid_range(graph, gaussian(count, (40,)), pairs=200, bases=4).cost.forward_passes
        for count in (60, 60 * CHUNK)
    )
    assert small is not None
    assert large is not None
    assert large <= small * 1.05


def test_one_sample_has_only_steepest() -> None:
    _, graph = smooth_network()
    result = mid_range(graph, gaussian(1, (40,)))
    assert [curve.name for curve in result.curves] == ["steepest"]
    assert [one.count for one in result.curves[0].bins] == [1] * 13


def test_duplicates_have_no_ratio() -> None:
    _, graph = smooth_network()
    x = torch.randn(1, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    twice = mid_range(graph, lipscope.load_samples(x.repeat(8, 1)))
    assert [curve.name for curve in twice.curves] == ["steepest"]
    some = torch.cat([x, x, x + 1.0])
    found = curves(mid_range(graph, lipscope.load_samples(some)))
    assert sum(one.count for one in found["pairs"].bins) == 2


@pytest.mark.parametrize("count", [1, 5])
def test_a_constant_network_on_zero_inputs(count: int) -> None:
    graph = Graph.chain(
        (3,), [Dense(torch.zeros(4, 3, dtype=torch.float64), torch.ones(4, dtype=torch.float64)), ReLU()]
    )
    zeros = lipscope.load_samples(torch.zeros(count, 3, dtype=torch.float64))
    result = mid_range(graph, zeros)
    assert [curve.name for curve in result.curves] == ["steepest"]
    for one in result.curves[0].bins:
        assert one.count == count
        assert set(one.quantiles.values()) == {0.0}
    assert result.curves[0].bins[-1].distance == pytest.approx(1.0)


def test_overflow_leaves_finite_numbers() -> None:
    weight = torch.full((1, 1), 1e200, dtype=torch.float64)
    graph = Graph.chain((1,), [Dense(weight), Dense(weight)])
    result = mid_range(graph, gaussian(6, (1,)))
    assert all(math.isfinite(v) for curve in result.curves for b in curve.bins for v in b.quantiles.values())
