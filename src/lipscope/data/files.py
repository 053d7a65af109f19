"""Reading tensor files without running code from them, with one-sentence errors."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import safetensors.torch
import torch

from ..errors import LipscopeError

_MOST_UNPACKED = 4
"""torch stores archives uncompressed; one that grows by more than this factor is none of torch's."""


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that can always be written as UTF-8; bytes that are not UTF-8 are shown escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def reason(error: BaseException) -> str:
    """The first line of an exception's message, without the path (the caller names it), or its type."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if not text.strip() or isinstance(error, LookupError):  # the message of a lookup is the bare key
        text = f"{type(error).__name__} {text}"
    return text.strip().splitlines()[0].rstrip(".")


def check_members(archive: zipfile.ZipFile, most: float, least: int = 2**20) -> None:
    """Raise a `LipscopeError` if an archive unpacks to more than `most` times its size (and `least` bytes)."""
    packed = sum(member.compress_size for member in archive.infolist())
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > most * packed + least:
        raise LipscopeError(f"would unpack from {packed} to {unpacked} bytes (a decompression bomb?)")


def _check_unpacked(path: Path) -> None:
    """Of torch's archives, which are stored uncompressed; older files are no archives."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_members(archive, _MOST_UNPACKED)


def read_tensors(path: Path, error: type[LipscopeError]) -> object:
    """What a .safetensors (a dict of tensors) or a torch file holds: tensors and plain containers only.

    Raises:
        error: the file is missing, corrupt, or needs code to load.
    """
    name = printable(path)
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        _check_unpacked(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: nothing the user can act on
            return torch.load(path, map_location="cpu", weights_only=True)
    except LipscopeError as refused:
        raise error(f"{name} {refused}") from refused
    except pickle.UnpicklingError as refused:
        held = re.search(r"GLOBAL (\S+)", str(refused))
        what = f"needs code to load (it holds {held[1]})" if held else "is corrupt, or needs code to load"
        raise error(f"{name} {what}; save plain tensors instead, as safetensors or a state dict") from refused
    except Exception as failure:  # the readers raise many types on malformed files
        raise error(f"{name} cannot be read: {reason(failure)}; check that the file is whole") from failure
