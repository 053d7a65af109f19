"""A functional program of torch operations, read operation by operation into a graph.

Each operation that depends on the input goes to the import rule registered for it
(`layers.base.TORCH_RULES`); what weights alone decide is computed here and becomes a constant.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from ..errors import ModelError
from ..layers import Layer
from ..layers.base import TORCH_RULES, Reference, Shape, TracedCall
from .batches import batch_first
from .graph import INPUT, Graph, GraphBuilder
from .simplify import fuse_scalings


def from_program(
    program: ExportedProgram, input_shape: Shape, batch: int, weights: Mapping[str, Tensor] | None = None
) -> Graph:
    """The graph that a functional program computes on each sample of a batch.

    Args:
        program: takes one tensor (batch, *input_shape) and returns one tensor (batch, *out).
        input_shape: per-sample shape.
        batch: the batch size it was traced with.
        weights: tensors to take, by name, in place of those that the program holds.

    Raises:
        ModelError: it has another number of outputs, or a weight is NaN or infinite.
        UnsupportedLayerError: an operation has no rule; it is named with its place.
    """
    builder = GraphBuilder(input_shape)
    env: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            env[spec.arg.name] = Reference(INPUT, input_shape)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert spec.target is not None
            held = program.state_dict.get(spec.target, program.constants.get(spec.target))
            if weights is not None:
                held = weights.get(spec.target, held)
            env[spec.arg.name] = held.detach().to("cpu", copy=True) if isinstance(held, Tensor) else held
    for node in program.graph.nodes:
        if node.op == "call_function":
            env[node.name] = _value(node, env, builder, batch)
        elif node.op == "output":
            graph = fuse_scalings(builder.build(_single_output(program, env)))
            _check_weights(graph)
            return graph
    raise ModelError("the traced model has no output")


def _single_output(program: ExportedProgram, env: dict[str, Any]) -> int:
    # What an in-place operation writes into the input or a buffer also leaves the program, but is not its value.
    outputs = [s.arg for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    results = [env[o.name] for o in outputs if isinstance(o, TensorArgument)]
    tensors = [r for r in results if isinstance(r, (Reference, Tensor))]
    if len(tensors) != 1:
        raise ModelError(f"the model returns {len(tensors)} tensors; wrap it so that it returns one")
    if not isinstance(tensors[0], Reference):
        raise ModelError("the model's output does not depend on its input")
    if tensors[0].complex:
        raise ModelError("the model's output is complex; return real numbers, as by torch.view_as_real")
    if not tensors[0].layout.plain:
        raise ModelError("the model's output does not keep the batch as its first dimension")
    return tensors[0].node


@dataclass(frozen=True)
class _Several:
    """An operation with several results, imported result by result as they are asked for."""

    call: TracedCall
    known: dict[int, Reference]


def _value(node: torch.fx.Node, env: dict[str, Any], builder: GraphBuilder, batch: int) -> Any:
    """What a node of the program stands for: a `Reference`, a constant, or `_Several` results."""

    def resolve(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return env[value.name]
        if isinstance(value, (list, tuple)):
            return type(value)(resolve(v) for v in value)
        return value

    if str(node.target) == "aten._assert_tensor_metadata.default":
        return None  # stands before conversions between dtypes; computes nothing
    args = resolve(tuple(node.args))
    kwargs = {k: resolve(v) for k, v in node.kwargs.items()}
    shapes = _result_shapes(node)
    if node.target is operator.getitem:
        several, number = args
        if not isinstance(several, _Several):
            return several[number]
        if number not in several.known:
            call = replace(several.call, result=number)
            several.known[number] = _imported(call, shapes[0], builder)
        return several.known[number]
    call = TracedCall(
        op=str(node.target),
        args=args,
        kwargs=kwargs,
        out_shape=(),
        place=_place(node),
        batch=batch,
        dtype=_result_dtype(node),
        target=node.target,  # type: ignore[arg-type]
    )
    if call.op in _CREATIONS:
        return _created(call, shapes[0])
    if not call.references:
        return node.target(*args, **kwargs)  # type: ignore[operator]  # folds what weights alone decide
    if isinstance(node.meta.get("val"), (list, tuple)):
        return _Several(call, {})
    return _imported(call, shapes[0] if shapes else None, builder)


_CREATIONS = (
    "aten.new_zeros.default",
    "aten.zeros_like.default",
    "aten.new_ones.default",
    "aten.ones_like.default",
)
"""Constants that take only their dtype or shape from a tensor."""


def _created(call: TracedCall, shape: Shape) -> Tensor:
    make = torch.zeros if "zeros" in call.op else torch.ones
    return make(shape, dtype=call.dtype)


def _imported(call: TracedCall, shape: Shape | None, builder: GraphBuilder) -> Reference:
    """The value of a call, by the rule for its operation."""
    rule = TORCH_RULES.get(call.op)
    if rule is None:
        raise call.unsupported("lipscope has no rule for it")
    if shape is None:
        raise call.unsupported("its result is no tensor")
    append = partial(_append, builder, call.place)
    call = replace(batch_first(call, shape), append=append)
    found = rule(call)
    if isinstance(found, Reference):
        return replace(found, layout=call.layout, complex=call.dtype.is_complex)
    inputs = call.references
    for layer in found[:-1]:
        inputs = [append(layer, inputs, None)]
    # The last layer's shape is known: running a large layer on zeros to find it takes time.
    value = (
        append(found[-1], inputs, None if call.dtype.is_complex else call.out_shape) if found else inputs[0]
    )
    return replace(value, layout=call.layout, complex=call.dtype.is_complex)


def _append(
    builder: GraphBuilder, place: str, layer: Layer, inputs: Sequence[Reference], shape: Shape | None
) -> Reference:
    sources = [value.node for value in inputs]
    values = layer.output_range([value.values for value in inputs], [value.shape for value in inputs])
    if shape is None:
        shape = builder.shape_of(layer, sources)
    node = builder.append(layer, sources, shape, place)
    return Reference(node, shape, values)


def _result_shapes(node: torch.fx.Node) -> list[Shape]:
    """The shapes of the results that are tensors, with the batch."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [tuple(int(n) for n in v.shape) for v in values if isinstance(v, Tensor)]


def _result_dtype(node: torch.fx.Node) -> torch.dtype:
    """The type of the first result."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (list, tuple)) else value
    return first.dtype if isinstance(first, Tensor) else torch.float32


def _place(node: torch.fx.Node) -> str:
    """The innermost module that issued the operation, e.g. "layer1.0.relu (ReLU)"."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return node.name
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    kind = kind.rsplit(".", 1)[-1]
    return f"{path} ({kind})" if path else f"{node.name} ({kind})"


def _check_weights(graph: Graph) -> None:
    for node in graph.nodes:
        if node.layer is not None and not all(bool(torch.isfinite(p).all()) for p in node.layer.parameters()):
            raise ModelError(f"{node.place}: a weight is NaN or infinite; load a sound checkpoint")
