"""Where long quantities keep their state, so that a killed run goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

State = Mapping[str, np.ndarray]

INTERVAL = 10.0
"""Seconds between two checkpoints of one quantity: what a kill costs at most."""


class Checkpoint(Protocol):
    """A store of named states; `runs.RunFolder` keeps them on disk."""

    def load(self, name: str) -> State | None:
        """The last state saved under the name, if any."""

    def save(self, name: str, **state: np.ndarray) -> None:
        """Replace the state under the name, atomically."""

    def folder(self) -> Path | None:
        """Where files too large for a state may lie until the run is finished; None if nothing is kept.

        What such a file holds counts only as far as a state saved after it says so.
        """


class Clock:
    """Tells when the next checkpoint is due, so that saving stays a small part of the work."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether `INTERVAL` has passed since this was last so, or since the start."""
        now = time.monotonic()
        if now - self._last < INTERVAL:
            return False
        self._last = now
        return True


class _NoCheckpoint:
    def load(self, name: str) -> State | None:
        return None

    def save(self, name: str, **state: np.ndarray) -> None:
        pass

    def folder(self) -> Path | None:
        return None


no_checkpoint = _NoCheckpoint()
