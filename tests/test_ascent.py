"""Ascent never exceeds what is proved, comes close to what is exact, and its pair is what it says."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipscope
from lipscope.errors import DataError
from lipscope.quantities import ascent, exact
from lipscope.results import Attained
from strategies import networks, randomised, seeds

ORDERS = {"2": 2, "1": 1, "inf": np.inf}
NORMS = ["2", "1", "inf"]


def relu_net(*sizes: int, seed: int = 0) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return randomised(nn.Sequential(*parts[:-1]), seed, 1.4)


def check_witness(result: Attained, pair: lipscope.quantities.Pair, module: nn.Module) -> None:
    order = ORDERS[result.norm]
    with torch.no_grad():
        y1, y2 = module(torch.stack([pair.x1, pair.x2]))
    apart = torch.linalg.vector_norm((pair.x1 - pair.x2).flatten(), order)
    ratio = float(torch.linalg.vector_norm((y1 - y2).flatten(), order) / apart)
    slack = 1e-13 * float(y1.abs().sum() + y2.abs().sum()) / float(apart)
    assert ratio == pytest.approx(result.witness.ratio, rel=1e-9, abs=slack + 1e-12)
    assert result.value == pair.bound == max(0.0, result.witness.ratio - result.witness.rounding)
    assert result.kind == "lower"


@given(networks(), seeds())
@settings(max_examples=25)
def test_ascent_lies_below_the_product_bound(network, seed) -> None:
    graph = network.graph
    result, pair = ascent(graph, network.points(3), steps=4, restarts=4, seed=seed)
    check_witness(result, pair, network.module)
    assert 0 <= result.value <= lipscope.analytical(graph).value


@given(
    st.integers(1, 4), st.integers(1, 8), st.integers(1, 3), seeds(), st.sampled_from(NORMS), st.booleans()
)
@settings(max_examples=15)
def test_ascent_lies_below_the_exact_constant(inputs, hidden, outputs, seed, norm, local) -> None:
    module = relu_net(inputs, hidden, 4, outputs, seed=seed)
    graph = lipscope.from_torch(module, (inputs,))
    ball = {"center": torch.full((inputs,), 0.2), "radius": 0.5, "ball_norm": "2"} if local else {}
    found, pair = ascent(graph, norm=norm, steps=6, seed=seed, **ball)
    truth, _ = exact(graph, norm=norm, **ball)
    check_witness(found, pair, module)
    assert truth.closed
    assert found.value <= truth.upper
    assert found.value >= 0.5 * truth.lower


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_comes_close(norm: str) -> None:
    shares = []
    for seed in range(3):
        graph = lipscope.from_torch(relu_net(4, 8, 8, 2, seed=seed), (4,))
        found, _ = ascent(graph, norm=norm, steps=80)
        truth, _ = exact(graph, norm=norm)
        assert truth.closed
        shares.append(found.value / truth.upper)
    assert max(shares) <= 1
    assert min(shares) >= 0.85
    assert sum(shares) / 3 >= 0.95


def test_slopes_pairs_and_kinks_all_climb() -> None:
    """Each search alone raises what the random starts attain: none is dead code."""
    from lipscope.quantities.ascent import _Climb

    graph = lipscope.from_torch(relu_net(6, 24, 24, 3, seed=5), (6,))
    for name in ("slopes", "pairs", "kinks"):
        climb = _Climb(graph, "2", None, 8, math.inf, 0, torch.float64, "cpu")
        x, v = climb.take(climb.starts(torch.zeros(0, 6)))
        before = climb.best.bound
        getattr(climb, name)(x, v, 30)
        assert climb.best.bound > 1.005 * before
        assert climb.found_by == name


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_gives_its_norm(norm: str) -> None:
    module = randomised(nn.Linear(7, 5), 1)
    result, pair = ascent(lipscope.from_torch(module, (7,)), norm=norm, steps=5)
    check_witness(result, pair, module)
    truth = float(np.linalg.norm(module.weight.numpy(), ORDERS[norm]))
    # The estimator of ‖·‖_∞→∞ may stop at a local maximum; from several starts it seldom does.
    assert truth * (0.999 if norm != "inf" else 0.9) <= result.value <= truth


def test_starts_lead_to_a_steep_place_far_from_the_random_ones() -> None:
    """A spike of slope 50 between 100 and 100.1 on every axis; random starts are of order one."""
    module = randomised(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), 0)
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.1, 0.1], [0.0, 0.1]]))
        module[0].bias.copy_(torch.tensor([-100.0, -100.1, 0.0, 0.0]))
        module[2].weight.copy_(torch.tensor([[50.0, -50.0, 1.0, 1.0]]))
    graph = lipscope.from_torch(module, (2,))
    near = torch.tensor([[100.03, 0.0], [1.0, 1.0]])
    with_data, pair = ascent(graph, near, steps=5)
    check_witness(with_data, pair, module)
    assert with_data.value > 49
    assert ascent(graph, steps=5)[0].value < 2


@pytest.mark.parametrize("ball_norm", ["2", "inf"])
@pytest.mark.parametrize("norm", NORMS)
def test_pairs_stay_in_the_ball(norm: str, ball_norm: str) -> None:
    module = relu_net(3, 12, 12, 2, seed=2)
    graph = lipscope.from_torch(module, (3,))
    center = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    result, pair = ascent(
        graph, 5 * torch.randn(4, 3), norm=norm, steps=10, center=center, radius=1e-2, ball_norm=ball_norm
    )
    check_witness(result, pair, module)
    away = torch.linalg.vector_norm(torch.stack([pair.x1, pair.x2]) - center, ORDERS[ball_norm], dim=1)
    assert float(away.max()) <= 1e-2
    truth, _ = exact(graph, norm=norm, center=center, radius=1e-2, ball_norm=ball_norm)
    assert 0.9 * truth.lower <= result.value <= truth.upper


def test_a_constant_network_gives_zero_and_a_pair() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    torch.nn.init.zeros_(module[2].weight)
    result, pair = ascent(lipscope.from_torch(module, (3,)), steps=3)
    assert result.value == 0.0
    assert pair.distance > 0
    assert result.found_by == "start"


def test_the_same_seed_gives_the_same_pair_and_time_is_kept() -> None:
    graph = lipscope.from_torch(relu_net(5, 16, 16, 2), (5,))
    first, second = (ascent(graph, steps=6, seed=3)[1] for _ in range(2))
    assert torch.equal(first.x1, second.x1)
    assert first.ratio == second.ratio
    started = time.perf_counter()
    result, _ = ascent(graph, seconds=0.5)
    assert time.perf_counter() - started < 3
    assert result.value > 0


def test_bad_input_is_refused_in_a_sentence() -> None:
    graph = lipscope.from_torch(relu_net(3, 4, 1), (3,))
    for starts in (torch.zeros(3), torch.zeros(2, 4), torch.full((1, 3), math.nan)):
        with pytest.raises(DataError):
            ascent(graph, starts)
    with pytest.raises(DataError):
        ascent(graph, center=torch.zeros(3))
    with pytest.raises(ValueError, match="positive"):
        ascent(graph, steps=0)
