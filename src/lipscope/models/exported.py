"""Exported programs (.pt2, as torch.export.save writes them), read without running code from the file.

torch.export.load is not used: it falls back to full unpickling of weights, constants and example inputs,
unpickles opaque objects, loads compiled libraries, evaluates symbolic shapes as Python and resolves any
function reachable from `torch` by name (docs/models.md). Here the graph is JSON, weights are bytes or
weights-only pickles, and an operation must be one of the core ATen set or decompose into it.
"""

from __future__ import annotations

import io
import json
import math
import operator
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.files import check_members, printable, reason
from ..errors import LipscopeError, ModelError, UnsupportedLayerError
from ..graph.file_program import FileProgram, Operation, Value
from ..layers.base import TORCH_RULES, Shape

_SCHEMA_MAJOR = 8
_MOST_UNPACKED = 4
"""Archives are stored uncompressed; one that grows by more than this factor is no archive of torch's."""
_MOST_JSON = 2**28
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_PYTHON_OPERATIONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in (
        "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos",
        "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_",
    )
}  # fmt: skip
# What holds of the shapes for any input: nothing to compute.
_ASSERTIONS = {
    "_assert_scalar",
    "_assert_tensor_metadata",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}
_SHAPE_READERS = {"sym_size", "sym_numel", "sym_stride"}


def read_exported(path: Path) -> FileProgram:
    """The program of a .pt2 file.

    Raises:
        ModelError: the file is missing, damaged, unreasonably large, holds what needs code to load, or is
            no program of one input and one output.
        UnsupportedLayerError: an operation is not of the ATen set.
    """
    name = printable(path)
    if not path.is_file():
        raise ModelError(f"there is no file {name}; check its path")
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, _MOST_UNPACKED)
            return _Archive(archive).program()
    except ModelError as error:
        raise type(error)(f"{name}: {error}") from error
    except LipscopeError as error:
        raise ModelError(f"{name} {error}") from error
    except zipfile.BadZipFile as error:
        raise ModelError(
            f"{name} is no exported program ({reason(error)}); write one with torch.export.save"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ModelError(f"{name} is no sound exported program: {reason(error)}") from error
    except (OSError, RecursionError, MemoryError, NotImplementedError) as error:
        raise ModelError(f"{name} cannot be read: {reason(error)}; check that the file is whole") from error


class _Archive:
    """A .pt2 archive: a zip of JSON files and raw weights under one folder. Nothing is written to disk."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        names = archive.namelist()
        self._root = names[0].split("/")[0] if names else ""
        self._names = set(names)

    def program(self) -> FileProgram:
        if not self.has("archive_format") or self.read("archive_format") != b"pt2":
            raise ModelError("it is no archive of torch.export.save (of torch 2.8 or later)")
        if self.has("byteorder") and self.read("byteorder") != b"little":
            raise ModelError("it was written on a big-endian machine")
        models = [n for n in self._names if n.startswith(f"{self._root}/models/") and n.endswith(".json")]
        if len(models) != 1:
            raise ModelError(f"it holds {len(models)} programs; save one with torch.export.save")
        model = models[0].rsplit("/", 1)[1].removesuffix(".json")
        program = self.json(f"models/{model}.json")
        major = program["schema_version"]["major"]
        if major != _SCHEMA_MAJOR:
            raise ModelError(
                f"its format has version {major}, lipscope reads {_SCHEMA_MAJOR}; export it again"
            )
        held = self.tensors("weights", model) | self.tensors("constants", model)
        return _program(program["graph_module"], held)

    def tensors(self, kind: str, model: str) -> dict[str, Tensor]:
        """The weights or the constants, by the names under which the signature refers to them."""
        legacy = f"data/{kind}/{model}.pt"
        if self.has(legacy):
            pickled = _unpickled(self.read(legacy), f"its {kind}")
            found = {k: v for k, v in pickled.items() if isinstance(v, Tensor)}
            if len(found) < len(pickled):
                raise ModelError(f"its {kind} hold objects besides tensors")
            return {name: tensor.detach() for name, tensor in found.items()}
        config = self.json(f"data/{kind}/model_{kind}_config.json".replace("model_", f"{model}_", 1))
        return {name: self.tensor(kind, name, held) for name, held in config["config"].items()}

    def tensor(self, kind: str, name: str, held: Mapping[str, Any]) -> Tensor:
        member = held["path_name"]
        if not re.fullmatch(r"(weight|tensor)_\d+", member):
            raise ModelError(f"{name} is an object of a class of its own, which needs code to load")
        content = self.read(f"data/{kind}/{member}")
        if held["use_pickle"]:
            value = _unpickled(content, name)
            if not isinstance(value, Tensor):
                raise ModelError(f"{name} is no tensor")
            return value.detach()
        meta = held["tensor_meta"]
        sizes, strides = ([_integer(n) for n in meta[key]] for key in ("sizes", "strides"))
        dtype = _DTYPES[meta["dtype"]]
        if len(content) % dtype.itemsize or (math.prod(sizes) and not content):
            raise ModelError(f"{name} is stated with shape {tuple(sizes)} but holds {len(content)} bytes")
        if math.prod(sizes) * dtype.itemsize > _MOST_UNPACKED * len(content) + 2**20:
            raise ModelError(f"{name} would grow from {len(content)} bytes to the shape {tuple(sizes)}")
        flat = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return flat.as_strided(sizes, strides, _integer(meta["storage_offset"])).clone()

    def has(self, name: str) -> bool:
        return f"{self._root}/{name}" in self._names

    def read(self, name: str) -> bytes:
        if not self.has(name):
            raise ModelError(f"it lacks {name}")
        return self._archive.read(f"{self._root}/{name}")

    def json(self, name: str) -> Any:
        content = self.read(name)
        if len(content) > _MOST_JSON:
            raise ModelError(f"its {name} has {len(content)} bytes")
        return json.loads(content)


def _unpickled(content: bytes, what: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a malformed pickle raises many types
        raise ModelError(
            f"{what} needs code to load, or is corrupt; export the model again, with plain tensors as weights"
        ) from error


def _program(module: Mapping[str, Any], held: Mapping[str, Tensor]) -> FileProgram:
    graph, signature = module["graph"], module["signature"]
    sources, constants = [], dict[str, Any]()
    for spec in signature["input_specs"]:
        ((kind, value),) = spec.items()
        if kind == "user_input":
            sources.append(value["arg"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            constants[value["arg"]["name"]] = held[value[f"{kind}_name"]]
        elif kind == "constant_input":
            ((_, constants[value["name"]]),) = value["value"].items()
        else:
            raise ModelError(f"it takes a {kind} besides tensors, which lipscope does not read")
    outputs = [spec["user_output"]["arg"] for spec in signature["output_specs"] if "user_output" in spec]
    for what, found in (("input", sources), ("output", outputs)):
        if len(found) != 1 or "as_tensor" not in found[0]:
            raise ModelError(
                f"it has {len(found)} {what}s; export a model with one input tensor and one output tensor"
            )
    source, result = (found[0]["as_tensor"]["name"] for found in (sources, outputs))
    meta = graph["tensor_values"][source]
    batch, shape = _input_shape(meta["sizes"])
    dtype = _DTYPES[meta["dtype"]]
    if not dtype.is_floating_point:
        raise ModelError(f"its input has the type {dtype}; lipscope takes networks of real inputs")
    operations = [operation for node in graph["nodes"] if (operation := _operation(node)) is not None]
    return FileProgram(operations, constants, source, result, shape, batch, dtype)


def _input_shape(sizes: list[dict[str, Any]]) -> tuple[int | None, Shape | None]:
    """The batch (None: any) and the shape behind it (None: not fixed)."""
    if not sizes:
        raise ModelError("its input is a single number without a batch dimension")
    fixed = [size.get("as_int") for size in sizes]
    behind = [n for n in fixed[1:] if n is not None]
    return fixed[0], tuple(behind) if len(behind) == len(fixed) - 1 else None


def _operation(node: Mapping[str, Any]) -> Operation | None:
    target: str = node["target"]
    path, kind = _place(node)
    namespace, _, name = target.partition("torch.ops.aten.")
    if not namespace and name.split(".")[0] in _ASSERTIONS:
        return None
    run = _function(target)
    if run is None:
        raise UnsupportedLayerError(
            f"unsupported operation {target} at {path} ({kind}): it is no ATen operation"
        )
    args, kwargs = list[Any](), dict[str, Any]()
    for given in node["inputs"]:
        value = _argument(given["arg"])
        by_name = given.get("kind") == 2 or (given.get("kind") is None and _keyword_only(run, given["name"]))
        if isinstance(run, torch._ops.OpOverload):
            by_name = by_name or len(args) != _position(run, given["name"])
        if by_name:
            kwargs[given["name"]] = value
        else:
            args.append(value)
    return Operation(
        path,
        kind,
        run,
        tuple(args),
        _outputs(node["outputs"]),
        kwargs,
        reads_shapes=name.split(".")[0] in _SHAPE_READERS,
    )


def _outputs(outputs: list[dict[str, Any]]) -> tuple[str, ...]:
    names: list[str] = []
    for output in outputs:
        ((kind, value),) = output.items()
        if kind == "as_tensors":
            names += [tensor["name"] for tensor in value]
        else:
            names.append(value.get("name") or value.get("as_name", "") if isinstance(value, dict) else "")
    return tuple(names)


def _argument(argument: Mapping[str, Any]) -> Any:
    ((kind, value),) = argument.items()
    if kind == "as_none":
        return None
    if kind in (
        "as_int",
        "as_ints",
        "as_float",
        "as_floats",
        "as_bool",
        "as_bools",
        "as_string",
        "as_int_lists",
    ):
        return float(value) if kind == "as_float" else value
    if kind in ("as_tensor", "as_optional_tensor"):
        return Value(value["name"]) if "name" in value else _argument(value)
    if kind in ("as_tensors", "as_optional_tensors"):
        return [Value(v["name"]) if "name" in v else _argument(v) for v in value]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return _number(value)
    if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return [_number(v) for v in value]
    if kind == "as_scalar_type":
        return _DTYPES[value]
    if kind == "as_memory_format":
        return _MEMORY_FORMATS[value]
    if kind == "as_layout":
        return torch.strided
    if kind == "as_device":
        return torch.device("cpu")
    raise ModelError(f"an operation takes an argument of the kind {kind}, which lipscope does not read")


def _number(value: Mapping[str, Any]) -> Any:
    ((kind, held),) = value.items()
    return Value(held) if kind == "as_name" else held


def _integer(size: Mapping[str, Any]) -> int:
    if not isinstance(size.get("as_int"), int):
        raise ModelError("a weight has no fixed shape")
    return int(size["as_int"])


def _place(node: Mapping[str, Any]) -> tuple[str, str]:
    """The innermost module that issued the operation, and its class."""
    stack = node["metadata"].get("nn_module_stack", "")
    parts = stack.rsplit(";", 1)[-1].split(",")
    if len(parts) == 3 and parts[1]:
        return parts[1], parts[2].rsplit(".", 1)[-1] or "module"
    return next(filter(None, _outputs(node["outputs"])), "operation"), node["target"].rsplit(".", 2)[-2]


def _function(target: str) -> Callable[..., Any] | None:
    """The function of that name, of those that compute and do nothing else."""
    if target.startswith("_operator."):
        return _PYTHON_OPERATIONS.get(target.removeprefix("_operator."))
    found = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target)
    if found is None:
        return None
    overload = getattr(getattr(torch.ops.aten, found[1], None), found[2], None)
    return overload if isinstance(overload, torch._ops.OpOverload) and _is_core(overload) else None


def _is_core(overload: torch._ops.OpOverload) -> bool:
    """Whether it is of the core ATen set, decomposes into it, or is what an import rule reads."""
    packet = overload._schema.name.removeprefix("aten::")
    if str(overload) in TORCH_RULES or packet in _SHAPE_READERS or packet == "lift_fresh_copy":
        return True
    candidates = [overload]
    if packet.endswith("_") and not packet.endswith("__"):  # judged as the operation that it does in place
        functional = getattr(torch.ops.aten, packet.rstrip("_"), None)
        candidates += [getattr(functional, name) for name in functional.overloads()] if functional else []
    return any(
        torch.Tag.core in candidate.tags
        or candidate in _decompositions()
        or (torch._C._dispatch_has_kernel(candidate.name()) and candidate._can_decompose())
        for candidate in candidates
    )


@cache
def _decompositions() -> Mapping[Any, Any]:
    return torch._decomp.core_aten_decompositions()


def _position(run: torch._ops.OpOverload, name: str) -> int:
    names = [argument.name for argument in run._schema.arguments]
    return names.index(name)


def _keyword_only(run: Callable[..., Any], name: str) -> bool:
    if not isinstance(run, torch._ops.OpOverload):
        return False
    return any(argument.name == name and argument.kwarg_only for argument in run._schema.arguments)
