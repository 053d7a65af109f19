"""The engine of a Ray cluster: tasks run on its workers, and again where a worker dies."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from .._version import __version__
from ..errors import EngineError

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

_ADDRESS = "RAY_ADDRESS"
_RETRIES = 3
_AHEAD = 3
"""Tasks in flight for each that runs: enough that no worker waits while the oldest result is awaited."""


class RayEngine:
    """Runs tasks on the workers of a Ray cluster; a context manager.

    Connects to the cluster of the process or at `address`, else starts one on this machine, which
    ends with the context. Results are reduced by the caller in order of the items, so they are those
    of `SERIAL` up to the rounding of torch's threads, and the same where the threads are as many.
    All machines need the same lipscope, and the data where the samples' readers look for them.

    Args:
        workers: tasks that run at once on a cluster started here; as many as CPUs if None.
        threads: of torch in each task; if None, those of this process shared among the workers of a
            cluster started here, and one on another.
        gpus: GPUs that each task has to itself.
        address: of a running cluster; the environment's RAY_ADDRESS if None.

    Raises:
        EngineError: Ray is not installed, or the cluster cannot be reached or started.
        ValueError: `workers` or `threads` is not positive.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        threads: int | None = None,
        gpus: float = 0,
        address: str | None = None,
    ) -> None:
        if (workers is not None and workers < 1) or (threads is not None and threads < 1):
            raise ValueError("workers and threads must be positive")
        self._ray = _imported()
        self._gpus = gpus
        address = address or os.environ.get(_ADDRESS) or None
        self._started = not self._ray.is_initialized()
        here = self._started and address is None
        if self._started:
            workers = (workers or os.cpu_count() or 1) if here else None
            _connect(self._ray, address, workers)
        self._threads = threads or (max(1, torch.get_num_threads() // (workers or 1)) if here else 1)

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._started:
            self._ray.shutdown()

    def map(self, task: Callable[[S, T], R], shared: S, items: Sequence[T]) -> Iterator[R]:
        """As `Engine.map`; a bounded number of tasks is ahead of the result that is asked for.

        Raises:
            EngineError: the workers die again and again, or the cluster is lost.
            Exception: what a task raised, as it was.
        """
        errors = self._ray.exceptions
        remote = self._ray.remote(num_cpus=0 if self._gpus else 1, num_gpus=self._gpus, max_retries=_RETRIES)(
            _run
        )
        waiting = iter(items)
        flying: deque[Any] = deque()
        try:
            held = self._ray.put(shared)
            ahead = _AHEAD * self._slots()
            while True:
                flying.extend(
                    remote.remote(__version__, self._threads, task, held, item)
                    for item in islice(waiting, ahead - len(flying))
                )
                if not flying:
                    return
                result: R = self._ray.get(flying[0])
                flying.popleft()
                yield result
        except errors.RayError as error:
            raise _told(errors, error) from error
        finally:
            for reference in flying:
                self._ray.cancel(reference)

    def _slots(self) -> int:
        """How many tasks the cluster can run at once."""
        there = self._ray.cluster_resources()
        slots = there.get("GPU", 0) / self._gpus if self._gpus else there.get("CPU", 0)
        if slots < 1:
            raise EngineError(
                f"the Ray cluster has {there.get('GPU', 0):g} GPUs and {there.get('CPU', 0):g} CPUs for tasks "
                f"that need {f'{self._gpus:g} GPU' if self._gpus else '1 CPU'} each; they would wait for ever"
            )
        return int(slots)


def _run(version: str, threads: int, task: Callable[[S, T], R], shared: S, item: T) -> R:
    """One task on a worker."""
    if version != __version__:
        raise EngineError(
            f"a worker of the Ray cluster has lipscope {__version__}, this process {version}; "
            "install the same on all machines"
        )
    torch.set_num_threads(threads)
    return task(shared, item)


def _told(errors: ModuleType, error: Exception) -> BaseException:
    """What a task raised, or a sentence about the cluster."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and not isinstance(cause, errors.RayError):
        return cause
    if isinstance(error, (errors.WorkerCrashedError, errors.OutOfMemoryError)):
        return EngineError(
            f"workers of the Ray cluster died {1 + _RETRIES} times on the same part of the data, most likely for "
            "lack of memory; try fewer workers or a smaller batch size"
        )
    return EngineError(f"the Ray cluster failed: {_first_line(cause or error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _imported() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise EngineError(
            "the engine ray needs the package ray, which is not installed; run: pip install 'lipscope[ray]'"
        ) from error
    module: ModuleType = ray
    return module


def _connect(ray: ModuleType, address: str | None, workers: int | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    # Workers find what this process finds: a user's own module that reads the data, for instance.
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": paths}},
    }
    try:
        if address is None:
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **common)
        else:
            _reach(address)
            ray.init(address=address, **common)
    except Exception as error:  # Ray raises many types here
        where = "cannot be started" if address is None else f"at {address} cannot be reached"
        raise EngineError(f"the Ray cluster {where}: {_first_line(error)}") from error


def _reach(address: str) -> None:
    """Raise OSError at once if nobody listens; Ray itself tries for minutes, and then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
