"""What the tests of several quantities share: data, a small network, a checkpoint that breaks off."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import lipscope
from lipscope import cli
from lipscope.graph import Graph
from lipscope.quantities.checkpoint import State

PRECISE = {"dtype": torch.float64}


def gaussian(count: int, shape: tuple[int, ...], seed: int = 0) -> lipscope.Samples:
    generator = torch.Generator().manual_seed(seed)
    return lipscope.load_samples(torch.randn(count, *shape, generator=generator, dtype=torch.float64))


def small_network() -> tuple[nn.Module, Graph]:
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten()
    ).double()  # fmt: skip
    return module, lipscope.from_torch(module, (2, 8, 8))


class Memory:
    """A checkpoint, with a folder or none, that can be cut off after some saves, as a kill would."""

    def __init__(self, saves: int = -1, folder: Path | None = None) -> None:
        self.left, self.place = saves, folder
        self.states: dict[str, dict[str, np.ndarray]] = {}

    def load(self, name: str) -> State | None:
        return self.states.get(name)

    def save(self, name: str, **state: np.ndarray) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.states[name] = {key: np.array(value) for key, value in state.items()}

    def folder(self) -> Path | None:
        return self.place


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal that ended it, and what it said."""

    code: int
    out: str
    err: str


def command_here(args: list[str], cwd: Path) -> int:
    """The exit code of `lipscope ARGS` run in this process; forks of it need not import what it needs again."""
    before = sys.argv
    try:
        sys.argv = ["lipscope", *args]
        with contextlib.chdir(cwd):
            cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.argv = before


def start_command(
    args: list[str],
    cwd: Path,
    first: Callable[[], object] = lambda: None,
    stdout: str = "stdout",
    said: Path = Path(),
) -> int:
    """The process id of a fork of this process that calls `first` and then is `lipscope ARGS` in the folder.

    It costs no start of the interpreter. What it says lies in the files "stdout" and "stderr" of the folder, or
    of the folder `said`.
    """
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.chdir(cwd)
        for number, name in ((0, os.devnull), (1, stdout), (2, "stderr")):
            os.dup2(os.open(said / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.environ.update(COLUMNS="120", NO_COLOR="1", TERM="dumb")
        sys.argv = ["lipscope", *args]
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
        first()
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            os._exit(code)


def wait_command(pid: int, cwd: Path) -> Ended:
    """Wait for what `start_command` started."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    out, err = (cwd / name for name in ("stdout", "stderr"))
    return Ended(
        code, out.read_text("utf-8") if out.is_file() else "", " ".join(err.read_text("utf-8").split())
    )


def forked_command(
    args: list[str], cwd: Path, first: Callable[[], object] = lambda: None, stdout: str = "stdout"
) -> Ended:
    """`start_command` and `wait_command`."""
    return wait_command(start_command(args, cwd, first, stdout), cwd)


def lipscope_command(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`lipscope ARGS` in the folder, by a fork of this process; for the real thing see `real_command`."""
    with tempfile.TemporaryDirectory() as said:
        pid = start_command(list(args), cwd, said=Path(said))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out, err = ((Path(said) / name).read_text("utf-8") for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(args, code, out, err)


def real_command(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`lipscope ARGS` in the folder, in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-m", "lipscope", *args],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
