"""Exported programs (.pt2): what is read equals the module, and nothing in a file runs."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipscope
from lipscope.errors import ModelError
from lipscope.graph import Graph
from lipscope.jobs.brackets import bracket
from lipscope.models import load_model


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).eval()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm, self.heads, self.out = (
            nn.LayerNorm(6),
            nn.MultiheadAttention(6, 2, batch_first=True),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        mixed, _ = self.heads(x, x, x, need_weights=False)
        return self.out(torch.nn.functional.gelu(x + mixed)).mean(1)


def export(module: nn.Module, path: Path, batch: int | None, shape: tuple[int, ...]) -> Path:
    """Save the program with that batch size, or one open to any."""
    x = torch.randn(batch or 2, *shape)
    free = None if batch else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module.eval(), (x,), dynamic_shapes=free), str(path))
    return path


def imported(path: Path) -> Graph:
    program = load_model(str(path)).module
    return lipscope.from_torch(program, program.input_shape)


def assert_same(graph: Graph, module: nn.Module) -> None:
    x = torch.randn(3, *graph.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(graph.evaluate(x.double()).float(), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4, None])
def test_a_convolutional_network_is_the_module(batch: int | None, tmp_path: Path) -> None:
    module = convolutions()
    graph = imported(export(module, tmp_path / "net.pt2", batch, (1, 8, 8)))
    assert_same(graph, module)
    found, expected = bracket(graph, effort="none"), bracket(module, (1, 8, 8), effort="none")
    assert found.upper == pytest.approx(expected.upper, rel=1e-9)
    assert found.lower == pytest.approx(expected.lower, rel=1e-6)


@pytest.mark.parametrize("batch", [2, None])
def test_attention_and_layer_norm_are_the_module(batch: int | None, tmp_path: Path) -> None:
    module = Attention()
    assert_same(imported(export(module, tmp_path / "net.pt2", batch, (3, 6))), module)


def test_constants_and_shapes_are_read(tmp_path: Path) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * torch.arange(1.0, 7.0)).reshape(x.shape[0], -1, 2).flatten(1)[:, : x.shape[1] - 1]

    assert_same(imported(export(Module(), tmp_path / "net.pt2", None, (6,))), Module())


# ---- refusals -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(convolutions(), tmp_path_factory.mktemp("exported") / "net.pt2", 1, (1, 8, 8))


def rewritten(source: Path, path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy in which every entry is what `change` makes of its name and content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, change(entry.filename, old.read(entry)))
    return path


class Payload:
    """Unpickled, it writes a file: what an attacker would do, harmlessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.write_text, (self.marker, "run"))


def malicious(marker: Path, folder: Path) -> bytes:
    torch.save({"weight": Payload(marker)}, folder / "payload")
    return (folder / "payload").read_bytes()


def test_a_payload_in_place_of_weights_does_not_run(archive: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    payloads = malicious(marker, tmp_path), pickle.dumps(Payload(marker))
    pickle.loads(payloads[1])
    assert marker.exists()  # it would work
    marker.unlink()
    for payload in payloads:

        def change(name: str, content: bytes, payload: bytes = payload) -> bytes:
            if name.endswith("_config.json"):
                return content.replace(b'"use_pickle": false', b'"use_pickle": true')
            return payload if "/data/" in name and not name.endswith(".json") else content

        path = rewritten(archive, tmp_path / "net.pt2", change)
        with pytest.raises(ModelError, match="needs code to load, or is corrupt"):
            imported(path)
        assert not marker.exists()


def graph_changed(archive: Path, path: Path, old: str, new: str) -> Path:
    def change(name: str, content: bytes) -> bytes:
        if "/models/" not in name:
            return content
        text = json.dumps(json.loads(content))
        assert old in text
        return text.replace(old, new).encode()

    return rewritten(archive, path, change)


@pytest.mark.parametrize(
    "target",
    [
        "torch.load.default",
        "os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.__class__.default",
        "torch.ops.other.relu.default",
        "_operator.methodcaller",
    ],
)
def test_only_operations_that_compute_are_called(target: str, archive: Path, tmp_path: Path) -> None:
    path = graph_changed(archive, tmp_path / "net.pt2", "torch.ops.aten.relu.default", target)
    with pytest.raises(ModelError, match=f"unsupported operation {target}"):
        imported(path)


def test_a_value_that_nothing_computes_is_an_error(archive: Path, tmp_path: Path) -> None:
    path = graph_changed(
        archive,
        tmp_path / "net.pt2",
        '"arg": {"as_tensor": {"name": "relu"}}',
        '"arg": {"as_tensor": {"name": "ghost"}}',
    )
    with pytest.raises(ModelError, match="reads ghost, which nothing before it computes"):
        imported(path)


def test_a_zip_bomb_is_refused(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        with new.open("net/data/bomb", "w") as stream:
            for _ in range(64):
                stream.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(ModelError, match="would unpack"):
        imported(path)


def test_damaged_files_are_refused_in_one_sentence(archive: Path, tmp_path: Path) -> None:
    whole, path = archive.read_bytes(), tmp_path / "net.pt2"
    flipped = bytearray(whole)
    flipped[len(flipped) // 3] ^= 255
    for content in (
        b"",
        b"import torch",
        whole[:-100],
        whole[: len(whole) // 2],
        whole[100:],
        bytes(flipped),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError) as raised:
            imported(path)
        assert str(path.name) in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match=r"absent\.pt2"):
        load_model(str(tmp_path / "absent.pt2"))
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("net/notes.txt", "none")
    with pytest.raises(ModelError, match=r"no archive of torch\.export\.save"):
        imported(path)


def test_weights_larger_than_their_bytes_are_refused(archive: Path, tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        # One file a weight, or one of all, by torch's version.
        return content[:8] if "/data/weights/" in name and not name.endswith(".json") else content

    with pytest.raises(ModelError, match=r"net\.pt2"):
        imported(rewritten(archive, tmp_path / "net.pt2", change))


def test_several_inputs_or_outputs_are_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x - 1

    with pytest.raises(ModelError, match="2 outputs"):
        imported(export(Two(), tmp_path / "net.pt2", 1, (3,)))


def test_state_goes_with_code_only(archive: Path) -> None:
    with pytest.raises(ModelError, match="brings its own weights"):
        load_model(str(archive), Path("weights.pt"))
