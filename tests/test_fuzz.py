"""Bad inputs are refused in one sentence or read for what they are; benchmarks/fuzz.py tries thousands."""

from __future__ import annotations

import importlib
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lipscope
from lipscope.certificates import verify
from lipscope.errors import CertificateError, DataError, LipscopeError
from lipscope.results import Bracket, Inspection, Result

pytest.importorskip("onnx")

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"
seeds = st.integers(0, 2**32).map(random.Random)


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    sys.path.insert(0, str(BENCHMARK.parent))
    try:
        return importlib.import_module("fuzz")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    np.save(folder / "sound.npy", x.numpy())
    np.savez(folder / "sound.npz", x=x.numpy(), y=np.zeros(5))
    torch.save(x, folder / "sound.pt")
    safetensors.torch.save_file({"x": x, "y": torch.zeros(5)}, folder / "sound.safetensors")
    graph = network()
    options = lipscope.Options(pairs=20, jacobians=3, effort="fast", seconds=0.1)
    lipscope.analyze(graph, x, output=folder / "analyzed", options=options)
    lipscope.bracket(graph, output=folder / "bracketed", effort="fast", seconds=0.1)
    lipscope.inspect(graph, data=x, output=folder / "inspected", effort="fast", seconds=0.1)
    return folder


def network() -> lipscope.Graph:
    torch.manual_seed(0)
    return lipscope.from_torch(
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)), (3,)
    )


def test_commands_on_bad_inputs_of_every_kind() -> None:
    command = [sys.executable, "-W", "ignore", str(BENCHMARK), "--inputs", "14", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"14 inputs in \d+ s: 0 failures", done.stdout)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_damaged_arrays_are_refused_by_name_or_hold_numbers(
    suffix: str, place: Path, fuzz: ModuleType
) -> None:
    content = (place / f"sound{suffix}").read_bytes()

    @given(seeds)
    @settings(max_examples=40)
    def check(rng: random.Random) -> None:
        path = place / f"bad{suffix}"
        path.write_bytes(fuzz.corrupted(content, rng))
        said = path.name
        try:
            samples = lipscope.load_samples(path)
            assert bool(samples.batch(range(min(5, len(samples)))).isfinite().all())
        except DataError as error:
            said = str(error)
        assert path.name in said

    check()


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("analyzed/result.json", Result),
        ("bracketed/bracket.json", Bracket),
        ("inspected/inspect.json", Inspection),
    ],
)
def test_altered_records_are_refused_or_consistent(
    file: str, kind: Any, place: Path, fuzz: ModuleType
) -> None:
    text = (place / file).read_text("utf-8")

    @given(seeds)
    @settings(max_examples=60)
    def check(rng: random.Random) -> None:
        try:
            record = kind.from_json(fuzz.altered_text(text, rng))
        except LipscopeError:
            return
        assert json.loads(kind.from_json(record.to_json()).to_json()) == json.loads(record.to_json())

    check()


def test_damaged_certificates_prove_no_less_than_the_sound_one(place: Path, fuzz: ModuleType) -> None:
    """What is proved from a damaged file is proved: it never lies below what is attained."""
    content = (place / "bracketed" / "certificate.safetensors").read_bytes()
    record = Bracket.from_json((place / "bracketed" / "bracket.json").read_bytes())
    graph, path = network(), place / "bad.safetensors"
    assert math.isfinite(record.upper)

    @given(seeds)
    @settings(max_examples=60)
    def check(rng: random.Random) -> None:
        path.write_bytes(fuzz.corrupted(content, rng))
        try:
            found = verify(graph, lipscope.Certificate.load(path))
        except CertificateError:
            return
        assert found >= record.lower

    check()
