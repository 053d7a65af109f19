"""Where long quantities keep their state, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

State = Mapping[str, np.ndarray]


class Checkpoint(Protocol):
    """A store of named states; `runs.RunFolder` keeps them on disk."""

    def load(self, name: str) -> State | None:
        """The last state saved under the name, if any."""

    def save(self, name: str, **state: np.ndarray) -> None:
        """Replace the state under the name, atomically."""


class _NoCheckpoint:
    def load(self, name: str) -> State | None:
        return None

    def save(self, name: str, **state: np.ndarray) -> None:
        pass


no_checkpoint = _NoCheckpoint()
