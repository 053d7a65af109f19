"""Average pooling, global or adaptive: a separable linear map, one small matrix a dimension."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..windows import Windows, per_dimension
from .base import Filter, Layer, Shape, TracedCall, torch_rule
from .reshape import Reshape, over_axes
from .separable import SeparableMap


@dataclass(eq=False)
class AveragePool(SeparableMap):
    """y = (A_1 ⊗ … ⊗ A_d) x over the last d dimensions; `first` … are the A_i, each (out, in)."""

    kind = "average pooling"
    windows: Windows | None = None
    """The windows, if all of them weigh all their cells alike."""

    def filter(self, shape: Shape) -> Filter | None:
        w = self.windows
        if w is None or len(shape) != len(w.size) + 1:
            return None
        weight = math.prod(float(a.max()) for a in self.factors)
        offsets = itertools.product(*(range(-p, k - p) for k, p in zip(w.kernel, w.padding, strict=True)))
        taps = weight * torch.eye(shape[0], dtype=torch.float64).expand(w.taps, -1, -1)
        return Filter(taps, tuple(offsets), w.stride, w.torus_period(), self.entry_error)


def _window_matrix(
    size: int, out_size: int, kernel: int, stride: int, padding: int, count_padding: bool
) -> Tensor:
    matrix = torch.zeros(out_size, size, dtype=torch.float64)
    for row in range(out_size):
        start = row * stride - padding
        end = min(start + kernel, size + padding)
        first, last = max(start, 0), min(end, size)
        matrix[row, first:last] = 1.0 / ((end - start) if count_padding else max(last - first, 1))
    return matrix


def _adaptive_matrix(size: int, out_size: int) -> Tensor:
    matrix = torch.zeros(out_size, size, dtype=torch.float64)
    for row in range(out_size):
        first, last = row * size // out_size, -(-((row + 1) * size) // out_size)
        matrix[row, first:last] = 1.0 / (last - first)
    return matrix


@torch_rule(*(f"aten.avg_pool{d}d.default" for d in (1, 2, 3)))
def _average_pool(call: TracedCall) -> Sequence[Layer]:
    dims = int(call.op.removeprefix("aten.avg_pool")[0])
    size, out_size = call.box(dims), call.out_shape[1:]
    kernel = per_dimension(call.args[1], dims)
    stride = per_dimension(call.arg(2, "stride") or kernel, dims)
    padding = per_dimension(call.arg(3, "padding", 0), dims)
    count_padding = call.arg(5, "count_include_pad", True)
    divisor = call.arg(6, "divisor_override")
    geometry = zip(size, out_size, kernel, stride, padding, strict=True)
    factors = [_window_matrix(*g, count_padding) for g in geometry]
    if divisor is not None:
        factors = [(a > 0).to(a.dtype) for a in factors]
        factors[0] = factors[0] / divisor
    alike = all(bool(((a == 0) | (a == a.max())).all()) for a in factors)
    windows = Windows(size, out_size, kernel, stride, padding, (1,) * dims) if alike else None
    return [replace(AveragePool.of(factors), windows=windows)]


@torch_rule(*(f"aten.adaptive_avg_pool{d}d.default" for d in (1, 2, 3)))
def _adaptive_average_pool(call: TracedCall) -> Sequence[Layer]:
    dims = int(call.op.removeprefix("aten.adaptive_avg_pool")[0])
    sizes = zip(call.box(dims), call.out_shape[1:], strict=True)
    return [AveragePool.of([_adaptive_matrix(n, m) for n, m in sizes])]


@torch_rule("aten.mean.dim", "aten.sum.dim_IntList", "aten.mean.default", "aten.sum.default")
def _mean(call: TracedCall) -> Sequence[Layer]:
    shape = call.input_shape
    axes = call.arg(1, "dim")
    if axes is None or any(axis % (len(shape) + 1) == 0 for axis in axes):
        raise call.unsupported("it goes over the batch")
    averaged = {axis % (len(shape) + 1) - 1 for axis in axes}
    first = min(averaged)
    if call.op != "aten.mean.dim" or averaged != set(range(first, len(shape))) or len(averaged) > 3:
        summed = call.op == "aten.sum.dim_IntList"

        def weights(length: int) -> AveragePool:
            return AveragePool.of(
                [torch.full((1, length), 1.0 if summed else 1.0 / length, dtype=torch.float64)]
            )

        return over_axes(call, sorted(averaged), weights)
    factors = [_adaptive_matrix(n, 1) for n in shape[first:]]
    pool = AveragePool.of(factors)
    pooled = (*shape[:first], *[1] * len(factors))
    reshaped = call.out_shape != pooled and math.prod(call.out_shape) == math.prod(pooled)
    return [pool, Reshape(pooled, call.out_shape)] if reshaped else [pool]
