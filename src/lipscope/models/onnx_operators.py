"""ONNX operators in terms of torch functions, one small function each.

A function gets the operator's inputs in order (tensors; None for one left out; Python lists where `listed`
says so) and its attributes by name, with the defaults of the standard. To add one, write it here.

Source: the operator schemas of ONNX, opsets 7 to 24; where an attribute became an input both are taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ModelError

Ints = Sequence[int]
_MOST_ENTRIES = 2**28


@dataclass(frozen=True)
class Operator:
    """How an ONNX operator is computed: see `graph.file_program.Operation`."""

    run: Callable[..., Any]
    listed: frozenset[int] = frozenset()
    reads_shapes: bool = False


OPERATORS: dict[str, Operator] = {}

F = Callable[..., Any]


def _operator(*names: str, listed: Ints = (), reads_shapes: bool = False) -> Callable[[F], F]:
    def register(function: F) -> F:
        for name in names:
            OPERATORS[name] = Operator(function, frozenset(listed), reads_shapes)
        return function

    return register


def _unsupported(why: str) -> ModelError:
    return ModelError(f"{why} is not supported")


# ---- elementwise ------------------------------------------------------------------------------------

_PLAIN: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "And": torch.logical_and,
    "Add": torch.add,
    "Atan": torch.atan,
    "Cos": torch.cos,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Identity": lambda x: x,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Mish": functional.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "HardSwish": functional.hardswish,
}
for _name, _function in _PLAIN.items():
    OPERATORS[_name] = Operator(_function)


@_operator("Div")
def _div(a: Tensor, b: Tensor) -> Tensor:
    real = a.is_floating_point() or b.is_floating_point()
    return torch.div(a, b) if real else torch.div(a, b, rounding_mode="trunc")


@_operator("Mod")
def _mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@_operator("Einsum")
def _einsum(*xs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *xs)


@_operator("Pow", listed=(1,))
def _pow(x: Tensor, exponent: list[float] | float) -> Tensor:
    while isinstance(exponent, list) and len(exponent) == 1:
        exponent = exponent[0]
    if isinstance(exponent, list):
        raise _unsupported("an exponent that differs between entries")
    return torch.pow(x, exponent)


@_operator("Clip", listed=(1, 2))
def _clip(x: Tensor, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Tensor:
    low, high = (end[0] if isinstance(end, list) else end for end in (low, high))
    clamped: Tensor = torch.clamp(x, min if low is None else low, max if high is None else high)
    return clamped


@_operator("LeakyRelu")
def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)


@_operator("PRelu")
def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.relu(x) - slope * torch.relu(-x)


@_operator("Elu")
def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.elu(x, alpha)


@_operator("Selu")
def _selu(
    x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Tensor:
    scaled: Tensor = gamma * functional.elu(x, alpha)
    return scaled


@_operator("Celu")
def _celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.celu(x, alpha)


@_operator("HardSigmoid")
def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@_operator("Gelu")
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


@_operator("Sum")
def _sum(*xs: Tensor) -> Tensor:
    total = xs[0]
    for x in xs[1:]:
        total = total + x
    return total


@_operator("Mean")
def _mean(*xs: Tensor) -> Tensor:
    mean: Tensor = _sum(*xs) / len(xs)
    return mean


@_operator("Max")
def _max(*xs: Tensor) -> Tensor:
    largest = xs[0]
    for x in xs[1:]:
        largest = torch.maximum(largest, x)
    return largest


@_operator("Min")
def _min(*xs: Tensor) -> Tensor:
    least = xs[0]
    for x in xs[1:]:
        least = torch.minimum(least, x)
    return least


@_operator("Where")
def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


@_operator("Dropout", listed=(2,))
def _dropout(x: Tensor, ratio: Tensor | None = None, training: Any = None, **attributes: Any) -> Tensor:
    if isinstance(training, list) and training[0]:
        raise _unsupported("dropout in training mode")
    return x


_FLOATS = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
_INTEGERS = {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool}


@_operator("Cast")
def _cast(x: Tensor, *, to: int, **attributes: Any) -> Tensor:
    if to not in _FLOATS | _INTEGERS:
        raise _unsupported(f"a conversion to the ONNX type {to}")
    return x.to((_FLOATS | _INTEGERS)[to])


# ---- linear -----------------------------------------------------------------------------------------


@_operator("MatMul")
def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@_operator("Gemm")
def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
    transA: int = 0, transB: int = 0,  # noqa: N803  the names of the standard
) -> Tensor:  # fmt: skip
    a, b = a.mT if transA else a, b.mT if transB else b
    product = torch.matmul(a, b if alpha == 1 else alpha * b)
    return product if c is None else product + (c if beta == 1 else beta * c)


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def _ends(
    size: Ints, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints | None, auto_pad: str
) -> list[tuple[int, int]]:
    """Padding at both ends of every spatial dimension."""
    dims = len(kernel)
    if auto_pad in ("NOTSET", "VALID"):
        pads = pads if pads and auto_pad == "NOTSET" else [0] * (2 * dims)
        return list(zip(pads[:dims], pads[dims:], strict=True))
    found = []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return found


def _padded(x: Tensor, ends: Sequence[tuple[int, int]], value: float) -> tuple[Tensor, list[int]]:
    """The input and the symmetric padding that is left to the operation."""
    if all(first == last for first, last in ends):
        return x, [first for first, _ in ends]
    return functional.pad(x, list(itertools.chain(*reversed(ends))), value=value), [0] * len(ends)


@_operator("Conv")
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Ints | None = None,
    group: int = 1, kernel_shape: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Tensor:  # fmt: skip
    dims = weight.ndim - 2
    strides, dilations = list(strides or [1] * dims), list(dilations or [1] * dims)
    ends = _ends(x.shape[2:], weight.shape[2:], strides, dilations, pads, auto_pad)
    x, padding = _padded(x, ends, 0.0)
    convolved: Tensor = _CONVOLUTIONS[dims](x, weight, bias, strides, padding, dilations, group)
    return convolved


@_operator("ConvTranspose")
def _conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Ints | None = None,
    group: int = 1, kernel_shape: Ints | None = None, output_padding: Ints | None = None,
    output_shape: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Tensor:  # fmt: skip
    dims = weight.ndim - 2
    if auto_pad != "NOTSET" or output_shape is not None:
        raise _unsupported("a transposed convolution with auto_pad or output_shape")
    strides, dilations = list(strides or [1] * dims), list(dilations or [1] * dims)
    extra = list(output_padding or [0] * dims)
    pads = list(pads or [0] * (2 * dims))
    if pads[:dims] != pads[dims:]:
        # What is cut off more at the far end is not computed.
        extra = [e + first - last for e, first, last in zip(extra, pads[:dims], pads[dims:], strict=True)]
        if min(extra) < 0 or any(e >= s for e, s in zip(extra, strides, strict=True)):
            raise _unsupported("this asymmetric padding of a transposed convolution")
    convolved: Tensor = _TRANSPOSED[dims](x, weight, bias, strides, pads[:dims], extra, group, dilations)
    return convolved


# ---- pooling ----------------------------------------------------------------------------------------

_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@_operator("MaxPool")
def _max_pool(
    x: Tensor, *, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints | None = None,
    pads: Ints | None = None, storage_order: int = 0, strides: Ints | None = None,
) -> Tensor:  # fmt: skip
    dims = len(kernel_shape)
    strides, dilations = list(strides or [1] * dims), list(dilations or [1] * dims)
    ends = _ends(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if any(first != last for first, last in ends):
        raise _unsupported("max pooling with asymmetric padding")
    padding = [first for first, _ in ends]
    pooled: Tensor = _MAX_POOLS[dims](x, list(kernel_shape), strides, padding, dilations, bool(ceil_mode))
    return pooled


@_operator("AveragePool")
def _average_pool(
    x: Tensor, *, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Tensor:  # fmt: skip
    dims = len(kernel_shape)
    strides = list(strides or [1] * dims)
    if dilations and any(d != 1 for d in dilations):
        raise _unsupported("dilated average pooling")
    ends = _ends(x.shape[2:], kernel_shape, strides, [1] * dims, pads, auto_pad)
    if any(first != last for first, last in ends) and not count_include_pad:
        raise _unsupported("average pooling with asymmetric padding that is not counted")
    x, padding = _padded(x, ends, 0.0)
    pooled: Tensor = _AVERAGE_POOLS[dims](
        x, list(kernel_shape), strides, padding, bool(ceil_mode), bool(count_include_pad)
    )
    return pooled


@_operator("GlobalAveragePool")
def _global_average_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@_operator("GlobalMaxPool")
def _global_max_pool(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)


@_operator("LpPool")
def _lp_pool(
    x: Tensor, *, kernel_shape: Ints, p: int = 2, auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Tensor:  # fmt: skip
    if (
        auto_pad not in ("NOTSET", "VALID")
        or any(pads or ())
        or any(d != 1 for d in dilations or ())
        or p % 2
    ):
        raise _unsupported("p-norm pooling with padding, dilation or odd p")
    dims = len(kernel_shape)
    pool: Callable[..., Tensor] = {1: functional.lp_pool1d, 2: functional.lp_pool2d, 3: functional.lp_pool3d}[
        dims
    ]
    strides = list(strides or [1] * dims)
    windows = (kernel_shape[0], strides[0]) if dims == 1 else (tuple(kernel_shape), tuple(strides))
    return pool(x, float(p), *windows, bool(ceil_mode))


# ---- normalisation ----------------------------------------------------------------------------------


@_operator("BatchNormalization")
def _batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5,
    training_mode: int = 0, **attributes: Any,
) -> Tensor:  # fmt: skip
    if training_mode:
        raise _unsupported("batch normalisation in training mode")
    return functional.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


@_operator("InstanceNormalization")
def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@_operator("LayerNormalization")
def _layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    shape = x.shape[axis % x.ndim :]
    return functional.layer_norm(
        x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), epsilon
    )


@_operator("GroupNormalization")
def _group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    if len(scale) != x.shape[1]:  # before opset 21: one a group
        scale, bias = (t.repeat_interleave(x.shape[1] // num_groups) for t in (scale, bias))
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


@_operator("LRN")
def _lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    if size % 2 == 0:
        raise _unsupported("local response normalisation over an even number of channels")
    return functional.local_response_norm(x, size, alpha, beta, bias)


@_operator("LpNormalization")
def _lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return functional.normalize(x, p, axis, 0.0)


@_operator("Softmax")
def _softmax(x: Tensor, *, axis: int = -1, opset: int = 13) -> Tensor:
    return _over_axis(torch.softmax, x, axis, opset)


@_operator("LogSoftmax")
def _log_softmax(x: Tensor, *, axis: int = -1, opset: int = 13) -> Tensor:
    return _over_axis(torch.log_softmax, x, axis, opset)


def _over_axis(function: Callable[..., Tensor], x: Tensor, axis: int, opset: int) -> Tensor:
    """Before opset 13 all dimensions from `axis` on are one."""
    axis %= x.ndim
    if opset >= 13 or axis == x.ndim - 1:
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)


# ---- moving entries ---------------------------------------------------------------------------------


@_operator("Flatten")
def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


@_operator("Reshape", listed=(1,))
def _reshape(x: Tensor, shape: Ints | None = None, *, allowzero: int = 0, **attributes: Any) -> Tensor:
    sizes = attributes["shape"] if shape is None else shape
    if not allowzero:
        sizes = [x.shape[axis] if n == 0 else n for axis, n in enumerate(sizes)]
    return x.reshape(list(sizes))


@_operator("Transpose")
def _transpose(x: Tensor, *, perm: Ints | None = None) -> Tensor:
    return x.permute(list(perm if perm is not None else range(x.ndim - 1, -1, -1)))


def _axes(given: Ints | None, attribute: Ints | None, rank: int) -> list[int]:
    return sorted(axis % rank for axis in (attribute if given is None else given) or ())


@_operator("Squeeze", listed=(1,))
def _squeeze(x: Tensor, given: Ints | None = None, *, axes: Ints | None = None) -> Tensor:
    chosen = _axes(given, axes, x.ndim) or [axis for axis, n in enumerate(x.shape) if n == 1]
    return x.squeeze(chosen)


@_operator("Unsqueeze", listed=(1,))
def _unsqueeze(x: Tensor, given: Ints | None = None, *, axes: Ints | None = None) -> Tensor:
    count = len((axes if given is None else given) or ())
    for axis in _axes(given, axes, x.ndim + count):
        x = x.unsqueeze(axis)
    return x


@_operator("Concat")
def _concat(*xs: Tensor, axis: int) -> Tensor:
    return torch.cat(xs, axis)


@_operator("Split", listed=(1,))
def _split(
    x: Tensor, given: Ints | None = None, *, axis: int = 0, split: Ints | None = None, num_outputs: int | None = None,
    outputs: int = 1,
) -> Sequence[Tensor]:  # fmt: skip
    sizes = list((split if given is None else given) or ())
    if not sizes:
        size = math.ceil(x.shape[axis] / (num_outputs or outputs))
        return torch.split(x, size, axis)
    return torch.split(x, sizes, axis)


@_operator("Slice", listed=(1, 2, 3, 4))
def _slice(
    x: Tensor, starts: Ints | None = None, ends: Ints | None = None, axes: Ints | None = None,
    steps: Ints | None = None, **attributes: Any,
) -> Tensor:  # fmt: skip
    if starts is None or ends is None:
        starts, ends, axes = attributes["starts"], attributes["ends"], attributes.get("axes")
    axes = range(len(starts)) if axes is None else axes
    for number, axis in enumerate(axes):
        step = 1 if steps is None else steps[number]
        chosen = range(x.shape[axis])[slice(starts[number], _open_end(ends[number], step), step)]
        if step > 0:
            cut: list[Any] = [slice(None)] * x.ndim
            cut[axis] = slice(chosen.start, chosen.stop, step)
            x = x[tuple(cut)]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return x


def _open_end(end: int, step: int) -> int | None:
    """An end far below zero stands for "down to the first"."""
    return None if step < 0 and end < -(2**30) else end


@_operator("Gather")
def _gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.ndim
    if indices.ndim == 0:
        return x.index_select(axis, indices.reshape(1).to(torch.int64) % x.shape[axis]).squeeze(axis)
    flat = indices.flatten().to(torch.int64) % x.shape[axis]
    gathered: Tensor = x.index_select(axis, flat).unflatten(axis, list(indices.shape))
    return gathered


@_operator("Pad", listed=(1, 2, 3))
def _pad(
    x: Tensor, given: Ints | None = None, constant: Any = None, axes: Ints | None = None, *, mode: str = "constant",
    pads: Ints | None = None, value: float = 0.0,
) -> Tensor:  # fmt: skip
    widths = list((pads if given is None else given) or ())
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    ends = [(0, 0)] * x.ndim
    for axis, first, last in zip(axes, widths[: len(axes)], widths[len(axes) :], strict=True):
        ends[axis] = (first, last)
    fill = constant[0] if isinstance(constant, list) else constant
    if mode == "constant":
        return functional.pad(
            x, list(itertools.chain(*reversed(ends))), value=value if fill is None else fill
        )
    while ends and ends[0] == (0, 0):
        ends = ends[1:]
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    return functional.pad(x, list(itertools.chain(*reversed(ends))), mode=names[mode])


@_operator("Expand", listed=(1,))
def _expand(x: Tensor, shape: Ints) -> Tensor:
    wanted = torch.broadcast_shapes(tuple(x.shape), tuple(shape))
    _check_size(wanted)
    return x.expand(wanted)


@_operator("Tile", listed=(1,))
def _tile(x: Tensor, repeats: Ints) -> Tensor:
    _check_size([n * count for n, count in zip(x.shape, repeats, strict=True)])
    return x.repeat(list(repeats))


@_operator("DepthToSpace")
def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return functional.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    phased = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return phased.reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


@_operator("SpaceToDepth")
def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    phased = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize).permute(0, 3, 5, 1, 2, 4)
    return phased.reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


@_operator("Resize", "Upsample", listed=(1, 2, 3))
def _resize(
    x: Tensor, first: Any = None, second: Any = None, sizes: Ints | None = None, *, mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel", nearest_mode: str = "round_prefer_floor",
    scales: Any = None, opset: int = 13, cubic_coeff_a: float = -0.75, **attributes: Any,
) -> Tensor:  # fmt: skip
    # Resize-10 and Upsample have the scales as second input, later ones a region of interest before them.
    scales = scales or (second if second else first if opset <= 10 else None)
    wanted = list(sizes) if sizes else [math.floor(n * s) for n, s in zip(x.shape, scales, strict=True)]
    if wanted[:2] != list(x.shape[:2]):
        raise _unsupported("resizing of the batch or the channels")
    out = wanted[2:]
    whole = all(n % m == 0 for n, m in zip(out, x.shape[2:], strict=True))
    if mode == "nearest":
        asymmetric = coordinate_transformation_mode == "asymmetric" and nearest_mode == "floor"
        if not whole and not (asymmetric and opset > 10):
            raise _unsupported(f"nearest resizing by {coordinate_transformation_mode}, {nearest_mode}")
        return functional.interpolate(x, out, mode="nearest")
    aligned = coordinate_transformation_mode == "align_corners"
    if not aligned and coordinate_transformation_mode not in ("half_pixel", "pytorch_half_pixel"):
        raise _unsupported(f"{mode} resizing by {coordinate_transformation_mode}")
    if mode == "cubic" and (len(out) != 2 or cubic_coeff_a != -0.75 or attributes.get("exclude_outside")):
        raise _unsupported("this cubic resizing")
    kind = "bicubic" if mode == "cubic" else {1: "linear", 2: "bilinear", 3: "trilinear"}[len(out)]
    return functional.interpolate(x, out, mode=kind, align_corners=aligned)


# ---- reductions -------------------------------------------------------------------------------------


def _reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(
        x: Tensor, given: Ints | None = None, *, axes: Ints | None = None, keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:  # fmt: skip
        chosen = _axes(given, axes, x.ndim)
        if not chosen and noop_with_empty_axes:
            return x
        return function(x, chosen or list(range(x.ndim)), bool(keepdims))

    return reduce


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceL1": lambda x, axes, keep: torch.linalg.vector_norm(x, 1, axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
}
for _name, _function in _REDUCTIONS.items():
    OPERATORS[_name] = Operator(_reduction(_function), frozenset({1}))


# ---- shapes and constants ---------------------------------------------------------------------------


@_operator("Shape", reads_shapes=True)
def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@_operator("Size", reads_shapes=True)
def _size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@_operator("ConstantOfShape", listed=(0,))
def _constant_of_shape(shape: Ints, *, value: Tensor | None = None) -> Tensor:
    _check_size(shape)
    value = torch.zeros(1) if value is None else value
    return torch.full(list(shape), value.item(), dtype=value.dtype)


@_operator("Range", listed=(0, 1, 2))
def _range(start: Any, limit: Any, delta: Any) -> Tensor:
    start, limit, delta = (v[0] if isinstance(v, list) else v for v in (start, limit, delta))
    _check_size([max(0, math.ceil((limit - start) / delta))])
    return torch.arange(start, limit, delta)


def _check_size(shape: Ints) -> None:
    if math.prod(shape) > _MOST_ENTRIES:
        raise ModelError(f"a tensor of shape {tuple(shape)} is unreasonably large")
