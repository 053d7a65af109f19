"""Max pooling: a selector, one cell a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..results import Norm
from ..rounding import up_product, up_root
from ..slopes import AveragedSlope, Point, SecantSelector, Selector, Slope, TapWeights
from ..windows import Windows, per_dimension
from .base import Layer, Lines, NonlinearLayer, Range, Shape, TracedCall, torch_rule
from .copies import Copies

_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


@dataclass(eq=False)
class MaxPool(NonlinearLayer):
    """The maximum over each window; cells outside the box never win."""

    kind = "max pooling"
    piecewise_linear = True
    windows: Windows
    ceil_mode: bool = False

    def forward(self, *xs: Tensor) -> Tensor:
        return self._pool(xs[0])[0]

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        value, cells = self._pool(x)
        return value, Selector(cells, self.windows)

    def between(self, first: Point, second: Point) -> SecantSelector:
        """Mixes the cells won in x₁ and in x₂: Δmax lies between Δ at the second and Δ at the first."""
        assert isinstance(first.slope, Selector)
        assert isinstance(second.slope, Selector)
        difference = first.value - first.slope.apply(second.x.unsqueeze(0))[0]
        other = second.slope.apply(first.x.unsqueeze(0))[0] - second.value
        spread = difference - other
        share = ((first.value - second.value - other) / torch.where(spread == 0, 1, spread)).clamp(0, 1)
        share = torch.where(spread == 0, 1, share)
        return SecantSelector(first.slope.cells, self.windows, second.slope.cells, share)

    def averaged(self, values: Tensor) -> TapWeights:
        return TapWeights(values, self.windows)

    def constant(self, shape: Shape) -> float:
        """√(largest number of windows that read one cell)."""
        return up_root(self.windows.largest_cover())

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """1 for q = ∞; for q = 1 the largest number of windows that read one cell."""
        if norm == "2":
            return self.lipschitz(bounds, shapes)
        return bounds[0] if norm == "inf" else up_product(bounds[0], float(self.windows.largest_cover()))

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(low), self.forward(high)

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        """Tap weights: 1 at a cell that wins its window for sure, up to 1 at a cell that may win.

        Cells that are constant over the box (behind a ReLU that is off) weigh 0: their differences are 0.
        """
        may_win = self._may_win(low, high)
        alone = may_win.sum(0, keepdim=True) == 1
        moves = torch.stack(list(self.windows.tap_views(self.windows.pad((low < high).to(low.dtype)))))
        weights = moves * may_win
        return TapWeights(weights * alone, self.windows), TapWeights(weights, self.windows)

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        """√(largest number of windows in which one cell may win); that number for q = 1, and 1 for q = ∞.

        A selector's rows sum to 1 and its columns to the number of windows won; ‖P‖₂² ≤ ‖P‖₁‖P‖_∞.
        """
        if norm == "inf":
            return 1.0
        windows_won = hull[1].transpose(
            torch.ones(1, 1, shape[0], *self.windows.out_size, dtype=torch.float64)
        )
        cover = math.ceil(float(windows_won.max()))
        return float(cover) if norm == "1" else up_root(cover)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Below: the cell with the highest lower bound. Above: the sure winner, else the highest upper bound.

        Source: G. Singh, T. Gehr, M. Püschel, M. Vechev (2019), DeepPoly, section 4.
        """
        taps = self.windows.tap_of(self._pool(low)[1]).unsqueeze(0)
        numbers = torch.arange(self.windows.taps).reshape(-1, *[1] * (taps.ndim - 1))
        below = TapWeights((numbers == taps).to(low.dtype), self.windows)
        above, _ = self.slope_hull(low, high)
        sure = above.values.sum(0) == 1
        top = self.forward(high)
        return Lines(below, torch.zeros_like(top), above, torch.where(sure, 0.0, top))

    def _may_win(self, low: Tensor, high: Tensor) -> Tensor:
        """For every tap, whether its cell can be the maximum of its window: shape (τ, 1, C, *out)."""
        windows = self.windows
        inside = windows.pad(torch.ones_like(high)) == 1
        padded = torch.where(inside, windows.pad(high), -math.inf)
        least = self.forward(low)
        return torch.stack([(view >= least) & (view > -math.inf) for view in windows.tap_views(padded)])

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        return inputs[0]

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = self.windows
        pooled: tuple[Tensor, Tensor] = _POOL[len(w.size)](
            x, w.kernel, w.stride, w.padding, w.dilation, self.ceil_mode, return_indices=True
        )
        return pooled


@torch_rule(*(f"aten.max_pool{d}d{f}.default" for d in (1, 2, 3) for f in ("", "_with_indices")))
def _max_pool(call: TracedCall) -> Sequence[Layer]:
    dims = int(call.op.removeprefix("aten.max_pool")[0])
    size, out_size = call.box(dims), call.out_shape[1:]
    kernel = per_dimension(call.args[1], dims)
    windows = Windows(
        size=size,
        out_size=out_size,
        kernel=kernel,
        stride=per_dimension(call.arg(2, "stride") or kernel, dims),
        padding=per_dimension(call.arg(3, "padding", 0), dims),
        dilation=per_dimension(call.arg(4, "dilation", 1), dims),
    )
    return [MaxPool(windows, call.arg(5, "ceil_mode", False))]


@torch_rule(*(f"aten.adaptive_max_pool{d}d.default" for d in (1, 2, 3)))
def _adaptive_max_pool(call: TracedCall) -> Sequence[Layer]:
    """Max pooling; where the windows differ in size, over copies in which smaller ones repeat their last cell."""
    dims = int(call.op.removeprefix("aten.adaptive_max_pool")[0])
    size, out_size = call.box(dims), call.out_shape[1:]
    kernel: list[int] = []
    cells = torch.arange(math.prod(call.input_shape)).reshape(call.input_shape)
    for axis, (n, m) in enumerate(zip(size, out_size, strict=True), start=1):
        windows = [(row * n // m, -(-((row + 1) * n) // m)) for row in range(m)]
        width = max(last - first for first, last in windows)
        read = [min(first + tap, last - 1) for first, last in windows for tap in range(width)]
        cells = cells.index_select(axis, torch.tensor(read))
        kernel.append(width)
    spread, taps = tuple(cells.shape), tuple(kernel)
    pool = MaxPool(Windows(spread[1:], out_size, taps, taps, (0,) * dims, (1,) * dims))
    return [pool] if spread[1:] == size else [Copies(call.input_shape, cells), pool]
