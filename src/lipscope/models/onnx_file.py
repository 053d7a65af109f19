"""ONNX files: read by the onnx package, run by torch functions, compared with ONNX Runtime.

Nothing in the file is code. Weights outside the file (external data) must lie in its folder, inside files
as long as the file says.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.files import printable, reason
from ..errors import ModelError, UnsupportedLayerError
from ..graph.file_program import FileProgram, Operation, ReferenceValues, Value
from ..layers.base import Shape
from .onnx_operators import OPERATORS

_DTYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}


class OnnxProgram(FileProgram):
    """The program of an ONNX file; `path` is asked again when ONNX Runtime computes its values."""

    path: Path
    squeezed: bool = False
    """Whether the file's input lacks the batch dimension."""

    def reference(self, x: Tensor) -> ReferenceValues | None:
        """What ONNX Runtime computes, or None if it is not installed."""
        try:
            runtime: Any = importlib.import_module("onnxruntime")
        except ImportError:
            return None
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
            (source, *_), found = session.get_inputs(), []
            for part in x.split(self.batch or len(x)):
                given = part.squeeze(0) if self.squeezed else part
                (y,) = session.run(None, {source.name: given.numpy()})
                found.append(self.with_batch(torch.from_numpy(y)))
        except Exception as error:  # the runtime has error types of its own
            raise ModelError(f"ONNX Runtime cannot run {printable(self.path)}: {reason(error)}") from error
        return ReferenceValues("ONNX Runtime", torch.cat(found))


def read_onnx(path: Path) -> OnnxProgram:
    """The program of an .onnx file.

    Raises:
        ModelError: the onnx package is missing; the file is missing or damaged, or holds no network of one
            real input and one output.
        UnsupportedLayerError: an operator has no translation; it is named with its place.
    """
    name = printable(path)
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError as error:
        raise ModelError(
            "reading ONNX files takes the onnx package; run: pip install 'lipscope[onnx]'"
        ) from error
    if not path.is_file():
        raise ModelError(f"there is no file {name}; check its path")
    try:
        model = onnx.load(str(path), load_external_data=False)
        _load_outside(onnx, model, path.parent.resolve())
        onnx.checker.check_model(model)
        return _program(onnx, model, path)
    except ModelError as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:  # protobuf and the checker have error types of their own
        raise ModelError(f"{name} is no sound ONNX file: {reason(error)}") from error


def _load_outside(onnx: Any, model: Any, folder: Path) -> None:
    """Read the weights that lie in other files."""
    helper = importlib.import_module("onnx.external_data_helper")
    for tensor in model.graph.initializer:
        if not helper.uses_external_data(tensor):
            continue
        held = {entry.key: entry.value for entry in tensor.external_data}
        file = (folder / held.get("location", "")).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise ModelError(
                f"the weight {tensor.name} lies in {held.get('location')!r}, no file in its folder"
            )
        start, size = int(held.get("offset", 0)), file.stat().st_size
        length = int(held.get("length", size - start))
        if start < 0 or length < 0 or start + length > size:
            raise ModelError(f"the weight {tensor.name} reaches beyond the end of {held['location']}")
        helper.load_external_data_for_tensor(tensor, str(folder))


def _program(onnx: Any, model: Any, path: Path) -> OnnxProgram:
    graph = model.graph
    if graph.sparse_initializer:
        raise ModelError("it has sparse weights; store them densely")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    constants: dict[str, Any] = {t.name: _tensor(onnx, t) for t in graph.initializer}
    operations: list[Operation] = []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(onnx, node)
        else:
            operations.append(_operation(onnx, node, opset))
    sources = [entry for entry in graph.input if entry.name not in constants]
    for what, found in (("input", sources), ("output", graph.output)):
        if len(found) != 1:
            raise ModelError(f"it has {len(found)} {what}s; give a network of one input and one output")
    kind = sources[0].type.tensor_type
    dtype = _DTYPES.get(kind.elem_type)
    if dtype is None:
        raise ModelError(
            "its input is no real tensor; give a network of real inputs, such as behind an embedding"
        )
    sizes = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim]
    source, squeezed = sources[0].name, len(sizes) < 2
    if squeezed:
        operations.insert(0, Operation("", "Squeeze", _without_batch, (Value("with batch"),), (source,)))
        source, sizes = "with batch", [1, *sizes]
    shape = _known(sizes[1:])
    program = OnnxProgram(operations, constants, source, graph.output[0].name, shape, sizes[0], dtype)
    program.path, program.squeezed = path, squeezed
    return program


def _without_batch(x: Tensor) -> Tensor:
    return x.squeeze(0)


def _known(sizes: Sequence[int | None]) -> Shape | None:
    found = tuple(size for size in sizes if size is not None)
    return found if len(found) == len(sizes) else None


def _tensor(onnx: Any, tensor: Any) -> Tensor:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelError("an attribute of an operator lies outside the file; save it inside")
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype("float32")).to(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _constant(onnx: Any, node: Any) -> Tensor:
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return _tensor(onnx, value)
    if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
        return torch.tensor(value)
    raise ModelError(f"{_path(node)} (Constant): a constant given by {attribute.name} is not supported")


def _operation(onnx: Any, node: Any, opset: int) -> Operation:
    path = _path(node)
    operator = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if operator is None:
        raise UnsupportedLayerError(
            f"unsupported operator {node.op_type} at {path}: lipscope has no translation of it into torch. Replace it, "
            "or add it to lipscope/models/onnx_operators.py"
        )
    kwargs = {a.name: _attribute(onnx, a, path) for a in node.attribute}
    if node.op_type in ("Softmax", "LogSoftmax"):
        kwargs.setdefault("axis", -1 if opset >= 13 else 1)
    if node.op_type in ("Softmax", "LogSoftmax", "Resize", "Upsample"):
        kwargs["opset"] = opset
    if node.op_type == "Split":
        kwargs["outputs"] = len(node.output)
    return Operation(
        path=path,
        kind=node.op_type,
        run=operator.run,
        args=tuple(Value(name) if name else None for name in node.input),
        outputs=tuple(node.output),
        kwargs=kwargs,
        listed=operator.listed,
        reads_shapes=operator.reads_shapes,
    )


def _attribute(onnx: Any, attribute: Any, path: str) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return _tensor(onnx, value)
    if isinstance(value, onnx.GraphProto):
        raise ModelError(f"{path}: control flow is not supported")
    return list(value) if isinstance(value, (list, tuple)) else value


def _path(node: Any) -> str:
    """The node's name as a place in the model: exporters write "/layer1/conv1/Conv"."""
    parts = [part for part in node.name.replace("/", ".").split(".") if part]
    if len(parts) > 1 and parts[-1].split("_")[0] == node.op_type:
        parts.pop()
    return ".".join(parts) or (node.output[0] if node.output else node.op_type)
