"""Attained lower bounds: a pair of inputs, re-evaluated in float64.

A difference quotient ‖Φ(x₁) − Φ(x₂)‖ / ‖x₁ − x₂‖ never exceeds the Lipschitz constant, whatever
led to the pair. A Jacobian's norm at a point alone is no such proof: at a kink (a pre-activation
of exactly 0) the formal Jacobian can be larger than every difference quotient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import Graph
from ..results import Norm, Witness

# float64 evaluation of a network is accurate to a few hundred units of roundoff in practice;
# the allowance is ten times that, relative to the outputs whose difference is taken.
WITNESS_ROUNDING = 2.0**-53 * 4096
"""Allowance of a ratio, relative to it and to (‖y₁‖ + ‖y₂‖)/‖x₁ − x₂‖."""


@dataclass(frozen=True)
class Pair:
    """Two inputs of shape (*in) in float64, the samples they came from, and their secant ratio."""

    x1: Tensor
    x2: Tensor
    samples: tuple[str, ...]
    distance: float
    ratio: float
    rounding: float

    @property
    def bound(self) -> float:
        """The attained lower bound: the ratio less the allowance for rounding."""
        return max(0.0, self.ratio - self.rounding)

    def witness(self, key: str) -> Witness:
        """The record of this pair under the name it is stored by."""
        return Witness(
            key=key,
            samples=list(self.samples),
            distance=self.distance,
            ratio=self.ratio,
            rounding=self.rounding,
        )


_ORDERS = {"2": 2.0, "1": 1.0, "inf": math.inf}


def vector_norm(x: Tensor, norm: Norm) -> float:
    """‖x‖_q over all entries."""
    return float(torch.linalg.vector_norm(x, _ORDERS[norm]))


def evaluate_pair(graph: Graph, x1: Tensor, x2: Tensor, samples: tuple[str, ...], norm: Norm = "2") -> Pair:
    """Evaluate the secant ratio of (x₁, x₂), shapes (*in), in float64 on the CPU.

    Args:
        norm: of both inputs and outputs, ℓ₂, ℓ₁ or ℓ_∞.

    Raises:
        ValueError: the points coincide.
    """
    exact = graph.to(torch.float64, "cpu")
    points = torch.stack([x1, x2]).to("cpu", torch.float64)
    distance = vector_norm(points[0] - points[1], norm)
    if distance == 0.0:
        raise ValueError("a pair at distance zero has no ratio")
    first, second = exact.evaluate(points)
    ratio = vector_norm(first - second, norm) / distance
    outputs = vector_norm(first, norm) + vector_norm(second, norm)
    return Pair(
        points[0], points[1], samples, distance, ratio, WITNESS_ROUNDING * (outputs / distance + ratio)
    )


def pair_along(
    graph: Graph,
    x: Tensor,
    direction: Tensor,
    sample: str,
    norm: Norm = "2",
    project: Callable[[Tensor], Tensor] = lambda points: points,
    lengths: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
) -> Pair:
    """The best pair on the line through x (*in) along `direction`, over step lengths and sides.

    Long steps lose nothing to rounding, short ones cross fewer kinks; one-sided steps attain
    what is attainable when x itself lies on a kink.

    Args:
        norm: of both inputs and outputs.
        project: maps points (2, *in) into the set that both must lie in.
        lengths: step lengths to try, relative to max(‖x‖, 1).

    Raises:
        ValueError: every pair coincides after projection.
    """
    x = x.to("cpu", torch.float64)
    step = direction.to("cpu", torch.float64)
    step = step / step.norm() * max(float(x.norm()), 1.0)
    ends = [
        project(torch.stack([x - back * t * step, x + forth * t * step]))
        for t in lengths
        for back, forth in ((0.5, 0.5), (0.0, 1.0), (1.0, 0.0))
    ]
    pairs = [evaluate_pair(graph, x1, x2, (sample,), norm) for x1, x2 in ends if not torch.equal(x1, x2)]
    if not pairs:
        raise ValueError("all pairs along the direction are at distance zero")
    return max(pairs, key=lambda pair: pair.bound)
