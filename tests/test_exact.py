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
from lipscope.free_slopes import free_slope_bound
from lipscope.quantities import exact
from lipscope.regions import Ball, proved_empty
from lipscope.results import Exact
from strategies import Affine, Apply, Branches, Residual, networks, randomised, seeds

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
@settings(max_examples=60)
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
