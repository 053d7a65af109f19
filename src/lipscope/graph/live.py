"""A graph whose tensors follow the parameters of the module it was imported from.

`from_torch` copies weights. During training they change, and what is computed from the graph must be
differentiable in them. So the import is run once more under a recorder, which notes the torch
operations that lead from the module's parameters and buffers to the tensors of the layers (batch
norm fused into a convolution, transposed weights, parametrizations); replaying these few operations
on the live parameters gives the layers of today, in the parameters' dtype and on their device. Where no
gradient is needed, `TracedModule` reads the weights anew instead, with all that an import checks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import ModelError
from ..layers import Layer
from ..layers.base import Shape
from .file_program import FileProgram
from .graph import Graph, Node
from .program import from_program
from .torch_import import TRACED_BATCH, check_agreement, evaluation_mode, tensors_of, trace

_aten = torch.ops.aten
_COPIES = (
    _aten.detach.default,
    _aten._to_copy.default,
    _aten.clone.default,
    _aten.alias.default,
    _aten.lift_fresh.default,
)
"""Operations that leave values as they are, but for dtype, device and memory."""

_PERTURBATION = 0.3
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Relative to the largest output; 16 bits give 5e-2."""
_PROBES, _PROBED_ENTRIES = 64, 2**22
"""Inputs at which two layers are compared, and numbers in them at most (but for the least number of inputs)."""


@dataclass(frozen=True)
class _Slot:
    """Stands in the arguments of a step for a tensor that follows from the parameters."""

    number: int


@dataclass(frozen=True)
class _Constant:
    """Stands in the arguments of a step for a tensor that the import made."""

    number: int


@dataclass(frozen=True)
class _Step:
    """One recorded operation; `results` are the slots of its outputs."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int | None, ...]

    def reads(self) -> Iterator[int]:
        """The slots it reads."""
        for leaf in tree_leaves((self.args, self.kwargs)):
            if isinstance(leaf, _Slot):
                yield leaf.number


class _Recorder(TorchDispatchMode):
    """Notes the operations on the roots and on what follows from them."""

    def __init__(self, roots: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self.steps: list[_Step] = []
        self.count = 0
        for tensor in roots.values():
            self._new(tensor)

    def _new(self, tensor: Any) -> int | None:
        if not isinstance(tensor, Tensor):
            return None
        self.slots[tensor] = self.count
        self.count += 1
        return self.count - 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not any(isinstance(leaf, Tensor) and leaf in self.slots for leaf in tree_leaves((args, kwargs))):
            return out
        if func in _COPIES and out.is_floating_point() and args[0].is_floating_point():
            self.slots[out] = self.slots[args[0]]
            return out

        def noted(leaf: Any) -> Any:
            return _Slot(self.slots[leaf]) if isinstance(leaf, Tensor) and leaf in self.slots else leaf

        noted_args, noted_kwargs = tree_map(noted, (args, kwargs))
        results = tuple(self._new(part) for part in (out if isinstance(out, (tuple, list)) else [out]))
        self.steps.append(_Step(func, noted_args, noted_kwargs, results))
        return out


class LiveGraph:
    """The graph of a torch module, at any time with the parameters that the module has then.

    The map is the module's in evaluation mode, whatever mode the module is in: dropout off, batch norm
    with the running statistics it has at that time.

    Attributes:
        module: the module.
        snapshot: the graph with the weights of the import, in float64, as `from_torch` gives it.
        frozen: places whose layers hold Python numbers that follow from parameters (proved ranges of
            values) and so stay those of the import.

    Args:
        module: takes one tensor (batch, *input_shape) and returns one tensor (batch, *output_shape).
        input_shape: per-sample shape.

    Raises:
        ModelError: as `from_torch`; or the function depends on a parameter through a number that an
            import rule reads, so that it cannot follow the parameter.
        UnsupportedLayerError: an operation has no rule.
    """

    def __init__(self, module: nn.Module, input_shape: Shape) -> None:
        if isinstance(module, FileProgram):
            raise ModelError("a network read from a file has no parameters to follow; give the torch module")
        self.module = module
        shape = tuple(input_shape)
        with evaluation_mode(module):
            program = trace(module, shape)
            held = {**program.state_dict, **program.constants}
            # The rest are constants in the module's code.
            roots = {name: held[name] for name in tensors_of(module) if isinstance(held.get(name), Tensor)}
            self._names = list(roots)
            recorder = _Recorder(roots)
            with torch.no_grad(), recorder:
                self.snapshot = from_program(program, shape, TRACED_BATCH, roots)
            check_agreement(module, self.snapshot)
        self._tensors = self.snapshot.parameters()
        self._outputs = [recorder.slots.get(t) for t in self._tensors]
        self._steps = _needed(recorder.steps, {s for s in self._outputs if s is not None})
        self._constants = list(self._tensors)
        self._steps = [self._without_constants(step) for step in self._steps]
        self._cast: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
        self.frozen = self._check(program, roots)

    @property
    def input_shape(self) -> Shape:
        """Per-sample shape of the input."""
        return self.snapshot.input_shape

    def graph(self) -> Graph:
        """The graph with the live parameters; differentiable in them."""
        present = tensors_of(self.module)
        return self._with([present[name] for name in self._names])

    def sources(self, tensor: Tensor) -> set[str]:
        """The names of the parameters and buffers from which a tensor of the snapshot's layers follows."""
        slots = {self._outputs[next(i for i, t in enumerate(self._tensors) if t is tensor)]}
        for step in reversed(self._steps):
            if slots & set(step.results):
                slots |= set(step.reads())
        return {name for i, name in enumerate(self._names) if i in slots}

    def follows(self, layer: Layer) -> bool:
        """Whether some tensor of a layer of the snapshot follows from a parameter or buffer."""
        return any(self.sources(tensor) for tensor in layer.parameters())

    def _without_constants(self, step: _Step) -> _Step:
        """The step with its constant tensors by number."""

        def numbered(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            self._constants.append(leaf)
            return _Constant(len(self._constants) - 1)

        args, kwargs = tree_map(numbered, (step.args, step.kwargs))
        return replace(step, args=args, kwargs=kwargs)

    def _with(self, values: list[Tensor]) -> Graph:
        reference = next((v for v in values if v.is_floating_point()), torch.empty((), dtype=torch.float64))
        dtype, device = reference.dtype, reference.device

        def constant(number: int) -> Tensor:
            key = (number, dtype, device)
            if key not in self._cast:
                value = self._constants[number]
                self._cast[key] = value.to(device, dtype if value.is_floating_point() else None)
            return self._cast[key]

        known = {
            slot: value.to(dtype) if value.is_floating_point() else value for slot, value in enumerate(values)
        }

        def resolved(leaf: Any) -> Any:
            if isinstance(leaf, _Slot):
                return known[leaf.number]
            if isinstance(leaf, _Constant):
                return constant(leaf.number)
            if isinstance(leaf, torch.dtype):
                return dtype if leaf.is_floating_point else leaf
            return device if isinstance(leaf, torch.device) else leaf

        for step in self._steps:
            args, kwargs = tree_map(resolved, (step.args, step.kwargs))
            out = step.function(*args, **kwargs)
            parts = out if isinstance(out, (tuple, list)) else [out]
            known.update({s: part for s, part in zip(step.results, parts, strict=True) if s is not None})
        live = {
            id(t): constant(i) if slot is None else known[slot]
            for i, (t, slot) in enumerate(zip(self._tensors, self._outputs, strict=True))
        }
        nodes = [
            replace(node, layer=node.layer.mapped(lambda t: live[id(t)]))
            if node.layer is not None and node.layer.parameters()
            else node
            for node in self.snapshot.nodes
        ]
        return Graph(nodes)

    def _check(self, program: torch.export.ExportedProgram, roots: Mapping[str, Tensor]) -> list[str]:
        """Compare the replay with another import, at other weights; the places whose numbers differ."""
        generator = torch.Generator().manual_seed(0)
        other = {}
        for name, tensor in roots.items():
            value = tensor.detach().to("cpu", copy=True)
            if value.is_floating_point():
                value *= 1 + _PERTURBATION * torch.rand(value.shape, generator=generator).to(value.dtype)
            other[name] = value
        dtype = next((v.dtype for v in other.values() if v.is_floating_point()), torch.float64)
        tolerance = _TOLERANCES.get(dtype, 5e-2)
        with torch.no_grad():
            wide = [v.to(torch.float64) if v.is_floating_point() else v for v in other.values()]
            replayed = self._with(wide)
            imported = from_program(program, self.input_shape, TRACED_BATCH, other)
            pairs = [
                (a, b)
                for a, b in zip(replayed.nodes, imported.nodes, strict=False)
                if a.layer and b.layer and _numbers(a.layer) != _numbers(b.layer)
            ]
            frozen = [a.place for a, _ in pairs]
            stale = [
                a.place
                for a, b in pairs
                if not _act_alike(a, b, [replayed.nodes[i].shape for i in a.inputs], tolerance)
            ]
            x = torch.randn(2, *self.input_shape, generator=generator, dtype=torch.float64)
            y, expected = replayed.evaluate(x), imported.evaluate(x)
        same = len(replayed.nodes) == len(imported.nodes) and y.shape == expected.shape
        if same and not stale:
            same = torch.allclose(y, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
        if not same or stale:
            where = ", ".join(stale or frozen) or "some layer"
            raise ModelError(
                f"{where}: the function depends on a parameter through a number that is read at import, so it "
                "cannot follow the parameter in training; use a tensor with one entry a channel"
            )
        return frozen


def _act_alike(first: Node, second: Node, shapes: Sequence[Shape], tolerance: float) -> bool:
    """Whether the layers of the nodes compute the same, as far as inputs of many sizes tell."""
    assert first.layer is not None
    assert second.layer is not None
    count = max(4, min(_PROBES, _PROBED_ENTRIES // max(map(math.prod, shapes))))
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(count, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    sizes = torch.logspace(-2, 2, count, dtype=torch.float64)
    xs = [x * sizes.reshape(-1, *[1] * (x.ndim - 1)) for x in xs]
    found, expected = first.layer.forward(*xs), second.layer.forward(*xs)
    if found.shape != expected.shape:
        return False
    found, expected = found.flatten(1), expected.flatten(1)
    known = expected.isfinite().all(1)
    apart, largest = (found - expected).abs().amax(1), expected.abs().amax(1)
    return bool((apart <= tolerance * largest)[known].all())


def _needed(steps: list[_Step], wanted: set[int]) -> list[_Step]:
    """The steps that lead to the slots wanted, in order."""
    kept = []
    for step in reversed(steps):
        if wanted & set(step.results):
            kept.append(step)
            wanted = wanted | set(step.reads())
    return kept[::-1]


def _numbers(layer: Layer) -> list[Any]:
    """What a layer holds beside tensors."""
    found: list[Any] = [type(layer)]
    for field in dataclasses.fields(layer):  # type: ignore[arg-type]
        value = getattr(layer, field.name)
        if isinstance(value, Layer):
            found += _numbers(value)
        elif not isinstance(value, Tensor):
            found.append(value)
    return found
