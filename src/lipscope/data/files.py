"""Reading tensor files without running code from them, with one-sentence errors."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from pathlib import Path

import safetensors.torch
import torch

from ..errors import LipscopeError


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that can always be written as UTF-8; bytes that are not UTF-8 are shown escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def reason(error: BaseException) -> str:
    """The first line of an exception's message, without the path (the caller names it), or its type."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if not text.strip() or isinstance(error, LookupError):  # the message of a lookup is the bare key
        text = f"{type(error).__name__} {text}"
    return text.strip().splitlines()[0].rstrip(".")


def read_tensors(path: Path, error: type[LipscopeError]) -> object:
    """What a .safetensors (a dict of tensors) or a torch file holds: tensors and plain containers only.

    Raises:
        error: the file is missing, corrupt, or needs code to load.
    """
    name = printable(path)
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: nothing the user can act on
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as refused:
        held = re.search(r"GLOBAL (\S+)", str(refused))
        what = f"needs code to load (it holds {held[1]})" if held else "is corrupt, or needs code to load"
        raise error(f"{name} {what}; save plain tensors instead, as safetensors or a state dict") from refused
    except Exception as failure:  # the readers raise many types on malformed files
        raise error(f"{name} cannot be read: {reason(failure)}; check that the file is whole") from failure
