"""Layers that merge entries nonlinearly: p-norm pooling, the complex modulus, the product of bounded signals.

Pooling over windows is `Copies` (which lays each window out along a new axis) and a norm over that axis.
A product of two signals is `Stack` and a product over the new axis, so that every nonlinear layer has one
input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..results import Norm
from ..rounding import UNIT, up, up_hypot, up_product, up_sum, widen
from ..slopes import AveragedSlope, GroupWeights, Point, Slope
from ..windows import Windows
from .base import (
    TORCH_RULES,
    Layer,
    NonlinearLayer,
    Range,
    Reference,
    Shape,
    TracedCall,
    torch_rule,
)
from .copies import Copies
from .merge import Stack
from .scaling import Scaling

_ROUNDING = 2.0**-43
"""Covers the roundings of a p-norm and of the powers in it, with a large reserve."""


@dataclass(eq=False)
class NormPool(NonlinearLayer):
    """y = (Σ|x_i|^p)^{1/p} over the per-sample `axes`, 1 ≤ p ≤ ∞; the axes stay with size 1 if `keep`."""

    kind = "p-norm pooling"
    p: float
    axes: tuple[int, ...]
    keep: bool = False

    def forward(self, *xs: Tensor) -> Tensor:
        value: Tensor = torch.linalg.vector_norm(xs[0], self.p, [a + 1 for a in self.axes], keepdim=self.keep)
        return value

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        return self.forward(x), GroupWeights(self._gradient(x), self.axes, self.keep)

    def between(self, first: Point, second: Point) -> GroupWeights:
        """Mixes the gradients g₁, g₂ at the two points: y is convex, so Δy lies between g₂·Δx and g₁·Δx."""
        gradient1, gradient2 = self._gradient(first.x), self._gradient(second.x)
        dims = [a + 1 for a in self.axes]
        gap = first.x - second.x
        upper = (gradient1 * gap).sum(dims, keepdim=True)
        lower = (gradient2 * gap).sum(dims, keepdim=True)
        y1, y2 = (torch.linalg.vector_norm(p.x, self.p, dims, keepdim=True) for p in (first, second))
        spread = upper - lower
        share = ((y1 - y2 - lower) / torch.where(spread == 0, 1, spread)).clamp(0, 1)
        share = torch.where(spread == 0, 1, share)
        return GroupWeights(share * gradient1 + (1 - share) * gradient2, self.axes, self.keep)

    def averaged(self, values: Tensor) -> GroupWeights:
        return GroupWeights(values, self.axes, self.keep)

    def constant(self, shape: Shape) -> float:
        """max(1, n^{1/p − 1/2}) for groups of n: the largest p-norm on the Euclidean unit sphere."""
        size = math.prod(shape[a] for a in self.axes)
        # The exponent is off by at most 2u and ln n is below 64, so the power is off by less than 200u.
        return 1.0 if self.p >= 2 or size <= 1 else up(size ** (1 / self.p - 0.5), 200)

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """For groups of n, the largest p-norm on the unit sphere: 1 in ℓ₁, n^{1/p} in ℓ_∞."""
        if norm == "2":
            return self.lipschitz(bounds, shapes)
        return bounds[0] if norm == "1" else up_product(bounds[0], self._cube(shapes[0]))

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The norms of the smallest and of the largest absolute values."""
        least = torch.where((low < 0) & (high > 0), 0.0, torch.minimum(low.abs(), high.abs()))
        ends = self.forward(least), self.forward(torch.maximum(low.abs(), high.abs()))
        return widen(ends[0], _ROUNDING * ends[0])[0].clamp(min=0), widen(ends[1], _ROUNDING * ends[1])[1]

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        """No partial derivative is above 1, and each has the sign of its entry."""
        below, above = -(low < 0).to(low.dtype), (high > 0).to(low.dtype)
        return self.averaged(below), self.averaged(above)

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        return self.lipschitz_in(norm, [1.0], [shape])

    def _cube(self, shape: Shape) -> float:
        """The p-norm of ones, n^{1/p} for groups of n."""
        size = math.prod(shape[a] for a in self.axes)
        return 1.0 if math.isinf(self.p) else up(size ** (1 / self.p), 200)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        """From 0 to n^{1/p} times the largest absolute value."""
        return 0.0, up_product(max(abs(bound) for bound in inputs[0]), self._cube(shapes[0]))

    def _gradient(self, x: Tensor) -> Tensor:
        """∂y/∂x, shape of x; 0, a subgradient, where y = 0; at ties of p = ∞ shared equally."""
        dims = [a + 1 for a in self.axes]
        largest = x.abs().amax(dims, keepdim=True)
        ratio = x.abs() / torch.where(largest == 0, 1, largest)
        if math.isinf(self.p):
            winners = (ratio == 1).to(x.dtype)
            return x.sign() * winners / winners.sum(dims, keepdim=True).clamp_min(1)
        # With q = |x|/max|x| nothing overflows: ∂y/∂x_i = sign(x_i) (q_i/‖q‖_p)^{p−1}.
        norm = torch.linalg.vector_norm(ratio, self.p, dims, keepdim=True)
        return x.sign() * (ratio / torch.where(norm == 0, 1, norm)) ** (self.p - 1)


@dataclass(eq=False)
class Modulus(NormPool):
    """|z| of complex numbers, real and imaginary part along one axis of size two."""

    kind = "modulus"


@dataclass(eq=False)
class Product(NonlinearLayer):
    """y = x[0]·x[1] over the first per-sample axis, for |x[0]| ≤ bounds[0] and |x[1]| ≤ bounds[1] only.

    With bounds, ‖Δy‖ ≤ bounds[1]·‖Δx[0]‖ + bounds[0]·‖Δx[1]‖. Unless both are finite the product has no
    global Lipschitz constant (`constant` is infinite), but one over every ball of inputs.
    """

    kind = "product"
    why_unbounded = "product of two signals of which one is unbounded"
    bounds: tuple[float, float]

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0][:, 0] * xs[0][:, 1]

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        return self.forward(x), GroupWeights(x.flip(1), (0,))

    def between(self, first: Point, second: Point) -> GroupWeights:
        """Δ(ab) = mean(b)·Δa + mean(a)·Δb exactly."""
        return GroupWeights(((first.x + second.x) / 2).flip(1), (0,))

    def averaged(self, values: Tensor) -> GroupWeights:
        return GroupWeights(values, (0,))

    def constant(self, shape: Shape) -> float:
        """√(A² + B²), the longest gradient (b, a)."""
        return gradient_norm("2", *self.bounds)

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """With |a| ≤ A and |b| ≤ B: √(A² + B²), in ℓ₁ the larger of them, in ℓ_∞ their sum."""
        return up_product(bounds[0], gradient_norm(norm, *self.bounds))

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        corners = torch.stack([a[:, 0] * b[:, 1] for a in (low, high) for b in (low, high)])
        # 0 · ∞ is no number; the signal itself is bounded.
        least = torch.where(corners.isnan(), -math.inf, corners).amin(0)
        most = torch.where(corners.isnan(), math.inf, corners).amax(0)
        return widen(least, 2 * UNIT * least.abs())[0], widen(most, 2 * UNIT * most.abs())[1]

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        """The slopes of a pair are the means of b and of a."""
        limits = torch.tensor(self.bounds, dtype=low.dtype).reshape(1, 2, *[1] * (low.ndim - 2))
        ends = torch.maximum(low, -limits), torch.minimum(high, limits)
        return self.averaged(ends[0].flip(1)), self.averaged(ends[1].flip(1))

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        steepest = torch.maximum(*(slope.values.abs() for slope in hull))
        return gradient_norm(norm, *(float(steepest[:, i].max()) for i in (0, 1)))

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        largest = up_product(*self.bounds)
        return -largest, largest


def gradient_norm(norm: Norm, first: float, second: float) -> float:
    """The ℓ_q operator norm of the map (s, t) ↦ first·s + second·t, both coefficients at least 0."""
    if norm == "2":
        return up_hypot(first, second)
    return max(first, second) if norm == "1" else up_sum(first, second)


def norm_pool(p: float, axes: tuple[int, ...], keep: bool, shape: Shape) -> NormPool:
    """The p-norm over `axes` of a per-sample shape, known as modulus where it is that of a complex number."""
    pair = p == 2 and math.prod(shape[a] for a in axes) == 2
    return (Modulus if pair else NormPool)(p, axes, keep)


@torch_rule("aten.linalg_vector_norm.default")
def _vector_norm(call: TracedCall) -> Sequence[Layer]:
    shape = call.input_shape
    p, dims = float(call.arg(1, "ord", 2)), call.arg(2, "dim")
    rank = len(shape) + 1
    axes = tuple(sorted(d % rank - 1 for d in ([dims] if isinstance(dims, int) else dims or [0])))
    if -1 in axes:
        raise call.unsupported("it takes the norm over the batch")
    if not p >= 1:
        raise call.unsupported(f"with p = {p:g} below 1 it is not a norm")
    return [norm_pool(p, axes, bool(call.arg(3, "keepdim", False)), shape)]


@torch_rule("lipscope.lp_pool.default")
def _power_average_pooling(call: TracedCall) -> Sequence[Layer]:
    _, p, kernel, stride, ceil_mode = call.args
    size, taps = call.box(len(kernel)), math.prod(kernel)
    if p == 1:
        # A plain sum, signs and all.
        average = replace(
            call,
            op=f"aten.avg_pool{len(kernel)}d.default",
            args=(call.args[0], kernel, stride, [0] * len(kernel), ceil_mode),
        )
        layers = TORCH_RULES[average.op](average)
        assert not isinstance(layers, Reference)
        return [*layers, Scaling(torch.full((), float(taps), dtype=torch.float64))]
    if p < 1:
        raise call.unsupported(f"with p = {p:g} below 1 it is not a norm")
    if p % 2 != 0 and call.references[0].values[0] < 0:
        raise call.unsupported(f"with p = {p:g} torch takes powers of signed numbers, which is no norm")
    out_size = call.out_shape[1:]
    windows = Windows(size, out_size, *map(tuple, (kernel, stride, (0,) * len(size), (1,) * len(size))))
    total = math.prod(call.input_shape)
    # Numbers from 1 on; a window that reaches beyond the box reads 0 there.
    numbers = torch.arange(1, total + 1).reshape(call.input_shape)
    cells = torch.stack(list(windows.tap_views(windows.pad(numbers))), -1)
    pool = norm_pool(p, (len(size) + 1,), False, tuple(cells.shape))
    layers = [Copies(call.input_shape, torch.where(cells == 0, total, cells - 1)), pool]
    # Torch multiplies the mean over what is left of a window by the size of a whole one.
    left = (cells[:1] > 0).sum(-1).to(torch.float64)
    return (
        layers if bool((left == taps).all()) else [*layers, Scaling((taps / left) ** (1 / p), operations=8)]
    )


@torch_rule("aten.hypot.default")
def _hypot(call: TracedCall) -> Sequence[Layer]:
    return [pair(call), Modulus(2.0, (0,))]


def pair(call: TracedCall) -> Stack:
    """Two signals of one shape, stacked along a new first axis."""
    shapes = [reference.shape for reference in call.references]
    if len(shapes) != 2 or shapes[0] != shapes[1]:
        raise call.unsupported(f"it combines the shapes {', '.join(map(str, shapes))}; they must be equal")
    return Stack(0)
