"""Draws of batches and pairs, mean slopes at every level, and the effective constant."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lipscope
from helpers import PRECISE, Memory, gaussian, small_network
from lipscope.graph import Graph
from lipscope.layers.activation import ReLU
from lipscope.layers.dense import Dense
from lipscope.layers.max_pool import MaxPool
from lipscope.quantities.draws import GROUPS, Batch, chunks, draw
from lipscope.quantities.effective import jackknife_error
from lipscope.slopes import Level
from lipscope.windows import Windows
from strategies import Network, networks, seeds


def value(means: lipscope.MeanSlopes, level: Level, reading: str) -> float:
    return lipscope.effective(means, level, reading)[0].value


def pairs_of(batches: list[Batch]) -> list[tuple[int, int]]:
    return [
        (batch.indices[run.first + k], batch.indices[run.second + k])
        for batch in batches
        for run in batch.pairs
        for k in range(run.count)
    ]


@given(st.integers(1, 70), st.integers(0, 3000), st.integers(1, 40), seeds())
@settings(max_examples=150)
def test_draws_visit_every_sample_and_draw_what_was_asked(
    count: int, pairs: int, batch_size: int, seed: int
) -> None:
    batches = draw(count, pairs, batch_size, seed)
    assert sorted(i for b in batches if b.new for i in b.indices) == list(range(count))
    assert all(len(b.indices) <= max(batch_size, 2) for b in batches)
    drawn = pairs_of(batches)
    possible = count * (count - 1) // 2
    assert len(drawn) == min(pairs, possible)
    assert all(i != j for i, j in drawn)
    assert sum(b.pair_count for b in batches) == len(drawn)
    # Within a batch no pair comes twice, and every batch keeps to its groups.
    owner: dict[int, int] = {}
    for b in batches:
        if b.new:
            owner.update(dict.fromkeys(b.indices, b.groups[0]))
    for b in batches:
        assert {owner[i] for i in b.indices} <= set(b.groups)
        assert max(Counter(frozenset(p) for p in pairs_of([b])).values(), default=1) == 1
        if len(b.groups) == 2:
            assert all({owner[i], owner[j]} == set(b.groups) for i, j in pairs_of([b]))
    if -(-count // GROUPS) <= batch_size // 2:
        assert len({frozenset(p) for p in drawn}) == len(drawn), (
            "distinct pairs where groups fit into half a batch"
        )
    assert [b for chunk in chunks(batches) for b in chunk] == batches


def test_pairs_are_spread_over_the_data() -> None:
    batches = draw(2000, 1000, 32, seed=3)
    assert all(b.new for b in batches)
    counts = [b.pair_count for b in batches]
    assert max(counts) <= 1.5 * 1000 / len(batches)
    assert len({i for pair in pairs_of(batches) for i in pair}) > 1900, (
        "pairs are disjoint where that suffices"
    )


def dense(net: Network, graph: Graph, slopes: lipscope.graph.Slopes, batch: int) -> torch.Tensor:
    return lipscope.linearize(graph, slopes, batch).dense()


@given(networks(most=5), seeds())
@settings(max_examples=40)
def test_mean_slopes_are_the_means_over_exactly_the_pairs_drawn(net: Network, seed: int) -> None:
    """Also with a group left out: means over the points and pairs that do not touch it."""
    graph = net.graph
    samples = gaussian(11, net.shape, seed)
    means = lipscope.mean_slopes(graph, samples, pairs=30, batch_size=5, seed=seed, **PRECISE)
    batches = draw(11, 30, 5, seed)
    x = samples.batch(range(11))
    groups = sorted({g for b in batches for g in b.groups})
    owner = {i: b.groups[0] for b in batches if b.new for i in b.indices}
    pairs = pairs_of(batches)
    assert (means.samples, means.pairs) == (11, 30)
    for without in (None, groups[0], groups[-1]):
        points = [i for i in range(11) if owner[i] != without]
        kept = [(i, j) for i, j in pairs if without not in (owner[i], owner[j])]
        first, second = map(list, zip(*kept, strict=True))
        at_points = graph.linearize_at(x[points])[1]
        over_pairs = graph.secant_slopes(x[first], x[second])
        for kind, expected in (("active", at_points), ("secant", over_pairs)):
            found = means.sums.mean(kind, without)
            for index, slope in expected.items():
                for level in ("unit", "channel", "scalar"):
                    a, b = found[index].coarsened(level), slope.mean(level)
                    torch.testing.assert_close(a.values, b.values, rtol=2e-6, atol=2e-6)


@given(networks(most=4), seeds())
@settings(max_examples=25)
def test_levels_agree_where_slopes_do_not_vary(net: Network, seed: int) -> None:
    """On one sample, level unit is Lip(x) itself; no level's norm exceeds the certified bound."""
    graph = net.graph
    samples = gaussian(1, net.shape, seed)
    means = lipscope.mean_slopes(graph, samples, **PRECISE)
    jacobian = lipscope.linearize(graph, graph.linearize_at(samples.batch([0]))[1]).dense()
    exact = float(torch.linalg.matrix_norm(jacobian, 2))
    assert value(means, "unit", "active") == pytest.approx(exact, rel=1e-5, abs=1e-9)
    found, _ = lipscope.effective(means, "unit", "active")
    assert found.standard_error is None
    with pytest.raises(ValueError, match="two samples"):
        means.at("unit", "secant")
    with pytest.raises(ValueError, match="level 'scalar'"):
        means.at("unit", "paper")


@given(networks(most=5), seeds())
@settings(max_examples=25)
def test_effective_constants_stay_below_the_certified_bound(net: Network, seed: int) -> None:
    graph = net.graph
    means = lipscope.mean_slopes(graph, gaussian(6, net.shape, seed), pairs=15, **PRECISE)
    upper = lipscope.analytical(graph).value
    for level in ("channel", "unit"):
        for reading in ("active", "secant"):
            assert value(means, level, reading) <= upper * (1 + 1e-6)


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    """Many data sets of one distribution: their L_eff scatter by about the standard error of each."""
    torch.manual_seed(0)
    layers = [
        Dense(torch.randn(12, 6, dtype=torch.float64)),
        ReLU(),
        Dense(torch.randn(5, 12, dtype=torch.float64)),
    ]
    graph = Graph.chain((6,), layers)
    values, errors = [], []
    for seed in range(60):
        means = lipscope.mean_slopes(graph, gaussian(64, (6,), seed), pairs=2016, seed=seed, **PRECISE)
        found = [lipscope.effective(means, "unit", reading)[0] for reading in ("active", "secant")]
        values.append([f.value for f in found])
        errors.append([f.standard_error for f in found])
    scatter = np.std(values, axis=0, ddof=1)
    claimed = np.sqrt(np.square(np.array(errors, dtype=float)).mean(0))
    assert (claimed / scatter > 0.6).all(), (claimed, scatter)
    assert (claimed / scatter < 1.7).all(), (claimed, scatter)


def test_the_first_order_jackknife_is_close_to_solving_again() -> None:
    _, graph = small_network()
    means = lipscope.mean_slopes(graph, gaussian(40, (2, 8, 8)), pairs=500, **PRECISE)
    for level in ("scalar", "channel", "unit"):
        found, direction = lipscope.effective(means, level, "secant")
        assert float(direction.norm()) == pytest.approx(1)
        again = [
            float(lipscope.spectral_norm(lipscope.linearize(graph, s), tolerance=1e-9, block=2).value)
            for s in means.left_out(level, "secant")
        ]
        assert len(again) == GROUPS
        assert found.standard_error == pytest.approx(jackknife_error(again), rel=0.1)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_levels_do_not_depend_on_how_the_data_are_batched(batch_size: int) -> None:
    _, graph = small_network()
    samples = gaussian(40, (2, 8, 8))
    one = lipscope.mean_slopes(graph, samples, pairs=1, batch_size=40, **PRECISE)
    other = lipscope.mean_slopes(graph, samples, pairs=1, batch_size=batch_size, seed=5, **PRECISE)
    for level in ("scalar", "channel", "unit"):
        assert value(one, level, "active") == pytest.approx(value(other, level, "active"), rel=1e-5)


def test_float32_sums_agree_with_float64() -> None:
    _, graph = small_network()
    samples = gaussian(60, (2, 8, 8))
    coarse = lipscope.mean_slopes(graph, samples, pairs=600)
    fine = lipscope.mean_slopes(graph, samples, pairs=600, **PRECISE)
    for level in ("scalar", "channel", "unit"):
        for reading in ("active", "secant"):
            assert value(coarse, level, reading) == pytest.approx(value(fine, level, reading), rel=1e-5)


def test_effective_equals_the_dense_product_of_mean_slopes() -> None:
    generator = torch.Generator().manual_seed(0)
    w1 = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    w2 = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    graph = Graph.chain((4,), [Dense(w1), ReLU(), Dense(w2)])
    samples = gaussian(50, (4,))
    means = lipscope.mean_slopes(graph, samples, pairs=10**6, batch_size=50, **PRECISE)
    x = samples.batch(range(50))
    a = x @ w1.T
    active = (a > 0).double()
    first, second = map(list, zip(*itertools.combinations(range(50), 2), strict=True))
    secant = (a[first].relu() - a[second].relu()) / (a[first] - a[second])
    assert means.pairs == 50 * 49 // 2
    p = float(active.mean())
    q = float(secant.mean())
    norm = float(torch.linalg.matrix_norm(w2 @ w1, 2))
    assert value(means, "scalar", "active") == pytest.approx(p * norm, rel=1e-9)
    assert value(means, "scalar", "secant") == pytest.approx(q * norm, rel=1e-9)
    for reading, d in (("active", active.mean(0)), ("secant", secant.mean(0))):
        expected = float(torch.linalg.matrix_norm(w2 @ torch.diag(d) @ w1, 2))
        assert value(means, "channel", reading) == pytest.approx(expected, rel=1e-9)
    (row,) = means.table()
    assert row.active == pytest.approx(p)
    assert row.secant == pytest.approx(q)


def test_the_arithmetic_of_the_papers_reading() -> None:
    """The source prints ∏p_k = 0.0024957 for five layers, and 3.42e-6 after three 3×3 poolings (1/9³)."""
    layers: list[lipscope.graph.Layer] = []
    for index in range(5):
        layers += [Dense(torch.ones(1, 1, dtype=torch.float64)), ReLU()]
        if index in (0, 1, 4):
            layers += [MaxPool(Windows((1,), (1,), (9,), (1,), (4,), (1,)))]
    graph = Graph.chain((1, 1), layers)
    fractions = [0.0024957 ** (1 / 5)] * 5
    slopes = lipscope.scalar_slopes(graph, fractions, pooling="paper")
    found = lipscope.spectral_norm(lipscope.linearize(graph, slopes))
    assert math.prod(fractions) == pytest.approx(0.0024957)
    assert float(found.value) == pytest.approx(0.0024957 / 9**3, rel=1e-12)
    assert float(found.value) == pytest.approx(3.42e-6, rel=2e-3)


def test_scalar_pooling_is_the_mean_of_the_tile_and_channel_pooling_the_selection_frequency() -> None:
    windows = Windows((4,), (2,), (2,), (2,), (0,), (1,))
    graph = Graph.chain((1, 4), [MaxPool(windows)])
    # The first cell of each window always wins.
    samples = lipscope.load_samples(torch.tensor([[[2.0, 1.0, 2.0, 1.0]], [[5.0, 1.0, 3.0, 2.0]]]).double())
    means = lipscope.mean_slopes(graph, samples, **PRECISE)
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64).reshape(1, 1, 1, 4)
    scalar = lipscope.linearize(graph, means.at("scalar", "active")).matvec(x)
    channel = lipscope.linearize(graph, means.at("channel", "active")).matvec(x)
    paper = lipscope.linearize(graph, means.at("scalar", "paper")).matvec(x)
    assert scalar.flatten().tolist() == [5.5, 550.0]
    assert channel.flatten().tolist() == [1.0, 100.0]
    assert paper.flatten().tolist() == [0.5, 50.0]


@pytest.mark.usefixtures("every_save")
@pytest.mark.parametrize("saves", [0, 1, 2, 3, 5, 8])
def test_an_interrupted_quantity_ends_the_same(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipscope.quantities.draws.CHUNK", 7)
    _, graph = small_network()
    samples = gaussian(20, (2, 8, 8))

    def run(checkpoint: Memory) -> tuple[object, object]:
        means = lipscope.mean_slopes(graph, samples, pairs=60, batch_size=5, checkpoint=checkpoint, **PRECISE)
        found, _ = lipscope.local(graph, samples, batch_size=4, checkpoint=checkpoint, **PRECISE)
        cost = {"cost", "method"}
        return means.table(), found.model_dump(exclude=cost)

    whole = run(Memory())
    memory = Memory(saves)
    with pytest.raises(KeyboardInterrupt):
        run(memory)
    memory.left = -1
    assert run(memory) == whole
