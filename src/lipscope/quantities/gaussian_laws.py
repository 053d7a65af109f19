"""Moments of functions of Gaussians: what a unit of a wide random layer does, alone and beside another unit.

A unit is h ~ N(μ, v) followed by `steps`, activations and at most one maximum over a window. Another unit beside it
(the same unit on another input, or at another place) has the same law and a covariance with it. All
expectations are Gauss–Legendre sums over short panels that end at the kinks of the activation, so that
functions with kinks cost no accuracy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..layers.activation import Activation, PiecewiseLinear

_END = 8.5
"""Beyond so many standard deviations lies less than 2e-17 of a Gaussian."""
_ORDER = 8
_INNER, _OUTER, _WINDOW = 17, 9, 5
"""Panels over the values of a unit, and over what it shares with others, which smooths what follows; in windows twice."""
_GRADED = (0.5, 1.0, 2.0, 4.0, 8.0)
_ABOUT = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
_SHARED_AT_ONCE = 16
_TINY = 1e-150


@dataclass(frozen=True)
class Maximum:
    """The largest of `taps` units of one law, the steps before it monotone; any two have covariance number `pair`."""

    taps: int
    pair: int


Step = Activation | Maximum


@dataclass(frozen=True)
class Law:
    """A unit: Gaussian with `mean` and `variance`, then `steps`; `pairs` (K,) are covariances with units beside it."""

    mean: float
    variance: float
    pairs: Tensor
    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> Law:
        """The law of the unit after one more step."""
        return Law(self.mean, self.variance, self.pairs, (*self.steps, step))

    @property
    def maximum(self) -> Maximum | None:
        """The maximum among the steps."""
        return next((step for step in self.steps if isinstance(step, Maximum)), None)


@dataclass(frozen=True)
class Moments:
    """Expectations of a unit x with law h followed by steps.

    `mean` E x, `square` E x², `pairs` E x x' for each unit beside it; `slope` and `square_slope` are E φ' and E φ'² of
    the last activation alone, `gain` is E (dx/dh)² over all steps, dx/dh of the unit that wins a maximum.
    """

    mean: float
    square: float
    pairs: Tensor
    slope: float
    square_slope: float
    gain: float


def moments(law: Law, follow: Sequence[int] = ()) -> Moments:
    """The moments of a law; not finite where an expectation does not exist.

    Args:
        follow: the units beside it whose products are wanted, by number; those of others are NaN.
    """
    variance, largest = max(law.variance, 0.0), law.maximum
    # What the cells of a window have in common; equally correlated cells have no negative covariance.
    within = 0.0 if largest is None else min(max(float(law.pairs[largest.pair]), 0.0), variance)
    centre, weight = _shared(law, within, variance - within)
    nodes = _conditional(law, centre, variance - within)
    weights = weight[:, None] * nodes.weights

    def mean(x: Tensor) -> float:
        return float((weights * x).sum())

    limit = variance if largest is None else within
    pairs = torch.full_like(law.pairs, math.nan)
    for number in follow:
        pairs[number] = _product_mean(law, float(law.pairs[number]), limit, within)
    return Moments(
        mean=mean(nodes.values),
        square=mean(nodes.values.square()),
        pairs=pairs,
        slope=mean(nodes.last),
        square_slope=mean(nodes.last.square()),
        gain=mean(nodes.product.square()),
    )


def slope_squares(law: Law) -> tuple[Tensor, Tensor]:
    """The law of (dx/dh)² of a unit without maximum: values and their probabilities."""
    nodes = _conditional(law, torch.tensor([law.mean], dtype=torch.float64), law.variance)
    return nodes.product[0].square(), nodes.weights[0]


def _product_mean(law: Law, covariance: float, limit: float, within: float) -> float:
    """E x x' of two units whose Gaussians have the covariance; for windows it is between their cells.

    Both are functions of one shared Gaussian z and independent given it (for a negative covariance, of z and −z):
    E x x' = E[g(z) g(±z)], g(z) = E[x | z].
    """
    shared = min(abs(covariance), limit)
    centre, weight = _shared(law, shared, law.variance - shared)
    first = _given(law, centre, shared, within)
    other = first if covariance >= 0 else _given(law, 2 * law.mean - centre, shared, within)
    return float((weight * first * other).sum())


def _given(law: Law, centre: Tensor, shared: float, within: float) -> Tensor:
    """E[x | z] where z, of variance `shared`, has moved the mean to `centre` (n,)."""
    if law.maximum is None:
        nodes = _conditional(law, centre, law.variance - shared)
        return (nodes.weights * nodes.values).sum(1)
    offset, weight = _shared(law, within - shared, law.variance - within)
    found = []
    for part in centre.split(_SHARED_AT_ONCE):
        middles = (part[:, None] + (offset - law.mean)).flatten()
        nodes = _conditional(law, middles, law.variance - within)
        found.append((nodes.weights * nodes.values).sum(1).reshape(len(part), -1) @ weight)
    return torch.cat(found)


def _shared(law: Law, variance: float, rest: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights over μ + z, z the shared part of the variance; finer where `rest` leaves a kink sharp."""
    if variance <= 0:
        return torch.tensor([law.mean], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    scale = math.sqrt(variance)
    sharp = math.sqrt(max(rest, 0.0)) / scale
    breaks = [(place - law.mean) / scale for place in _places(law.steps)]
    distances = [width * sharp for width in _GRADED if width * sharp < 1]
    for kink in _kinks(law.steps):
        breaks += [(kink - law.mean) / scale + side * distance for distance in distances for side in (-1, 1)]
    panels = _OUTER if law.maximum is None else _WINDOW
    z, weights = _panels(torch.tensor([breaks], dtype=torch.float64), panels)
    return law.mean + scale * z[0], weights[0]


@dataclass(frozen=True)
class _Nodes:
    """Quadrature over the steps of a law, given its mean: all (n, m)."""

    values: Tensor
    weights: Tensor
    product: Tensor
    last: Tensor


def _conditional(law: Law, centre: Tensor, variance: float) -> _Nodes:
    """The unit with mean `centre` (n,) and what is left of its variance; cells of a window are independent."""
    scale = math.sqrt(max(variance, 0.0))
    at = torch.tensor(_places(law.steps), dtype=torch.float64)
    z, weights = _panels((at - centre[:, None]) / max(scale, _TINY), _INNER)
    values = centre[:, None] + scale * z
    last = product = torch.ones_like(values)
    for step in law.steps:
        if isinstance(step, Maximum):
            # What comes before is monotone, so the largest value belongs to the largest Gaussian.
            weights = weights * step.taps * torch.special.ndtr(z) ** (step.taps - 1)
        else:
            last = step.derivative(values)
            product, values = product * last, step.forward(values)
    return _Nodes(values, weights, product, last)


def _kinks(steps: Sequence[Step]) -> tuple[float, ...]:
    """Where the first activation is not smooth, or bends most."""
    first = next((step for step in steps if isinstance(step, Activation)), None)
    if isinstance(first, PiecewiseLinear):
        return tuple(kink for kink in first.kinks if math.isfinite(kink))
    bends = () if first is None else first.bends or ()
    return tuple(sorted({(bend.first + bend.last) / 2 for bend in bends}))


def _places(steps: Sequence[Step]) -> tuple[float, ...]:
    """Where panels end: kinks, and for smooth activations places about them, closer than a wide Gaussian's panels."""
    found = _kinks(steps)
    if not steps or any(isinstance(step, PiecewiseLinear) for step in steps):
        return found
    return tuple(sorted({place + distance for place in (0.0, *found) for distance in _ABOUT}))


def _panels(breaks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and normalised Gaussian weights (n, m): `count` panels, cut at the breaks (n, b)."""
    base = torch.linspace(-_END, _END, count + 1, dtype=torch.float64).expand(len(breaks), -1)
    cuts = breaks.nan_to_num(0.0, _END, -_END).clamp(-_END, _END)
    edges = torch.cat([base, cuts], 1).sort(1).values
    x, w = _legendre()
    middle, half = (edges[:, 1:] + edges[:, :-1]) / 2, (edges[:, 1:] - edges[:, :-1]) / 2
    z = (middle[..., None] + half[..., None] * x).flatten(1)
    weights = (half[..., None] * w).flatten(1) * torch.exp(-z.square() / 2)
    return z, weights / weights.sum(1, keepdim=True)


@functools.cache
def _legendre() -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(_ORDER)
    return torch.from_numpy(x), torch.from_numpy(w)
