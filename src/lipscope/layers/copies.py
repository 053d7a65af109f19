"""Operations that only copy entries, repeat them, drop them or put constants beside them.

Slices, padding, rolls, expansion, windows: instead of one class each there is one, a table that says
which input entry every output is. The table is read off by running the operation on the numbers
1, 2, 3, … in the place of its input, so a new operation of this kind is one more name in the list below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from ..results import Norm
from ..rounding import gamma, up_root
from .base import Filter, Layer, LinearLayer, Range, Reference, Shape, TracedCall, torch_rule
from .merge import Concatenation, Join
from .scaling import Scaling

MASKED = -1e30
"""In the place of −∞ for what attention must not see: behind a softmax both are exactly 0."""


def without_infinity(constants: Tensor) -> Tensor:
    """Constants that a signal meets, with `MASKED` for −∞: differences of a value at −∞ would be no numbers."""
    return torch.where(constants == -math.inf, MASKED, constants)


@dataclass(eq=False)
class Copies(LinearLayer):
    """y[i] = x[cells[i]], or 0 where cells[i] is the number of entries of x; `cells` has the output's shape."""

    kind = "copy"
    moves_only = True
    source: Shape
    cells: Tensor

    def apply(self, *vs: Tensor) -> Tensor:
        flat = vs[0].flatten(1)
        if self._has_zeros:
            flat = functional.pad(flat, (0, 1))
        return flat.index_select(1, self.cells.flatten()).reshape(-1, *self.cells.shape)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        size = math.prod(self.source)
        sums = u.new_zeros(len(u), size + 1).index_add_(1, self.cells.flatten(), u.flatten(1))
        return (sums[:, :size].reshape(-1, *self.source),)

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> LinearLayer:
        """The layer itself: its entries are 0 and 1."""
        return self

    def rounding(self, shapes: Sequence[Shape], target: Shape) -> float:
        """Of the adjoint, which adds the copies of an entry up."""
        return gamma(self._most_copies) if self._most_copies > 1 else 0.0

    @property
    def _has_zeros(self) -> bool:
        return self._counts()[0] > 0

    @property
    def _most_copies(self) -> int:
        return self._counts()[1]

    def _counts(self) -> tuple[int, int]:
        """How many outputs are 0, and the largest number of copies of one entry."""
        if self not in _COUNTS:
            size = math.prod(self.source)
            counts = torch.bincount(self.cells.flatten(), minlength=size + 1)
            _COUNTS[self] = int(counts[size]), int(counts[:size].max()) if size else 0
        return _COUNTS[self]

    def norm(self, shapes: Sequence[Shape]) -> float:
        """√(largest number of copies of one entry): TᵀT is diagonal and counts them."""
        return up_root(self._most_copies)

    def scaled_norm(
        self,
        norm: Norm,
        shapes: Sequence[Shape],
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        spectral: float | None = None,
    ) -> float:
        """Without scales: 1 for q = ∞, the largest number of copies for q = 1, its root for q = 2."""
        if rows is not None or columns is not None:
            return super().scaled_norm(norm, shapes, rows, columns, spectral)
        copies = self._most_copies
        return {"1": float(copies), "2": up_root(copies), "inf": float(copies > 0)}[norm]

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        low, high = inputs[0]
        return (min(low, 0.0), max(high, 0.0)) if self._has_zeros else (low, high)

    def filter(self, shape: Shape) -> Filter | None:
        """A choice of channels is a pointwise filter."""
        dims, out = len(shape) - 1, tuple(self.cells.shape)
        if dims < 1 or out[1:] != shape[1:]:
            return None
        area = math.prod(shape[1:])
        table = self.cells.reshape(out[0], area)
        channels = table[:, 0] // area
        if not torch.equal(table, channels[:, None] * area + torch.arange(area)):
            return None
        taps = torch.zeros(1, out[0], shape[0] + 1, dtype=torch.float64)
        taps[0, torch.arange(out[0]), channels] = 1.0
        return Filter(taps[..., :-1], ((0,) * dims,), (1,) * dims, shape[1:])


_COUNTS: WeakKeyDictionary[Copies, tuple[int, int]] = WeakKeyDictionary()
"""Kept beside the layers: an attribute would enter the fingerprint of a network."""


@torch_rule(
    "aten.slice.Tensor",
    "aten.select.int",
    "aten.split.Tensor",
    "aten.split.sizes",
    "aten.split_with_sizes.default",
    "aten.split_with_sizes_copy.default",
    "aten.chunk.default",
    "aten.unsafe_chunk.default",
    "aten.unsafe_split.Tensor",
    "aten.tensor_split.sections",
    "aten.tensor_split.indices",
    "aten.unbind.int",
    "aten.narrow.default",
    "aten.index.Tensor",
    "aten.index_select.default",
    "aten.gather.default",
    "aten.take.default",
    "aten.masked_select.default",
    "aten.diagonal.default",
    "aten.expand.default",
    "aten.expand_as.default",
    "aten.broadcast_to.default",
    "aten.repeat.default",
    "aten.tile.default",
    "aten.repeat_interleave.self_int",
    "aten.roll.default",
    "aten.flip.default",
    "aten.rot90.default",
    "aten.pad.default",
    "aten.constant_pad_nd.default",
    *(f"aten.{mode}_pad{d}d.default" for mode in ("reflection", "replication") for d in (1, 2, 3)),
    "aten.pixel_shuffle.default",
    "aten.pixel_unshuffle.default",
    "aten.channel_shuffle.default",
    "aten.native_channel_shuffle.default",
    "aten.unfold.default",
    "aten.im2col.default",
    *(f"aten.upsample_nearest{d}d.{form}" for d in (1, 2, 3) for form in ("default", "vec")),
    *(f"aten._upsample_nearest_exact{d}d.{form}" for d in (1, 2, 3) for form in ("default", "vec")),
    "aten.tril.default",
    "aten.triu.default",
    "aten.masked_fill.Scalar",
    "aten.masked_fill.Tensor",
    "aten.where.self",
    "aten.where.ScalarSelf",
    "aten.where.ScalarOther",
    "aten.slice_scatter.default",
    "aten.select_scatter.default",
    "aten.index_put.default",
    "aten.copy.default",
    "aten.movedim.int",
    "aten.movedim.intlist",
    "aten.swapaxes.default",
    any_result=True,
)
def copies(call: TracedCall) -> Reference:
    """The value of an operation that only copies entries and puts constants beside them, by probing it.

    A constant −∞ (a mask before a softmax) becomes `MASKED`.
    """
    call = replace(call, args=tuple(_in_float64(value) for value in call.args))
    references = call.references
    sizes = [math.prod(reference.shape) for reference in references]
    total, batch = sum(sizes), call.batch
    first = 1
    numbers: list[Tensor] = []
    for reference, size in zip(references, sizes, strict=True):
        # Sample b counts on from total·b, so that an entry of another sample would show.
        count = torch.arange(first, first + size, dtype=torch.float64)
        count = count + total * torch.arange(batch, dtype=torch.float64)[:, None]
        numbers.append(count.reshape(batch, *reference.shape))
        first += size
    try:
        constants = without_infinity(call.evaluate(*(torch.zeros_like(n) for n in numbers)))
        counted = without_infinity(call.evaluate(*numbers)) - constants
    except RuntimeError as error:
        raise call.unsupported(f"it cannot be probed ({str(error).splitlines()[0]})") from error
    if not bool(constants.isfinite().all()) or not bool((constants == constants[:1]).all()):
        raise call.unsupported("it puts infinities or numbers that differ between samples beside the entries")
    copied = counted != 0
    shift = total * torch.arange(batch, dtype=torch.float64).reshape(-1, *[1] * len(call.out_shape))
    cells = torch.where(copied, counted - shift - 1, total)
    if tuple(cells.shape) != (batch, *call.out_shape) or not bool((cells == cells[:1]).all()):
        raise call.unsupported("it moves entries between the samples of a batch")
    source = references[0]
    if len(references) > 1:
        source = call.apply(Join(tuple(reference.shape for reference in references)), *references)
    value = call.apply(Copies(source.shape, cells[0].to(torch.int64)), source)
    if bool((constants != 0).any()):
        value = call.apply(Scaling(torch.ones((), dtype=torch.float64), constants[0]), value)
    return value


def _in_float64(value: Any) -> Any:
    """A constant as the numbers it is put among: some operations want one type."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def expanded(call: TracedCall, value: Reference, shape: Shape) -> Reference:
    """A value broadcast to a per-sample shape, by the rules of torch; itself if it has that shape."""
    if value.shape == shape:
        return value
    size = math.prod(value.shape)
    try:
        cells = torch.arange(size).reshape(value.shape).expand(shape).contiguous()
    except RuntimeError as error:
        raise call.unsupported(f"the shapes {value.shape} and {shape} do not broadcast per sample") from error
    return call.apply(Copies(value.shape, cells), value)


@torch_rule("aten.cat.default")
def _concatenation(call: TracedCall) -> Sequence[Layer] | Reference:
    """Constant parts (a class token) are entries beside copies."""
    axis = call.arg(1, "dim", 0) % (len(call.out_shape) + 1) - 1
    if axis < 0:
        raise call.unsupported("it concatenates along the batch")
    parts = call.args[0]
    if not all(isinstance(part, Reference) for part in parts):
        return copies(call)
    return [Concatenation(axis, tuple(part.shape[axis] for part in parts))]
