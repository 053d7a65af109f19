"""Quantities against brute force: lower ≤ truth ≤ upper, and each number is what it says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import lipscope
from lipscope.graph import Graph
from lipscope.layers.activation import ReLU
from lipscope.layers.dense import Dense
from lipscope.layers.max_pool import MaxPool
from lipscope.quantities.checkpoint import State
from lipscope.quantities.effective import _plan
from lipscope.windows import Windows
from strategies import networks, seeds

PRECISE = {"dtype": torch.float64}


def gaussian(count: int, shape: tuple[int, ...], seed: int = 0) -> lipscope.Samples:
    generator = torch.Generator().manual_seed(seed)
    return lipscope.load_samples(torch.randn(count, *shape, generator=generator, dtype=torch.float64))


def small_network() -> tuple[nn.Module, Graph]:
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten()
    ).double()  # fmt: skip
    return module, lipscope.from_torch(module, (2, 8, 8))


def dense_jacobian_norms(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: module(z[None])[0]))(x)
    return torch.linalg.matrix_norm(jacobians.reshape(len(x), -1, x[0].numel()), 2).detach()


@given(networks(), seeds())
@settings(max_examples=40)
def test_lower_bounds_lie_below_the_certified_upper_bound(network, seed) -> None:
    graph = lipscope.from_torch(network.module, network.shape)
    samples = gaussian(6, network.shape, seed)
    upper = lipscope.analytical(graph).value
    local, _ = lipscope.local(graph, samples, **PRECISE)
    found = lipscope.empirical(graph, samples)
    assert local.value <= upper
    assert max(local.estimates) <= upper * (1 + 1e-9)
    assert found is not None
    assert found[0].value <= upper


def test_local_is_the_norm_of_the_jacobian() -> None:
    module, graph = small_network()
    samples = gaussian(9, (2, 8, 8))
    result, pair = lipscope.local(graph, samples, tolerance=1e-8, batch_size=4, **PRECISE)
    expected = dense_jacobian_norms(module, samples.batch(range(9)))
    np.testing.assert_allclose(result.estimates, expected, rtol=1e-7)
    assert result.value == pytest.approx(float(expected.max()), rel=1e-6)
    assert result.value <= float(expected.max()) * (1 + 1e-12)
    # The witness is a pair whose difference quotient anyone can compute again.
    y1, y2 = module(torch.stack([pair.x1, pair.x2])).detach()
    assert float((y1 - y2).norm() / (pair.x1 - pair.x2).norm()) == pytest.approx(result.value, rel=1e-6)
    assert result.mean == pytest.approx(float(expected.mean()), rel=1e-6)
    assert result.std == pytest.approx(float(expected.std()), rel=1e-5)


def test_local_at_a_kink_reports_what_is_attained() -> None:
    """x − relu(x) + relu(−x) is 0 everywhere, but its formal Jacobian at 0 is 1: no witness has it."""

    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - torch.relu(x) + torch.relu(-x)

    graph = lipscope.from_torch(Zero(), (1,))
    result, _ = lipscope.local(
        graph, lipscope.load_samples(torch.zeros(1, 1, dtype=torch.float64)), **PRECISE
    )
    assert result.estimates == [1.0]
    assert result.value == 0.0


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
    assert lipscope.effective(means, "scalar", "active").value == pytest.approx(p * norm, rel=1e-9)
    assert lipscope.effective(means, "scalar", "secant").value == pytest.approx(q * norm, rel=1e-9)
    for reading, d in (("active", active.mean(0)), ("secant", secant.mean(0))):
        expected = float(torch.linalg.matrix_norm(w2 @ torch.diag(d) @ w1, 2))
        assert lipscope.effective(means, "channel", reading).value == pytest.approx(expected, rel=1e-9)
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


@pytest.mark.parametrize(
    ("count", "pairs", "batch"), [(7, 21, 3), (50, 200, 16), (2, 10, 16), (33, 40, 32), (5, 3, 5)]
)
def test_the_plan_draws_what_was_asked(count: int, pairs: int, batch: int) -> None:
    plan = _plan(count, pairs, batch, seed=1)
    drawn = sum(taken for _, shifts, _ in plan for _, taken in shifts)
    assert drawn == min(pairs, count * (count - 1) // 2)
    first_pass = [i for indices, _, first in plan if first for i in indices]
    assert sorted(first_pass) == list(range(count))
    for indices, shifts, _ in plan:
        seen = set()
        for shift, taken in shifts:
            for k in range(taken):
                pair = frozenset((indices[k], indices[(k + shift) % len(indices)]))
                assert len(pair) == 2
                assert pair not in seen
                seen.add(pair)


class Memory:
    """A checkpoint that can be cut off after some saves, as a kill would."""

    def __init__(self, saves: int) -> None:
        self.left, self.states = saves, {}

    def load(self, name: str) -> State | None:
        return self.states.get(name)

    def save(self, name: str, **state: np.ndarray) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.states[name] = {key: np.array(value) for key, value in state.items()}


@pytest.mark.parametrize("saves", [1, 2, 3])
def test_an_interrupted_quantity_ends_the_same(saves: int) -> None:
    _, graph = small_network()
    samples = gaussian(20, (2, 8, 8))

    def run(checkpoint: Memory) -> tuple[object, object]:
        means = lipscope.mean_slopes(graph, samples, pairs=60, batch_size=5, checkpoint=checkpoint, **PRECISE)
        found, _ = lipscope.local(graph, samples, batch_size=4, checkpoint=checkpoint, **PRECISE)
        cost = {"cost", "method"}
        return means.table(), found.model_dump(exclude=cost)

    whole = run(Memory(-1))
    memory = Memory(saves)
    with pytest.raises(KeyboardInterrupt):
        run(memory)
    memory.left = -1
    assert run(memory) == whole


def test_a_constant_network_has_constant_zero() -> None:
    graph = Graph.chain((3,), [Dense(torch.zeros(2, 3, dtype=torch.float64)), ReLU()])
    samples = gaussian(4, (3,))
    assert lipscope.analytical(graph).value == 0.0
    assert lipscope.local(graph, samples, **PRECISE)[0].value == 0.0
    found = lipscope.empirical(graph, samples)
    assert found is not None
    assert found[0].value == 0.0
    assert lipscope.effective(lipscope.mean_slopes(graph, samples, **PRECISE)).value == 0.0


def test_an_empty_network_is_the_identity() -> None:
    graph = lipscope.from_torch(nn.Identity(), (3,))
    samples = gaussian(4, (3,))
    assert lipscope.analytical(graph).value == 1.0
    assert lipscope.local(graph, samples, **PRECISE)[0].value == pytest.approx(1.0, abs=1e-9)
