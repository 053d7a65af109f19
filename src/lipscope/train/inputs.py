"""What a module was last called with in training: where the penalties of callbacks are computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import LipscopeError


class LastInput:
    """Keeps the one tensor that a module was last called with in training mode, between `open` and `close`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._held: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def open(self) -> None:
        """Watch the module from now on."""
        self.close()
        self._handle = self.module.register_forward_pre_hook(self._note, with_kwargs=True)

    def close(self) -> None:
        """Leave the module alone."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._held = None

    def take(self) -> Tensor:
        """The tensor of the last call, which is forgotten.

        Raises:
            LipscopeError: there was no call since the last one taken.
        """
        if self._held is None:
            raise LipscopeError(
                f"the penalised {type(self.module).__name__} was not called with one tensor in this training step; "
                "penalise a module that the step calls"
            )
        held, self._held = self._held, None
        return held

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if module.training and len(tensors) == 1:
            self._held = tensors[0].detach()
