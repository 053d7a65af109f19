"""Runs killed with SIGKILL at any moment end, started again, with the result of a run left alone.

Usage: python benchmarks/kill.py [--kills 100] [--seed 0]

Imports once and forks, so that a life costs no start of the interpreter: the child analyses, the
parent kills it. First at every write of a run in turn, before and after the file is moved to its
place (all that a next start can see is written so), then at random moments, run after run, until there are
--kills in all. Exit code 1 if a result differs in anything but times and costs, or a start is refused.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from shared import forkable
from torch import nn

import lipscope

Run = Callable[[Path], None]
_CHANGING = {"seconds", "started", "peak_memory_bytes", "command"}


@cache
def problem() -> tuple[lipscope.Graph, lipscope.Samples]:
    """Read once, before any fork."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 48), nn.GELU(), nn.Linear(48, 40)
    ).eval()  # fmt: skip
    return lipscope.from_torch(module, (1, 8, 8)), lipscope.load_samples(torch.randn(100, 1, 8, 8))


def small_run(folder: Path) -> None:
    """All stages but the certificate on a small network and small batches."""
    options = lipscope.Options(pairs=400, effort="none", batch_size=5, tolerance=1e-6)
    lipscope.analyze(*problem(), output=folder, options=options)


def start(run: Run, folder: Path, die_at: tuple[int, bool] | None = None) -> int:
    """The process id of a child that runs; it kills itself before or after its n-th file is moved, if asked."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        if die_at is not None:
            _die_at_write(*die_at)
        run(folder)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _die_at_write(number: int, after: bool) -> None:
    move, count = Path.replace, 0

    def replace(self: Path, target: Any) -> Path:
        nonlocal count
        count += 1
        if count == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        moved = move(self, target)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return moved

    Path.replace = replace  # type: ignore[method-assign]


def ended(pid: int) -> bool:
    """Wait for the child: True if it finished, False if it was killed.

    Raises:
        SystemExit: it failed.
    """
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status) != 0:
        sys.exit("a start after a kill was refused or failed")
    return True


def outcome(folder: Path) -> dict[str, Any]:
    """What the run left: its result without times and costs, and the witnesses."""
    result = _without_costs(json.loads((folder / "result.json").read_text("utf-8")))
    return {"result": result, "witness": (folder / "witness.safetensors").read_bytes()}


def _without_costs(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_costs(v) for key, v in value.items() if key not in _CHANGING}
    return [_without_costs(v) for v in value] if isinstance(value, list) else value


def at_every_write(run: Run, folder: Path) -> int:
    """One run whose lives end before and after their first, second and third write. Returns the kills.

    No stage writes more than three files that count only together, so that the run gets on.
    """
    kills = 0
    for die_at in itertools.cycle(itertools.product((1, 2, 3), (False, True))):
        if ended(start(run, folder, die_at)):
            break
        kills += 1
    return kills


def at_random_moments(run: Run, folder: Path, longest: float, rng: random.Random) -> int:
    """One run killed after random times until a life is long enough to finish. Returns the kills."""
    kills = 0
    while True:
        pid = start(run, folder)
        time.sleep(rng.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        if ended(pid):
            return kills
        kills += 1


def main(run: Run = small_run) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    forkable()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        run(Path(place) / "warm")  # imports everything, so that lives are short
        began = time.perf_counter()
        if not ended(start(run, Path(place) / "whole")):
            sys.exit("the run left alone was killed by someone else")
        whole, seconds = outcome(Path(place) / "whole"), time.perf_counter() - began
        kills, runs = at_every_write(run, Path(place) / "writes"), 1
        if outcome(Path(place) / "writes") != whole:
            sys.exit("the run killed at every write ended with another result")
        print(f"killed at every write: {kills} kills, the same result", flush=True)
        while kills < args.kills:
            folder = Path(place) / f"random{runs}"
            kills += at_random_moments(run, folder, 0.7 * seconds, rng)
            if outcome(folder) != whole:
                sys.exit(f"run {runs} (seed {args.seed}) ended with another result")
            runs += 1
    spent = time.perf_counter() - began
    print(
        f"{kills} kills over {runs} runs of {seconds:.2g} s, in {spent:.0f} s: the result is always the same"
    )


if __name__ == "__main__":
    main()
