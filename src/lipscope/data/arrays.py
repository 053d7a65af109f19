"""Samples from arrays: files, tensors, and data sets that give one array a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import DataError
from .files import printable, read_tensors, reason
from .images import ImagePreprocessing, stacked
from .samples import Samples

Array = npt.NDArray[Any]

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")

_KEYS = ("x", "data", "images")
_CHANNELS = (1, 3, 4)
_ITERATED_BATCH = 64


def array_file(path: Path, preprocess: ImagePreprocessing | None) -> Samples:
    """Samples from a .npy (memory mapped), .npz, .safetensors or .pt file.

    Raises:
        DataError: the file is corrupt, needs code to load, or holds no single array of numbers.
    """
    if path.suffix.lower() in (".npy", ".npz"):
        held = _read_numpy(path)
    else:
        held = read_tensors(path, DataError)
        if isinstance(held, dict) and path.suffix.lower() == ".safetensors":
            held = _single(held, printable(path))
    if not isinstance(held, (Tensor, np.ndarray)):
        raise DataError(
            f"{printable(path)} holds a {type(held).__name__}, not a tensor; save one tensor of samples"
        )
    return from_array(held, printable(path.name), preprocess)


def _read_numpy(path: Path) -> object:
    try:
        # Mapped, so that a large file is read batch by batch; an .npz is never mapped by NumPy.
        held = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(held, np.lib.npyio.NpzFile):
            with held:
                return _single(held, printable(path))
        return held
    except DataError:
        raise
    except Exception as error:  # NumPy and zipfile raise many types on malformed files
        why = reason(error)
        if "pickled" in why:  # NumPy takes any unknown content for a pickle
            why = "it is no NumPy file, or a pickle"
        elif "object" in why.lower():
            why = "it holds Python objects, not numbers"
        raise DataError(
            f"{printable(path)} cannot be read: {why}; save it again as an array of numbers"
        ) from error


def _single(held: Mapping[str, Any], name: str) -> Any:
    keys = list(held)
    chosen = keys if len(keys) == 1 else [k for k in _KEYS if k in keys]
    if not chosen:
        listed = ", ".join(keys[:20]) or "nothing"
        raise DataError(f"{name} holds several arrays or none ({listed}); name the samples x, data or images")
    return held[chosen[0]]


def from_array(array: Tensor | Array, name: str, preprocess: ImagePreprocessing | None) -> Samples:
    """The rows of an array (samples, *shape).

    Raises:
        DataError: it has no row, or does not hold real numbers.
    """
    rows = _numpy(array, name)
    if rows.ndim == 0 or rows.size == 0:
        raise DataError(
            f"{name} holds no samples (its shape is {rows.shape}); the first dimension counts samples"
        )
    return _from_rows(lambda indices: rows[list(indices)], len(rows), rows[:1], name, preprocess)


def from_dataset(
    data: Dataset[Any] | DataLoader[Any] | Sequence[Any], name: str, preprocess: ImagePreprocessing | None
) -> Samples:
    """The items of a data set or sequence, each a sample or (sample, label); fetched batch by batch.

    Data sets without indices, and data loaders, are read once and held.

    Raises:
        DataError: there is no item, an item is no array of numbers, or reading it raised an exception.
    """
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=_ITERATED_BATCH)
    if isinstance(data, DataLoader):
        try:
            batches = [_numpy(_first(batch, name), name) for batch in data]
        except DataError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise DataError(f"{name} raised {type(error).__name__}: {reason(error)}") from error
        if not batches:
            raise DataError(f"{name} holds no samples; at least one is needed")
        return from_array(_joined(np.concatenate, batches, name), name, preprocess)

    def rows(indices: Sequence[int]) -> Array:
        return _joined(np.stack, [_item(data, i, name) for i in indices], name)

    try:
        count = len(data)  # type: ignore[arg-type]  # torch's Dataset does not promise a length
    except TypeError as error:
        raise DataError(f"{name} has no length; give it a __len__, or pass a list or a DataLoader") from error
    if count == 0:
        raise DataError(f"{name} holds no samples; at least one is needed")
    return _from_rows(rows, count, rows([0]), name, preprocess)


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


def _from_rows(
    rows: Callable[[Sequence[int]], Array],
    count: int,
    example: Array,
    name: str,
    preprocess: ImagePreprocessing | None,
) -> Samples:
    """Samples whose stored rows are given by index; `example` is the first row, (1, *stored shape)."""
    names = [f"{name}[{i}]" for i in range(count)]
    stored = example.shape[1:]
    if preprocess is not None and example.dtype == np.uint8 and _pixels(example[0]) is not None:
        sentence = f"8-bit images of shape {stored}: {preprocess.describe()}"
        return Samples(names, preprocess.shape, sentence, name, lambda i: _seen(rows(i), preprocess))
    if example.dtype.kind == "f":
        sentence = f"taken as stored ({example.dtype.name})"
    else:
        sentence = f"{example.dtype.name} values converted to float32, not scaled"
    return Samples(names, stored, sentence, name, lambda i: _floats(rows(i)))


def _floats(rows: Array) -> Tensor:
    wide = rows.dtype.kind == "f" and rows.dtype.itemsize >= 8
    return torch.from_numpy(rows.astype(np.float64 if wide else np.float32))


def _seen(rows: Array, preprocess: ImagePreprocessing) -> Tensor:
    images = (Image.fromarray(pixels) for row in rows if (pixels := _pixels(row)) is not None)
    return stacked((preprocess(image) for image in images), preprocess.shape)


def _pixels(row: Array) -> Array | None:
    """(height, width) or (height, width, 3 or 4), from channels first or last; None if it is no image."""
    if row.ndim == 3 and row.shape[0] in _CHANNELS:
        row = row.transpose(1, 2, 0)
    if row.ndim == 3 and row.shape[2] in _CHANNELS:
        return np.ascontiguousarray(row[:, :, 0] if row.shape[2] == 1 else row)
    return row if row.ndim == 2 else None
