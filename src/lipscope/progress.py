"""How long work reports how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as progress("local", 128, 500): the stage, what is done, and the total."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...  # noqa: D102


def silent(stage: str, done: int, total: int) -> None:
    """A progress that shows nothing."""
