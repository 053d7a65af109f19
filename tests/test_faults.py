"""Whatever stops a command: its exit code, nothing half-written, and it goes on when it is given again."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Ended, command_here, forked_command, start_command, wait_command
from lipscope.atomic import is_draft

MODEL = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
"""
# Without time for the certificate, so that the result does not depend on the clock.
EFFORT = ["--effort", "fast", "--seconds", "0"]
COMMANDS = {
    "analyze": ["analyze", "net.py:build", "--data", "x.npy", "--pairs", "20", "--jacobians", "3", *EFFORT],
    "certify": ["certify", "net.py:build", "--input-shape", "4", "--no-exact", *EFFORT],
    "inspect": ["inspect", "net.py:build", "--data", "x.npy", *EFFORT],
}
RECORDS = {"analyze": "result.json", "certify": "bracket.json", "inspect": "inspect.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data, and one whole run of each command."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "net.py").write_text(MODEL)
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(7, 4)).astype("f4"))
    for name, args in COMMANDS.items():
        assert command_here([*args, "--output", f"whole-{name}"], folder) == 0
    return folder


def run(name: str, place: Path, output: Path, first: Callable[[], object] = lambda: None) -> Ended:
    return forked_command([*COMMANDS[name], "--output", str(output)], place, first)


def numbers(name: str, folder: Path) -> str:
    text = (folder / RECORDS[name]).read_text("utf-8")
    return re.sub(r'"(seconds|started|peak_memory_bytes|command)": .*', "", text)


def drafts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if is_draft(path)]


def assert_finishes_like_the_whole(name: str, place: Path, output: Path, killed: bool = False) -> None:
    """The same command goes on; only a killed process may have left drafts, and they go."""
    assert killed or not drafts(output)
    done = run(name, place, output)
    assert done.code == 0, done.err
    assert not drafts(output)
    assert numbers(name, output) == numbers(name, place / f"whole-{name}")
    assert not (output / "state").exists()


def at_write(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """What, called first in a fork, makes it act when it is about to move its n-th file to its place."""

    def prepare() -> None:
        move, count = Path.replace, 0

        def replace(self: Path, target: Any) -> Path:
            nonlocal count
            count += 1
            if count == number:
                act()
            return move(self, target)

        Path.replace = replace  # type: ignore[method-assign]

    return prepare


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_the_run_with_its_code_and_it_goes_on(
    name: str, number: signal.Signals, code: int, said: str, place: Path, tmp_path: Path
) -> None:
    done = run(name, place, tmp_path / "run", at_write(4, lambda: os.kill(os.getpid(), number)))
    assert (done.code, done.err) == (code, f"{said}: the same command goes on where this run stopped")
    assert_finishes_like_the_whole(name, place, tmp_path / "run")


@pytest.mark.parametrize("name", ["certify", "inspect"])
def test_sigkill_at_every_write_of_the_other_commands(name: str, place: Path, tmp_path: Path) -> None:
    """`analyze` is killed so in test_kill.py."""
    for number in range(1, 15):
        done = run(
            name, place, tmp_path / "run", at_write(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        )
        if done.code != -signal.SIGKILL:
            break
    assert number >= 4
    assert done.code == 0, done.err
    assert_finishes_like_the_whole(name, place, tmp_path / "run")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("most", [10, 700])
def test_a_full_disk_is_named_and_the_run_goes_on(name: str, most: int, place: Path, tmp_path: Path) -> None:
    """A limit of the size of files stands for it: writing fails in the middle of a file."""

    def limit() -> None:
        # What the command prints goes into files as well.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    done = run(name, place, tmp_path / "run", limit)
    assert done.code == 6
    # With ten bytes not even the sentence can be written to its end.
    if most > 100:
        assert re.match(r"error: cannot write \S+: File too large", done.err)
    assert_finishes_like_the_whole(name, place, tmp_path / "run")


def test_a_full_disk_at_the_report(place: Path, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes((place / "whole-analyze" / "result.json").read_bytes())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    done = forked_command(["report", str(tmp_path)], place, limit)
    assert done.code == 6
    assert done.err.startswith(f"error: cannot write {tmp_path / 'report.html'}: File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "allocate", [lambda: torch.zeros(2**50), lambda: np.zeros(2**50)], ids=["torch", "numpy"]
)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_memory_ends_in_its_code_and_the_run_goes_on(
    name: str, allocate: Callable[[], object], place: Path, tmp_path: Path
) -> None:
    done = run(name, place, tmp_path / "run", at_write(4, allocate))
    assert done.code == 9
    assert re.match(r"error: not enough memory; .*--batch-size.*goes on where this run stopped", done.err)
    assert_finishes_like_the_whole(name, place, tmp_path / "run")


def test_a_memory_limit_is_no_crash(place: Path, tmp_path: Path) -> None:
    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used, used))

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell how much memory a process uses")
    done = run("analyze", place, tmp_path / "run", limit)
    assert done.code in (0, 3, 5, 9)
    assert "Traceback" not in done.err
    assert_finishes_like_the_whole("analyze", place, tmp_path / "run")


@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_runs_in_one_folder_the_second_is_refused(name: str, place: Path, tmp_path: Path) -> None:
    args = [*COMMANDS[name], "--output", str(tmp_path / "run")]
    pid = start_command(args, place, at_write(3, lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    try:
        stopped = os.waitpid(pid, os.WUNTRACED)[1]
        assert os.WIFSTOPPED(stopped)
        for other in COMMANDS:
            done = run(other, place, tmp_path / "run")
            assert done.code == 6
            assert "is in use by another lipscope; wait for it or choose another --output" in done.err
        os.kill(pid, signal.SIGCONT)
        assert wait_command(pid, place).code == 0
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
    assert numbers(name, tmp_path / "run") == numbers(name, place / f"whole-{name}")


def test_where_output_cannot_go(place: Path) -> None:
    done = forked_command(["models"], place, stdout="/dev/full")
    assert done.code == 10
    assert done.err == "error: the system refused to read or write: No space left on device"

    def close() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)

    assert forked_command(["models"], place, close) == Ended(141, "", "")


@pytest.mark.parametrize("what", ["link", "pipe", "state elsewhere"])
def test_a_run_folder_that_leads_elsewhere_is_refused(what: str, place: Path, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run("analyze", place, folder, at_write(3, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert done.code == -signal.SIGKILL
    victim = elsewhere / ".local.npz.0123456789abcdef"
    victim.write_text("mine")
    if what == "link":
        (folder / "lock").unlink()
        (folder / "lock").symlink_to(victim)
    elif what == "pipe":
        os.mkfifo(folder / "result.json")
    else:
        (folder / "state").rename(tmp_path / "old")
        (folder / "state").symlink_to(elsewhere)
    done = run("analyze", place, folder)
    assert done.code == 6
    assert re.search(
        r"run/\w+(.json)? is a link, a pipe or a device.*remove it, or choose another --output", done.err
    )
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("damage", [b"", b"{", b'{"value": 1}', b"\xff\xfe"])
def test_damaged_records_of_stages_are_computed_again(damage: bytes, place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("analyze", place, folder, at_write(9, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    damaged = [*(folder / "state").glob("*.json"), *(folder / "state").glob("*.npz")]
    assert len(damaged) >= 4
    for path in damaged:
        path.write_bytes(damage)
    assert_finishes_like_the_whole("analyze", place, folder, killed=True)
