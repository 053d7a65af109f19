"""Runs killed with SIGKILL at any moment, and started again until they end, end with the same result."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lipscope.atomic import is_draft
from lipscope.jobs.folder import RunFolder

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "kill.py"
MODEL = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 40))
"""


def test_kills_at_every_write_and_at_random_moments() -> None:
    """Forked lives: many more moments than starts of the interpreter would allow."""
    command = [sys.executable, str(BENCHMARK), "--kills", "45", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first = re.search(r"killed at every write: (\d+) kills", done.stdout)
    assert first is not None, done.stdout
    # Twice each: identity, stages of two files, checkpoints, and three files of the result.
    assert int(first[1]) >= 20
    last = re.search(r"(\d+) kills over (\d+) runs", done.stdout)
    assert last is not None, done.stdout
    assert int(last[1]) >= 45
    assert int(last[2]) >= 2


def test_kills_of_the_real_command(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(150, 6)).astype("f4"))
    command = [
        sys.executable, "-m", "lipscope", "analyze", "net.py:model", "--data", "x.npy", "--effort", "none",
        "--batch-size", "1", "--tolerance", "1e-8", "--output",
    ]  # fmt: skip

    def numbers(folder: str) -> str:
        text = (tmp_path / folder / "result.json").read_text("utf-8")
        return re.sub(r'"(seconds|started|peak_memory_bytes|command)": .*', "", text)

    def written() -> set[tuple[str, int]]:
        return {(p.name, p.stat().st_ino) for p in (tmp_path / "cut").glob("state/[!.]*")}

    subprocess.run([*command, "whole"], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    rng = random.Random(0)
    for _ in range(2):
        # Each life gets on by a file or more, whatever the load of the machine, and dies some time after.
        known = written()
        process = subprocess.Popen(
            [*command, "cut"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not written() - known:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.wait()
    subprocess.run([*command, "cut"], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    assert numbers("cut") == numbers("whole")


def test_what_a_killed_write_leaves_behind_is_no_obstacle_and_goes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.json.0123456789abcdef").touch()
    RunFolder(folder, {"a": 1}).close()
    left = [folder / ".run.json.0123456789abcdef", folder / "state" / ".local.npz.0123456789abcdef"]
    for path in left:
        path.touch()
        assert is_draft(path)
    RunFolder(folder, {"a": 1}).close()
    assert not any(path.exists() for path in left)
    assert not any(
        is_draft(Path(name)) for name in ("run.json", ".hidden", ".local.npz", "x.0123456789abcdef")
    )
