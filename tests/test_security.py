"""Files of others: nothing in them runs, bombs and paths that lead elsewhere are refused, terminals stay as they are."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import lipscope
from helpers import command_here
from lipscope.cli.console import print_json
from lipscope.data import load_samples
from lipscope.errors import DataError, ModelError
from lipscope.jobs.folder import read_tensors
from lipscope.models import load_model
from lipscope.report import print_bracket, print_checks, print_inspection, print_result
from lipscope.results import Check

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
HOSTILE = "a\x1b]0;owned\x07\x9b31m\u202eb[bold]"


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code ran"


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text("from torch import nn\nmodel = nn.Linear(3, 2)\n")
    return f"{tmp_path / 'net.py'}:model"


def deflated(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"weight": e}, lambda e: [torch.zeros(2, 3), e]])
@pytest.mark.parametrize("save", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_pickles_of_weights_and_data_run_nothing(
    wrap: Any, save: str, suffix: str, tmp_path: Path, mark: Path, net: str
) -> None:
    path = tmp_path / f"evil{suffix}"
    if save == "pickle":
        path.write_bytes(pickle.dumps(wrap(Evil(mark))))
    else:
        torch.save(wrap(Evil(mark)), path, _use_new_zipfile_serialization=save == "zip")
    with pytest.raises(ModelError, match=f"evil{suffix}"):
        load_model(net, path)
    with pytest.raises(DataError, match=f"evil{suffix}"):
        load_samples(path)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_object_arrays_run_nothing(suffix: str, tmp_path: Path, mark: Path) -> None:
    path, content = tmp_path / f"evil{suffix}", npy(np.array([Evil(mark)], dtype=object), allow_pickle=True)
    if suffix == ".npy":
        path.write_bytes(content)
    else:
        deflated(path, {"x.npy": content})
    with pytest.raises(DataError, match="Python objects"):
        load_samples(path)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".npy"])
def test_a_pickle_under_another_name_runs_nothing(suffix: str, tmp_path: Path, mark: Path) -> None:
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(DataError, match="evil"):
        load_samples(path)
    assert not mark.exists()


def test_a_loading_script_in_a_data_folder_is_not_run(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "hub.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    with pytest.raises(DataError, match="holds no images"):
        load_samples(folder, (3, 8, 8))
    (folder / "dataset_info.json").write_text("{}")
    for state in (
        "{}",
        '{"_data_files": [{"filename": "hub.py"}]}',
        '{"_data_files": [{"filename": "../x.arrow"}]}',
    ):
        (folder / "state.json").write_text(state)
        with pytest.raises(DataError):
            load_samples(folder, (3, 8, 8))
    assert not mark.exists()


def test_images_of_a_data_set_must_lie_in_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra lipscope[datasets] is not installed")
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    column = datasets.Features({"x": datasets.Image()})
    table = datasets.Dataset.from_dict(
        {"x": [{"path": str(tmp_path / "private.png"), "bytes": None}]}, column
    )
    assert len(load_samples(table, (3, 8, 8)).batch([0])) == 1
    from lipscope.data.huggingface import from_table

    with pytest.raises(DataError, match="outside of its folder"):
        from_table(table, "sent", (3, 8, 8), None, 1, tmp_path / "sent").batch([0])


def test_bombs_are_refused_before_they_unpack(
    tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = bytes(2**24)
    for suffix in (".pt", ".pth"):
        bomb = deflated(tmp_path / f"bomb{suffix}", {"archive/data.pkl": b"x", "archive/data/0": zeros})
        with pytest.raises(ModelError, match=rf"bomb{suffix} would unpack from \d+ to \d+ bytes"):
            load_model(net, bomb)
    with pytest.raises(DataError, match=r"bomb\.pt would unpack"):
        load_samples(tmp_path / "bomb.pt")
    with pytest.raises(ModelError, match=r"bomb\.pt2 would unpack"):
        load_model(str(deflated(tmp_path / "bomb.pt2", {"a/archive_format": b"pt2", "a/data": zeros})))
    array = deflated(tmp_path / "bomb.npz", {"x.npy": npy(np.zeros((2**18, 8)))})
    assert len(load_samples(array)) == 2**18  # so much fits anywhere
    monkeypatch.setattr("lipscope.data.arrays._ROOM", 2**20)
    with pytest.raises(DataError, match=r"bomb\.npz would unpack .*save it uncompressed, as \.npy"):
        load_samples(array)
    assert len(
        load_samples(
            deflated(tmp_path / "sound.npz", {"x.npy": npy(np.random.default_rng(0).random((9, 2)))})
        )
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors", ".png", ".pt2", ".onnx", ".pth"])
def test_pipes_are_not_waited_for(suffix: str, tmp_path: Path, net: str) -> None:
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    with pytest.raises(DataError, match=f"pipe{suffix}"):
        load_samples(path, (3, 8, 8))
    with pytest.raises(ModelError, match=r"pipe|onnx package"):
        load_model(str(path)) if suffix in (".pt2", ".onnx") else load_model(net, path)
    with pytest.raises(DataError, match=f"pipe{suffix}"):
        read_tensors(path)


def test_names_too_long_for_the_system_are_one_sentence(tmp_path: Path) -> None:
    for name in ("x" * 5000, f"{'x' * 300}.npy"):
        with pytest.raises(DataError, match="cannot be read: File name too long"):
            load_samples(name)
        with pytest.raises(ModelError):
            load_model(f"{name}.pt2")


# --- terminals --------------------------------------------------------------------------------------


def hostile_records() -> dict[str, Any]:
    """What each command found of a network with hostile names of layers, on hostile data."""

    class Layer(nn.Sequential):
        pass

    Layer.__name__ = Layer.__qualname__ = HOSTILE
    torch.manual_seed(0)
    module = nn.Sequential()
    module.add_module(HOSTILE.replace(".", ""), Layer(nn.Linear(3, 4), nn.ReLU()))
    module.add_module("last", nn.Linear(4, 2))
    samples = load_samples(torch.randn(4, 3))
    samples.name, samples.names = HOSTILE, [f"{HOSTILE}{i}" for i in range(4)]
    options = lipscope.Options(pairs=5, jacobians=2, effort="none")
    return {
        "result": lipscope.analyze(module, samples, name=HOSTILE, options=options),
        "bracket": lipscope.bracket(module, (3,), effort="none", name=HOSTILE),
        "inspection": lipscope.inspect(module, data=samples, name=HOSTILE, effort="fast", seconds=0),
    }


def test_names_from_files_reach_no_terminal_raw() -> None:
    records = hostile_records()
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=False, width=150)
    print_result(records["result"], console)
    print_bracket(records["bracket"], console)
    print_inspection(records["inspection"], console)
    print_checks([Check(name=HOSTILE, kind="lower", claimed=1.0, found=None, reason=HOSTILE)], console)
    assert "owned" in shown.getvalue()
    assert not CONTROL.search(shown.getvalue())


def test_json_on_a_terminal_is_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    report = hostile_records()["inspection"]
    assert CONTROL.search(report.to_json())
    print_json(report)
    shown = capsys.readouterr().out
    assert not CONTROL.search(shown)
    assert json.loads(shown) == json.loads(report.to_json())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_messages_about_hostile_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for raw in (b"\x1b[31mred.npy", b"caf\xe9.npy", b"[bold]x.npy", b"a\nb.npy", "\u202e.npy".encode()):
        name = os.fsdecode(raw)
        (tmp_path / name).write_bytes(b"no array")
        args = [
            "analyze",
            "alexnet-trunk",
            "--state",
            name,
            "--data",
            name,
            "--output",
            str(tmp_path / "run"),
        ]
        for model in ([name, *args[4:]], args[1:]):
            assert command_here(["analyze", *model], tmp_path) in (2, 3, 5)
            said = capfd.readouterr().err
            assert not CONTROL.search(said)
            assert "error: " in said or "Usage" in said


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_run_of_files_whose_names_are_not_utf8(tmp_path: Path) -> None:
    net, data = (os.fsdecode(name) for name in (b"n\xe9t.py", b"d\xe9ta.npy"))
    (tmp_path / net).write_text("import torch\ntorch.manual_seed(0)\nmodel = torch.nn.Linear(3, 2)\n")
    np.save(tmp_path / data, np.random.default_rng(0).normal(size=(4, 3)).astype("f4"))
    common = ["--effort", "none", "--output", str(tmp_path / "run")]
    assert (
        command_here(["analyze", f"{net}:model", "--data", data, "--jacobians", "2", *common], tmp_path) == 0
    )
    result = lipscope.Result.from_json((tmp_path / "run" / "result.json").read_bytes())
    assert result.model.name == "n\\xe9t.py:model"
    assert command_here(["verify", "run", f"{net}:model"], tmp_path) == 0
    common[-1] = str(tmp_path / "ball")
    assert command_here(["certify", f"{net}:model", "--input-shape", "3", *common], tmp_path) == 0
