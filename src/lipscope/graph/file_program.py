"""A network read from a file: a list of operations that torch functions run one by one.

Readers of file formats translate a file into `Operation`s. What follows (tracing, import rules, the
comparison with the file's own values) is the same for every format, and for torch modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LipscopeError, ModelError, UnsupportedLayerError
from ..layers.base import Shape


@dataclass(frozen=True)
class Value:
    """Stands in the arguments of an operation for a value that is known when it runs."""

    name: str


@dataclass(frozen=True)
class Operation:
    """One operation of the file.

    Attributes:
        path, kind: where it stands and what the file calls it, for messages: "layer1.0.relu", "ReLU".
        run: computes it; returns one value, or a sequence of them if there are several outputs.
        args, kwargs: what it is called with: nested lists and tuples of `Value`s and Python values.
        outputs: names of the results, "" for one that nothing reads.
        listed: positions in `args` of tensors that `run` takes as Python lists, such as a shape.
        reads_shapes: whether the results depend on nothing but the shapes of the arguments.
    """

    path: str
    kind: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    outputs: tuple[str, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    listed: frozenset[int] = frozenset()
    reads_shapes: bool = False

    @property
    def place(self) -> str:
        """How messages name it."""
        return f"{self.path} ({self.kind})" if self.path else self.kind

    def reads(self) -> set[str]:
        """The names of the values it is called with."""
        return {value.name for value in _values((self.args, tuple(self.kwargs.values())))}


@dataclass(frozen=True)
class ReferenceValues:
    """The outputs (batch, *out) that the program of that name computes."""

    program: str
    values: Tensor


class FileProgram(nn.Module):
    """Runs the operations of a file on one input tensor (batch, *input_shape).

    Attributes:
        input_shape: per-sample shape, or None where the file leaves it open.
        batch: the only batch size it runs on, or None for any.
        dtype: of the input.
        mapped: whether a program of batch size 1 runs on the inputs of a batch one by one, vectorised.

    Raises:
        ModelError: an operation reads what none before it computes, or a constant holds NaN.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        constants: Mapping[str, Any],
        source: str,
        result: str,
        input_shape: Shape | None,
        batch: int | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.input_shape, self.batch, self.dtype = input_shape, batch, dtype
        self.mapped = False
        self._operations = tuple(operations)
        self._source, self._result = source, result
        self._others: dict[str, Any] = {}
        self._buffer_names: dict[str, str] = {}
        for name, value in constants.items():
            if isinstance(value, Tensor):
                if bool(torch.isnan(value).any()):
                    raise ModelError(f"the weight {name} holds NaN; load a sound checkpoint")
                self._buffer_names[name] = f"constant_{len(self._buffer_names)}"
                self.register_buffer(self._buffer_names[name], value)
            else:
                self._others[name] = value
        _check_order(self._operations, {source, *constants}, result)
        self._places = [_place(self, operation) for operation in self._operations]
        self._last_use = {
            name: index for index, operation in enumerate(self._operations) for name in operation.reads()
        }
        self._last_use[result] = len(self._operations)

    def forward(self, x: Tensor) -> Tensor:
        """The file's output for a batch, which is cut into pieces of the file's own batch size."""
        if self.mapped:
            mapped: Tensor = torch.vmap(lambda sample: self._run(sample.unsqueeze(0)).squeeze(0))(x)
            return mapped
        if self.batch is not None and len(x) != self.batch:
            return torch.cat([self._run(part) for part in x.split(self.batch)])
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        values = self._constants() | {self._source: x}
        for index in range(len(self._operations)):
            self._step(index, values)
        return self.with_batch(values[self._result])

    def with_batch(self, y: Tensor) -> Tensor:
        """The output of a program for one input may come without the batch: it is put in front."""
        return y.unsqueeze(0) if self.batch == 1 and (y.dim() < 2 or len(y) != 1) else y

    def reference(self, x: Tensor) -> ReferenceValues | None:
        """What another program computes from the file, or None if there is none to ask."""
        return None

    def at(self, x: Tensor) -> FileProgram:
        """The program for inputs of the shape of x, without what does not depend on their entries.

        Computations with shapes become constants.

        Raises:
            UnsupportedLayerError: a shape or an index depends on the entries of the input.
        """
        values = self._constants() | {self._source: x}
        depends, kept = {self._source}, []
        known: dict[str, Any] = {}
        for index, operation in enumerate(self._operations):
            if operation.reads_shapes or not operation.reads() & depends:
                fixed = self._step(index, values)
                known.update({name: fixed[name] for name in operation.outputs if name in fixed})
                continue
            kept.append(_with_lists(operation, values, depends))
            self._step(index, values)
            depends.update(operation.outputs)
        if self._result not in depends:
            raise ModelError("the model's output does not depend on its input")
        read = {name for operation in kept for name in operation.reads()}
        constants = {name: value for name, value in (self._constants() | known).items() if name in read}
        return FileProgram(
            kept, constants, self._source, self._result, self.input_shape, self.batch, self.dtype
        )

    def _constants(self) -> dict[str, Any]:
        return self._others | {name: getattr(self, held) for name, held in self._buffer_names.items()}

    def _step(self, index: int, values: dict[str, Any]) -> dict[str, Any]:
        """Run one operation; its results join `values`, which loses what is not read again."""
        operation = self._operations[index]
        args = list(_resolved(operation.args, values))
        for position in operation.listed:
            if position < len(args) and isinstance(args[position], Tensor):
                args[position] = args[position].tolist()
        kwargs = {name: _resolved(value, values) for name, value in operation.kwargs.items()}
        try:
            found = self._places[index](operation.run, args, kwargs)
        except LipscopeError as error:
            raise type(error)(f"{operation.place}: {error}") from error
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{operation.place} cannot be computed: {reason}") from error
        results = found if isinstance(found, (list, tuple)) and len(operation.outputs) > 1 else [found]
        named = {name: value for name, value in zip(operation.outputs, results, strict=False) if name}
        values.update(named)
        for name in operation.reads():
            if self._last_use[name] == index:
                values.pop(name, None)
        return named


def _check_order(operations: Sequence[Operation], given: set[str], result: str) -> None:
    known = set(given)
    for operation in operations:
        missing = operation.reads() - known
        if missing:
            raise ModelError(f"{operation.place} reads {min(missing)}, which nothing before it computes")
        known.update(operation.outputs)
    if result not in known:
        raise ModelError(f"nothing computes its output {result}")


class _Place(nn.Module):
    """Runs an operation as a submodule, so that a traced operation is named after its place in the file."""

    def forward(self, run: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return run(*args, **kwargs)


def _place(root: nn.Module, operation: Operation) -> nn.Module:
    place = root
    for part in operation.path.split("."):
        name = part or "_"
        while name not in place._modules and hasattr(place, name):
            name += "_"
        if name not in place._modules:
            place._modules[name] = _Place()
        held = place._modules[name]
        assert held is not None
        place = held
    if type(place) is _Place:
        place.__class__ = type(operation.kind, (_Place,), {})
    return place


def _values(nested: Any) -> Iterator[Value]:
    if isinstance(nested, Value):
        yield nested
    elif isinstance(nested, (list, tuple)):
        for entry in nested:
            yield from _values(entry)


def _resolved(nested: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(nested, Value):
        return values[nested.name]
    if isinstance(nested, (list, tuple)):
        return type(nested)(_resolved(entry, values) for entry in nested)
    return nested


def _with_lists(operation: Operation, values: Mapping[str, Any], depends: set[str]) -> Operation:
    """The operation with its listed arguments written out."""
    args = list(operation.args)
    for position in operation.listed & set(range(len(args))):
        argument = args[position]
        if not isinstance(argument, Value):
            continue
        if argument.name in depends:
            raise UnsupportedLayerError(
                f"unsupported operation {operation.kind} at {operation.place}: its argument {argument.name} "
                "(a shape, an index or a limit) depends on the entries of the input"
            )
        args[position] = values[argument.name].tolist()
    return replace(operation, args=tuple(args))
