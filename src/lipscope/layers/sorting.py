"""Sorting as a network of comparators; maxima and minima of signals and along axes.

A sort permutes its inputs, so it is 1-Lipschitz in every ℓ_q norm. Each stage of the network maps
disjoint pairs (a, b) to (max, min); its slopes are doubly stochastic, so the constant stays exactly 1.

Sources: C. Anil, J. Lucas, R. Grosse (2019), Sorting out Lipschitz function approximation (GroupSort);
K. Batcher (1968), Sorting networks and their applications, for any number of inputs as in
D. Knuth, The Art of Computer Programming, vol. 3, algorithm 5.2.2M.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..results import Norm
from ..slopes import AveragedSlope, Level, Point
from ..windows import Windows
from .activation import ReLU
from .base import Layer, Lines, NonlinearLayer, Range, Reference, Shape, TracedCall, torch_rule
from .copies import Copies, expanded
from .max_pool import MaxPool
from .merge import Stack
from .reshape import Permute, over_axes
from .scaling import Scaling


@dataclass
class Exchange(AveragedSlope):
    """Each wire of the first per-sample axis as keep·itself + swap·its partner; `values` (B, 2, *s) = (keep, swap)."""

    values: Tensor
    partner: Tensor

    def apply(self, v: Tensor) -> Tensor:
        keep, swap = self.values.unbind(1)
        return keep * v + swap * v[:, :, self.partner]

    def transpose(self, u: Tensor) -> Tensor:
        keep, swap = self.values.unbind(1)
        return keep * u + (swap * u)[:, :, self.partner]

    def coarsened(self, level: Level) -> Exchange:
        """The wires are the channels; at level `scalar` they share their weights."""
        inner = tuple(range(2 if level == "scalar" else 3, self.values.ndim))
        if level == "unit" or not inner:
            return self
        return self.with_values(self.values.mean(inner, keepdim=True, dtype=torch.float64))


@dataclass(eq=False)
class Comparators(NonlinearLayer):
    """Along the first per-sample axis, disjoint pairs (a, b) become (max, min).

    `partner` (n) is the other wire of each wire (itself if it has none) and `larger` (n) tells the wires
    that get the maximum.
    """

    kind = "sorting"
    piecewise_linear = True
    partner: Tensor
    larger: Tensor

    def forward(self, *xs: Tensor) -> Tensor:
        x = xs[0]
        other = x[:, self.partner]
        return torch.where(self._wires(self.larger, x), torch.maximum(x, other), torch.minimum(x, other))

    def linearize(self, x: Tensor) -> tuple[Tensor, Exchange]:
        """At a tie the order is kept."""
        return self.forward(x), self._exchange((self._lead(x, x) >= 0).to(x.dtype))

    def between(self, first: Point, second: Point) -> Exchange:
        """With d = a − b, Δ|d| = c·Δd for a c in [−1, 1], and max, min = (a + b ± |d|)/2: keep = (1 + c)/2."""
        d1, d2 = self._lead(first.x, first.x), self._lead(second.x, second.x)
        # Where d changes its sign |d₁| and |d₂| add up in the gap; else keep is 0 or 1.
        crossed = ((d1 > 0) & (d2 < 0)) | ((d1 < 0) & (d2 > 0))
        most, least = torch.maximum(d1, d2), torch.minimum(d1, d2)
        share = most / torch.where(crossed, most - least, 1)
        # A tie goes with the other point.
        same = (torch.where(d1 == 0, d2, d1) >= 0).to(d1.dtype)
        return self._exchange(torch.where(crossed, share, same))

    def averaged(self, values: Tensor) -> Exchange:
        return Exchange(values, self.partner)

    def constant(self, shape: Shape) -> float:
        """1: the slopes are doubly stochastic."""
        return 1.0

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        return bounds[0]

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(low), self.forward(high)

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        """Open where the intervals of a and b overlap."""
        leads = self._lead(low, high), self._lead(high, low)
        least = torch.minimum(*leads)
        most = torch.maximum(*leads)
        alone = self._wires(self.partner == torch.arange(len(self.partner)), low)
        surely = (alone | (least > 0)).to(low.dtype)
        possibly = (alone | ~(most < 0)).to(low.dtype)
        return (
            self.averaged(torch.stack([surely, 1 - possibly], 1)),
            self.averaged(torch.stack([possibly, 1 - surely], 1)),
        )

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        return 1.0

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Constants: the ends of the value's range."""
        flat = self.averaged(torch.zeros_like(torch.stack([low, low], 1)))
        least, most = self.value_range(low, high)
        return Lines(flat, least, flat, most)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        return inputs[0]

    def _lead(self, x: Tensor, other: Tensor) -> Tensor:
        """The a − b of each wire's pair, one's value from `x` and the partner's from `other`."""
        ahead = x - other[:, self.partner]
        return torch.where(self._wires(self.larger, x), ahead, -ahead)

    def _exchange(self, keep: Tensor) -> Exchange:
        return Exchange(torch.stack([keep, 1 - keep], 1), self.partner)

    @staticmethod
    def _wires(flags: Tensor, x: Tensor) -> Tensor:
        return flags.reshape(-1, *[1] * (x.ndim - 2))


def _comparators(wires: int, pairs: Sequence[tuple[int, int]]) -> Comparators:
    """The layer that puts the larger of each pair on its first wire."""
    partner, larger = torch.arange(wires), torch.zeros(wires, dtype=torch.bool)
    for first, second in pairs:
        partner[first], partner[second], larger[first] = second, first, True
    return Comparators(partner, larger)


def _stages(wires: int) -> Iterator[list[tuple[int, int]]]:
    """Batcher's merge exchange: the pairs of each stage of a network that sorts any input."""
    top = 1 << max(0, (wires - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            yield [(i, i + d) for i in range(wires - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2


def _to_front(call: TracedCall, axis: int) -> tuple[Reference, Permute]:
    """The value with one per-sample axis first, and the permutation back."""
    rank = len(call.input_shape)
    order = (axis, *(i for i in range(rank) if i != axis))
    back = Permute(tuple(order.index(i) for i in range(rank)))
    (value,) = call.references
    return (value if axis == 0 else call.apply(Permute(order), value)), back


@torch_rule("aten.sort.default", "aten.sort.stable")
def _sort(call: TracedCall) -> Reference:
    stable = call.op == "aten.sort.stable"
    dim, descending = call.arg(1 + stable, "dim", -1), call.arg(2 + stable, "descending", False)
    axis = call.axis(dim)
    value, back = _to_front(call, axis)
    wires = value.shape[0]
    for pairs in _stages(wires):
        ordered = pairs if descending else [(j, i) for i, j in pairs]
        value = call.apply(_comparators(wires, ordered), value)
    return value if axis == 0 else call.apply(back, value)


@torch_rule("aten.maximum.default", "aten.minimum.default", "aten.max.other", "aten.min.other")
def _larger_of_two(call: TracedCall) -> Reference:
    if len(call.references) != 2:
        return _larger_of_constant(call)
    pair = call.apply(Stack(0), *(expanded(call, reference, call.out_shape) for reference in call.references))
    both = call.apply(_comparators(2, [(0, 1)]), pair)
    size = math.prod(call.out_shape)
    start = size if "min" in call.op else 0
    return call.apply(Copies(both.shape, torch.arange(start, start + size).reshape(call.out_shape)), both)


def _larger_of_constant(call: TracedCall) -> Reference:
    """max(x, c) = c + relu(x − c) and min(x, c) = c − relu(c − x)."""
    (constant,) = (value for value in call.args[:2] if not isinstance(value, Reference))
    bound = call.per_sample(torch.as_tensor(constant, dtype=torch.float64))
    if not bool(bound.isfinite().all()):
        raise call.unsupported("the constant is infinite")
    sign = torch.full((), -1.0 if "min" in call.op else 1.0, dtype=torch.float64)
    value = call.apply(Scaling(sign, -sign * bound), expanded(call, call.references[0], call.out_shape))
    return call.apply(Scaling(sign, bound), call.apply(ReLU(), value))


@torch_rule("aten.amax.default", "aten.amin.default", "aten.max.dim", "aten.min.dim")
def _largest(call: TracedCall) -> Sequence[Layer]:
    dims = call.args[1]
    axes = [call.axis(dim) for dim in ([dims] if isinstance(dims, int) else dims)]
    if not axes:
        raise call.unsupported("it reduces the batch")

    def largest(length: int) -> MaxPool:
        return MaxPool(Windows((length,), (1,), (length,), (length,), (0,), (1,)))

    layers = over_axes(call, axes, largest)
    if "min" in call.op:
        minus = Scaling(-torch.ones((), dtype=torch.float64))
        layers = [minus, *layers, minus]
    return layers
