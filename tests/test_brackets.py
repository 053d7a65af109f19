"""Brackets without data: `lipscope certify`, `lipscope verify`, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from helpers import lipscope_command
from lipscope import BallOptions, DataError, bracket, from_torch
from lipscope.graph import Graph
from lipscope.results import Bracket
from strategies import Network, networks, randomised

MODEL = """
import torch
from torch import nn


def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def other():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def broken():
    model = build()
    model[2].weight.data[0, 0] = float("nan")
    return model


def zero():
    model = build()
    model[2].weight.data.zero_()
    return model


def constant():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(x.shape[0], 2)

    return Constant()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certify")
    (folder / "net.py").write_text(MODEL)
    np.save(folder / "centre.npy", np.full((1, 3), 0.2, "f4"))
    run = lipscope_command(
        "certify", "net.py:build", "--input-shape", "3", "--effort", "fast", "--output", "run", cwd=folder
    )
    assert run.returncode == 0, run.stderr
    assert "≤ L ≤" in run.stdout
    assert "analytical" in run.stdout
    assert "certified" in run.stdout
    return folder


def test_a_small_network_is_bracketed_to_the_last_digits(place: Path) -> None:
    found = Bracket.from_json((place / "run" / "bracket.json").read_bytes())
    kinds = {bound.name: bound.kind for bound in found.bounds}
    assert kinds == {"analytical": "upper", "certified": "upper", "ascent": "lower", "exact": "upper"}
    by_name = {bound.name: bound.value for bound in found.bounds}
    assert 0 < found.lower <= by_name["exact"] <= by_name["certified"] < by_name["analytical"]
    assert found.upper <= found.lower * (1 + 1e-5)
    files = {path.name for path in (place / "run").iterdir()}
    assert {"bracket.json", "certificate.safetensors", "witness.safetensors"} <= files
    assert "state" not in files


def test_verify_confirms_a_run_and_only_of_its_own_network(place: Path) -> None:
    done = lipscope_command("verify", "run", "net.py:build", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("confirmed") == 5
    other = lipscope_command("verify", "run", "net.py:other", cwd=place)
    assert other.returncode == 5
    assert "another network" in other.stderr


@pytest.fixture
def copy(place: Path, tmp_path: Path) -> Path:
    """A run folder that may be tampered with."""
    for file in (place / "run").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def graph_of(place: Path) -> Graph:
    scope: dict[str, object] = {}
    exec((place / "net.py").read_text(), scope)
    return from_torch(scope["build"](), (3,))  # type: ignore[operator]


def test_verify_ends_in_the_exit_code_of_a_failed_proof(place: Path, copy: Path) -> None:
    record = json.loads((copy / "bracket.json").read_text())
    record["bounds"][0]["value"] /= 2
    (copy / "bracket.json").write_text(Bracket.from_json(json.dumps(record)).to_json())
    done = lipscope_command("verify", str(copy), "net.py:build", cwd=place)
    assert done.returncode == 7
    assert "NOT CONFIRMED" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["net.py:build"], 5, "--input-shape"),
        (["net.py:build", "--input-shape", "3", "--ball", "centre.npy", "-1"], 5, "negative"),
        (["net.py:build", "--input-shape", "3", "--ball", "centre.npy", "nan"], 5, "negative"),
        (["net.py:build", "--input-shape", "3", "--ball", "nowhere.npy", "1"], 5, "nowhere.npy"),
        (["net.py:broken", "--input-shape", "3"], 3, "NaN"),
        (["net.py:constant", "--input-shape", "3"], 3, "does not depend on its input"),
    ],
)
def test_bad_input_ends_in_one_sentence(place: Path, arguments: list[str], code: int, words: str) -> None:
    done = lipscope_command("certify", *arguments, "--effort", "none", "--output", "never", cwd=place)
    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_layer_of_zeros_gives_zero(place: Path) -> None:
    done = lipscope_command(
        "certify", "net.py:zero", "--input-shape", "3", "--effort", "fast", "--output", "zero", cwd=place
    )
    assert done.returncode == 0, done.stderr
    found = Bracket.from_json((place / "zero" / "bracket.json").read_bytes())
    assert found.lower == found.upper == 0.0


@pytest.mark.parametrize("norm", ["1", "2", "inf"])
@pytest.mark.parametrize("ball_norm", ["2", "inf"])
def test_a_ball_is_bracketed_in_every_norm(place: Path, norm: str, ball_norm: str) -> None:
    graph = graph_of(place)
    over = BallOptions(torch.full((3,), 0.2), 0.3, ball_norm)
    local = bracket(graph, norm=norm, over=over, effort="none")
    everywhere = bracket(graph, norm=norm, effort="none")
    assert 0 <= local.lower <= local.upper
    exact = {b.name: b for b in everywhere.bounds}.get("exact")
    assert local.upper <= everywhere.upper * (1 + 1e-9) or exact is not None
    assert local.lower <= everywhere.upper
    witness = next(b for b in local.bounds if b.name == "ascent")
    assert witness.norm == norm


def test_a_ball_of_another_shape_is_refused(place: Path) -> None:
    with pytest.raises(DataError, match="centre has shape"):
        bracket(graph_of(place), over=BallOptions(torch.zeros(4), 1.0))


@given(networks(most=5))
@settings(max_examples=15)
def test_lower_is_never_above_upper(net: Network) -> None:
    found = bracket(net.graph, effort="fast", seconds=0.5, search=False)
    assert 0 <= found.lower <= found.upper


def test_a_finished_run_is_read_back(place: Path) -> None:
    before = (place / "run" / "bracket.json").read_bytes()
    again = lipscope_command(
        "certify", "net.py:build", "--input-shape", "3", "--effort", "fast", "--output", "run", cwd=place
    )
    assert again.returncode == 0, again.stderr
    assert (place / "run" / "bracket.json").read_bytes() == before


def test_attained_and_certified_meet_on_a_linear_network() -> None:
    module = randomised(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 4)), 3)
    weight = module[1].weight @ module[0].weight
    exact = float(torch.linalg.matrix_norm(weight, 2))
    found = bracket(module, (5,), effort="fast", seconds=1.0)
    assert found.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= found.upper <= exact * (1 + 1e-6)
    assert found.lower == pytest.approx(exact, rel=1e-3)
