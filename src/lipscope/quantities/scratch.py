"""Arrays of one row a sample: in memory while they are small, else in files that are mapped."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import LipscopeError
from .checkpoint import Checkpoint

IN_MEMORY = 256 * 2**20
"""Bytes that are kept in memory where no folder has to hold them for a later run."""


class Scratch:
    """Named arrays in memory, or in .npy files of a folder.

    Args:
        folder: None for memory.
        keep: whether files of an earlier run are taken over as they are.

    Attributes:
        fresh: whether some array asked for so far was not taken over.
    """

    def __init__(self, folder: Path | None, keep: bool) -> None:
        self._folder, self._keep = folder, keep
        self.fresh = False
        self._mapped: list[np.memmap[Any, Any]] = []

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The array under the name; what it holds is what an earlier run left there, or nothing of use.

        Raises:
            LipscopeError: the disk has no room for it.
        """
        if self._folder is None or 0 in shape:
            self.fresh = True
            return np.empty(shape, dtype)
        path = self._folder / f"{name}.npy"
        array = _existing(path, shape, np.dtype(dtype)) if self._keep else None
        if array is None:
            self._reserve(path, int(np.prod(shape)) * np.dtype(dtype).itemsize)
            array = np.lib.format.open_memmap(path, "w+", dtype, shape)
            self.fresh = True
        self._mapped.append(array)
        return array

    def flush(self) -> None:
        """Hand everything written so far to the system; only then may it be counted as done."""
        for array in self._mapped:
            array.flush()

    def _reserve(self, path: Path, size: int) -> None:
        # Writing to a mapped file on a full disk would end the process without a word.
        path.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise LipscopeError(
                f"{path.parent} has {free / 2**30:.1f} GiB free, but {size / 2**30:.1f} GiB are needed for the "
                "outputs of all samples; free some space, or take fewer samples"
            )


def _existing(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap[Any, Any] | None:
    try:
        array = np.lib.format.open_memmap(path, "r+")
    except (OSError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == dtype else None


@contextmanager
def scratch(checkpoint: Checkpoint, name: str, size: int) -> Iterator[Scratch]:
    """Room for about `size` bytes: in the run's folder if there is one, in memory, or in a temporary folder."""
    folder = checkpoint.folder()
    if folder is not None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        yield Scratch(folder / name, keep=True)
    elif size <= IN_MEMORY:
        yield Scratch(None, keep=False)
    else:
        with tempfile.TemporaryDirectory(prefix="lipscope-", ignore_cleanup_errors=True) as temporary:
            yield Scratch(Path(temporary), keep=False)
