"""What an engine does, and the one that is always there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


class Engine(Protocol):
    """Maps a task over items; quantities reduce what comes back in order."""

    def map(self, task: Callable[[S, T], R], shared: S, items: Sequence[T]) -> Iterator[R]:
        """task(shared, item) for every item, in the order of the items, lazily.

        Args:
            task: a function of a module (it may be sent to other processes); it must not change `shared`.
            shared: what every task needs, sent once: graph, samples, options.
            items: small descriptions of the parts.
        """


class _Serial:
    """Runs each task when its result is asked for."""

    def map(self, task: Callable[[S, T], R], shared: S, items: Sequence[T]) -> Iterator[R]:
        for item in items:
            yield task(shared, item)


SERIAL: Engine = _Serial()
"""The engine of one process; torch spreads each task over the cores."""
