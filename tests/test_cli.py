"""The command line as a user meets it: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import lipscope
from lipscope import cli
from lipscope.results import Result

MODEL = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).eval()


def softmax():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(0))
"""


def lipscope_command(*args: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", **more}
    return subprocess.run(
        [sys.executable, "-m", "lipscope", *args],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "net.py").write_text(MODEL)
    x = np.random.default_rng(0).normal(size=(30, 1, 8, 8)).astype("f4")
    x[7] = x[3]
    np.save(folder / "x.npy", x)
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> subprocess.CompletedProcess[str]:
    return lipscope_command("analyze", "net.py:build", "--data", "x.npy", "--output", "run", cwd=place)


def test_analyze_prints_the_table_and_writes_the_files(finished, place: Path) -> None:
    assert finished.returncode == 0, finished.stderr
    for word in ("analytical", "local", "empirical", "effective", "upper", "lower", "estimate", "p_k"):
        assert word in finished.stdout
    files = {p.name for p in (place / "run").iterdir()}
    assert {"result.json", "report.html", "witness.safetensors", "certificate.safetensors"} <= files
    assert "state" not in files
    result = Result.from_json((place / "run" / "result.json").read_bytes())
    assert result.schema_version == 1
    assert 0 < result.empirical.value <= result.lower <= result.upper
    assert result.empirical.duplicate_count == 1
    assert [q.kind for q in result.quantities] == ["upper"] * 2 + ["lower"] * 3 + ["estimate"] * 11
    assert result.provenance.command.startswith("__main__.py analyze net.py:build")
    assert "<html" in (place / "run" / "report.html").read_text("utf-8")


def test_the_stored_witness_attains_the_reported_bound(finished, place: Path) -> None:
    result = Result.from_json((place / "run" / "result.json").read_bytes())
    tensors = load_file(place / "run" / "witness.safetensors")
    module = lipscope.load_model(f"{place / 'net.py'}:build").module
    graph = lipscope.from_torch(module, (1, 8, 8))
    for quantity in (result.local, result.empirical):
        key = quantity.witness.key
        x1, x2 = (torch.from_numpy(tensors[f"{key}.{x}"]) for x in ("x1", "x2"))
        pair = lipscope.evaluate_pair(graph, x1, x2, ())
        assert pair.bound == quantity.value


def test_the_same_command_again_is_refused_or_reused_as_it_should(finished, place: Path) -> None:
    before, page = ((place / "run" / name).read_bytes() for name in ("result.json", "report.html"))
    (place / "run" / "report.html").unlink()
    again = lipscope_command("analyze", "net.py:build", "--data", "x.npy", "--output", "run", cwd=place)
    assert again.returncode == 0, again.stderr
    assert again.stdout == finished.stdout
    assert (place / "run" / "result.json").read_bytes() == before
    assert (place / "run" / "report.html").read_bytes() == page
    other = lipscope_command(
        "analyze", "net.py:build", "--data", "x.npy", "--output", "run", "--seed", "5", cwd=place
    )
    assert other.returncode == 6
    assert "another" in other.stderr
    assert "--output" in other.stderr


def test_report_rebuilds_the_page(finished, place: Path) -> None:
    (place / "run" / "report.html").unlink()
    done = lipscope_command("report", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "run" / "report.html").stat().st_size > 10_000


def test_a_page_that_cannot_be_written_is_one_sentence(finished, place: Path) -> None:
    done = lipscope_command("report", "run", "--html", "missing/page.html", cwd=place)
    assert done.returncode == 6
    assert done.stderr.startswith("error: cannot write missing/page.html")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["analyze", "net.py:build", "--data", "nowhere"], 5, ["nowhere"]),
        (["analyze", "net.py:missing", "--data", "x.npy"], 3, ["missing"]),
        (["analyze", "no_such_zoo", "--data", "x.npy"], 3, ["no_such_zoo", "alexnet-trunk"]),
        (["analyze", "net.py:softmax", "--data", "x.npy"], 4, ["softmax", "(Softmax)"]),
        (
            ["analyze", "net.py:build", "--data", "x.npy", "--input-shape", "3x8x8"],
            5,
            ["(1, 8, 8)", "(3, 8, 8)"],
        ),
        (["analyze", "net.py:build", "--data", "x.npy", "--input-shape", "big"], 5, ["--input-shape big"]),
        (["analyze", "net.py:build", "--data", "x.npy", "--device", "cuda:99"], 3, ["cuda:99"]),
        (["analyze", "net.py:build", "--data", "x.npy", "--output", "net.py"], 6, ["net.py"]),
        (["analyze", "net.py:build", "--data", "x.npy", "--output", "."], 6, ["not a run folder"]),
        (["report", "nowhere"], 5, ["nowhere"]),
        (["report", "net.py"], 5, ["not a result file"]),
    ],
)
def test_mistakes_end_in_one_sentence(
    args: list[str],
    code: int,
    words: list[str],
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["lipscope", *args])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == code, said
    assert said.startswith("error: ")
    for word in words:
        assert word in said


def test_a_mistake_on_the_real_command_line_shows_no_traceback(place: Path) -> None:
    done = lipscope_command("analyze", "net.py:build", "--data", "nowhere", cwd=place)
    assert done.returncode == 5
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_usage_errors_and_help(place: Path) -> None:
    assert lipscope_command("analyze", cwd=place).returncode == 2
    assert (
        lipscope_command("analyze", "net.py:build", "--data", "x.npy", "--pairs", "0", cwd=place).returncode
        == 2
    )
    for args in (
        ["--help"],
        ["analyze", "--help"],
        ["report", "--help"],
        ["models", "--help"],
        ["schema", "--help"],
    ):
        shown = lipscope_command(*args, cwd=place)
        assert shown.returncode == 0
        assert "Usage" in shown.stdout
    assert lipscope.__version__ in lipscope_command("--version", cwd=place).stdout
    assert "alexnet-trunk" in lipscope_command("models", cwd=place).stdout


def test_the_schema_describes_the_result(finished, place: Path) -> None:
    schema = json.loads(lipscope_command("schema", cwd=place).stdout)
    raw = json.loads((place / "run" / "result.json").read_text("utf-8"))
    assert set(schema["required"]) <= set(raw)
    assert set(raw) == set(schema["properties"])


def test_help_does_not_import_torch() -> None:
    code = "import sys, lipscope.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_and_ends_the_same(stop: signal.Signals, place: Path, tmp_path: Path) -> None:
    args = ["analyze", "net.py:build", "--data", "x.npy", "--batch-size", "1", "--tolerance", "1e-9"]
    whole = lipscope_command(*args, "--output", str(tmp_path / "whole"), cwd=place)
    assert whole.returncode == 0, whole.stderr
    cut = [sys.executable, "-m", "lipscope", *args, "--output", str(tmp_path / "cut")]
    process = subprocess.Popen(cut, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "state" / "local.npz").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(stop)
    process.wait(timeout=60)
    done = lipscope_command(*args, "--output", str(tmp_path / "cut"), cwd=place)
    assert done.returncode == 0, done.stderr

    def numbers(folder: Path) -> str:
        text = (folder / "result.json").read_text("utf-8")
        return re.sub(r'"(seconds|started|peak_memory_bytes|command|platform)": .*', "", text)

    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def test_two_runs_in_one_folder_are_refused(place: Path, tmp_path: Path) -> None:
    from lipscope.jobs.folder import RunFolder

    with RunFolder(tmp_path / "run", {"a": 1}), pytest.raises(lipscope.RunFolderError, match="in use"):
        RunFolder(tmp_path / "run", {"a": 1})
    RunFolder(tmp_path / "run", {"a": 1}).close()
    with pytest.raises(lipscope.RunFolderError, match="another"):
        RunFolder(tmp_path / "run", {"a": 2})
