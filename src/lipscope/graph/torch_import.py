"""Read a torch module through torch.export.

Why torch.export and not FX: it runs the module with fake tensors, so every operation arrives as
an aten operation with its shape, whatever Python the module is written in (functional calls,
loops, in-place operations); FX sees module calls and unresolved Python, without shapes.
`run_decompositions({})` makes the program functional: an in-place ReLU shared by two branches is
imported as what it computes.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from ..errors import ModelError
from ..layers.base import TORCH_RULES, Reference, Shape, TracedCall
from .graph import INPUT, Graph, GraphBuilder
from .simplify import fuse_scalings

_TRACED_BATCH = 2
_CHECKED_BATCH = 3


def from_torch(module: nn.Module, input_shape: Shape) -> Graph:
    """Import a module as a graph, and check that the two compute the same.

    The module is traced in evaluation mode (dropout off, batch norm frozen) and left in the mode
    it came in; its weights are copied.

    Args:
        module: takes one tensor (batch, *input_shape) and returns one tensor (batch, *output_shape).
        input_shape: per-sample shape, without the batch.

    Raises:
        ModelError: tracing fails, the signature is another, a weight is NaN or infinite, or the
            import and the module disagree on random inputs.
        UnsupportedLayerError: an operation has no rule; it is named with its place.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        graph = fuse_scalings(_import(module, tuple(input_shape)))
        _check_weights(graph)
        _check_agreement(module, graph)
    finally:
        for part, training in modes.items():
            part.training = training
    return graph


def _example(module: nn.Module, batch: int, shape: Shape) -> Tensor:
    tensors = [*module.parameters(), *module.buffers()]
    reference = next((t for t in tensors if t.is_floating_point()), torch.empty(()))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *shape, generator=generator).to(reference.device, reference.dtype)


def _trace(module: nn.Module, shape: Shape) -> torch.export.ExportedProgram:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (_example(module, _TRACED_BATCH, shape),), strict=False)
            functional: torch.export.ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the model cannot be traced on an input of shape {shape}: {reason}. It must run on a batch "
            f"of {_TRACED_BATCH} such inputs, with no control flow that depends on their values"
        ) from error


def _import(module: nn.Module, input_shape: Shape) -> Graph:
    program = _trace(module, input_shape)
    builder = GraphBuilder(input_shape)
    env: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            env[spec.arg.name] = Reference(INPUT, input_shape)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert spec.target is not None
            held = program.state_dict.get(spec.target, program.constants.get(spec.target))
            env[spec.arg.name] = held.detach().to("cpu", copy=True) if isinstance(held, Tensor) else held
    for node in program.graph.nodes:
        if node.op == "call_function":
            env[node.name] = _import_call(node, env, builder)
        elif node.op == "output":
            return builder.build(_single_output(program, env))
    raise ModelError("the traced model has no output")


def _single_output(program: torch.export.ExportedProgram, env: dict[str, Any]) -> int:
    # What an in-place operation writes into the input or a buffer also leaves the program, but is not its value.
    outputs = [s.arg for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    results = [env[o.name] for o in outputs if isinstance(o, TensorArgument)]
    tensors = [r for r in results if isinstance(r, (Reference, Tensor))]
    if len(tensors) != 1:
        raise ModelError(f"the model returns {len(tensors)} tensors; wrap it so that it returns one")
    if not isinstance(tensors[0], Reference):
        raise ModelError("the model's output does not depend on its input")
    return tensors[0].node


def _import_call(node: torch.fx.Node, env: dict[str, Any], builder: GraphBuilder) -> Any:
    def resolve(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return env[value.name]
        if isinstance(value, (list, tuple)):
            return type(value)(resolve(v) for v in value)
        return value

    if str(node.target) == "aten._assert_tensor_metadata.default":
        return None  # stands before conversions between dtypes; computes nothing
    args = tuple(resolve(a) for a in node.args)
    kwargs = {k: resolve(v) for k, v in node.kwargs.items()}
    if node.target is operator.getitem:
        # Operations with several results are imported as the first; the others are never asked for.
        if isinstance(args[0], Reference) and args[1] == 0:
            return args[0]
        if not isinstance(args[0], Reference):
            return args[0][args[1]]
    shape = _result_shape(node)
    call = TracedCall(str(node.target), args, kwargs, shape[1:] if shape else (), _place(node))
    if not call.references:
        return node.target(*args, **kwargs)  # type: ignore[operator]  # folds what weights alone decide
    rule = TORCH_RULES.get(call.op)
    if rule is None:
        raise call.unsupported("lipscope has no rule for it")
    if shape is None or shape[0] != _TRACED_BATCH:
        raise call.unsupported("it does not keep the batch as its first dimension")
    layers = rule(call)
    inputs = [reference.node for reference in call.references]
    values = [reference.values for reference in call.references]
    for position, layer in enumerate(layers):
        values = [layer.output_range(values, [builder.nodes[i].shape for i in inputs])]
        if position < len(layers) - 1:
            inputs = [builder.add(layer, inputs, call.place)]
        else:
            inputs = [builder.append(layer, inputs, call.out_shape, call.place)]
    return Reference(inputs[0], call.out_shape, values[0])


def _result_shape(node: torch.fx.Node) -> Shape | None:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (list, tuple)) else value
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else None


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


def _check_agreement(module: nn.Module, graph: Graph) -> None:
    """Compare module and graph on random inputs, in a batch size that was not traced."""
    with torch.no_grad():
        x, expected = _evaluated(module, graph.input_shape)
        actual = graph.evaluate(x.to("cpu", copy=True).to(torch.float64))
    expected = expected.cpu().to(torch.float64)
    deviation = float((actual - expected).abs().max()) if actual.shape == expected.shape else float("inf")
    scale = float(expected.abs().max())
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(x.dtype, 5e-2)
    if not deviation <= tolerance * max(scale, 1e-30):
        raise ModelError(
            f"the imported graph and the model disagree on random inputs (by {deviation:.2g} where outputs reach "
            f"{scale:.2g}): the model is not the function it was traced as (a random layer, or batch-dependent code)"
        )


def _evaluated(module: nn.Module, shape: Shape) -> tuple[Tensor, Tensor]:
    """Random inputs and the module's values there, of a copy in float32 if the module has 16 bits.

    The copy shows far smaller deviations, and runs where the CPU lacks 16-bit kernels. A module that
    cannot be copied or insists on its dtype is taken as it is.
    """
    x = _example(module, _CHECKED_BATCH, shape)
    if x.dtype in (torch.bfloat16, torch.float16):
        with contextlib.suppress(Exception):
            return x.float(), _value(copy.deepcopy(module).float(), x.float())
    return x, _value(module, x)


def _value(module: nn.Module, x: Tensor) -> Tensor:
    try:
        value = module(x.clone())
    except Exception as error:
        raise ModelError(
            f"the model runs on a batch of {_TRACED_BATCH} but not of {_CHECKED_BATCH}: {error}. "
            "It must take batches of any size"
        ) from error
    if isinstance(value, (tuple, list)):
        (value,) = value
    if not isinstance(value, Tensor):
        raise ModelError(f"the model returns a {type(value).__name__}; wrap it so that it returns one tensor")
    return value
