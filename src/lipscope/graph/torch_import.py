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
import logging
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import ModelError, UnsupportedLayerError
from ..layers.base import Shape
from .decompositions import decompositions
from .file_program import FileProgram
from .graph import Graph
from .kept import kept_functions
from .program import from_program

TRACED_BATCH = 2
_CHECKED_BATCH = 3
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Relative to the largest output, for a comparison with the module itself; 16 bits give 5e-2."""


def from_torch(module: nn.Module, input_shape: Shape) -> Graph:
    """Import a module as a graph, and check that the two compute the same.

    The module is traced in evaluation mode (dropout off, batch norm frozen) and left in the mode
    it came in; its weights are copied. A `FileProgram` is also compared with what another program
    computes from its file, where there is one.

    Args:
        module: takes one tensor (batch, *input_shape) and returns one tensor (batch, *output_shape).
        input_shape: per-sample shape, without the batch.

    Raises:
        ModelError: tracing fails, the signature is another, a weight is NaN or infinite or has no values, or the
            import and the module disagree on random inputs.
        UnsupportedLayerError: an operation has no rule; it is named with its place.
    """
    shape = tuple(input_shape)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ModelError(f"the weight {name} has no values (device meta); load them before")
    with evaluation_mode(module):
        if isinstance(module, FileProgram):
            graph = _from_file(module, shape)
        else:
            graph = from_program(trace(module, shape), shape, TRACED_BATCH)
        check_agreement(module, graph)
    return graph


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that the module has now, by all of their names."""
    tied = dict(module.named_parameters(remove_duplicate=False))
    return {**tied, **dict(module.named_buffers(remove_duplicate=False))}


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode; afterwards every part has the mode it came in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _from_file(program: FileProgram, shape: Shape) -> Graph:
    if program.input_shape is not None and program.input_shape != shape:
        raise ModelError(f"the file takes inputs of shape {program.input_shape}, not {shape}")
    if program.batch is None and not _keeps_batch(program, shape):
        # Exporters declare a batch as free that constants of the file fix at one.
        program.batch = 1
    if program.batch is None:
        traced = program.at(_example(program, TRACED_BATCH, shape))
        return from_program(trace(traced, shape), shape, TRACED_BATCH)
    traced = program.at(_example(program, program.batch, shape))
    try:
        return from_program(trace(traced, shape, program.batch), shape, program.batch)
    except UnsupportedLayerError as error:
        if program.batch != 1:
            raise
        # A program for one input may drop the batch on its way: mapped over a batch, it cannot.
        traced.mapped = True
        try:
            return from_program(trace(traced, shape), shape, TRACED_BATCH)
        except ModelError:
            raise error from None


def _keeps_batch(program: FileProgram, shape: Shape) -> bool:
    """Whether it computes as many outputs as it gets inputs."""
    with torch.no_grad():
        try:
            y = program(_example(program, TRACED_BATCH, shape))
        except ModelError:
            return False
    return isinstance(y, Tensor) and y.dim() > 0 and len(y) == TRACED_BATCH


def _example(module: nn.Module, batch: int, shape: Shape) -> Tensor:
    tensors = [*module.parameters(), *module.buffers()]
    reference = next((t for t in tensors if t.is_floating_point()), torch.empty(()))
    dtype = module.dtype if isinstance(module, FileProgram) else reference.dtype
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *shape, generator=generator).to(reference.device, dtype)


def trace(module: nn.Module, shape: Shape, batch: int = TRACED_BATCH) -> torch.export.ExportedProgram:
    """The functional program that the module, in evaluation mode, runs on a batch of such inputs.

    Raises:
        ModelError: it cannot be traced.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad(), kept_functions(), plain_attention(), _quiet():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (_example(module, batch, shape),), strict=False)
            functional: torch.export.ExportedProgram = program.run_decompositions(decompositions())
            return functional
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the model cannot be traced on an input of shape {shape}: {reason}. It must run on a batch "
            f"of {batch} such inputs, with no control flow that depends on their values"
        ) from error


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Without the fused encoder that torch runs in evaluation mode, which is one opaque operation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch logs, with a traceback, about shapes that do not fit: it raises them too."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def check_agreement(module: nn.Module, graph: Graph) -> None:
    """Compare a module in evaluation mode with its graph on random inputs, in a batch size that was not traced.

    Raises:
        ModelError: the two disagree.
    """
    with torch.no_grad():
        x, expected = _evaluated(module, graph.input_shape)
        actual = graph.evaluate(x.to("cpu", copy=True).to(torch.float64))
        tolerance = _TOLERANCES.get(x.dtype, 5e-2)
        deviation = _deviation(actual, expected, tolerance)
        if deviation is not None and not _agrees_in_float64(module, x, actual, tolerance):
            raise ModelError(
                f"the imported graph and the model disagree on random inputs ({deviation}): the model is not "
                "the function it was traced as (a random layer, or batch-dependent code)"
            )
        reference = module.reference(x.to(module.dtype)) if isinstance(module, FileProgram) else None
    if reference is not None:
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}.get(reference.values.dtype, 5e-2)
        deviation = _deviation(actual, reference.values, tolerance)
        if deviation is not None:
            raise ModelError(
                f"the imported graph and {reference.program} disagree on random inputs ({deviation}): "
                "lipscope reads an operation of the file in another way; please report it"
            )


def _agrees_in_float64(module: nn.Module, x: Tensor, actual: Tensor, tolerance: float) -> bool:
    """Whether a float64 copy of the module agrees within the same tolerance.

    A deep network with random weights can stretch float32's own rounding beyond any tolerance.
    """
    if x.dtype == torch.float64 or isinstance(module, FileProgram):
        return False
    try:
        expected = _value(copy.deepcopy(module).double(), x.double())
    except Exception:  # it cannot be copied, or insists on its dtype
        return False
    return _deviation(actual, expected, tolerance) is None


def _deviation(actual: Tensor, expected: Tensor, tolerance: float) -> str | None:
    """How far the values differ, in words; None within the tolerance, relative to the largest value."""
    expected = expected.cpu().to(torch.float64)
    if actual.shape != expected.shape:
        return f"the shapes are {tuple(actual.shape)} and {tuple(expected.shape)}"
    deviation, scale = float((actual - expected).abs().max()), float(expected.abs().max())
    # A constant −∞ is imported as a finite number, so a value that is infinite itself is not the import's.
    if math.isfinite(scale) and deviation <= tolerance * max(scale, 1e-30):
        return None
    return f"by {deviation:.2g} where outputs reach {scale:.2g}"


def _evaluated(module: nn.Module, shape: Shape) -> tuple[Tensor, Tensor]:
    """Random inputs and the module's values there, of a copy in float32 if the module has 16 bits.

    The copy shows far smaller deviations, and runs where the CPU lacks 16-bit kernels. A module that
    cannot be copied or insists on its dtype is taken as it is.
    """
    batch = (isinstance(module, FileProgram) and module.batch) or 1
    x = _example(module, batch * math.ceil(_CHECKED_BATCH / batch), shape)
    if x.dtype in (torch.bfloat16, torch.float16):
        with contextlib.suppress(Exception):
            return x.float(), _value(copy.deepcopy(module).float(), x.float())
    return x, _value(module, x)


def _value(module: nn.Module, x: Tensor) -> Tensor:
    try:
        value = module(x.clone())
    except Exception as error:
        raise ModelError(
            f"the model runs on a batch of {TRACED_BATCH} but not of {len(x)}: {error}. "
            "It must take batches of any size"
        ) from error
    if isinstance(value, (tuple, list)):
        (value,) = value
    if not isinstance(value, Tensor):
        raise ModelError(f"the model returns a {type(value).__name__}; wrap it so that it returns one tensor")
    return value
