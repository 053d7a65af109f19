"""Engines by the names that the command line knows them by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .engine import SERIAL, Engine
from .ray import RayEngine

ENGINES = ("local", "ray")


@contextmanager
def engine_named(name: str, workers: int | None = None, device: str = "cpu") -> Iterator[Engine]:
    """The engine for as long as the context lasts: "local" is `SERIAL`, "ray" a `RayEngine`.

    Args:
        name: one of `ENGINES`.
        workers: of a Ray cluster started here.
        device: where tasks compute; on "cuda" each has a GPU to itself.

    Raises:
        EngineError: Ray is not installed, or the cluster cannot be reached or started.
        ValueError: there is no such engine.
    """
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name}; choose one of {', '.join(ENGINES)}")
    if name == "local":
        yield SERIAL
        return
    with RayEngine(workers, gpus=1 if device.startswith("cuda") else 0) as engine:
        yield engine
