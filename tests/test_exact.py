"""The exact constant against brute force over all activation patterns, and its two ends against each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

import lipscope
from lipscope.errors import CertificateError, DataError, LipscopeError
from lipscope.graph import Graph
from lipscope.layers.activation import ReLU
from lipscope.layers.dense import Dense
from lipscope.quantities import exact
from lipscope.regions import Ball, proved_empty
from lipscope.regions.free_slopes import _closed_form, _independent_groups, _proved, _System, free_slope_bound
from lipscope.results import Exact
from strategies import Apply, Branches, Residual, randomised, seeds

ORDERS = {"2": 2, "1": 1, "inf": np.inf}
NORMS = ["2", "1", "inf"]
SLOPES = {"relu": (0.0, 1.0), "leaky": (0.2, 1.0), "abs": (-1.0, 1.0), "steep": (1.5, 1.0)}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "abs": lambda: Apply(torch.abs, "abs"),
    "steep": lambda: nn.LeakyReLU(1.5),
}


def dense_net(sizes: list[int], seed: int, activation: str = "relu") -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), MODULES[activation]()]
    return randomised(nn.Sequential(*parts[:-1]), seed, 1.4)


def brute_force(module: nn.Sequential, norm: str, slopes: tuple[float, float], box: float | None) -> float:
    """The largest ‖J‖ over all sign patterns whose region, by an LP, holds a ball of radius 1e-7 (in the box)."""
    linears = [part for part in module if isinstance(part, nn.Linear)]
    n = linears[0].in_features
    hidden = sum(linear.out_features for linear in linears[:-1])
    best = 0.0
    for signs in itertools.product((0, 1), repeat=hidden):
        J, c = np.eye(n), np.zeros(n)
        rows, offsets, place = [], [], 0
        for linear in linears[:-1]:
            J, c = linear.weight.numpy() @ J, linear.weight.numpy() @ c + linear.bias.numpy()
            sign = np.array(signs[place : place + len(c)])
            place += len(c)
            rows.append((2 * sign - 1)[:, None] * J)
            offsets.append((2 * sign - 1) * c)
            slope = np.where(sign == 1, slopes[1], slopes[0])
            J, c = slope[:, None] * J, slope * c
        G, g = np.concatenate(rows), np.concatenate(offsets)
        length = np.linalg.norm(G, axis=1)
        if (g[length < 1e-12] < 0).any():
            continue
        G, g, length = G[length >= 1e-12], g[length >= 1e-12], length[length >= 1e-12]
        found = linprog(
            np.append(np.zeros(n), -1.0),
            np.concatenate([-G, length[:, None]], 1),
            g,
            bounds=[(None if box is None else -box, box)] * n + [(None, 1.0)],
        )
        if found.status == 0 and -found.fun > 1e-7:
            best = max(best, float(np.linalg.norm(linears[-1].weight.numpy() @ J, ORDERS[norm])))
    return best


def check_ends(result: Exact, pair: lipscope.quantities.Pair, module: nn.Module) -> None:
    """The bracket is ordered, and its witness gives the lower end to anyone who evaluates it."""
    order = ORDERS[result.norm]
    with torch.no_grad():
        y1, y2 = module(torch.stack([pair.x1, pair.x2]))
    ratio = torch.linalg.vector_norm(y1 - y2, order) / torch.linalg.vector_norm(pair.x1 - pair.x2, order)
    assert result.lower == pair.bound == result.witness.ratio - result.witness.rounding or result.lower == 0
    assert float(ratio) == pytest.approx(result.witness.ratio, rel=1e-9, abs=1e-12)
    assert 0 <= result.lower <= result.upper == result.value


@st.composite
def tiny(draw: st.DrawFn) -> tuple[list[int], str, int]:
    """Up to 7 hidden units in one, two or three layers."""
    hidden = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda h: sum(h) <= 7))
    sizes = [draw(st.integers(1, 4)), *hidden, draw(st.integers(1, 3))]
    return sizes, draw(st.sampled_from(sorted(SLOPES))), draw(seeds())


@given(tiny(), st.sampled_from(NORMS), st.sampled_from([None, None, 0.7]))
@settings(max_examples=35)
def test_the_bracket_closes_on_brute_force(drawn, norm, box) -> None:
    sizes, activation, seed = drawn
    module = dense_net(sizes, seed, activation)
    graph = lipscope.from_torch(module, (sizes[0],))
    ball = {} if box is None else {"center": torch.zeros(sizes[0]), "radius": box, "ball_norm": "inf"}
    result, pair = exact(graph, norm=norm, seconds=20, **ball)
    truth = brute_force(module, norm, SLOPES[activation], box)
    check_ends(result, pair, module)
    assert result.closed
    assert result.value == pytest.approx(truth, rel=2e-6, abs=1e-12)
    assert result.upper >= truth * (1 - 1e-12)
    if box is not None:
        assert float(torch.stack([pair.x1, pair.x2]).abs().max()) <= box


@pytest.mark.parametrize("norm", NORMS)
def test_with_independent_hidden_units_every_pattern_counts(norm: str) -> None:
    """As many inputs as hidden units: all 2⁶ patterns have regions, so L is the maximum over masks."""
    module = dense_net([6, 6, 3], 4)
    first, last = module[0].weight.numpy(), module[2].weight.numpy()
    masks = np.array(list(itertools.product((0.0, 1.0), repeat=6)))
    truth = max(np.linalg.norm(last @ (mask[:, None] * first), ORDERS[norm]) for mask in masks)
    result, pair = exact(lipscope.from_torch(module, (6,)), norm=norm)
    check_ends(result, pair, module)
    assert result.value == pytest.approx(float(truth), rel=1e-6)


class Vanishing(nn.Module):
    """x − relu(x) + relu(−x) = 0, and the same at half height in two layers: formal Jacobians are not 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        once = x - torch.relu(x) + torch.relu(-x)
        return once + torch.relu(0.3 * torch.relu(x)) - 0.3 * torch.relu(x)


@pytest.mark.parametrize("norm", NORMS)
def test_regions_without_interior_do_not_count(norm: str) -> None:
    """Opposite half-spaces leave a point or nothing: only exact arithmetic can tell."""
    result, _ = exact(lipscope.from_torch(Vanishing(), (1,)), norm=norm)
    assert result.lower == 0.0
    assert result.upper <= 1e-12


def test_a_unit_that_is_constantly_at_its_kink_does_not_hide_regions() -> None:
    """The second unit sees exactly 0 wherever the first is off; that half-line must stay in the search."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.relu(x)) - 3.0 * x

    result, _ = exact(lipscope.from_torch(Net(), (1,)))
    assert result.closed
    assert result.value == pytest.approx(3.0)


def mixed_networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    def block(size: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, size), nn.ReLU())

    return {
        "clamp": (nn.Sequential(nn.Linear(2, 5), nn.Hardtanh(), nn.Linear(5, 4), nn.ReLU6(), nn.Linear(4, 2)), (2,)),
        "residual": (nn.Sequential(Residual(block(2), 0.5, True), Residual(block(2), 1.0, False), block(2)), (2,)),
        "branches": (nn.Sequential(Branches(block(2), nn.Identity()), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (2,)),
        "max pooling": (
            nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.MaxPool1d(2, 1), nn.Flatten(), nn.Linear(4, 2)),
            (1, 4),
        ),
        "overlapping max": (nn.Sequential(nn.Conv2d(1, 1, 2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)), (1, 4, 4)),
    }  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", sorted(mixed_networks()))
def test_other_layers(name: str, norm: str) -> None:
    """The ends meet, and no Jacobian at a random point is above them."""
    module, shape = mixed_networks()[name]
    module = randomised(module, 3, 1.3)
    graph = lipscope.from_torch(module, shape)
    result, pair = exact(graph, norm=norm, seconds=30)
    check_ends(result, pair, module)
    assert result.closed
    assert result.upper <= lipscope.analytical(graph).value * math.sqrt(math.prod(shape) * 4)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4000, *shape, generator=generator, dtype=torch.float64) * 2
    operator = lipscope.linearize(graph, graph.linearize_at(points)[1], len(points))
    seen = torch.linalg.matrix_norm(operator.dense(), {"2": 2, "1": 1, "inf": math.inf}[norm]).max()
    assert float(seen) <= result.upper * (1 + 1e-12)
    assert float(seen) >= 0.5 * result.upper


@pytest.mark.parametrize("norm", NORMS)
def test_linear_and_zero_networks(norm: str) -> None:
    module = randomised(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), 2)
    product = module[1].weight.numpy() @ module[0].weight.numpy()
    result, pair = exact(lipscope.from_torch(module, (5,)), norm=norm)
    check_ends(result, pair, module)
    assert result.closed
    assert result.value == pytest.approx(float(np.linalg.norm(product, ORDERS[norm])), rel=1e-9)
    torch.nn.init.zeros_(module[1].weight)
    result, pair = exact(lipscope.from_torch(nn.Sequential(module[0], nn.ReLU(), module[1]), (5,)), norm=norm)
    assert (result.lower, result.upper, result.closed) == (0.0, 0.0, True)
    assert pair.distance > 0


@given(seeds(), st.sampled_from(NORMS), st.sampled_from(["2", "inf"]))
@settings(max_examples=8)
def test_ends_of_an_unfinished_search_hold(seed, norm, ball_norm) -> None:
    """Any node budget gives a bracket of the same number; more nodes never widen it; runs repeat."""
    module = dense_net([3, 6, 6, 2], seed)
    graph = lipscope.from_torch(module, (3,))
    ball = {"center": torch.full((3,), 0.3), "radius": 0.8, "ball_norm": ball_norm}
    runs = [exact(graph, norm=norm, max_nodes=nodes, **ball) for nodes in (1, 20, 20, 100_000)]
    lower = [r.lower for r, _ in runs]
    upper = [r.upper for r, _ in runs]
    assert lower[0] <= lower[1] == lower[2] <= lower[3] <= upper[3] <= upper[2] == upper[1] <= upper[0]
    assert runs[3][0].closed
    everywhere, _ = exact(graph, norm=norm)
    assert lower[3] <= everywhere.upper
    if norm == "2":
        assert upper[0] <= lipscope.analytical(graph).value * 1.5
    for _, pair in runs:
        away = torch.stack([pair.x1, pair.x2]) - 0.3
        assert float(torch.linalg.vector_norm(away, ORDERS[ball_norm], dim=1).max()) <= 0.8 * (1 + 1e-7)


@given(seeds(), st.integers(1, 4), st.integers(1, 7), st.integers(1, 3), st.sampled_from(NORMS))
@settings(max_examples=60)
def test_no_free_slopes_exceed_their_bound(seed, inputs, units, outputs, norm) -> None:
    """Random and extreme slopes, in layers and with skips, against the bound; α below, at and above 0."""
    generator = np.random.default_rng(seed)
    A = np.tril(generator.standard_normal((units, inputs + units)), inputs - 1)
    if seed % 2:
        A[:, inputs:] = 0
    C = generator.standard_normal((outputs, inputs + units))
    alpha = generator.choice([-1.0, 0.0, 0.1], units)
    beta = alpha + generator.choice([0.5, 1.0], units)
    bound = free_slope_bound(A, C, alpha, beta, norm)
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=units)))
    inside = generator.random((50, units))
    worst = 0.0
    for share in np.concatenate([corners, inside]):
        slopes = alpha + share * (beta - alpha)
        solved = np.linalg.solve(
            np.eye(units) - slopes[:, None] * A[:, inputs:], slopes[:, None] * A[:, :inputs]
        )
        worst = max(worst, float(np.linalg.norm(C[:, :inputs] + C[:, inputs:] @ solved, ORDERS[norm])))
    assert worst <= bound * (1 + 1e-11)
    # Far from vacuous: a bound of the absolute values alone would often be above.
    assert bound <= 4 * worst + 1e-9 or units > 2


@given(seeds(), st.integers(1, 4), st.integers(6, 9))
@settings(max_examples=20)
def test_the_quadratic_proof_accepts_just_what_is_true(seed, inputs, units) -> None:
    """For given multipliers the least ρ is an eigenvalue: a hair above it is proved, a hair below is not."""
    generator = np.random.default_rng(seed)
    A = np.tril(generator.standard_normal((units, inputs + units)), inputs - 1)
    C = generator.standard_normal((3, inputs + units))
    alpha = generator.choice([-1.0, 0.0, 0.1], units)
    system = _System(A, C, alpha, alpha + 1.0)
    rho, t = _closed_form(system, _independent_groups(system), 1.0)
    assert _proved(system, rho * (1 + 1e-6), t)
    assert not _proved(system, rho * (1 - 1e-6), t)


def test_emptiness_is_proved_only_where_it_is_true() -> None:
    right, left = ([1, 0, 0], 0), ([-1, 0, 0], 0)
    ones = np.ones(2)
    assert proved_empty([right, left], ones, None)
    assert proved_empty([([3, 1, -1], 2), ([1, 5, -1], 1), ([-2, -3, 1], 0)], np.ones(3), None)
    assert not proved_empty([right, ([-1, 0, 1], 40)], ones, None)
    assert not proved_empty([right, ([0, 1, -1], 0)], ones, None)
    assert not proved_empty([right, left], np.zeros(2), None)
    beyond = [([1, 1, -3], 0)]
    for norm, reach in (("2", 3 / math.sqrt(2)), ("inf", 1.5)):
        assert proved_empty(beyond, np.ones(1), Ball(np.zeros(2), reach * 0.999, norm))
        assert not proved_empty(beyond, np.ones(1), Ball(np.zeros(2), reach * 1.001, norm))


def test_bad_input_is_refused_in_a_sentence() -> None:
    graph = lipscope.from_torch(dense_net([2, 4, 1], 0), (2,))
    with pytest.raises(LipscopeError, match=r"tanh at 1 .* is not piecewise linear"):
        exact(lipscope.from_torch(nn.Sequential(nn.Linear(2, 2), nn.Tanh()).double(), (2,)))
    with pytest.raises(LipscopeError, match="more than 3 nonlinear units"):
        exact(graph, max_units=3)
    for ball in (
        {"center": torch.zeros(2)},
        {"center": torch.zeros(3), "radius": 1.0},
        {"center": torch.zeros(2), "radius": 0.0},
        {"center": torch.tensor([0.0, math.nan]), "radius": 1.0},
        {"center": torch.zeros(2), "radius": 1.0, "ball_norm": "1"},
    ):
        with pytest.raises(DataError):
            exact(graph, **ball)
    broken = Graph.chain((2,), [Dense(torch.tensor([[1.0, math.nan]], dtype=torch.float64)), ReLU()])
    with pytest.raises(CertificateError):
        exact(broken)
