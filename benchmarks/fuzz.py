"""Bad inputs through the command line: each ends with a documented exit code and one sentence, none with a wrong number.

Usage: python benchmarks/fuzz.py [--inputs 1000] [--seed 0] [--kind NAME] [--first N]

Imports once and forks, so that a command costs no start of the interpreter: the child runs `lipscope` on
one generated input, under limits of memory and time. Kinds of inputs take turns. An input may be accepted (a
flipped bit of a weight is another weight), and then the numbers must be finite or say why not, and the bracket
must hold. Prints what failed, each with the command that repeats it; exit code 1 if anything did.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.torch
import torch
from PIL import Image
from shared import forkable
from torch import nn

import lipscope
from lipscope import cli

CODES = {0, 2, 3, 4, 5, 6, 7, 9, 10}
_SECONDS = 40
_MEMORY = 6 * 2**30
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_QUICK = ["--effort", "none", "--jacobians", "4", "--pairs", "20", "--local-samples", "3"]

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()

def pictures():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval()
"""
SHAPE = (1, 4, 4)


@dataclass
class Case:
    """A command on one bad input.

    Attributes:
        args: of `lipscope`.
        names: a message has to name one of these.
        accepted: whether the input may be taken for sound.
    """

    args: list[str]
    names: tuple[str, ...]
    accepted: bool = True


Maker = Callable[[random.Random, Path], Case]
KINDS: dict[str, Maker] = {}


def kind(maker: Maker) -> Maker:
    KINDS[maker.__name__] = maker
    return maker


# ---- what is corrupted ------------------------------------------------------------------------------


def corrupted(content: bytes, rng: random.Random) -> bytes:
    """Truncated, extended, bits flipped, pieces removed, doubled or zeroed; often near the front, where headers are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(min(len(data), rng.choice((64, 512, len(data) or 1))) or 1) if data else 0
        size = rng.choice((1, 2, 8, 64))
        match rng.randrange(7):
            case 0:
                del data[rng.randrange(len(data) + 1) :]
            case 1:
                data += rng.randbytes(rng.choice((1, 100, 5000)))
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at : at + size] = bytes(min(size, len(data) - at))
            case 5:
                data[at : at + 8] = struct.pack("<Q", rng.choice((0, 2**31, 2**40, 2**63, 2**64 - 1)))
            case _:
                if data:
                    data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


_LEAVES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, -0.5, 1e-300, 1e308, "", "x", "../../etc/passwd", "\x1b[31mred",
    "NaN", "Infinity", "-Infinity", [], {}, [[]], [1, "x"], {"as_int": -3},
    {"as_int": 2**40}, "torch.ops.aten.relu.default",
)  # fmt: skip


def altered(value: Any, rng: random.Random, changes: int = 1) -> Any:
    """JSON with some places replaced, removed or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(changes):
        places: list[tuple[Any, Any]] = []
        waiting = [value]
        while waiting:
            held = waiting.pop()
            keys = list(held) if isinstance(held, dict) else range(len(held))
            for key in keys:
                places.append((held, key))
                if isinstance(held[key], (dict, list)):
                    waiting.append(held[key])
        if not places:
            return value
        held, key = rng.choice(places)
        match rng.randrange(4):
            case 0:
                del held[key]
            case 1 if isinstance(held, list):
                held.insert(key, held[key])
            case 2 if isinstance(held[key], (int, float)) and not isinstance(held[key], bool):
                held[key] = rng.choice((-held[key], held[key] * 1e6, held[key] + 1, held[key] / 7))
            case _:
                held[key] = rng.choice(_LEAVES)
    return value


def altered_text(text: str, rng: random.Random) -> bytes:
    """A JSON file with altered values, or altered bytes."""
    if rng.random() < 0.25:
        return corrupted(text.encode(), rng)
    return json.dumps(altered(json.loads(text), rng, rng.choice((1, 1, 3)))).encode()


# ---- sound files ------------------------------------------------------------------------------------


def prepare(place: Path) -> None:
    """Sound files of every kind in `place`, from which bad ones are made."""
    (place / "net.py").write_text(MODEL)
    module = lipscope.load_model(f"{place / 'net.py'}:build").module
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    np.save(place / "x.npy", x.numpy())
    np.savez(place / "x.npz", x=x.numpy(), y=np.zeros(5))
    torch.save(x, place / "x.pt")
    safetensors.torch.save_file({"x": x, "y": torch.zeros(5)}, place / "x.safetensors")
    torch.save(module.state_dict(), place / "w.pt")
    shutil.copy(place / "w.pt", place / "w.pth")
    safetensors.torch.save_file(module.state_dict(), place / "w.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(module, (torch.randn(2, *SHAPE),), dynamic_shapes=free)
        torch.export.save(program, place / "net.pt2")
    _write_onnx(place / "net.onnx", module)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "gif", "tif", "webp", "ppm"):
        Image.fromarray(pixels).save(place / f"photo.{suffix}")
    options = lipscope.Options(pairs=20, jacobians=4, local_samples=3, effort="fast", seconds=0.2)
    lipscope.analyze(module, x, output=place / "analyzed", options=options)
    lipscope.bracket(module, SHAPE, output=place / "bracketed", effort="fast", seconds=0.2)
    lipscope.inspect(module, data=x, output=place / "inspected", effort="fast", seconds=0.2)
    np.save(place / "y.npy", np.arange(5) % 2)
    np.save(place / "one.npy", x[:1].numpy())
    lipscope.fisher(module, x, output=place / "informed", products=6, probes=2)
    lipscope.separate(module, x, np.arange(5) % 2, output=place / "separated")
    noise = lipscope.Noise(x[0], 0.1)
    lipscope.noise_tails(module, noise, in_ball=True, draws=50, output=place / "noisy")


def _write_onnx(path: Path, module: nn.Module) -> None:
    weights = {k: v.numpy() for k, v in module.state_dict().items()}
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "0.weight", "0.bias"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Flatten", ["b"], ["c"]),
        node("Gemm", ["c", "3.weight", "3.bias"], ["y"], transB=1),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "net", [info("x", 1, ["N", *SHAPE])], [info("y", 1, ["N", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


# ---- kinds of bad inputs ----------------------------------------------------------------------------


def _analyze(data: str, *more: str, model: str = "net.py:build") -> list[str]:
    return ["analyze", model, "--data", data, *_QUICK, "--output", "out", *more]


@kind
def array_bytes(rng: random.Random, place: Path) -> Case:
    """Array files with wrong bytes."""
    name = f"x.{rng.choice(('npy', 'npz', 'pt', 'safetensors'))}"
    path = place / name
    path.write_bytes(corrupted(path.read_bytes(), rng))
    return Case(_analyze(name), (name,))


@kind
def array_content(rng: random.Random, place: Path) -> Case:
    """Sound files of what is no data, or hardly."""
    x = np.random.default_rng(rng.randrange(2**32)).normal(size=(4, *SHAPE)).astype("f4")
    bad = np.where(np.arange(x.size).reshape(x.shape) == rng.randrange(x.size), 1.0, 0.0)
    arrays: list[Any] = [
        np.where(bad, np.nan, x), np.where(bad, np.inf, x), x.astype(object), x.astype(str), x * 1j, x[0], x[:0],
        x[:1], x * 0, x * 0 + 7, x * 1e38, (x * 1e300).astype("f8"), x * 1e-44, x.astype("f8") * 1e-310,
        x[:, 0], x.astype(">f8"), x.astype("f2"), (x * 100).astype("i1"), (x > 0), np.asfortranarray(x),
        np.full(x.shape, 2**63 - 1), np.float32(3.0), np.zeros((3, 0, 4)), np.zeros((10**6, 0)),
        np.zeros(4, [("a", "f4"), ("b", "i4")]), np.arange(5), np.array("2024-01-01", "M8[D]"), x[::2, ::-1],
        np.concatenate([x, x]), x.astype("g"), np.repeat(x, 3, 1), np.zeros((4, 5, 1, 4, 4), "f4"),
    ]  # fmt: skip
    array = rng.choice(arrays)
    name = rng.choice(("x.npy", "x.npz"))
    (np.save if name == "x.npy" else np.savez)(place / name, array)
    return Case(_analyze(name), (name, "input of shape"))


@kind
def claimed_size(rng: random.Random, place: Path) -> Case:
    """Headers that speak of far more than the file holds."""
    huge = rng.choice((10**9, 10**12, 2**62, 2**63, 10**30))
    shape = f"({huge}, 1, 4, 4)"
    name = rng.choice(("x.npy", "x.npz", "x.safetensors"))
    if name == "x.safetensors":
        size = huge * 16 * 4
        header = json.dumps({"x": {"dtype": "F32", "shape": [huge, 1, 4, 4], "data_offsets": [0, size]}})
        (place / name).write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(320))
        return Case(_analyze(name), (name,), accepted=False)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(320)
    if name == "x.npy":
        (place / name).write_bytes(content)
    else:
        with zipfile.ZipFile(place / name, "w") as archive:
            archive.writestr("x.npy", content)
    return Case(_analyze(name), (name,), accepted=False)


@kind
def pickles(rng: random.Random, place: Path) -> Case:
    """Pickles that would run code, wherever a file is read."""

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(place / "code ran"),)

    what = rng.randrange(5)
    if what == 0:
        torch.save(Evil(), place / "x.pt")
        return Case(_analyze("x.pt"), ("x.pt",), accepted=False)
    if what == 1:
        np.save(place / "x.npy", np.array([Evil()], dtype=object), allow_pickle=True)
        return Case(_analyze("x.npy"), ("x.npy",), accepted=False)
    if what == 2:
        np.savez(place / "x.npz", x=np.array([Evil()], dtype=object))
        return Case(_analyze("x.npz"), ("x.npz",), accepted=False)
    name = rng.choice(("w.pt", "w.pth"))
    if what == 3:
        (place / name).write_bytes(pickle.dumps({"state_dict": Evil()}))
    else:
        torch.save({"0.weight": Evil()}, place / name)
    return Case(_analyze("x.npy", "--state", name), (name,), accepted=False)


@kind
def image_bytes(rng: random.Random, place: Path) -> Case:
    """An image with wrong bytes, alone or among others."""
    suffix = rng.choice(("png", "jpg", "bmp", "gif", "tif", "webp", "ppm"))
    content = (place / f"photo.{suffix}").read_bytes()
    folder = place / "photos"
    folder.mkdir()
    shutil.copy(place / "photo.png", folder / "sound.png")
    names = (
        f"bad.{suffix}",
        f"caf\udce9.{suffix}",
        f"a\x1b[31mb.{suffix}",
        f"[bold]{suffix}.{suffix}",
        f"-x.{suffix}",
    )
    name = rng.choice(names)
    (folder / name).write_bytes(b"" if rng.random() < 0.1 else corrupted(content, rng))
    data = "photos" if rng.random() < 0.7 or name.startswith("-") else f"photos/{name}"
    shown = (
        name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\x1b", "\\x1b")
    )
    args = _analyze(data, "--input-shape", "3x8x8", model="net.py:pictures")
    return Case(args, (shown, shown.replace("\\", "\\\\")))


@kind
def image_folders(rng: random.Random, place: Path) -> Case:
    """Folders with strange things called images."""
    folder = place / "photos"
    folder.mkdir()
    shutil.copy(place / "photo.png", folder / "sound.png")
    accepted = True
    match rng.randrange(9):
        case 0:
            (folder / "loop").symlink_to(folder)
        case 1:
            (folder / "dangling.png").symlink_to("nothing")
            accepted = False
        case 2:
            (folder / "folder.png").mkdir()
        case 3:
            os.mkfifo(folder / "pipe.png")
            accepted = False
        case 4:
            (folder / "device.png").symlink_to("/dev/zero")
            accepted = False
        case 5:
            (folder / "self.png").symlink_to("self.png")
            accepted = False
        case 6:
            header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
            (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + header + bytes(50))
            accepted = False
        case 7:
            shutil.rmtree(folder)
            folder.mkdir()
            accepted = False
        case _:
            (place / ("x" * 200)).symlink_to(folder)
            Image.new("L", (1, 3000)).save(folder / "thin.png")
    args = _analyze("photos", "--input-shape", "3x8x8", model="net.py:pictures")
    return Case(args, ("photos",), accepted)


@kind
def weights(rng: random.Random, place: Path) -> Case:
    """Weights with wrong bytes, values, names or shapes."""
    name = rng.choice(("w.pt", "w.pth", "w.safetensors"))
    path = place / name
    if rng.random() < 0.6:
        path.write_bytes(corrupted(path.read_bytes(), rng))
    else:
        held: dict[str, Any] = safetensors.torch.load_file(place / "w.safetensors")
        key = rng.choice(list(held))
        change: list[Any] = [
            held[key] * math.nan, held[key] * math.inf, held[key] * 1e38, held[key].double() * 1e300, held[key] * 0,
            held[key].half(), held[key].int(), held[key][:1], held[key].reshape(-1), held[key] * 1e-45,
            held[key].to(torch.bfloat16), held[key] > 0, held[key].to(torch.complex64),
        ]  # fmt: skip
        held[key] = rng.choice(change)
        if rng.random() < 0.2:
            held[f"{key}\x1b[31m"] = held.pop(key)
        save = safetensors.torch.save_file if name == "w.safetensors" else torch.save
        save({k: v.contiguous() for k, v in held.items()}, path)
    return Case(_analyze("x.npy", "--state", name), (name, "weight", "bound", "overflow", "NaN"))


@kind
def exported(rng: random.Random, place: Path) -> Case:
    """Exported programs with wrong bytes, or whose JSON says something else."""
    path = place / "net.pt2"
    if rng.random() < 0.3:
        path.write_bytes(corrupted(path.read_bytes(), rng))
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        chosen = rng.choice([name for name in members if name.endswith(".json")])
        members[chosen] = altered_text(members[chosen].decode(), rng)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    return Case(
        _analyze("x.npy", model="net.pt2"), ("net.pt2", "x.npy", "the model", "operation", "computed")
    )


@kind
def onnx_files(rng: random.Random, place: Path) -> Case:
    """ONNX files with wrong bytes or fields."""
    path = place / "net.onnx"
    if rng.random() < 0.4:
        path.write_bytes(corrupted(path.read_bytes(), rng))
    else:
        model = onnx.load(path)
        node = rng.choice(model.graph.node)
        tensor = rng.choice(model.graph.initializer)
        match rng.randrange(12):
            case 0:
                node.op_type = rng.choice(("Loop", "Nothing", "", "Add", "Reshape", "\x1b[31m"))
            case 1:
                node.input[0] = rng.choice(("", "y", "nothing", "x", "0.weight"))
            case 2:
                del node.input[-1]
            case 3:
                key = rng.choice(("axis", "pads", "group", "kernel_shape"))
                value = rng.choice((-1, [0, 1, 2**40], 2**62, "x", 0.5))
                node.attribute.append(onnx.helper.make_attribute(key, value))
            case 4:
                tensor.dims[0] = rng.choice((0, -1, 2**40, 2**62, 3))
            case 5:
                tensor.data_type = rng.choice((0, 2, 6, 7, 8, 9, 10, 14, 16, 99))
            case 6:
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in (("location", rng.choice(("../x.npy", "/etc/passwd", "x.npy", "", "."))),
                                   ("offset", rng.choice(("0", "-4", "10000000", "x"))), ("length", "8")):  # fmt: skip
                    entry = tensor.external_data.add()
                    entry.key, entry.value = key, value
                tensor.ClearField("raw_data")
            case 7:
                del model.graph.output[:]
            case 8:
                model.graph.input[0].type.tensor_type.elem_type = rng.choice((0, 2, 7, 8, 11, 99))
            case 9:
                model.opset_import[0].version = rng.choice((-1, 0, 1, 5, 999))
            case 10:
                model.graph.node.append(node)
            case _:
                model.graph.input[0].type.tensor_type.shape.dim[rng.randrange(4)].dim_value = rng.choice(
                    (0, 7, 2**40)
                )
        path.write_bytes(model.SerializeToString())
    return Case(
        _analyze("x.npy", model="net.onnx"), ("net.onnx", "x.npy", "the model", "operation", "computed")
    )


_RUNS = {
    "analyzed": "result.json", "bracketed": "bracket.json", "inspected": "inspect.json", "informed": "fisher.json",
    "separated": "discriminant.json", "noisy": "concentration.json",
}  # fmt: skip


@kind
def records(rng: random.Random, place: Path) -> Case:
    """Results that somebody altered, read by `report` and `verify`."""
    run = rng.choice(list(_RUNS))
    path = place / run / _RUNS[run]
    raw = json.loads(path.read_text("utf-8"))
    if rng.random() < 0.1:
        raw["schema_version"] = rng.choice((2, 99, 10**40, "new", None))
        path.write_text(json.dumps(raw))
    else:
        path.write_bytes(altered_text(json.dumps(raw), rng))
    if rng.random() < 0.4:
        return Case(["report", run], (path.name, run))
    return Case(["verify", run, "net.py:build"], (path.name, run))


@kind
def proofs(rng: random.Random, place: Path) -> Case:
    """Certificates and witnesses with other bytes or tensors, read by `verify`."""
    run = rng.choice(list(_RUNS))
    certified = (place / run / "certificate.safetensors").exists()
    path = place / run / rng.choice(("certificate.safetensors",) * certified + ("witness.safetensors",))
    if rng.random() < 0.4:
        path.write_bytes(corrupted(path.read_bytes(), rng))
    else:
        content = path.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        tensors = safetensors.torch.load(content)
        if tensors and rng.random() < 0.6:
            key = rng.choice(list(tensors))
            held = tensors[key]
            changes: list[Any] = [
                held * math.nan, held * math.inf, held * 1e6, held * 1e-6, -held, held * 0, held.float(),
                held.reshape(-1), held[:1], held > 0, held.to(torch.complex64), held.int(),
            ]  # fmt: skip
            tensors[key] = rng.choice(changes).contiguous()
            if rng.random() < 0.2:
                tensors[rng.choice(("0", "9.x", "1.1.t", "", "x.y"))] = tensors.pop(key)
        metadata = header.get("__metadata__")
        if metadata and rng.random() < 0.6:
            metadata = {"lipscope": altered_text(metadata["lipscope"], rng).decode("utf-8", "replace")}
        path.write_bytes(safetensors.torch.save(tensors, metadata))
    return Case(["verify", run, "net.py:build"], (path.name, run))


@kind
def run_folders(rng: random.Random, place: Path) -> Case:
    """Folders that a run is to go on from, after somebody was at their files."""
    names = {"analyzed": "result.json", "bracketed": "bracket.json"}
    run = rng.choice(list(names))
    folder = place / run
    (folder / names[run]).unlink()
    (folder / "state").mkdir(exist_ok=True)
    target = folder / rng.choice(
        ("run.json", "state/analytical.json", "state/local.json", "state/witness.local.npz", "state/ascent.json",
         "state/effective.json", "state/local.npz", "state/empirical.npz", "state", "lock", "witness.safetensors")
    )  # fmt: skip
    sound = target.read_bytes() if target.is_file() else b'{"value": 1.0, "name": "x"}'
    what = rng.randrange(6)
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    if what < 3:
        target.write_bytes(corrupted(sound, rng))
    elif what == 3:
        target.mkdir()
    elif what == 4:
        os.mkfifo(target)
    else:
        target.symlink_to(rng.choice((place, place / "x.npy", target, Path("/dev/zero"), Path("/dev/full"))))
    if run == "analyzed":
        args = ["analyze", "net.py:build", "--data", "x.npy", "--jacobians", "4", "--pairs", "20", "--local-samples", "3",
                "--effort", "fast", "--seconds", "0.2", "--output", run]  # fmt: skip
    else:
        args = ["certify", "net.py:build", "--input-shape", "1x4x4", "--effort", "fast", "--seconds", "0.2", "--output",
                run]  # fmt: skip
    return Case(args, (run,))


_VALUES = (
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1e-320",
    "-1",
    "0",
    "10000000000000000000000",
    "x",
    "",
    "1,2",
    "1e3",
    "\x1b[31m",
)
_COMMANDS = {
    "analyze": _analyze("x.npy"),
    "certify": ["certify", "net.py:build", "--input-shape", "1x4x4", "--effort", "none", "--output", "out"],
    "inspect": ["inspect", "net.py:build", "--input-shape", "1x4x4", "--output", "out"],
    "fisher": ["fisher", "net.py:build", "--data", "x.npy", "--products", "6", "--probes", "2", "--output", "out"],
    "mean-field": ["mean-field", "net.py:build", "--input-shape", "1x4x4", "--output", "out"],
    "concentration": ["concentration", "net.py:build", "--at", "one.npy", "--sigma", "0.1", "--draws", "50", "--output",
                      "out"],
    "discriminant": ["discriminant", "net.py:build", "--data", "x.npy", "--labels", "y.npy", "--output", "out"],
    "check": ["check", "net.py:build", "--data", "x.npy", "--max-upper", "1e6", "--effort", "none", "--output", "out"],
    "constrain": ["constrain", "net.py:build", "--input-shape", "1x4x4", "--max", "3", "--output", "out.safetensors"],
}  # fmt: skip
_OPTIONS = {
    "analyze": ("--input-shape", "--mean", "--std", "--resize", "--samples", "--pairs", "--jacobians", "--local-samples",
                "--seconds", "--tolerance", "--batch-size", "--seed", "--device", "--dtype", "--engine", "--workers",
                "--effort", "--state", "--output", "--data"),
    "certify": ("--ball-norm", "--norm", "--effort", "--seconds", "--state", "--input-shape", "--seed", "--output"),
    "inspect": ("--samples", "--sort", "--top", "--effort", "--seconds", "--state", "--input-shape", "--seed",
                "--device", "--data", "--output"),
    "fisher": ("--likelihood", "--variance", "--space", "--labels", "--samples", "--directions", "--products", "--probes",
               "--batch-size", "--figure", "--state", "--input-shape", "--seed", "--device", "--data", "--output"),
    "mean-field": ("--length", "--samples", "--probes", "--batch-size", "--figure", "--state", "--input-shape", "--seed",
                   "--device", "--data", "--output"),
    "concentration": ("--sigma", "--at", "--number", "--law", "--draws", "--effort", "--seconds", "--batch-size",
                      "--figure", "--state", "--input-shape", "--seed", "--device", "--output"),
    "discriminant": ("--labels", "--samples", "--batch-size", "--figure", "--state", "--input-shape", "--seed",
                     "--device", "--data", "--output"),
    "check": ("--max-upper", "--max-local", "--max-empirical", "--max-effective", "--baseline", "--tolerance",
              "--samples", "--effort", "--seconds", "--state", "--input-shape", "--seed", "--device", "--data",
              "--output"),
    "constrain": ("--max", "--split", "--state", "--input-shape", "--output"),
}  # fmt: skip
_SPECIAL = {
    "--input-shape": ("1x4x4x", "99999999x99999999x999999", "0x4x4", "1x-4x4", "4", "x" * 3000, "1x4x4,",
                      "10**9", "１x４x４"),
    "--device": ("meta", "cpu:7", "cuda", "mps", "xla", "cpu:x", "privateuseone"),
    "--output": ("x.npy", ".", "/proc/nowhere", "x" * 300, "analyzed", "/dev/null", "a/" * 3000, "\udce9"),
    "--data": ("x" * 5000, "a/" * 3000, "/dev/zero", "/dev/stdin", "net.py:nothing", ":", "net.py:", "demo:", "http://x/y.npy",
               "json:dumps", "net.py:build", "os:getcwd", "\udce9.npy", ".", "/", "net.py"),
    "--state": ("x" * 5000, "/dev/zero", ".", "net.py", "x.npy", "\udce9.pt"),
    "--resize": ("1", "100000000", "9999999999999"),
    "--pairs": ("1", "1000000000000", "9223372036854775807"),
    "--labels": ("x.npy", "one.npy", "nowhere", "w.pt", "photo.png", "folders", "/dev/zero", "x.npz", ""),
    "--at": ("zeros", "x.npy", "nowhere", "photo.png", "/dev/zero", ""),
    "--number": ("4", "5", "-1", "99999999999999999999"),
    "--baseline": ("analyzed", "bracketed", "noisy", "nowhere", "x.npy", ".", "/dev/zero"),
    "--figure": ("f.gif", "f", "", ".svg", "/dev/full.svg", "a/" * 3000 + "f.svg", "analyzed"),
    "--seed": ("-1", "9223372036854775807", "9223372036854775808", "-9223372036854775809"),
}  # fmt: skip


@kind
def options(rng: random.Random, place: Path) -> Case:
    """Absurd values of options."""
    command = rng.choice(list(_OPTIONS))
    option = rng.choice(_OPTIONS[command])
    value = rng.choice(_SPECIAL.get(option, _VALUES)) if rng.random() < 0.7 else rng.choice(_VALUES)
    args = list(_COMMANDS[command])
    if option in args:
        at = args.index(option)
        del args[at : at + 2]
    if command == "certify" and rng.random() < 0.4:
        center = rng.choice(("zeros", "x.npy", "nowhere", "photo.png", ""))
        return Case(
            [*args, "--ball", center, rng.choice((*_VALUES, "0.5"))],
            ("ball", "radius", "--ball", center, "shape"),
        )
    if command == "analyze" and option in ("--mean", "--std", "--resize"):
        args[args.index("net.py:build")] = "net.py:pictures"
        args[args.index("x.npy")] = "photo.png"
        args += ["--input-shape", "3x8x8"]
    names = (
        option,
        option.strip("-"),
        value[:20],
        ascii(value)[-8:-1].lstrip("\\udc"),
        value.rpartition(":")[0],
        "model's",
        "batch",
        "shape",
        "weights",
    )
    return Case([*args, option, value], names)


_CODE = (
    "raise ValueError('a\\nb')", "import sys; sys.exit(0)", "import sys; sys.exit('no')", "def build(): return 7",
    "def build(): raise KeyError('x')", "def build(x): return x", "build = 3", "build = None", "x = (",
    "import nothing_at_all", "def build(): return build()", "import torch\ndef build(): return torch.nn.Linear(3, 2)",
    "import torch\ndef build(): return torch.nn.Module()",
    "import torch\nbuild = torch.nn.Softmax(0)",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return x, x",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return torch.rand_like(x)",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return x * float('nan')",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return x / 0",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return x.flatten(1) if x.sum() > 0 else x",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): raise RuntimeError('\\x1b[31mno')",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return x.sum()",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return x[:0]",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return torch.zeros(len(x), 2)",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return x.to(torch.int64)",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return x.expand(10**6, *x.shape).sum(0)",
    "import torch\nclass build(torch.nn.Module):\n def forward(self, x): return torch.complex(x, x)",
    "import torch\nbuild = torch.nn.Linear(4, 3, device='meta')",
    "import torch\nbuild = torch.nn.Sequential()", "import torch\nbuild = torch.nn.Identity()",
    "import torch\nbuild = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10**5))",
    "import torch\nbuild = torch.nn.Sequential(*[torch.nn.ReLU()] * 100)",
)  # fmt: skip


@kind
def code(rng: random.Random, place: Path) -> Case:
    """Python of the user that does something else than give a network."""
    (place / "mine.py").write_text(rng.choice(_CODE))
    return Case(
        _analyze("x.npy", model="mine.py:build"), ("mine.py", "model", "layer", "operation", "weight")
    )


# ---- running ----------------------------------------------------------------------------------------


def child(args: list[str], place: Path) -> None:
    """Run the command in this process, which ends with it."""
    code = 1
    try:
        os.chdir(place)
        os.setsid()
        for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")
        sys.argv = ["lipscope", *args]
        sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(args: list[str], place: Path) -> int | None:
    """Its exit code; minus the signal that ended it; None if it took too long."""
    pid = os.fork()
    if pid == 0:
        child(args, place)
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def verdict(case: Case, place: Path, ended: int | None) -> str | None:
    """What is wrong with how the command ended; None if nothing is."""
    said = (place / "stderr").read_text("utf-8", "replace")
    printed = (place / "stdout").read_text("utf-8", "replace")
    if (place / "code ran").exists():
        return "code of the file ran"
    if ended is None:
        return f"no end after {_SECONDS} s"
    if "Traceback" in said:
        return f"a traceback: {said[-600:]}"
    if ended == 1 and case.args[0] == "check" and (place / "out" / "check.json").exists():
        return None  # the network does not keep a limit
    if ended not in CODES:
        return f"exit code {ended}: {said[-600:]}"
    if _CONTROL.search(said + printed):
        return f"control characters reached the terminal: {said!r}"
    if ended == 0:
        return outcome(place) if case.accepted else f"it was accepted: {printed[:300]}"
    flat = " ".join(said.split())
    if ended != 2 and "error: " not in flat:
        return f"no error is told: {said!r}"
    if ended == 9:
        return f"it took more than {_MEMORY >> 30} GiB: {said}"
    if not any(name and name in flat for name in case.names) and ended not in (2, 4, 7):
        return f"the message names none of {case.names}: {flat}"
    return None


def outcome(place: Path) -> str | None:
    """What is wrong with the numbers of an accepted input."""
    path = place / "out" / "result.json"
    if not path.exists():
        return None
    result = lipscope.Result.from_json(path.read_bytes())
    if math.isnan(result.lower) or math.isnan(result.upper) or not result.lower <= result.upper * (1 + 1e-9):
        return f"the bracket is {result.lower} to {result.upper}"
    if math.isinf(result.upper) and result.no_bound is None:
        return "no upper bound, and no reason"
    if any(math.isnan(q.value) for q in result.quantities):
        return f"NaN among {[(q.name, q.value) for q in result.quantities]}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    args = parser.parse_args()
    forkable()
    kinds = args.kind or list(KINDS)
    ends: dict[str, collections.Counter[int | None]] = collections.defaultdict(collections.Counter)
    failures, began = 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        sound = Path(temporary) / "sound"
        sound.mkdir()
        prepare(sound)
        run(_analyze("x.npy"), sound)
        for number in range(args.first, args.first + args.inputs):
            name = kinds[number % len(kinds)]
            place = Path(temporary) / f"case{number}"
            shutil.copytree(sound, place, symlinks=True, ignore=shutil.ignore_patterns("out", "std*"))
            case = KINDS[name](random.Random(f"{args.seed} {name} {number}"), place)
            ended = run(case.args, place)
            ends[name][ended] += 1
            wrong = verdict(case, place, ended)
            if wrong is not None:
                failures += 1
                repeat = f"--kind {name} --seed {args.seed} --first {number} --inputs 1"
                print(f"{name} ({repeat}): {' '.join(case.args)!a}\n    {wrong}", flush=True)
            shutil.rmtree(place)
    for name, counted in ends.items():
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(counted.items(), key=str))
        print(f"{name:<16} {counted.total()} inputs; exit codes {codes}")
    print(f"{args.inputs} inputs in {time.perf_counter() - began:.0f} s: {failures} failures")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
