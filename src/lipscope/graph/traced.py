"""A module that changes: traced once, read again whenever its weights have moved.

Tracing takes seconds, reading the present weights into the traced program milliseconds. Every reading is an
import of its own: exact, in float64, checked, and not differentiable. `LiveGraph` gives up the check, and
Python numbers that follow from weights, to be differentiable.
"""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from ..errors import ModelError
from ..layers.base import Shape
from .graph import Graph
from .program import from_program
from .torch_import import TRACED_BATCH, check_agreement, evaluation_mode, tensors_of, trace


class TracedModule:
    """A module and the program it was traced as.

    Every reading is compared with the module on a few random inputs, as an import is. The module is
    traced anew when its parts, or the shapes of its weights, are others, or the comparison fails.

    Args:
        module: as for `from_torch`; it is read as it is at the time, in evaluation mode.
        input_shape: per-sample shape.

    Raises:
        ModelError, UnsupportedLayerError: as `from_torch`.
    """

    def __init__(self, module: nn.Module, input_shape: Shape) -> None:
        self.module, self.input_shape = module, tuple(input_shape)
        self.traces = 0
        """How often it was traced."""
        self._form: object = None
        self._program: torch.export.ExportedProgram | None = None

    def read(self) -> Graph:
        """The graph of the present module, in float64; weights are copied.

        Raises:
            ModelError, UnsupportedLayerError: as `from_torch`, among others if a weight is NaN or infinite.
        """
        with evaluation_mode(self.module), torch.no_grad():
            form = self._present_form()
            if form == self._form and self._program is not None:
                # What it computes with these weights may have another form (a hook, an attribute).
                with contextlib.suppress(ModelError):
                    return self._read(self._program)
            self._program, self._form = trace(self.module, self.input_shape), form
            self.traces += 1
            return self._read(self._program)

    def _read(self, program: torch.export.ExportedProgram) -> Graph:
        present = tensors_of(self.module)
        for held in (program.state_dict, program.constants):
            held.update({name: present[name] for name in held if name in present})
        graph = from_program(program, self.input_shape, TRACED_BATCH)
        check_agreement(self.module, graph)
        return graph

    def _present_form(self) -> object:
        """What decides the traced program, as far as it can be seen: the parts, and the form of their tensors."""
        parts = [(name, type(part)) for name, part in self.module.named_modules()]
        tensors = [(name, t.shape, t.dtype, t.device) for name, t in tensors_of(self.module).items()]
        return parts, tensors
