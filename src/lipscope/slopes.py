"""Slopes: what a nonlinear layer does to a difference.

An elementwise activation acts on a difference as a diagonal, Δφ = D Δa; max pooling acts as a
selector, one cell a window; a norm or a product over a group as a weighted sum. Whether the slopes
are those at a point, secant slopes of a pair or means over data, they are the classes below, and
the Jacobian operator (`jacobian.py`) treats them alike.

Shapes: a slope belongs to a batch of B operators on a layer with per-sample shape *s. `apply`
and `transpose` take blocks of vectors of shape (P, B, *s). B is 1 for averaged slopes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from .windows import Windows

Level = Literal["scalar", "channel", "unit"]
"""How finely slopes are averaged: one number a layer, a channel, or a unit."""


class Slope(ABC):
    """A linear map that stands for a nonlinear layer in a Jacobian product."""

    @abstractmethod
    def apply(self, v: Tensor) -> Tensor:
        """D v for a block of shape (P, B, *in)."""

    @abstractmethod
    def transpose(self, u: Tensor) -> Tensor:
        """Dᵀ u for a block of shape (P, B, *out)."""

    @abstractmethod
    def rows(self, start: int, count: int) -> Self:
        """The slopes of the operators from `start` on, as views."""

    @abstractmethod
    def total(self) -> AveragedSlope:
        """The sum over the batch, unit by unit, with B = 1; at least in float32."""

    def mean(self, level: Level) -> AveragedSlope:
        """The average over the batch (and over space or channels, by `level`), with B = 1."""
        total = self.total()
        return total.with_values(total.values.to(torch.float64) / self.batch).coarsened(level)

    @property
    @abstractmethod
    def batch(self) -> int:
        """The number B of operators."""


@dataclass
class Point:
    """What a nonlinear layer does at each of B inputs: `x` (B, *in), its `value` (B, *out) and `slope` there."""

    x: Tensor
    value: Tensor
    slope: Slope

    def rows(self, start: int, count: int) -> Point:
        """The inputs from `start` on, as views."""
        x, value = self.x.narrow(0, start, count), self.value.narrow(0, start, count)
        return Point(x, value, self.slope.rows(start, count))


class AveragedSlope(Slope):
    """A slope that is a tensor of values, so that it can be summed and averaged further."""

    values: Tensor
    batch_axis: ClassVar[int] = 0
    """The dimension of `values` that counts operators."""

    def with_values(self, values: Tensor) -> Self:
        """The same kind of slope with other values, for any number of operators."""
        return replace(self, values=values)  # type: ignore[type-var]

    @property
    def fraction(self) -> float | None:
        """The mean slope p; None for pooling."""
        return float(self.values.mean())

    @abstractmethod
    def coarsened(self, level: Level) -> AveragedSlope:
        """The average over space or channels, by `level`, of each operator."""

    @property
    def batch(self) -> int:
        return self.values.shape[self.batch_axis]

    def rows(self, start: int, count: int) -> Self:
        return self.with_values(self.values.narrow(self.batch_axis, start, count))

    def total(self) -> Self:
        return self.with_values(_sum(self.values, self.batch_axis))


def _sum(values: Tensor, axis: int) -> Tensor:
    wide = torch.promote_types(values.dtype, torch.float32)
    return values.sum(axis, keepdim=True, dtype=wide)


def inner_mean(values: Tensor, level: Level) -> Tensor:
    """Mean over space, and at level scalar over channels too, behind the batch dimension; the rank is kept."""
    inner = tuple(range(1 if level == "scalar" else 2, values.ndim))
    return values if level == "unit" or not inner else values.mean(inner, keepdim=True, dtype=torch.float64)


@dataclass
class Diagonal(AveragedSlope):
    """Slopes of an elementwise activation; `values` broadcasts against (B, *s)."""

    values: Tensor

    def apply(self, v: Tensor) -> Tensor:
        return v * self.values

    def transpose(self, u: Tensor) -> Tensor:
        return u * self.values

    def coarsened(self, level: Level) -> Diagonal:
        return Diagonal(inner_mean(self.values, level))


@dataclass
class GroupWeights(AveragedSlope):
    """A weighted sum over the per-sample `axes`, which stay with size 1 if `keep`; `values` has shape (B, *in)."""

    values: Tensor
    axes: tuple[int, ...]
    keep: bool = False

    def apply(self, v: Tensor) -> Tensor:
        return (v * self.values).sum([a + 2 for a in self.axes], keepdim=self.keep)

    def transpose(self, u: Tensor) -> Tensor:
        if not self.keep:
            for axis in sorted(self.axes):
                u = u.unsqueeze(axis + 2)
        return u * self.values

    def coarsened(self, level: Level) -> GroupWeights:
        # The sum over a group needs its size: mean weights are written out to the full shape.
        return self.with_values(inner_mean(self.values, level).expand_as(self.values))


@dataclass
class Selector(Slope):
    """Max pooling at a point: `cells` holds the flat input cell each window selects, shape (B, C, *out)."""

    cells: Tensor
    windows: Windows

    def apply(self, v: Tensor) -> Tensor:
        return self._gather(v, self.cells)

    def transpose(self, u: Tensor) -> Tensor:
        return self._scatter(u, self.cells)

    @property
    def batch(self) -> int:
        return self.cells.shape[0]

    def rows(self, start: int, count: int) -> Self:
        return replace(self, cells=self.cells.narrow(0, start, count))

    def total(self) -> TapWeights:
        return self._tally([(self.cells, torch.ones((), device=self.cells.device))])

    def mean(self, level: Level) -> AveragedSlope:
        # Which cells were selected does not matter at this level, and counting them takes time.
        return uniform_taps(self.windows) if level == "scalar" else super().mean(level)

    def _tally(self, parts: Sequence[tuple[Tensor, Tensor]]) -> TapWeights:
        """For every tap and window, the sum over the batch of the shares of the cells it selected."""
        _, *places = self.cells.shape
        count = math.prod(places)
        place = torch.arange(count, device=self.cells.device).reshape(places)
        sums = torch.zeros(
            self.windows.taps * count,
            dtype=torch.promote_types(parts[0][1].dtype, torch.float32),
            device=self.cells.device,
        )
        for cells, share in parts:
            bins = self.windows.tap_of(cells).mul_(count).add_(place)
            sums.scatter_add_(0, bins.flatten(), share.to(sums.dtype).expand_as(bins).flatten())
        return TapWeights(sums.reshape(self.windows.taps, 1, *places), self.windows)

    def _gather(self, v: Tensor, cells: Tensor) -> Tensor:
        flat = v.flatten(-len(self.windows.size))
        index = cells.flatten(-len(self.windows.size)).expand(*flat.shape[:-1], -1)
        return flat.gather(-1, index).reshape(*flat.shape[:-1], *self.windows.out_size)

    def _scatter(self, u: Tensor, cells: Tensor) -> Tensor:
        dims = len(self.windows.size)
        index = cells.flatten(-dims).expand(*u.shape[:-dims], -1)
        flat = u.new_zeros(*u.shape[:-dims], math.prod(self.windows.size))
        return flat.scatter_add_(-1, index, u.flatten(-dims)).reshape(*u.shape[:-dims], *self.windows.size)


@dataclass
class SecantSelector(Selector):
    """Max pooling of a pair: share·(cell of x₁) + (1 − share)·(cell of x₂), which maps Δx to Δy exactly."""

    other_cells: Tensor
    share: Tensor

    def apply(self, v: Tensor) -> Tensor:
        return self.share * self._gather(v, self.cells) + (1 - self.share) * self._gather(v, self.other_cells)

    def transpose(self, u: Tensor) -> Tensor:
        return self._scatter(self.share * u, self.cells) + self._scatter(
            (1 - self.share) * u, self.other_cells
        )

    def rows(self, start: int, count: int) -> Self:
        parts = {
            name: getattr(self, name).narrow(0, start, count) for name in ("cells", "other_cells", "share")
        }
        return replace(self, **parts)

    def total(self) -> TapWeights:
        return self._tally([(self.cells, self.share), (self.other_cells, 1 - self.share)])


@dataclass
class TapWeights(AveragedSlope):
    """Averaged selectors: `values[t]` weighs tap t of each window; shape (τ, B, C or 1, *out or 1…)."""

    values: Tensor
    windows: Windows
    batch_axis = 1
    fraction = None

    def apply(self, v: Tensor) -> Tensor:
        padded = self.windows.pad(v)
        out = torch.zeros_like(next(self.windows.tap_views(padded)))
        for weight, view in zip(self.values, self.windows.tap_views(padded), strict=True):
            out.addcmul_(view, weight.expand_as(view[0]))
        return out

    def transpose(self, u: Tensor) -> Tensor:
        dims = len(self.windows.size)
        padded = self.windows.pad(u.new_zeros(*u.shape[:-dims], *self.windows.size))
        for weight, view in zip(self.values, self.windows.tap_views(padded), strict=True):
            view.addcmul_(u, weight.expand_as(u[0]))
        return self.windows.unpad(padded)

    def coarsened(self, level: Level) -> TapWeights:
        """At level `scalar` the weight is the same for all taps: 1/τ."""
        if level == "scalar":
            return uniform_taps(self.windows)
        return TapWeights(torch.stack([inner_mean(w, level) for w in self.values]), self.windows)


def uniform_taps(windows: Windows, scale: float = 1.0) -> TapWeights:
    """The mean over the tile: weight scale/τ at every tap (the reading 1/τ of E[P])."""
    shape = (windows.taps, *[1] * (2 + len(windows.size)))
    return TapWeights(torch.full(shape, scale / windows.taps, dtype=torch.float64), windows)


def subsampling(windows: Windows) -> TapWeights:
    """The paper's printed E[P]: 1/τ times plain subsampling (the centre cell of each window)."""
    taps = uniform_taps(windows)
    kept = torch.zeros_like(taps.values)
    kept[windows.centre_tap()] = taps.values[windows.centre_tap()]
    return TapWeights(kept, windows)
