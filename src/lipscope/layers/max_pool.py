"""Max pooling: a selector, one cell a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..rounding import up
from ..slopes import SecantSelector, Selector, Slope, TapWeights
from ..windows import Windows, per_dimension
from .base import Layer, NonlinearLayer, Range, Shape, TracedCall, torch_rule

_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


@dataclass(eq=False)
class MaxPool(NonlinearLayer):
    """The maximum over each window; cells outside the box never win."""

    kind = "max pooling"
    windows: Windows
    ceil_mode: bool = False

    def forward(self, *xs: Tensor) -> Tensor:
        return self._pool(xs[0])[0]

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        value, cells = self._pool(x)
        return value, Selector(cells, self.windows)

    def secant(self, x1: Tensor, x2: Tensor) -> Slope:
        """Mixes the cells won in x₁ and in x₂: Δmax lies between Δ at the second and Δ at the first."""
        value1, cells1 = self._pool(x1)
        value2, cells2 = self._pool(x2)
        difference = Selector(cells1, self.windows).apply((x1 - x2).unsqueeze(0))[0]
        other = Selector(cells2, self.windows).apply((x1 - x2).unsqueeze(0))[0]
        spread = difference - other
        share = ((value1 - value2 - other) / torch.where(spread == 0, 1, spread)).clamp(0, 1)
        return SecantSelector(cells1, self.windows, cells2, torch.where(spread == 0, 1, share))

    def averaged(self, values: Tensor) -> TapWeights:
        return TapWeights(values, self.windows)

    def constant(self, shape: Shape) -> float:
        """√(largest number of windows that read one cell)."""
        cover = self.windows.largest_cover()
        root = math.isqrt(cover)
        return float(root) if root * root == cover else up(math.sqrt(cover))

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
