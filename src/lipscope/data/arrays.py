"""Samples from arrays: files, tensors, and data sets that give one array a sample."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..errors import DataError, LipscopeError
from .files import check_members, printable, read_tensors, reason
from .images import ImagePreprocessing, on_threads, stacked
from .names import RowNames
from .samples import Samples

Array = npt.NDArray[Any]
Rows = Callable[[Sequence[int]], Array]
"""Stored samples at the indices, as an array (len(indices), *stored shape)."""

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")
SAMPLE_KEYS = ("x", "data", "images", "image", "pixel_values")
"""Names under which samples are looked for among several arrays or columns."""

_MOST_UNPACKED, _ROOM = 100, 2**28
"""A compressed .npz may unpack to so many times its size, and so many bytes more."""
_CHANNELS = (1, 3, 4)
_STACKED = 256


def array_file(path: Path, preprocess: ImagePreprocessing | None, workers: int) -> Samples:
    """Samples from a .npy (memory mapped), .safetensors (likewise), .npz or .pt file (read whole).

    Raises:
        DataError: the file is corrupt, needs code to load, or holds no single array of numbers.
    """
    rows = _FileRows(path)
    return from_rows(rows, rows.count, printable(path.name), preprocess, workers)


class _FileRows:
    """Rows of an array file; pickled as its path, and opened again where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._rows, self.count = _open(path)

    def __call__(self, indices: Sequence[int]) -> Array:
        return self._rows(indices)

    def __reduce__(self) -> tuple[type[_FileRows], tuple[Path]]:
        return _FileRows, (self._path,)


def _open(path: Path) -> tuple[Rows, int]:
    """The rows of a file and their number."""
    suffix, name = path.suffix.lower(), printable(path)
    if suffix == ".safetensors":
        return _open_safetensors(path)
    if suffix in (".npy", ".npz"):
        held = read_numpy(path, lambda keys: _sample_key(keys, name))
    else:
        held = read_tensors(path, DataError)
    if not isinstance(held, (Tensor, np.ndarray)):
        raise DataError(f"{name} holds a {type(held).__name__}, not a tensor; save one tensor of samples")
    rows = _HeldRows(_checked(_numpy(held, name), name))
    return rows, len(rows.array)


def read_numpy(path: Path, key: Callable[[list[str]], str]) -> object:
    """The array of a .npy file (memory mapped), or the one of a .npz file that `key` picks by its name.

    Raises:
        DataError: the file is corrupt, or holds Python objects.
    """
    try:
        if path.suffix.lower() == ".npz" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_members(archive, _MOST_UNPACKED, _ROOM)
        # Mapped, so that a large file is read batch by batch; an .npz is never mapped by NumPy.
        held = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(held, np.lib.npyio.NpzFile):
            with held:
                return held[key(list(held))]
        return held
    except DataError:
        raise
    except LipscopeError as error:
        raise DataError(f"{printable(path)} {error}; save it uncompressed, as .npy") from error
    except Exception as error:  # NumPy and zipfile raise many types on malformed files
        why = reason(error)
        if "pickled" in why:  # NumPy takes any unknown content for a pickle
            why = "it is no NumPy file, or a pickle"
        elif "object" in why.lower():
            why = "it holds Python objects, not numbers"
        raise DataError(
            f"{printable(path)} cannot be read: {why}; save it again as an array of numbers"
        ) from error


def _open_safetensors(path: Path) -> tuple[Rows, int]:
    name = printable(path)
    try:
        held: Any = safetensors.safe_open(path, "pt")
        stored = held.get_slice(_sample_key(list(held.keys()), name))
        shape = tuple(stored.get_shape())
    except DataError:
        raise
    except Exception as error:  # the reader raises types of its own on malformed files
        raise DataError(f"{name} cannot be read: {reason(error)}; check that the file is whole") from error
    _check_shape(shape, name)
    return _SafetensorsRows(stored, name), shape[0]


@dataclass(frozen=True)
class _SafetensorsRows:
    """Rows of a tensor in a mapped file: only those asked for are read."""

    stored: Any
    name: str

    def __call__(self, indices: Sequence[int]) -> Array:
        pieces = [self.stored[start:stop] for start, stop in _runs(indices)]
        return _numpy(torch.cat(pieces) if pieces else self.stored[:0], self.name)


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The indices as runs start, start + 1, ..., stop − 1."""
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or indices[end] != indices[end - 1] + 1:
            yield indices[start], indices[end - 1] + 1
            start = end


def _sample_key(keys: list[str], name: str) -> str:
    chosen = keys if len(keys) == 1 else [k for k in SAMPLE_KEYS if k in keys]
    if not chosen:
        listed = ", ".join(keys[:20]) or "nothing"
        raise DataError(f"{name} holds several arrays or none ({listed}); name the samples x, data or images")
    return chosen[0]


@dataclass(frozen=True)
class _HeldRows:
    array: Array

    def __call__(self, indices: Sequence[int]) -> Array:
        return self.array[list(indices)]


def from_array(
    array: Tensor | Array, name: str, preprocess: ImagePreprocessing | None, workers: int
) -> Samples:
    """The rows of an array (samples, *shape).

    Raises:
        DataError: it has no row, or does not hold real numbers.
    """
    rows = _checked(_numpy(array, name), name)
    return from_rows(_HeldRows(rows), len(rows), name, preprocess, workers)


def _checked(rows: Array, name: str) -> Array:
    _check_shape(rows.shape, name)
    return rows


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if not shape or 0 in shape:
        raise DataError(f"{name} holds no samples (its shape is {shape}); the first dimension counts samples")


def from_dataset(data: Any, name: str, preprocess: ImagePreprocessing | None, workers: int) -> Samples:
    """The items of a data set, sequence or iterable, each a sample or (sample, label).

    What has a length and indices is fetched batch by batch. Data loaders (which give batches) and
    other iterables (which give samples) are read once and held.

    Raises:
        DataError: there is no item, an item is no array of numbers, or reading it raised an exception.
    """
    if isinstance(data, DataLoader):
        return from_array(_collected(data, name, batched=True), name, preprocess, workers)
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__"):
        return from_array(_collected(data, name, batched=False), name, preprocess, workers)
    try:
        count = len(data)
    except TypeError as error:
        raise DataError(f"{name} has no length; give it a __len__, or pass a list or a DataLoader") from error
    if count == 0:
        raise DataError(f"{name} holds no samples; at least one is needed")
    return from_rows(_Items(data, name), count, name, preprocess, workers)


@dataclass(frozen=True)
class _Items:
    data: Any
    name: str

    def __call__(self, indices: Sequence[int]) -> Array:
        return _joined(np.stack, [_item(self.data, i, self.name) for i in indices], self.name)


def _collected(data: Iterable[Any], name: str, *, batched: bool) -> Array:
    """All that an iterable gives, of batches or of samples, as one array."""
    blocks: list[Array] = []
    samples: list[Array] = []
    try:
        for item in data:
            # Copied: a generator may give the same buffer again, filled anew.
            (blocks if batched else samples).append(np.array(_numpy(_first(item, name), name)))
            if len(samples) == _STACKED:
                blocks.append(_joined(np.stack, samples, name))
                samples = []
    except DataError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise DataError(f"{name} raised {type(error).__name__}: {reason(error)}") from error
    if samples:
        blocks.append(_joined(np.stack, samples, name))
    if not blocks:
        raise DataError(f"{name} holds no samples; at least one is needed")
    return _joined(np.concatenate, blocks, name)


def _item(data: Any, index: int, name: str) -> Array:
    try:
        item = data[index]
    except Exception as error:  # whatever the user's code raises
        raise DataError(f"{name}[{index}] raised {type(error).__name__}: {reason(error)}") from error
    return _numpy(_first(item, f"{name}[{index}]"), f"{name}[{index}]")


def _first(item: Any, name: str) -> Tensor | Array:
    """The sample (or batch of samples) of what a data set gives: itself, or the first of (sample, label)."""
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, (Tensor, np.ndarray)):
        return item
    if isinstance(item, Image.Image):
        raise DataError(
            f"{name} is an image, not a tensor; add a transform that gives the tensor the network sees"
        )
    raise DataError(f"{name} is a {type(item).__name__}, not a tensor; give tensors or (tensor, label)")


def _joined(join: Callable[[list[Array]], Array], arrays: list[Array], name: str) -> Array:
    try:
        return join(arrays)
    except ValueError as error:
        shapes = ", ".join(str(s) for s in dict.fromkeys(a.shape for a in arrays))
        raise DataError(f"{name}: the samples differ in shape ({shapes}); bring them to one shape") from error


def _numpy(array: Tensor | Array, name: str) -> Array:
    """As a NumPy array of real numbers, sharing memory where possible.

    Raises:
        DataError: it holds no real numbers, or is no dense tensor.
    """
    if isinstance(array, Tensor):
        try:
            tensor = array.detach().cpu()
            if tensor.is_floating_point() and tensor.dtype not in (
                torch.float16,
                torch.float32,
                torch.float64,
            ):
                tensor = tensor.float()  # NumPy knows neither bfloat16 nor float8
            array = tensor.numpy()
        except (TypeError, RuntimeError) as error:
            raise DataError(f"{name} is not a dense tensor in memory: {reason(error)}") from error
    if array.dtype.kind not in "buif":
        kind = {"U": "text", "S": "text", "O": "Python objects", "c": "complex numbers"}.get(array.dtype.kind)
        raise DataError(f"{name} holds {kind or array.dtype}, not real numbers; convert it to float32")
    return array


def from_rows(
    rows: Rows, count: int, name: str, preprocess: ImagePreprocessing | None, workers: int
) -> Samples:
    """Samples whose stored rows are given by index; 8-bit images are preprocessed if that is asked for."""
    names = RowNames(name, count)
    example = rows([0])
    stored = example.shape[1:]
    if preprocess is not None and example.dtype == np.uint8 and _pixels(example[0]) is not None:
        sentence = f"8-bit images of shape {stored}: {preprocess.describe()}"
        return Samples(names, preprocess.shape, sentence, name, _Pictures(rows, preprocess, workers))
    if example.dtype.kind == "f":
        sentence = f"taken as stored ({example.dtype.name})"
    else:
        sentence = f"{example.dtype.name} values converted to float32, not scaled"
    return Samples(names, stored, sentence, name, _Floats(rows))


@dataclass(frozen=True)
class _Floats:
    """Reads rows as they are, in float32 or, where stored so, float64."""

    rows: Rows

    def __call__(self, indices: Sequence[int]) -> Tensor:
        rows = self.rows(indices)
        wide = rows.dtype.kind == "f" and rows.dtype.itemsize >= 8
        return torch.from_numpy(rows.astype(np.float64 if wide else np.float32))


@dataclass(frozen=True)
class _Pictures:
    """Reads rows that are 8-bit images."""

    rows: Rows
    preprocess: ImagePreprocessing
    workers: int

    def __call__(self, indices: Sequence[int]) -> Tensor:
        images = [
            Image.fromarray(pixels) for row in self.rows(indices) if (pixels := _pixels(row)) is not None
        ]
        return stacked(on_threads(self.preprocess, images, self.workers), self.preprocess.shape)


def _pixels(row: Array) -> Array | None:
    """(height, width) or (height, width, 3 or 4), from channels first or last; None if it is no image."""
    if row.ndim == 3 and row.shape[0] in _CHANNELS:
        row = row.transpose(1, 2, 0)
    if row.ndim == 3 and row.shape[2] in _CHANNELS:
        return np.ascontiguousarray(row[:, :, 0] if row.shape[2] == 1 else row)
    return row if row.ndim == 2 else None
