"""Softmax, log-softmax and log-sum-exp along one axis.

With p = softmax(x), Δ log pᵢ = Δxᵢ − Δlse, and Δpᵢ = ℓᵢ·Δ log pᵢ for the logarithmic mean
ℓᵢ = (pᵢ − p′ᵢ)/(log pᵢ − log p′ᵢ) of the two values (pᵢ itself where they agree). Since ΣΔpᵢ = 0,

    Δlse = Σ wᵢΔxᵢ,   Δ log pᵢ = Δxᵢ − Σ wⱼΔxⱼ,   Δpᵢ = ℓᵢ(Δxᵢ − Σ wⱼΔxⱼ),   w = ℓ/Σℓ,

exactly: one formula for points and pairs. Σℓ ≤ 1, since a logarithmic mean is at most the arithmetic one.

Source of the mean's inequality: B. Carlson, The logarithmic mean (1972).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..results import Norm
from ..rounding import TINY, UNIT, gamma, middle_and_radius, up, up_root, up_sum, up_tensor, widen
from ..slopes import AveragedSlope, GroupWeights, Level, Point, Slope, inner_mean
from .base import Layer, Lines, NonlinearLayer, Range, Shape, TracedCall, torch_rule

# ---- slopes -----------------------------------------------------------------------------------------


@dataclass
class SoftmaxSlope(AveragedSlope):
    """D v = ℓ ⊙ (v − Σ wⱼvⱼ), w = ℓ/Σℓ along the per-sample `axis`; `values` holds ℓ ≥ 0, shape (B, *s)."""

    values: Tensor
    axis: int

    def apply(self, v: Tensor) -> Tensor:
        mean = (_normalised(self.values, self.axis) * v).sum(self.axis + 2, keepdim=True)
        return self.values * (v - mean)

    def transpose(self, u: Tensor) -> Tensor:
        return self.apply(u)

    def coarsened(self, level: Level) -> SoftmaxSlope:
        # The sum over the axis needs its size, as in `GroupWeights`.
        return self.with_values(inner_mean(self.values, level).expand_as(self.values))


@dataclass
class LogSoftmaxSlope(AveragedSlope):
    """D v = v − Σ wⱼvⱼ along the per-sample `axis`; `values` holds w, shape (B, *s)."""

    values: Tensor
    axis: int

    def apply(self, v: Tensor) -> Tensor:
        return v - (self.values * v).sum(self.axis + 2, keepdim=True)

    def transpose(self, u: Tensor) -> Tensor:
        return u - self.values * u.sum(self.axis + 2, keepdim=True)

    def coarsened(self, level: Level) -> LogSoftmaxSlope:
        return self.with_values(inner_mean(self.values, level).expand_as(self.values))


@dataclass
class Coupling(AveragedSlope):
    """Matrices along the per-sample `axis` with entries Dᵢᵢ = dᵢ and Dᵢⱼ = rᵢ·weightsⱼ for j ≠ i.

    `values` holds d and r, shape (B, 2, *s); `weights` ≥ 0, shape (B, *s), is the same for all slopes
    that are compared. Unlike the classes above it is linear in its values, as bounds need it.
    """

    values: Tensor
    weights: Tensor
    axis: int

    def apply(self, v: Tensor) -> Tensor:
        diagonal, rows = self.values.unbind(1)
        return diagonal * v + rows * _sum_of_others(self.weights * v, self.axis + 2)

    def transpose(self, u: Tensor) -> Tensor:
        diagonal, rows = self.values.unbind(1)
        return diagonal * u + self.weights * _sum_of_others(rows * u, self.axis + 2)

    def coarsened(self, level: Level) -> Coupling:
        parts = [inner_mean(part, level).expand_as(part) for part in self.values.unbind(1)]
        return self.with_values(torch.stack(parts, 1))


def _normalised(values: Tensor, axis: int) -> Tensor:
    total = values.sum(axis + 1, keepdim=True)
    return values / torch.where(total == 0, 1, total)


def _before_and_after(
    x: Tensor, dim: int, accumulate: Callable[[Tensor, int], Tensor], neutral: float
) -> tuple[Tensor, Tensor]:
    """What accumulates over the entries before each one and over those after it: so nothing cancels."""
    size = x.shape[dim]
    end = torch.full_like(x.narrow(dim, 0, 1), neutral)
    padded = torch.cat([end, x, end], dim)
    before = accumulate(padded, dim).narrow(dim, 0, size)
    after = accumulate(padded.flip(dim), dim).flip(dim).narrow(dim, 2, size)
    return before, after


def _sum_of_others(x: Tensor, dim: int) -> Tensor:
    before, after = _before_and_after(x, dim, torch.cumsum, 0.0)
    return before + after


def _lse_of_others(x: Tensor, dim: int) -> Tensor:
    return torch.logaddexp(*_before_and_after(x, dim, torch.logcumsumexp, -math.inf))


def _log_means(first: Tensor, second: Tensor) -> Tensor:
    """Logarithmic means of e^first and e^second: the larger times (1 − e^−d)/d, d ≥ 0 the gap of the exponents."""
    gap = (first - second).abs()
    equal = gap == 0
    share = torch.where(equal, 1, -torch.expm1(-gap) / torch.where(equal, 1, gap))
    return torch.maximum(first, second).exp() * share


# ---- layers -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class _AlongAxis(NonlinearLayer):
    """What the three share: `axis` is per sample."""

    axis: int

    def _log_odds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Certified bounds of log(pᵢ/(1 − pᵢ)) = xᵢ − lse(the others) over the box."""
        dim = self.axis + 1
        least = low - _lse_of_others(high, dim)
        most = high - _lse_of_others(low, dim)
        # Each step of the accumulation is off by a few units of 1 + |its value|, which enters with the weight
        # e^(value − end).
        relative = (low.shape[dim] + 16) * 2.0**-48
        size = 2 + least.abs() + most.abs() + torch.maximum(low.abs(), high.abs())
        slack = relative * torch.where(size.isfinite(), size, 0.0)
        return widen(least, slack)[0], widen(most, slack)[1]

    def _secants(self, low: Tensor, high: Tensor) -> _Secants:
        """Certified bounds of the logarithmic means and of what follows from them, for all pairs in the box."""
        dim = self.axis + 1
        margin = gamma(8 * low.shape[dim] + 1024)
        odds = self._log_odds(low, high)
        # TINY covers underflow on both sides.
        least = (odds[0].sigmoid() * (1 - margin) - TINY).clamp(min=0)
        most = (odds[1].sigmoid() * (1 + margin) + TINY).clamp(max=1)
        others_least = _sum_of_others(least, dim) * (1 - margin)
        others_most = (_sum_of_others(most, dim) * (1 + margin)).clamp(max=1)
        # wᵢ = ℓᵢ/Σℓ grows with ℓᵢ and falls with the others; and Σℓ ≤ 1.
        total = (least + others_most).clamp(max=1)
        weight_least = least / torch.where(total == 0, 1, total) * (1 - margin)
        weight_most = (most / (most + others_least) * (1 + margin)).clamp(max=1)
        # Dᵢᵢ = ℓᵢ(1 − wᵢ) = ℓᵢoᵢ/(ℓᵢ + oᵢ), o the sum of the others, grows with both; ℓ + o ≤ 1.
        diagonal_least = _harmonic(least, others_least) * (1 - margin)
        diagonal_most = torch.minimum(_harmonic(most, others_most), _variance(most))
        diagonal_most = torch.minimum(diagonal_most, _variance(others_most)) * (1 + margin) + TINY
        evenness = (weight_least / weight_most).amin(dim, keepdim=True) * (1 - margin)
        return _Secants((least, most), (weight_least, weight_most), (diagonal_least, diagonal_most), evenness)


@dataclass(frozen=True)
class _Secants:
    """Bounds, from below and above, of ℓ, w and ℓ(1 − w); and of min w/(its upper bound) along the axis."""

    means: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]
    diagonal: tuple[Tensor, Tensor]
    evenness: Tensor


def _harmonic(a: Tensor, b: Tensor) -> Tensor:
    total = a + b
    return a * b / torch.where(total == 0, 1, total)


def _variance(t: Tensor) -> Tensor:
    """The largest s(1 − s) for 0 ≤ s ≤ t."""
    t = t.clamp(max=0.5)
    return t * (1 - t)


def _lines(layer: NonlinearLayer, low: Tensor, high: Tensor) -> Lines:
    """By the mean value form: f(x) − f(m) = D(x − m) with D in the hull, m the middle of the box.

    Constants where those lie closer together.
    """
    middle, radius = middle_and_radius(low, high)
    least, most = layer.slope_hull(low, high)
    centre = least.values / 2 + most.values / 2
    spread = up_tensor(torch.maximum(most.values - centre, centre - least.values))
    slope = least.with_values(centre)
    margin = gamma(4 * low.numel() + 16)
    size = least.with_values(centre.abs()).apply(middle.abs().unsqueeze(0))[0]
    reach = least.with_values(spread).apply(radius.unsqueeze(0))[0]
    distance = up_tensor(reach * (1 + margin) + margin * size)
    at_middle = layer.value_range(middle, middle)
    line = slope.apply(middle.unsqueeze(0))[0]
    distance = distance + 4 * UNIT * (line.abs() + at_middle[1].abs())
    below, above = widen(at_middle[0] - line, distance)[0], widen(at_middle[1] - line, distance)[1]
    ends = layer.value_range(low, high)
    flat = (ends[1] - ends[0]) <= above - below
    below, above = torch.where(flat, ends[0], below), torch.where(flat, ends[1], above)
    sloped = (~flat).to(low.dtype)
    if isinstance(slope, Coupling):
        sloped = sloped.unsqueeze(1)
    elif isinstance(slope, GroupWeights) and not slope.keep:
        sloped = sloped.unsqueeze(slope.axes[0] + 1)
    slope = slope.with_values(torch.where(sloped == 0, 0.0, centre))
    return Lines(slope, below, slope, above)


@dataclass(eq=False)
class Softmax(_AlongAxis):
    """yᵢ = e^xᵢ / Σ e^xⱼ along the per-sample `axis`.

    Its slopes are s·(diag(w) − wwᵀ), s = Σℓ ≤ 1, w a probability vector. In ℓ₂, vᵀDv is s times the
    variance of v under w, at most (max v − min v)²/4 ≤ ‖v‖²/2; in ℓ₁ and ℓ_∞ the rows and columns
    have the absolute sums 2s·wᵢ(1 − wᵢ) ≤ ½. Two equal entries attain ½ in all three norms.
    """

    kind = "softmax"

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].softmax(self.axis + 1)

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        value = self.forward(x)
        return value, SoftmaxSlope(value, self.axis)

    def between(self, first: Point, second: Point) -> SoftmaxSlope:
        """The logarithmic means of the two values, by their logarithms: also where a value has underflown."""
        logs = (point.x.log_softmax(self.axis + 1) for point in (first, second))
        return SoftmaxSlope(_log_means(*logs), self.axis)

    def averaged(self, values: Tensor) -> SoftmaxSlope:
        return SoftmaxSlope(values, self.axis)

    def constant(self, shape: Shape) -> float:
        return 0.5 if shape[self.axis] > 1 else 0.0

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """½ in ℓ₁, ℓ₂ and ℓ_∞."""
        return self.lipschitz(bounds, shapes)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        return 0.0, 1.0

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self._secants(low, high).means

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        secants = self._secants(low, high)
        rows = -secants.means[1], -(secants.means[0] * secants.evenness - TINY).clamp(min=0)
        hull = [
            Coupling(torch.stack([d, r], 1), secants.weights[1], self.axis)
            for d, r in zip(secants.diagonal, rows, strict=True)
        ]
        return hull[0], hull[1]

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        return _lines(self, low, high)

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        """Rows and columns have the absolute sum 2Dᵢᵢ, which bounds the spectral norm too."""
        return min(self.constant(shape), 2 * float(hull[1].values[:, 0].max()))


@dataclass(eq=False)
class LogSoftmax(_AlongAxis):
    """yᵢ = xᵢ − log Σ e^xⱼ along the per-sample `axis`.

    Its slopes are I − 1wᵀ with a probability vector w: projections, so ‖I − 1wᵀ‖₂ = ‖1wᵀ‖₂ = √n·‖w‖₂ ≤ √n
    for n ≥ 2. Row i has the absolute sum 2(1 − wᵢ) ≤ 2, column j 1 + (n − 2)wⱼ ≤ n − 1.

    Source: D. Szyld, The many proofs of an identity on the norm of oblique projections (2006).
    """

    kind = "log-softmax"

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].log_softmax(self.axis + 1)

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        value = self.forward(x)
        return value, LogSoftmaxSlope(value.exp(), self.axis)

    def between(self, first: Point, second: Point) -> LogSoftmaxSlope:
        """The normalised logarithmic means of the two softmaxes."""
        return LogSoftmaxSlope(_normalised(_log_means(first.value, second.value), self.axis), self.axis)

    def averaged(self, values: Tensor) -> LogSoftmaxSlope:
        return LogSoftmaxSlope(values, self.axis)

    def constant(self, shape: Shape) -> float:
        return up_root(shape[self.axis]) if shape[self.axis] > 1 else 0.0

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """√n in ℓ₂, n − 1 in ℓ₁, 2 in ℓ_∞, for n ≥ 2 entries along the axis."""
        if norm == "2":
            return self.lipschitz(bounds, shapes)
        n = shapes[0][self.axis]
        constant = 0.0 if n == 1 else (n - 1.0 if norm == "1" else 2.0)
        return 0.0 if constant == 0.0 else up(bounds[0] * constant)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        """From −(log n + the width of the input's range) to 0."""
        low, high = inputs[0]
        return -up(math.log(shapes[0][self.axis]) + (high - low), 4), 0.0

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least, most = (functional.logsigmoid(odds) for odds in self._log_odds(low, high))
        margin = gamma(1024)
        return widen(least, margin * least.abs())[0], widen(most, margin * most.abs() + TINY)[1].clamp(max=0)

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        secants = self._secants(low, high)
        ends = zip(secants.weights[::-1], (-torch.ones_like(low), -secants.evenness), strict=True)
        hull = [
            Coupling(torch.stack([1 - w, r.expand_as(w)], 1), secants.weights[1], self.axis) for w, r in ends
        ]
        # 1 − w is rounded.
        hull[0].values[:, 0] -= UNIT
        hull[1].values[:, 0] += UNIT
        return hull[0], hull[1]

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        return _lines(self, low, high)

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        """The formulas of the class with the largest weights, or 1 − the smallest."""
        assert isinstance(hull[1], Coupling)
        n, weights = shape[self.axis], hull[1].weights
        if norm == "inf":
            local = up(2 * float(hull[1].values[:, 0].max()))
        elif norm == "1":
            local = up_sum(1.0, up(max(n - 2, 0) * float(weights.max())))
        else:
            local = up(up_root(n) * float(weights.norm(dim=self.axis + 1).max()), n + 8)
        return min(local, self.lipschitz_in(norm, [1.0], [shape]))


@dataclass(eq=False)
class LogSumExp(_AlongAxis):
    """y = log Σ e^xⱼ along the per-sample `axis`, which stays with size 1 if `keep`.

    Its slopes are probability vectors w: constant 1 in ℓ₁, ℓ₂ and ℓ_∞.
    """

    kind = "log-sum-exp"
    keep: bool = False

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].logsumexp(self.axis + 1, keepdim=self.keep)

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        return self.forward(x), self.averaged(x.softmax(self.axis + 1))

    def between(self, first: Point, second: Point) -> GroupWeights:
        """The normalised logarithmic means of the two softmaxes."""
        logs = (point.x.log_softmax(self.axis + 1) for point in (first, second))
        return self.averaged(_normalised(_log_means(*logs), self.axis))

    def averaged(self, values: Tensor) -> GroupWeights:
        return GroupWeights(values, (self.axis,), self.keep)

    def constant(self, shape: Shape) -> float:
        return 1.0

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """1 in ℓ₁, ℓ₂ and ℓ_∞."""
        return self.lipschitz(bounds, shapes)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        """The input's range, the upper end raised by log n."""
        low, high = inputs[0]
        margin = (
            2.0**-40 * max(1.0, abs(low), abs(high)) if math.isfinite(low) and math.isfinite(high) else 0.0
        )
        return low - margin, high + math.log(shapes[0][self.axis]) + margin

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """At the ends: it grows with every entry."""
        ends = self.forward(low), self.forward(high)
        margin = gamma(8 * low.shape[self.axis + 1] + 1024)
        slack = [margin * (1 + end.abs()) for end in ends]
        return widen(ends[0], slack[0])[0], widen(ends[1], slack[1])[1]

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        least, most = self._secants(low, high).weights
        return self.averaged(least), self.averaged(most)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        return _lines(self, low, high)

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        """The dual norm of the largest weights, at most 1."""
        weights, order = hull[1].values, {"1": math.inf, "2": 2.0, "inf": 1.0}[norm]
        longest = torch.linalg.vector_norm(weights, order, self.axis + 1).max()
        return min(1.0, up(float(longest), shape[self.axis] + 8))


# ---- rules ------------------------------------------------------------------------------------------


_ALONG_BATCH = "it normalises over the batch"


@torch_rule("aten.softmax.int", "aten._softmax.default", "aten._safe_softmax.default")
def _softmax(call: TracedCall) -> Sequence[Layer]:
    return [Softmax(call.axis(call.arg(1, "dim"), _ALONG_BATCH))]


@torch_rule("aten.log_softmax.int", "aten._log_softmax.default")
def _log_softmax(call: TracedCall) -> Sequence[Layer]:
    return [LogSoftmax(call.axis(call.arg(1, "dim"), _ALONG_BATCH))]


@torch_rule("aten.logsumexp.default")
def _log_sum_exp(call: TracedCall) -> Sequence[Layer]:
    dims = call.arg(1, "dim")
    axes = sorted(
        {call.axis(dim, _ALONG_BATCH) for dim in ([dims] if isinstance(dims, int) else dims)}, reverse=True
    )
    return [LogSumExp(axis, bool(call.arg(2, "keepdim", False))) for axis in axes]
