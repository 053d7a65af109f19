"""Calls whose tensors keep the batch elsewhere than in a first dimension of its own.

Import rules are written for (B, *s). Here a call on tensors of any other `Layout` becomes the same call
on (B, *s): dimensions are renumbered and constants that meet the batch lose it. What an operation does
to the batch is seen by running it, on shapes alone, with one sample more. A mistake of this reading
(an operation that orders samples in its own way) shows in the comparison of the graph with the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..layers.base import Reference, Shape, TracedCall
from ..layout import PLAIN, Layout

_RESHAPES = ("view", "reshape", "_unsafe_view", "unflatten", "flatten")
_MOVES = ("permute", "transpose", "t", "numpy_T", "movedim", "swapaxes", "unsqueeze", "squeeze")
_ORDERS = (*_RESHAPES, *_MOVES)
"""Operations that may name the batch: their rules go by shapes or by the call as traced."""
_DIMENSIONS = ("dim", "dims", "dim0", "dim1", "axis", "start_dim", "end_dim")
_CHANNELS_SECOND = (
    "conv",
    "pool",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "upsample",
    "prelu",
    "im2col",
)
"""Operations that give the second dimension a meaning, which a folded batch would shift."""


def batch_first(call: TracedCall, traced: Shape) -> TracedCall:
    """The call as it reads when every tensor that depends on the input is (B, *s).

    Args:
        call: as traced; its references say where their batch is.
        traced: the shape of the result, with the batch.

    Raises:
        UnsupportedLayerError: the result does not keep samples apart, or the operation acts along the batch.
    """
    layout = _result_layout(call, traced)
    settled = replace(call, layout=layout, out_shape=layout.per_sample(traced, call.batch))
    if layout.plain and all(reference.layout.plain for reference in call.references):
        return settled
    name = call.op.split(".")[1]
    folded = layout.folded or any(reference.layout.folded for reference in call.references)
    if folded and any(word in name for word in _CHANNELS_SECOND):
        raise call.unsupported("it acts on images that were folded into the batch")
    args, kwargs = list(call.args), dict(call.kwargs)
    if _is_pointwise(call):
        for reference in call.references:
            if _broadcast(reference, traced) != layout:
                raise call.unsupported("it combines tensors whose batches are in different dimensions")
        args = [_without_batch(call, layout, traced, value) for value in args]
        kwargs = {key: _without_batch(call, layout, traced, value) for key, value in kwargs.items()}
    if name not in _ORDERS:
        numbered, rank = _numbering(call, settled, name)
        for index, argument in enumerate(_schema(call)):
            if argument.name not in _DIMENSIONS:
                continue
            if index < len(args):
                args[index] = _renumbered(call, args[index], numbered, rank)
            else:
                dims = kwargs.get(argument.name, argument.default_value)
                kwargs[argument.name] = _renumbered(call, dims, numbered, rank)
    return replace(settled, args=tuple(args), kwargs=kwargs, traced=settled)


def _result_layout(call: TracedCall, traced: Shape) -> Layout:
    references = call.references
    name = call.op.split(".")[1]
    if name in _RESHAPES:
        return _after_reshape(call, references[0], traced)
    if all(r.layout.plain for r in references) and traced[:1] == (call.batch,) and name not in _MOVES:
        return PLAIN
    if _is_pointwise(call):
        return _broadcast(max(references, key=lambda r: r.layout.rank(r.shape)), traced)
    grown = _grown_shape(call)
    if grown is None:  # a size in its arguments fixes the batch
        same = references[0].layout
        before = same.enter(torch.empty(call.batch, *references[0].shape, device="meta")).shape
        if len(traced) == len(before) and traced[same.axis] == before[same.axis]:
            return same
        raise call.unsupported("it does not keep the batch as a dimension")
    changed = [axis for axis, (old, new) in enumerate(zip(traced, grown, strict=False)) if old != new]
    if len(grown) != len(traced) or len(changed) != 1:
        raise call.unsupported("it does not keep the samples of a batch apart")
    (axis,) = changed
    entries = grown[axis] - traced[axis]
    if traced[axis] != entries * call.batch:
        raise call.unsupported("it puts entries beside the samples of a batch")
    return Layout(axis, entries != 1, entries != 1 and any(r.layout.fastest for r in references))


def _is_pointwise(call: TracedCall) -> bool:
    return torch.Tag.pointwise in getattr(call.target, "tags", ())


def _broadcast(reference: Reference, traced: Shape) -> Layout:
    """Where the batch of an operand stands in the result that it broadcasts to."""
    gap = len(traced) - reference.layout.rank(reference.shape)
    return replace(reference.layout, axis=reference.layout.axis + gap)


def _after_reshape(call: TracedCall, source: Reference, traced: Shape) -> Layout:
    """Row-major order is kept, so the batch begins behind as many entries as before."""
    layout = source.layout
    ahead = math.prod(source.shape[: layout.axis + layout.fastest])
    before = 1
    for axis, size in enumerate(traced):
        outer, inner = ahead // before, size * before // (ahead * call.batch)
        if ahead == before * outer and size == outer * call.batch * inner and 1 in (outer, inner):
            return Layout(axis, (outer, inner) != (1, 1), outer != 1)
        before *= size
    raise call.unsupported("it mixes the batch with other dimensions")


def _grown_shape(call: TracedCall) -> Shape | None:
    """The shape of the result with one sample more, or None if the operation does not run then."""

    def larger(value: Any) -> Any:
        if isinstance(value, Reference):
            return value.layout.enter(torch.empty(call.batch + 1, *value.shape, device="meta"))
        if isinstance(value, Tensor):
            return value.to("meta", torch.float32 if value.is_floating_point() else None)
        if isinstance(value, (list, tuple)):
            return type(value)(larger(v) for v in value)
        return value

    assert call.target is not None
    try:
        found = call.target(*larger(call.args), **{k: larger(v) for k, v in call.kwargs.items()})
    except (RuntimeError, NotImplementedError, IndexError):
        return None
    value = found[call.result] if isinstance(found, (list, tuple)) else found
    return tuple(value.shape)


def _without_batch(call: TracedCall, layout: Layout, traced: Shape, value: Any) -> Any:
    """A constant that broadcasts against the result, as it meets one sample."""
    axis = layout.axis - (len(traced) - value.ndim) if isinstance(value, Tensor) else -1
    if axis < 0:
        return value
    if value.shape[axis] == 1:
        return value if layout.folded else value.squeeze(axis)
    samples = axis + layout.fastest
    opened = replace(layout, axis=axis).opened(value, call.batch)
    if not bool((opened == opened.narrow(samples, 0, 1)).all()):
        raise call.unsupported("the constant differs between samples of a batch")
    return opened.select(samples, 0)


def _schema(call: TracedCall) -> Sequence[torch.Argument]:
    schema = getattr(call.target, "_schema", None)
    return schema.arguments if schema is not None else ()


def _numbering(call: TracedCall, settled: TracedCall, name: str) -> tuple[Layout, int]:
    """The layout and the rank that the dimensions in the arguments count in."""
    if name == "stack":
        return settled.layout, settled.layout.rank(settled.out_shape)
    first = call.references[0]
    return first.layout, first.layout.rank(first.shape)


def _renumbered(call: TracedCall, dims: Any, layout: Layout, rank: int) -> Any:
    """Dimensions of the traced tensor as dimensions of (B, *s)."""
    if isinstance(dims, (list, tuple)):
        return type(dims)(_renumbered(call, dim, layout, rank) for dim in dims)
    if not isinstance(dims, int):
        return dims
    dim = dims % rank
    place = layout.place(dim)
    if place is None or (layout.folded and dim == layout.axis):
        raise call.unsupported("it acts along the batch")
    return place + 1
