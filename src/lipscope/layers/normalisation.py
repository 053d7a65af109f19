"""Layers that divide entries by a power of the squares around them, and centring.

RMS norm, layer, group and instance norm, local response normalisation and division by the Euclidean norm
are one nonlinear layer, `DivisiveNormalisation`, between linear ones. Its constants follow from the Jacobian

    J = diag(r) − 2aβ·diag(x d^{−β−1})·W·diag(x),   r = d^{−β},   d = k + a·W x².

Where all entries share one pool, so that d is one number, J = r(I − 2aβ·xxᵀ/d) is symmetric with
eigenvalues between r(1 − 2β) and r. Else the diagonal and the rest are bounded apart: with n entries a
pool, 2a|x_i|Σ_{j≠i}|x_j| ≤ √(n−1)·(d_i − k) bounds rows and 2a|x_i||x_j| ≤ d_i − k columns, and the
spectral norm is at most the geometric mean of the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..results import Norm
from ..rounding import TINY, UNIT, gamma, up, up_product, up_sum, up_tensor
from ..slopes import AveragedSlope, Diagonal, Level, Point, Slope, inner_mean
from .base import TORCH_RULES, Layer, LinearLayer, Lines, NonlinearLayer, Range, Shape, TracedCall, torch_rule
from .reshape import Reshape
from .scaling import Scaling
from .unbounded import power_secant

_ROUNDING = 2.0**-43
"""Covers the roundings of a power and of the few operations around it, with a large reserve."""


@dataclass(frozen=True)
class Pool:
    """Whose squares an entry is divided by: the 0/1 matrix W.

    All entries over the per-sample `axes`, which then share one sum, or with `reach` (before, after)
    those from `before` places before the entry to `after` places after it along the one axis.
    """

    axes: tuple[int, ...]
    reach: tuple[int, int] | None = None

    def sum(self, x: Tensor, lead: int) -> Tensor:
        """W x for a tensor with `lead` dimensions before the sample; axes that share a sum keep size 1."""
        if self.reach is None:
            return x.sum([a + lead for a in self.axes], keepdim=True)
        return _window_sums(x, self.axes[0] + lead, *self.reach)

    def transposed_sum(self, x: Tensor, lead: int) -> Tensor:
        """Wᵀ x."""
        if self.reach is None:
            return self.sum(x, lead)
        before, after = self.reach
        return _window_sums(x, self.axes[0] + lead, after, before)

    def size(self, shape: Shape) -> int:
        """The largest number of ones in a row or column of W."""
        size = math.prod(shape[a] for a in self.axes)
        return size if self.reach is None else min(size, sum(self.reach) + 1)


def _window_sums(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    padded = functional.pad(x.movedim(axis, -1), (before, after))
    return padded.unfold(-1, before + after + 1, 1).sum(-1).movedim(-1, axis)


@dataclass
class DivisiveSlope(AveragedSlope):
    """diag(p) + diag(q)·W·diag(s); `values` (3, B, *s) holds p, q and s, or broadcasts against that."""

    values: Tensor
    pool: Pool
    batch_axis = 1

    def apply(self, v: Tensor) -> Tensor:
        own, left, right = self.values
        product: Tensor = own * v + left * self.pool.sum(right * v, 2)
        return product

    def transpose(self, u: Tensor) -> Tensor:
        own, left, right = self.values
        product: Tensor = own * u + right * self.pool.transposed_sum(left * u, 2)
        return product

    @property
    def fraction(self) -> float:
        """The mean of the diagonal."""
        own, left, right = self.values
        return float((own + left * right).mean())

    def coarsened(self, level: Level) -> DivisiveSlope:
        return replace(self, values=torch.stack([inner_mean(part, level) for part in self.values]))


@dataclass
class DivisiveHull(AveragedSlope):
    """diag(p) + diag(q)·W·diag(columns), linear in its `values` (2, B, *s), p and q; `columns` are ≥ 0."""

    values: Tensor
    columns: Tensor
    pool: Pool
    batch_axis = 1

    def apply(self, v: Tensor) -> Tensor:
        own, left = self.values
        product: Tensor = own * v + left * self.pool.sum(self.columns * v, 2)
        return product

    def transpose(self, u: Tensor) -> Tensor:
        own, left = self.values
        product: Tensor = own * u + self.columns * self.pool.transposed_sum(left * u, 2)
        return product

    def coarsened(self, level: Level) -> DivisiveHull:
        return replace(self, values=torch.stack([inner_mean(part, level) for part in self.values]))


@dataclass(eq=False)
class DivisiveNormalisation(NonlinearLayer):
    """y_i = x_i·d_i^{−β}, d = max(k + a·W x², floor), W the 0/1 matrix of the pool; a, β > 0, k, floor ≥ 0.

    RMS norm has β = ½, a = 1/n, k = ε. Local response normalisation has a window of channels. Division
    by max(‖x‖, ε) has β = ½, a = 1, k = 0 and the floor ε². Without k and floor there is no global
    Lipschitz constant, and no value at 0.

    Source of local response normalisation: A. Krizhevsky, I. Sutskever, G. Hinton (2012), section 3.3.
    """

    kind = "normalisation"
    pool: Pool
    scale: float
    """a"""
    offset: float
    """k"""
    exponent: float = 0.5
    """β"""
    floor: float = 0.0

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] * self._divisor(xs[0]).clamp(min=self.floor) ** -self.exponent

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        total = self._divisor(x)
        factor = total.clamp(min=self.floor) ** -self.exponent
        left = self.scale * x * self._secant(total, total)
        return x * factor, DivisiveSlope(torch.stack([factor.expand_as(x), left, 2 * x]), self.pool)

    def between(self, first: Point, second: Point) -> DivisiveSlope:
        """Δy = r̄Δx + x̄Δr, Δr = ρΔd and Δd = aW(2x̄Δx): with ρ the divided difference of t^{−β}, exact."""
        totals = [self._divisor(point.x) for point in (first, second)]
        factors = [total.clamp(min=self.floor) ** -self.exponent for total in totals]
        middle = (first.x + second.x) / 2
        own = ((factors[0] + factors[1]) / 2).expand_as(middle)
        left = self.scale * middle * self._secant(*totals)
        return DivisiveSlope(torch.stack([own, left, 2 * middle]), self.pool)

    def averaged(self, values: Tensor) -> DivisiveSlope:
        """Of the stacked p, q and s; one tensor (1, *s) stands for p alone."""
        if len(values) == 1:
            values = torch.stack([values, torch.zeros_like(values), torch.zeros_like(values)])
        return DivisiveSlope(values, self.pool)

    def constant(self, shape: Shape) -> float:
        return self._constant("2", shape)

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        return up_product(bounds[0], self._constant(norm, shapes[0]))

    def _constant(self, norm: Norm, shape: Shape) -> float:
        """See the module; (d − k)·d^{−β−1} is largest at d = k(β + 1)/β, or at the least d if that is above."""
        beta, least = self.exponent, max(self.offset, self.floor)
        if least == 0.0:
            return math.inf
        own = up_product(max(1.0, 2 * beta - 1), _power(least, -beta))
        if norm == "2" and self.pool.reach is None:
            return own
        others = self.pool.size(shape) - 1
        at = max(least, self.offset * (beta + 1) / beta)
        steepest = up(beta * max(at - self.offset, 0.0) / at, 16)
        rows = up_product(steepest, _power(at, -beta), up(math.sqrt(others)))
        columns = rows if self.pool.reach is None else up_product(steepest, _power(at, -beta), float(others))
        return self._with_diagonal(norm, own, rows, columns)

    @staticmethod
    def _with_diagonal(norm: Norm, own: float, rows: float, columns: float) -> float:
        """The norm of a matrix, given the largest entry of its diagonal and row and column sums of the rest."""
        if norm == "2":
            return up_sum(own, up(math.sqrt(up_product(rows, columns)), 2))
        return up_sum(own, rows if norm == "inf" else columns)

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Extreme in x_i and in Σ_{j≠i} x_j² apart: y_i falls in modulus with the latter."""
        least, most = _moduli(low, high)
        near, far = self._others(least)[0], self._others(most)[1]
        return -self._largest(-high, -low, near, far), self._largest(low, high, near, far)

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        """The mean of r lies between the least and the largest r; 2aβ|x_i||x_j|d_i^{−β−1} bounds the rest."""
        least, most = _moduli(low, high)
        smallest, largest = self._divisors(least)[0], self._divisors(most)[1]
        ends = [(d.clamp(min=self.floor) ** -self.exponent).expand_as(low) for d in (largest, smallest)]
        steepest = smallest.clamp(min=self.floor) ** (-self.exponent - 1)
        left = up_tensor(2 * self.scale * self.exponent * most * steepest * (1 + _ROUNDING))
        # Of entries that are 0 throughout, 0·∞ stands for 0.
        left = torch.where(most == 0, 0.0, left)
        values = (
            torch.stack([ends[0] * (1 - _ROUNDING), -left]),
            torch.stack([ends[1] * (1 + _ROUNDING), left]),
        )
        return DivisiveHull(values[0], most, self.pool), DivisiveHull(values[1], most, self.pool)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Constants: the ends of the value's range."""
        flat = Diagonal(torch.zeros_like(low))
        least, most = self.value_range(low, high)
        return Lines(flat, least, flat, most)

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        """As the constant, with the largest r and the largest |x_i| of the box; it is convex."""
        known = self._constant(norm, shape)
        top = hull[1]
        assert isinstance(top, DivisiveHull)
        factor, left = top.values
        own = up_product(max(1.0, 2 * self.exponent - 1), float(factor.max()))
        if norm == "2" and self.pool.reach is None:
            return min(known, own)
        operations = self.pool.size(shape) + 8
        rows = up_tensor(left * self.pool.sum(top.columns, 1), operations)
        columns = up_tensor(top.columns * self.pool.transposed_sum(left, 1), operations)
        return min(known, self._with_diagonal(norm, own, float(rows.max()), float(columns.max())))

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        """At most sup |t|·max(k + at², floor)^{−β}, and at most the input times the largest factor."""
        low, high = inputs[0]
        least = max(self.offset, self.floor)
        largest = min(self._supremum(), up_product(max(abs(low), abs(high)), _power(least, -self.exponent)))
        return 0.0 if low >= 0 else -largest, 0.0 if high <= 0 else largest

    def _divisor(self, x: Tensor) -> Tensor:
        """K + a·W x², before the floor."""
        return self.offset + self.scale * self.pool.sum(x.square(), 1)

    def _secant(self, first: Tensor, second: Tensor) -> Tensor:
        """The divided difference of t ↦ max(t, floor)^{−β}, which at one point is the derivative."""
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        above = low.clamp(min=self.floor), high.clamp(min=self.floor)
        across = (low < self.floor) & (high > self.floor)
        share = (above[1] - above[0]) / torch.where(across, high - low, 1)
        share = torch.where(across, share, (low >= self.floor).to(low.dtype))
        return share * power_secant(*above, -self.exponent)

    def _divisors(self, moduli: Tensor) -> tuple[Tensor, Tensor]:
        """Certified bounds of the divisor, before the floor, where the entries have the given moduli."""
        total = self._divisor(moduli)
        margin = 2 * gamma(self.pool.size(tuple(moduli.shape[1:])) + 8) * total
        return (total - margin).clamp(min=self.offset), up_tensor(total + margin)

    def _others(self, moduli: Tensor) -> tuple[Tensor, Tensor]:
        """Certified bounds of Σ_{j≠i} x_j² where the entries have the given moduli."""
        squares = moduli.square()
        total = self.pool.sum(squares, 1)
        margin = 2 * gamma(self.pool.size(tuple(moduli.shape[1:])) + 8) * total + TINY
        low, high = total - squares - margin, total - squares + margin
        # Sums that overflow say nothing.
        return torch.where(low.isnan(), 0.0, low).clamp(min=0), torch.where(high.isnan(), math.inf, high)

    def _value(self, x: Tensor, others: Tensor) -> Tensor:
        total = self.offset + self.scale * (x.square() + others)
        return x * total.clamp(min=self.floor) ** -self.exponent

    def _largest(self, low: Tensor, high: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """An upper bound of y_i for x_i in [low, high] and Σ_{j≠i} x_j² in [near, far]."""
        # For t ≥ 0 the value rises with t up to a peak and falls behind it, if β > 1/2.
        base = self.offset + self.scale * near
        peak = torch.full_like(low, math.inf)
        if self.exponent > 0.5:
            squared = torch.maximum(base / (2 * self.exponent - 1), self.floor - base) / self.scale
            peak = squared.clamp(min=0).sqrt()
        positive = self._value(torch.minimum(torch.maximum(low, peak), high).clamp(min=0), near)
        supremum = self._supremum()
        positive = torch.where(positive.isnan(), supremum, positive).clamp(max=supremum)
        negative = torch.maximum(self._value(low, far), self._value(high, far))
        value = torch.where(high > 0, positive, torch.where(negative.isnan(), 0.0, negative))
        return value + _ROUNDING * value.abs() + TINY

    def _supremum(self) -> float:
        """An upper bound of t·max(k + at², floor)^{−β} over t ≥ 0."""
        beta = self.exponent
        if beta < 0.5:
            return math.inf
        if beta == 0.5:
            return up(1 / math.sqrt(self.scale), 16)
        squared = max(self.offset / (2 * beta - 1), self.floor - self.offset) / self.scale
        divisor = max(self.offset + self.scale * squared, self.floor)
        return math.inf if divisor == 0.0 else up(up_product(math.sqrt(squared), _power(divisor, -beta)), 64)


def _moduli(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest modulus in [low, high]."""
    sizes = low.abs(), high.abs()
    return torch.where((low < 0) & (high > 0), 0.0, torch.minimum(*sizes)), torch.maximum(*sizes)


def _power(base: float, exponent: float) -> float:
    """An upper bound of base^exponent for base ≥ 0 and a negative exponent."""
    try:
        return up(base**exponent, 64)
    except (OverflowError, ZeroDivisionError):
        return math.inf


@dataclass(eq=False)
class PooledSum(LinearLayer):
    """y_i = own·x_i + shared·Σ_j x_j over the per-sample `axes`: the magnitudes of centring."""

    kind = "pooled sum"
    axes: tuple[int, ...]
    own: float
    shared: float

    def apply(self, *vs: Tensor) -> Tensor:
        return self.own * vs[0] + self.shared * vs[0].sum([a + 1 for a in self.axes], keepdim=True)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return (self.apply(u),)


@dataclass(eq=False)
class Center(LinearLayer):
    """y = x − the mean of x over the per-sample `axes`, groups of `size` entries: an orthogonal projection."""

    kind = "centring"
    axes: tuple[int, ...]
    size: int
    entry_error: float = 4 * UNIT

    def apply(self, *vs: Tensor) -> Tensor:
        return vs[0] - vs[0].mean([a + 1 for a in self.axes], keepdim=True)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return (self.apply(u),)

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> LinearLayer:
        diagonal, other = (1 - 1 / self.size) ** power, float(self.size) ** -power
        return PooledSum(self.axes, diagonal - other, other)

    def norm(self, shapes: Sequence[Shape]) -> float:
        """1, or 0 where every entry is a group of its own."""
        return float(self.size > 1)


# ---- import rules -----------------------------------------------------------------------------------


def _normalised(
    call: TracedCall, axes: tuple[int, ...], shape: Shape, epsilon: float, center: bool
) -> list[Layer]:
    """x/√(mean x² + ε) over the axes of a signal of the shape, of x less its mean if `center`."""
    size = math.prod(shape[a] for a in axes)
    if size == 0:
        raise call.unsupported("it normalises over no entries")
    layers: list[Layer] = [Center(axes, size)] if center else []
    return [*layers, DivisiveNormalisation(Pool(axes), 1.0 / size, epsilon)]


def _affine(gain: Tensor | None, bias: Tensor | None, shape: Shape) -> list[Layer]:
    """The gain and the bias, reshaped to broadcast; nothing where there is neither."""
    if gain is None and bias is None:
        return []
    factor = torch.ones((), dtype=torch.float64) if gain is None else gain.to(torch.float64).reshape(shape)
    return [Scaling(factor, None if bias is None else bias.to(torch.float64).reshape(shape))]


def _last_axes(call: TracedCall, count: int) -> tuple[int, ...]:
    rank = len(call.input_shape)
    if count > rank:
        raise call.unsupported("it normalises over the batch")
    return tuple(range(rank - count, rank))


@torch_rule("aten.layer_norm.default", "aten.native_layer_norm.default")
def _layer_norm(call: TracedCall) -> Sequence[Layer]:
    shape, axes = call.input_shape, _last_axes(call, len(call.args[1]))
    gain, bias = call.arg(2, "weight"), call.arg(3, "bias")
    inner = tuple(shape[a] for a in axes)
    layers = _normalised(call, axes, shape, float(call.arg(4, "eps", 1e-5)), center=True)
    return [*layers, *_affine(gain, bias, inner)]


@torch_rule("aten.rms_norm.default", "aten._fused_rms_norm.default")
def _rms_norm(call: TracedCall) -> Sequence[Layer]:
    shape, axes = call.input_shape, _last_axes(call, len(call.args[1]))
    gain, epsilon = call.arg(2, "weight"), call.arg(3, "eps")
    if epsilon is None:
        epsilon = torch.finfo(call.dtype).eps
    layers = _normalised(call, axes, shape, float(epsilon), center=False)
    return [*layers, *_affine(gain, None, tuple(shape[a] for a in axes))]


@torch_rule("aten.group_norm.default", "aten.native_group_norm.default")
def _group_norm(call: TracedCall) -> Sequence[Layer]:
    shape = call.input_shape
    if call.op == "aten.group_norm.default":
        groups, gain, bias, epsilon = (
            call.arg(i, name, default)
            for i, name, default in (
                (1, "num_groups", 1),
                (2, "weight", None),
                (3, "bias", None),
                (4, "eps", 1e-5),
            )
        )
    else:
        gain, bias, groups, epsilon = (call.args[i] for i in (1, 2, 6, 7))
    grouped = (groups, math.prod(shape) // groups)
    layers = _normalised(call, (1,), grouped, float(epsilon), center=True)
    affine = _affine(gain, bias, (shape[0], *[1] * (len(shape) - 1)))
    return [Reshape(shape, grouped), *layers, Reshape(grouped, shape), *affine]


@torch_rule("aten.instance_norm.default")
def _instance_norm(call: TracedCall) -> Sequence[Layer]:
    if not call.arg(5, "use_input_stats"):
        return TORCH_RULES["aten.batch_norm.default"](replace(call, op="aten.batch_norm.default"))  # type: ignore[return-value]
    shape = call.input_shape
    gain, bias, epsilon = call.arg(1, "weight"), call.arg(2, "bias"), call.arg(7, "eps")
    axes = tuple(range(1, len(shape)))
    layers = _normalised(call, axes, shape, float(epsilon), center=True)
    return [*layers, *_affine(gain, bias, (shape[0], *[1] * len(axes)))]


@torch_rule("lipscope.local_response_norm.default")
def _local_response_norm(call: TracedCall) -> Sequence[Layer]:
    size, alpha, beta, k = call.args[1:]
    if not (alpha > 0 and beta > 0 and k >= 0):
        raise call.unsupported(f"its divisor ({k:g} + {alpha:g}·mean)^{beta:g} is not a growing one")
    window = Pool((0,), (size // 2, (size - 1) // 2))
    return [DivisiveNormalisation(window, alpha / size, float(k), float(beta))]


@torch_rule("lipscope.normalize.default")
def _normalize(call: TracedCall) -> Sequence[Layer]:
    dims, epsilon = call.args[1:]
    rank = len(call.input_shape) + 1
    axes = tuple(sorted(d % rank - 1 for d in dims)) or tuple(range(-1, rank - 1))
    if -1 in axes:
        raise call.unsupported("it takes the norm over the batch")
    # The floor is rounded down: a smaller one has the larger constant.
    return [DivisiveNormalisation(Pool(axes), 1.0, 0.0, floor=float(epsilon) ** 2 * (1 - 4 * UNIT))]
