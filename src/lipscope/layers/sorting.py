"""Sorting: MaxMin of pairs, and every sort as a network of such pairs; maxima and minima of signals.

A sort only permutes its inputs at every point, so it is 1-Lipschitz in every ℓ_q norm. Written as a
network of comparators, each of which maps (a, b) to (max, min), it keeps that constant exactly: a
comparator's slope at a pair of points is doubly stochastic.

Sources: C. Anil, J. Lucas, R. Grosse (2019), Sorting out Lipschitz function approximation (GroupSort);
K. Batcher (1968), Sorting networks and their applications (odd-even merging, here in the form for any n of
D. Knuth, The Art of Computer Programming, vol. 3, algorithm 5.2.2M).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..results import Norm
from ..slopes import AveragedSlope, Level, Point
from ..windows import Windows
from .activation import Clamp
from .base import Layer, Lines, NonlinearLayer, Range, Reference, Shape, TracedCall, torch_rule
from .copies import Copies, expanded
from .max_pool import MaxPool
from .merge import Stack
from .reshape import Permute, Reshape
from .scaling import Scaling


@dataclass
class Exchange(AveragedSlope):
    """Slopes of MaxMin: (a, b, c) ↦ (s·a + t·b, t·a + s·b, c); `values` (B, 2, pairs, *s) holds s and t = 1 − s."""

    values: Tensor

    def apply(self, v: Tensor) -> Tensor:
        keep, swap = self.values.unbind(1)
        pairs = self.values.shape[2]
        first, second, rest = v[:, :, :pairs], v[:, :, pairs : 2 * pairs], v[:, :, 2 * pairs :]
        return torch.cat([keep * first + swap * second, swap * first + keep * second, rest], 2)

    def transpose(self, u: Tensor) -> Tensor:
        """The matrix is symmetric."""
        return self.apply(u)

    def coarsened(self, level: Level) -> Exchange:
        inner = tuple(range(3 if level == "channel" else 2, self.values.ndim))
        if level == "unit" or not inner:
            return self
        means = self.values.mean(inner, keepdim=True, dtype=torch.float64)
        return Exchange(means.expand_as(self.values))


@dataclass
class Ordered(AveragedSlope):
    """As `Exchange`, with weights of their own for the larger and the smaller; `values` (B, 2, 2, pairs, *s)."""

    values: Tensor

    def apply(self, v: Tensor) -> Tensor:
        pairs = self.values.shape[3]
        first, second, rest = v[:, :, :pairs], v[:, :, pairs : 2 * pairs], v[:, :, 2 * pairs :]
        (a, b), (c, d) = (side.unbind(1) for side in self.values.unbind(1))
        return torch.cat([a * first + b * second, c * first + d * second, rest], 2)

    def transpose(self, u: Tensor) -> Tensor:
        pairs = self.values.shape[3]
        first, second, rest = u[:, :, :pairs], u[:, :, pairs : 2 * pairs], u[:, :, 2 * pairs :]
        (a, b), (c, d) = (side.unbind(1) for side in self.values.unbind(1))
        return torch.cat([a * first + c * second, b * first + d * second, rest], 2)

    def coarsened(self, level: Level) -> Ordered:
        return self


@dataclass(eq=False)
class MaxMin(NonlinearLayer):
    """Along the first per-sample axis (a, b, c) ↦ (max(a, b), min(a, b), c), with a and b of `pairs` entries each."""

    kind = "MaxMin"
    pairs: int

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[:, : self.pairs], x[:, self.pairs : 2 * self.pairs], x[:, 2 * self.pairs :]

    def forward(self, *xs: Tensor) -> Tensor:
        first, second, rest = self._split(xs[0])
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second), rest], 1)

    def linearize(self, x: Tensor) -> tuple[Tensor, Exchange]:
        """At a tie the order is kept."""
        first, second, _ = self._split(x)
        return self.forward(x), _exchange((first >= second).to(x.dtype))

    def between(self, first: Point, second: Point) -> Exchange:
        """With d = a − b, Δ|d| = c·Δd for a c in [−1, 1], and max, min = (a + b ± |d|)/2: s = (1 + c)/2."""
        d1, d2 = (a - b for a, b, _ in (self._split(point.x) for point in (first, second)))
        # Where d keeps its sign s is 0 or 1; else |d₁| and |d₂| add up in the gap, and nothing cancels.
        positive = d1.clamp(min=0) + d2.clamp(min=0)
        negative = d1.clamp(max=0) + d2.clamp(max=0)
        crossed = (d1 > 0) & (d2 < 0) | (d1 < 0) & (d2 > 0)
        share = positive / torch.where(crossed, positive - negative, 1)
        assert isinstance(first.slope, Exchange)
        assert isinstance(second.slope, Exchange)
        # A tie goes with the other point.
        kept = torch.where(d1 == 0, second.slope.values[:, 0], first.slope.values[:, 0])
        return _exchange(torch.where(crossed, share, kept))

    def averaged(self, values: Tensor) -> Exchange:
        return Exchange(values)

    def constant(self, shape: Shape) -> float:
        """1: doubly stochastic slopes."""
        return 1.0

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        return bounds[0]

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(low), self.forward(high)

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        """Open where the intervals of a and b overlap."""
        (a_low, b_low, _), (a_high, b_high, _) = self._split(low), self._split(high)
        never, surely = (a_high < b_low).to(low.dtype), (a_low > b_high).to(low.dtype)
        return (
            Exchange(torch.stack([surely, never], 1)),
            Exchange(torch.stack([1 - never, 1 - surely], 1)),
        )

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        return 1.0

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """The order that the middles of the intervals have: a maximum is above it, a minimum below.

        On the other side a constant, unless the order is sure.
        """
        (a_low, b_low, rest), (a_high, b_high, _) = self._split(low), self._split(high)
        kept = (a_low + a_high >= b_low + b_high).to(low.dtype)
        known = ((a_high < b_low) | (a_low > b_high)).to(low.dtype)
        least, most = self.value_range(low, high)
        largest, smallest = self._split(most)[0], self._split(least)[1]
        order = torch.stack([kept, 1 - kept], 1)
        nothing = torch.zeros_like(kept)
        sure = known.unsqueeze(1) * order
        # The larger, then the smaller; entries out of any pair are themselves.
        below, above = torch.stack([order, sure.flip(1)], 1), torch.stack([sure, order.flip(1)], 1)
        still = torch.zeros_like(rest)
        return Lines(
            Ordered(below),
            torch.cat([nothing, torch.where(known > 0, 0.0, smallest), still], 1),
            Ordered(above),
            torch.cat([torch.where(known > 0, 0.0, largest), nothing, still], 1),
        )

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        return inputs[0]


def _exchange(kept: Tensor) -> Exchange:
    return Exchange(torch.stack([kept, 1 - kept], 1))


# ---- sorts as networks ------------------------------------------------------------------------------


def _comparators(n: int) -> list[list[tuple[int, int]]]:
    """Batcher's merge exchange for any n: rounds of disjoint pairs (i, j), i < j, whose larger goes to i."""
    rounds: list[list[tuple[int, int]]] = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            rounds.append([(i, i + d) for i in range(n - d) if i & p == r])
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return [pairs for pairs in rounds if pairs]


def _sorted(call: TracedCall, x: Reference, axis: int, descending: bool) -> Reference:
    """The entries along the per-sample `axis` in order."""
    shape, n = x.shape, x.shape[axis]
    order = (axis, *(a for a in range(len(shape)) if a != axis))
    if order != tuple(range(len(shape))):
        x = call.apply(Permute(order), x)
    # Row i of the sorted tensor stands at place[i] of the rows as the last round left them.
    place = torch.arange(n)
    for pairs in _comparators(n):
        first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
        idle = torch.tensor(
            sorted(set(range(n)) - set(first.tolist()) - set(second.tolist())), dtype=torch.int64
        )
        wanted = torch.cat([first, second, idle])
        x = call.apply(MaxMin(len(first)), call.apply(_rows(x, place[wanted]), x))
        place = torch.argsort(wanted)
    ranks = place if descending else place.flip(0)
    x = call.apply(_rows(x, ranks), x)
    inverse = tuple(sorted(range(len(order)), key=order.__getitem__))
    return x if inverse == tuple(range(len(shape))) else call.apply(Permute(inverse), x)


def _rows(x: Reference, chosen: Tensor) -> Copies:
    """Some entries of the first per-sample axis, which gets the shape of `chosen`."""
    area = math.prod(x.shape[1:])
    cells = chosen.unsqueeze(-1) * area + torch.arange(area)
    return Copies(x.shape, cells.reshape(*chosen.shape, *x.shape[1:]))


# ---- rules ------------------------------------------------------------------------------------------


@torch_rule("aten.sort.default", "aten.sort.stable")
def _sort(call: TracedCall) -> Reference:
    (x,) = call.references
    stable = call.op == "aten.sort.stable"
    dim = call.kwargs.get("dim", -1) if stable else call.arg(1, "dim", -1)
    descending = call.kwargs.get("descending", False) if stable else call.arg(2, "descending", False)
    return _sorted(call, x, _axis(call, dim), bool(descending))


def _axis(call: TracedCall, dim: int) -> int:
    axis: int = dim % (len(call.input_shape) + 1) - 1
    if axis < 0:
        raise call.unsupported("it compares samples of the batch")
    return axis


@torch_rule("aten.maximum.default", "aten.minimum.default", "aten.max.other", "aten.min.other")
def _larger(call: TracedCall) -> Sequence[Layer] | Reference:
    name = call.op.split(".")[1]
    if len(call.references) == 1:
        (constant,) = (value for value in call.args[:2] if isinstance(value, Tensor))
        if constant.numel() != 1:
            raise call.unsupported(
                "a maximum with a tensor of constants is not supported, only with a number"
            )
        bound = float(constant)
        return [Clamp(bound, math.inf) if name.startswith("max") else Clamp(-math.inf, bound)]
    pair = call.apply(Stack(0), *(expanded(call, x, call.out_shape) for x in call.references))
    both = call.apply(MaxMin(1), pair)
    cells = torch.arange(math.prod(call.out_shape)).reshape(call.out_shape)
    return call.apply(Copies(both.shape, cells + (0 if name.startswith("max") else cells.numel())), both)


@torch_rule("aten.amax.default", "aten.amin.default", "aten.max.dim", "aten.min.dim")
def _extreme(call: TracedCall) -> Reference:
    """Max pooling over a window as long as the axes, laid out as one column."""
    (x,) = call.references
    name = call.op.split(".")[1]
    dims = call.arg(1, "dim", ())
    rank = len(x.shape) + 1
    axes = [_axis(call, dim) for dim in ([dims] if isinstance(dims, int) else dims)]
    if not axes:
        raise call.unsupported("it compares samples of the batch")
    kept = [a for a in range(rank - 1) if a not in axes]
    if [*kept, *axes] != list(range(rank - 1)):
        x = call.apply(Permute((*kept, *axes)), x)
    length = math.prod(x.shape[len(kept) :])
    column = (1, math.prod(x.shape[: len(kept)]), length)
    x = call.apply(Reshape(x.shape, column), x)
    negative = Scaling(-torch.ones((), dtype=torch.float64))
    windows = Windows(column[1:], (column[1], 1), (1, length), (1, length), (0, 0), (1, 1))
    if name.endswith("min"):
        x = call.apply(negative, x)
    x = call.apply(MaxPool(windows), x)
    if name.endswith("min"):
        x = call.apply(negative, x)
    return call.apply(Reshape(x.shape, call.out_shape), x)
