"""Convolutions of any dimension, and their adjoints (transposed convolutions)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..certified import convolution_norm_upper, spectral_norm_upper
from ..windows import Windows, per_dimension, polyphase
from .base import Filter, Kernel, Layer, LinearLayer, Shape, TracedCall, torch_rule

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONVOLVE_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@dataclass(eq=False)
class Convolution(LinearLayer):
    """Zero-padded convolution. `weight` (c_out, c_in/groups, *kernel), `offset` (c_out, 1, …) or None."""

    kind = "convolution"
    weight: Tensor
    windows: Windows
    groups: int = 1
    offset: Tensor | None = None
    entry_error: float = 0.0

    def apply(self, *vs: Tensor) -> Tensor:
        return self._convolved(vs[0], None)

    def forward(self, *xs: Tensor) -> Tensor:
        # The bias added on the way: another pass over the output costs several percent of the whole.
        return self._convolved(xs[0], None if self.offset is None else self.offset.flatten())

    def _convolved(self, x: Tensor, bias: Tensor | None) -> Tensor:
        w = self.windows
        convolve = _CONVOLVE[len(w.size)]
        if self._torch_pads():
            return convolve(x, self.weight, bias, w.stride, w.padding, w.dilation, self.groups)
        return convolve(w.pad(x), self.weight, bias, w.stride, 0, w.dilation, self.groups)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        w = self.windows
        convolve = _CONVOLVE_TRANSPOSED[len(w.size)]
        if all(s == 1 for s in w.stride):
            return (w.unpad(convolve(u, self.weight, None, 1, 0, 0, self.groups, w.dilation)),)
        # A strided transposed convolution writes few channels slowly; on phases it is a plain one.
        grouped = self.weight.unflatten(0, (self.groups, -1))
        phased = convolve(u, polyphase(grouped, w.stride, w.dilation).flatten(0, 1), groups=self.groups)
        return (w.unpad(_depth_to_space(phased, w)),)

    def _torch_pads(self) -> bool:
        """Whether torch's own padding, equal on both sides, describes the windows."""
        w = self.windows
        geometry = zip(w.size, w.padding, w.stride, w.out_size, strict=True)
        return all(
            (n + 2 * p - (w.span(dim) - (out - 1) * s)) // s + 1 == out
            for dim, (n, p, s, out) in enumerate(geometry)
        )

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> Convolution:
        return Convolution(self.weight.abs() ** power, self.windows, self.groups)

    def multiplications(self, shape: Shape) -> int:
        return math.prod(self.windows.out_size) * self.weight.numel()

    def norm(self, shapes: Sequence[Shape]) -> float:
        """Certified spectral norm: of the dense matrix if small, else the torus bound of its symbol."""
        matrix = self.matrix((self.weight.shape[1] * self.groups, *self.windows.size))
        if matrix is not None:
            return spectral_norm_upper(matrix, self.entry_error)
        return self.torus_norm()

    def kernel(self) -> Kernel:
        return Kernel(self.weight, self.windows, self.groups, self.entry_error)

    def filter(self, shape: Shape) -> Filter | None:
        w = self.windows
        c_out, c_in = self.weight.shape[:2]
        grouped = self.weight.reshape(self.groups, c_out // self.groups, c_in, -1)
        taps = grouped.new_zeros(self.groups, c_out // self.groups, self.groups, c_in, w.taps)
        for group, part in enumerate(grouped):
            taps[group, :, group] = part
        offsets = itertools.product(
            *(range(-p, k * d - p, d) for k, d, p in zip(w.kernel, w.dilation, w.padding, strict=True))
        )
        return Filter(
            taps=taps.reshape(c_out, self.groups * c_in, w.taps).permute(2, 0, 1),
            offsets=tuple(offsets),
            stride=w.stride,
            period=w.torus_period(),
            relative_error=self.entry_error,
        )

    def torus_norm(self) -> float:
        """Certified spectral norm from the symbol on the smallest torus, whatever the size."""
        return convolution_norm_upper(
            self.weight,
            stride=self.windows.stride,
            dilation=self.windows.dilation,
            groups=self.groups,
            period=self.windows.torus_period(),
            relative_error=self.entry_error,
        )


@dataclass(eq=False)
class TransposedConvolution(LinearLayer):
    """The adjoint of a convolution: its apply is that one's transpose, and the norms are equal."""

    kind = "transposed convolution"
    adjoint: Convolution
    offset: Tensor | None = None

    @property
    def entry_error(self) -> float:  # type: ignore[override]
        return self.adjoint.entry_error

    def apply(self, *vs: Tensor) -> Tensor:
        return self.adjoint.transpose(vs[0])[0]

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return (self.adjoint.apply(u),)

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> LinearLayer:
        return TransposedConvolution(self.adjoint.magnitudes(shapes, power))

    def multiplications(self, shape: Shape) -> int:
        return self.adjoint.multiplications(shape)

    def norm(self, shapes: Sequence[Shape]) -> float:
        return self.adjoint.norm(shapes)

    def kernel(self) -> Kernel:
        return self.adjoint.kernel()

    def filter(self, shape: Shape) -> Filter | None:
        adjoint = self.adjoint.filter(shape)
        return None if adjoint is None else replace(adjoint, transposed=True)


def _depth_to_space(phased: Tensor, windows: Windows) -> Tensor:
    """Interleave phases (channel, r_1, …) and positions (u_1, …) into cells u·s + r; crop or pad to the span."""
    stride, dims = windows.stride, len(windows.size)
    x = phased.unflatten(1, (-1, *stride))
    order = [axis for dim in range(dims) for axis in (2 + dims + dim, 2 + dim)]
    x = x.permute(0, 1, *order).flatten(2)
    x = x.reshape(*x.shape[:2], *(u * s for u, s in zip(phased.shape[2:], stride, strict=True)))
    excess = [(0, windows.span(dim) - x.shape[2 + dim]) for dim in reversed(range(dims))]
    return functional.pad(x, [width for pair in excess for width in pair])


def _offset(bias: Tensor | None, dims: int) -> Tensor | None:
    return None if bias is None else bias.reshape(-1, *[1] * dims)


@torch_rule(*(f"aten.conv{d}d.{form}" for d in (1, 2, 3) for form in ("default", "padding")))
def _convolution(call: TracedCall) -> Sequence[Layer]:
    weight = call.weight(1, "weight")
    dims = weight.ndim - 2
    size = call.box(dims)
    kernel = tuple(weight.shape[2:])
    dilation = per_dimension(call.arg(5, "dilation", 1), dims)
    padding = call.arg(4, "padding", 0)
    if padding == "same":
        # torch puts the odd cell, if any, at the far end.
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    elif padding == "valid":
        padding = 0
    windows = Windows(
        size=size,
        out_size=call.out_shape[1:],
        kernel=kernel,
        stride=per_dimension(call.arg(3, "stride", 1), dims),
        padding=per_dimension(padding, dims),
        dilation=dilation,
    )
    return [Convolution(weight, windows, call.arg(6, "groups", 1), _offset(call.arg(2, "bias"), dims))]


@torch_rule("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def _transposed_convolution(call: TracedCall) -> Sequence[Layer]:
    weight = call.weight(1, "weight")
    dims = weight.ndim - 2
    in_size = call.box(dims)
    windows = Windows(
        size=call.out_shape[1:],
        out_size=in_size,
        kernel=tuple(weight.shape[2:]),
        stride=per_dimension(call.arg(3, "stride", 1), dims),
        padding=per_dimension(call.arg(4, "padding", 0), dims),
        dilation=per_dimension(call.arg(7, "dilation", 1), dims),
    )
    adjoint = Convolution(weight, windows, call.arg(6, "groups", 1))
    return [TransposedConvolution(adjoint, _offset(call.arg(2, "bias"), dims))]


@torch_rule("aten.convolution.default")
def _general_convolution(call: TracedCall) -> Sequence[Layer]:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = call.args
    if transposed:
        args = (x, weight, bias, stride, padding, output_padding, groups, dilation)
        return _transposed_convolution(_with_args(call, args))
    return _convolution(_with_args(call, (x, weight, bias, stride, padding, dilation, groups)))


def _with_args(call: TracedCall, args: tuple[object, ...]) -> TracedCall:
    return replace(call, args=args, kwargs={})


def scale_outputs(layer: Convolution, factor: Tensor, shift: Tensor) -> Convolution:
    """The convolution followed by a per-channel affine map, as one convolution (two roundings a weight)."""
    dims = len(layer.windows.size)
    weight = layer.weight * factor.reshape(-1, *[1] * (dims + 1))
    offset = shift.reshape(-1, *[1] * dims)
    if layer.offset is not None:
        offset = offset + layer.offset * factor.reshape(-1, *[1] * dims)
    error = layer.entry_error + 4 * torch.finfo(torch.float64).eps
    return Convolution(weight, layer.windows, layer.groups, offset, error)
