"""Where long quantities keep their state, so that a killed run goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

State = Mapping[str, np.ndarray]

INTERVAL = 10.0
"""Seconds between two checkpoints of one quantity; 0 saves whatever is offered."""
_SHARE = 0.05
"""The most of the time that is spent on saving."""


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


class Saver:
    """Saves the state of one quantity now and then, so that saving stays a small share of the work."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name
        self._next = time.monotonic() + INTERVAL

    def offer(self, state: Callable[[], State], last: bool = False) -> None:
        """Save the state if that is due or it is the last one; it is only asked for then."""
        now = time.monotonic()
        if now < self._next and not last:
            return
        self._checkpoint.save(self._name, **state())
        after = time.monotonic()
        self._next = after + (max(INTERVAL, (after - now) / _SHARE) if INTERVAL else 0.0)


class _NoCheckpoint:
    def load(self, name: str) -> State | None:
        return None

    def save(self, name: str, **state: np.ndarray) -> None:
        pass

    def folder(self) -> Path | None:
        return None


no_checkpoint = _NoCheckpoint()
