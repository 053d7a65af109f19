"""Layers that only move numbers: reshape, flatten, permutation; norm 1. Identities leave no trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .base import Layer, LinearLayer, Range, Shape, TracedCall, torch_rule


@dataclass(eq=False)
class Reshape(LinearLayer):
    """Per-sample reshape from `source` to `target`."""

    kind = "reshape"
    moves_only = True
    source: Shape
    target: Shape

    def apply(self, *vs: Tensor) -> Tensor:
        return vs[0].reshape(-1, *self.target)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return (u.reshape(-1, *self.source),)

    def norm(self, shapes: Sequence[Shape]) -> float:
        return 1.0

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        return inputs[0]


@dataclass(eq=False)
class Permute(LinearLayer):
    """Permutation of the per-sample axes; output axis i is input axis `axes[i]`."""

    kind = "permutation"
    moves_only = True
    axes: tuple[int, ...]

    def apply(self, *vs: Tensor) -> Tensor:
        return vs[0].permute(0, *(a + 1 for a in self.axes))

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return (u.permute(0, *(a + 1 for a in inverse)),)

    def norm(self, shapes: Sequence[Shape]) -> float:
        return 1.0

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        return inputs[0]


def transposition(rank: int) -> Permute:
    """The exchange of the last two of `rank` per-sample axes."""
    return Permute((*range(rank - 2), rank - 1, rank - 2))


def over_axes(call: TracedCall, axes: Sequence[int], reduction: Callable[[int], Layer]) -> list[Layer]:
    """A reduction over any per-sample axes: they are moved behind the others and joined to one of some length."""
    shape = call.input_shape
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    rows, length = (math.prod(shape[axis] for axis in part) for part in (rest, axes))
    return [
        Permute((*rest, *axes)),
        Reshape(tuple(shape[axis] for axis in (*rest, *axes)), (rows, length)),
        reduction(length),
        Reshape((rows, 1), call.out_shape),
    ]


@torch_rule(
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.squeeze.default",
    "aten.unsqueeze.default",
)
def _reshape(call: TracedCall) -> Sequence[Layer]:
    return [] if call.out_shape == call.input_shape else [Reshape(call.input_shape, call.out_shape)]


@torch_rule("aten.permute.default", "aten.transpose.int", "aten.t.default", "aten.numpy_T.default")
def _permute(call: TracedCall) -> Sequence[Layer]:
    (source,) = call.references
    rank = source.layout.rank(source.shape)
    order = list(range(rank))
    if call.op == "aten.permute.default":
        order = [a % rank for a in call.args[1]]
    elif call.op == "aten.transpose.int":
        first, second = (a % rank for a in call.args[1:3])
        order[first], order[second] = second, first
    else:
        order.reverse()
    # Of the order of all dimensions, that of those which one sample has.
    axes = tuple(place for dim in order if (place := source.layout.place(dim)) is not None)
    return [] if axes == tuple(range(len(axes))) else [Permute(axes)]


@torch_rule(
    "aten.clone.default",
    "aten.alias.default",
    "aten.detach.default",
    "aten.contiguous.default",
    "aten.dropout.default",
    "aten.feature_dropout.default",
    "aten.alpha_dropout.default",
    "aten._to_copy.default",
)
def _identity(call: TracedCall) -> Sequence[Layer]:
    if call.op.endswith("dropout.default") and call.arg(2, "train"):
        raise call.unsupported("dropout is in training mode; call model.eval() first")
    if (dtype := call.kwargs.get("dtype")) is not None and not dtype.is_floating_point:
        raise call.unsupported(f"a conversion to {dtype} is not continuous")
    return []
