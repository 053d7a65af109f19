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
from typing import Literal

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
    def mean(self, level: Level) -> AveragedSlope:
        """The average over the batch (and over space or channels, by `level`), with B = 1."""


class AveragedSlope(Slope):
    """A slope that is a tensor of mean values, so that batches can be averaged further."""

    values: Tensor

    def with_values(self, values: Tensor) -> AveragedSlope:
        """The same kind of slope with other mean values of the same shape."""
        return replace(self, values=values)  # type: ignore[type-var]


def _average(values: Tensor, level: Level) -> Tensor:
    """Mean over the batch dimension and, by level, over space and channels; the rank is kept, float64."""
    if level != "unit":
        inner = tuple(range(1 if level == "scalar" else 2, values.ndim))
        # Averaging one sample at a time in the working precision, and samples in float64, is fast and accurate.
        values = values.mean(inner, keepdim=True) if inner else values
    return values.to(torch.float64).mean(0, keepdim=True)


@dataclass
class Diagonal(AveragedSlope):
    """Slopes of an elementwise activation; `values` broadcasts against (B, *s)."""

    values: Tensor

    def apply(self, v: Tensor) -> Tensor:
        return v * self.values

    def transpose(self, u: Tensor) -> Tensor:
        return u * self.values

    def mean(self, level: Level) -> AveragedSlope:
        return Diagonal(_average(self.values, level))


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

    def mean(self, level: Level) -> AveragedSlope:
        # The sum over a group needs its size: mean weights are written out to the full shape.
        values = _average(self.values, level).expand(1, *self.values.shape[1:])
        return replace(self, values=values)


@dataclass
class Selector(Slope):
    """Max pooling at a point: `cells` holds the flat input cell each window selects, shape (B, C, *out)."""

    cells: Tensor
    windows: Windows

    def apply(self, v: Tensor) -> Tensor:
        return self._gather(v, self.cells)

    def transpose(self, u: Tensor) -> Tensor:
        return self._scatter(u, self.cells)

    def mean(self, level: Level) -> AveragedSlope:
        return _mean_tap_weights(self.windows, [(self.cells, None)], level)

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

    def mean(self, level: Level) -> AveragedSlope:
        parts = [(self.cells, self.share), (self.other_cells, 1 - self.share)]
        return _mean_tap_weights(self.windows, parts, level)


@dataclass
class TapWeights(AveragedSlope):
    """Averaged selectors: `values[t]` weighs tap t of each window; shape (τ, 1, C or 1, *out or 1…)."""

    values: Tensor
    windows: Windows

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

    def mean(self, level: Level) -> AveragedSlope:
        if level == "scalar":
            return uniform_taps(self.windows)
        return TapWeights(torch.stack([_average(w, level) for w in self.values]), self.windows)


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


def _mean_tap_weights(
    windows: Windows, parts: Sequence[tuple[Tensor, Tensor | None]], level: Level
) -> TapWeights:
    """Selection frequency of every tap. At level `scalar` it is the same for all taps: 1/τ."""
    if level == "scalar":
        return uniform_taps(windows)
    weights: Tensor | None = None
    for cells, share in parts:
        taps = windows.tap_of(cells)
        batch, *kept = cells.shape
        if level == "channel":
            kept = [kept[0], *[1] * len(windows.size)]
        # Bins are (place kept, tap); counting is one pass whatever the number of taps.
        places = torch.arange(math.prod(kept), device=cells.device).reshape(kept) * windows.taps
        counts = torch.bincount(
            (places + taps).flatten(),
            None if share is None else share.to(torch.float64).flatten(),
            minlength=math.prod(kept) * windows.taps,
        )
        cells_averaged = batch * cells[0].numel() // math.prod(kept)
        frequency = torch.movedim(counts.to(torch.float64).reshape(*kept, windows.taps), -1, 0)
        frequency = frequency.unsqueeze(1) / cells_averaged
        weights = frequency if weights is None else weights + frequency
    assert weights is not None
    return TapWeights(weights, windows)
