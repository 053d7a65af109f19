"""Geometry of sliding windows (pooling, convolution) on a zero-padded box, in any dimension."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Windows:
    """Windows of `kernel` taps at `dilation`, every `stride`, over `size` cells padded by `padding`.

    Output cell o, tap t reads input cell o·stride + t·dilation − padding; cells outside the
    box are absent (pooling) or zero (convolution). All fields have one entry a dimension;
    `out_size` is given since rounding up (`ceil_mode`) and `output_padding` change it.
    """

    size: tuple[int, ...]
    out_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def taps(self) -> int:
        """Number of taps τ of one window."""
        return math.prod(self.kernel)

    def span(self, dim: int) -> int:
        """Cells from the first read (−padding) to the last one along `dim`."""
        return (self.out_size[dim] - 1) * self.stride[dim] + (self.kernel[dim] - 1) * self.dilation[dim] + 1

    def largest_cover(self) -> int:
        """The largest number of windows that read one input cell (the product over dimensions)."""
        return math.prod(max(self._cover(dim), default=0) for dim in range(len(self.size)))

    def reads(self) -> int:
        """How many taps of all windows together read a cell of the box, not padding."""
        return math.prod(sum(self._cover(dim)) for dim in range(len(self.size)))

    def _cover(self, dim: int) -> list[int]:
        counts = [0] * self.size[dim]
        for out, tap in itertools.product(range(self.out_size[dim]), range(self.kernel[dim])):
            cell = out * self.stride[dim] + tap * self.dilation[dim] - self.padding[dim]
            if 0 <= cell < self.size[dim]:
                counts[cell] += 1
        return counts

    def torus_period(self) -> tuple[int, ...]:
        """The smallest period per dimension, a multiple of the stride, on which no window wraps onto data."""
        periods = []
        for dim, stride in enumerate(self.stride):
            last_output = (self.out_size[dim] - 1) * stride
            reach = max(
                self.size[dim] + self.padding[dim], self.span(dim) - self.padding[dim], last_output + 1
            )
            periods.append(-(-reach // stride) * stride)
        return tuple(periods)

    def pad(self, x: Tensor) -> Tensor:
        """Zero-pad (or crop at the far end) the last dimensions so that every tap has a cell."""
        widths: list[int] = []
        for dim in reversed(range(len(self.size))):
            widths += [self.padding[dim], self.span(dim) - self.padding[dim] - self.size[dim]]
        return functional.pad(x, widths) if any(widths) else x

    def unpad(self, x: Tensor) -> Tensor:
        """The adjoint of `pad`."""
        widths: list[int] = []
        for dim in reversed(range(len(self.size))):
            widths += [-self.padding[dim], self.size[dim] + self.padding[dim] - self.span(dim)]
        return functional.pad(x, widths) if any(widths) else x

    def tap_views(self, padded: Tensor) -> Iterator[Tensor]:
        """For each tap in row-major order, the view of `padded` (see `pad`) with one cell a window."""
        for tap in itertools.product(*(range(k) for k in self.kernel)):
            index: list[Any] = [...]
            for t, d, s, out in zip(tap, self.dilation, self.stride, self.out_size, strict=True):
                index.append(slice(t * d, t * d + (out - 1) * s + 1, s))
            yield padded[tuple(index)]

    def tap_of(self, cells: Tensor) -> Tensor:
        """The row-major tap number of the flat input cell that each window (last dimensions) selected."""
        if self._offsets_tell():
            # The common case: the distance from a window's first cell tells the tap, by a look-up.
            table, first = self._tap_table(cells.device)
            return table.index_select(0, (cells - first).flatten()).reshape(cells.shape)
        tap = torch.zeros_like(cells)
        remaining = cells
        for dim in reversed(range(len(self.size))):
            cell = remaining % self.size[dim]
            remaining = torch.div(remaining, self.size[dim], rounding_mode="floor")
            along = torch.div(
                cell - self._firsts(dim, cells.device), self.dilation[dim], rounding_mode="floor"
            )
            tap += along * math.prod(self.kernel[dim + 1 :])
        return tap

    def _firsts(self, dim: int, device: torch.device) -> Tensor:
        """Where each window starts along `dim` (before the box for padding), shaped to broadcast."""
        first = torch.arange(self.out_size[dim], device=device) * self.stride[dim] - self.padding[dim]
        return first.reshape(-1, *[1] * (len(self.size) - 1 - dim))

    def _offsets_tell(self) -> bool:
        """Whether no two taps lie the same number of flat cells from their window's first."""
        reach = [(k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)]
        return all(r < n for r, n in zip(reach[1:], self.size[1:], strict=True))

    def _tap_table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tap at each flat offset from a window's first cell, and the flat number of that cell."""
        strides = [math.prod(self.size[dim + 1 :]) for dim in range(len(self.size))]
        first = sum(self._firsts(dim, device) * strides[dim] for dim in range(len(self.size)))
        steps = [d * s for d, s in zip(self.dilation, strides, strict=True)]
        taps = list(itertools.product(*(range(k) for k in self.kernel)))
        offsets = [sum(t * s for t, s in zip(tap, steps, strict=True)) for tap in taps]
        table = torch.zeros(max(offsets) + 1, dtype=torch.int64, device=device)
        table[torch.tensor(offsets, device=device)] = torch.arange(len(taps), device=device)
        return table, torch.as_tensor(first)

    def centre_tap(self) -> int:
        """The row-major number of the middle tap; inside the box if the padding is below half the kernel."""
        centre = 0
        for k in self.kernel:
            centre = centre * k + (k - 1) // 2
        return centre


def per_dimension(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """Expand a scalar or one-entry setting to one entry a dimension, as torch layers do."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def polyphase(weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Turn the weights of a strided, dilated convolution into those of a plain one on phases.

    Space to depth: tap d·j of a kernel goes to phase r and position u of d·j = u·s + r. Shape
    (g, o, c, k_1, …) becomes (g, o, c·∏s, taps_1, …), phases in row-major order behind each channel.
    """
    for dim, (s, d) in enumerate(zip(stride, dilation, strict=True)):
        axis = 3 + dim
        positions = [d * j for j in range(weight.shape[axis])]
        taps = positions[-1] // s + 1
        phased = weight.new_zeros(*weight.shape[:axis], taps, *weight.shape[axis + 1 :], s)
        for j, position in enumerate(positions):
            u, r = divmod(position, s)
            phased.select(axis, u).select(-1, r).copy_(weight.select(axis, j))
        weight = torch.movedim(phased, -1, 3).flatten(2, 3)
    return weight
