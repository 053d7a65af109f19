"""`load_samples`: whatever the user calls data, as `Samples`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .arrays import ARRAY_SUFFIXES, array_file, from_array, from_dataset
from .callables import called, named_object
from .demo import demo_photographs
from .files import printable, reason
from .huggingface import from_table, is_dataset, is_saved_dataset, saved_dataset
from .images import DECODERS, IMAGE_SUFFIXES, ImagePreprocessing, image_files, image_folder, preprocessing_for
from .samples import Samples

Source = (
    str | os.PathLike[str] | Tensor | npt.NDArray[Any] | Sequence[Any] | Iterable[Any] | Dataset[Any]
    | DataLoader[Any] | Samples | Callable[[], Any]
)  # fmt: skip


def load_samples(
    source: Source,
    shape: Sequence[int] | None = None,
    preprocess: ImagePreprocessing | None = None,
    workers: int | None = None,
) -> Samples:
    """Samples as the network sees them.

    Args:
        source: one of
            - a path: a folder of images (searched recursively, sorted by name), an image, a .npy, .npz,
              .safetensors or .pt file, or a folder written by `save_to_disk` of Hugging Face datasets;
            - "demo" for built-in photographs (a folder of that name is "./demo");
            - "module:name" or "file.py:name": a function without arguments in the user's Python that
              returns any of these, or the data themselves; or such a function;
            - a tensor or array (samples, *shape), or `Samples`, taken as they are;
            - a torch Dataset, a list, or another object with a length and indices (deterministic:
              samples are fetched more than once); a Hugging Face Dataset;
            - a DataLoader (of batches) or another iterable (of samples), read once and held in memory.
            Of (sample, label) the sample is taken.
        shape: the model's input shape, without the batch; checked if given.
        preprocess: how images become inputs: image files, the demo and 8-bit image arrays. Without
            it, image files are cropped to `shape` with values in 0..1, and arrays taken as stored
            (integers converted to float). Floating-point arrays are always taken as stored.
        workers: threads that decode images; by default one a core, at most 8.

    Raises:
        DataError: the source cannot be read, holds no samples, or does not fit the shape, or the user's
            function raised an exception. Image files are read later, batch by batch, and raise then.
    """
    workers = DECODERS if workers is None else workers
    if workers < 1:
        raise DataError(f"images cannot be decoded by {workers} workers; at least one is needed")
    try:
        samples = _load(source, None if shape is None else tuple(shape), preprocess, workers)
    except OSError as error:
        where = printable(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
        raise DataError(f"{where} cannot be read: {reason(error)}; check the path given as data") from error
    if shape is not None and samples.shape != tuple(shape):
        hint = "reshape the data, or name the input shape the model takes"
        if len(samples) == shape[0] and samples.shape == tuple(shape)[1:]:
            hint = "a single sample needs a first dimension of 1"
        raise DataError(
            f"{samples.name}: samples of shape {samples.shape} do not fit the model's input of shape "
            f"{tuple(shape)}; {hint}"
        )
    return samples


def _load(
    source: Source, shape: tuple[int, ...] | None, preprocess: ImagePreprocessing | None, workers: int
) -> Samples:
    name = None
    if isinstance(source, str) and source != "demo" and not Path(source).exists():
        place, separator, attribute = source.rpartition(":")
        if separator and "/" not in attribute and os.sep not in attribute:
            name = f"{printable(Path(place).name)}:{attribute}"
            source = named_object(place, attribute, "data", DataError)
    if not isinstance(source, (str, os.PathLike)) and not _is_data(source) and callable(source):
        name = name or str(getattr(source, "__qualname__", type(source).__name__))
        source = called(source, name, DataError)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(source, shape, preprocess, workers)
    if isinstance(source, Samples):
        return source
    if isinstance(source, (Tensor, np.ndarray)):
        kind = "tensor" if isinstance(source, Tensor) else "array"
        return from_array(source, name or kind, preprocess, workers)
    if is_dataset(source):
        return from_table(source, name or "Dataset", shape, preprocess, workers)
    if _is_data(source):
        return from_dataset(source, name or type(source).__name__, preprocess, workers)
    origin = f" (what {name} gave)" if name else ""
    raise DataError(
        f"cannot read data from a {type(source).__name__}{origin}; give a path, a tensor or a torch Dataset"
    )


def _is_data(source: object) -> bool:
    """Whether it holds samples, in an order; else it may be a function that makes them."""
    if isinstance(source, (type, Mapping, Set)):
        return False
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return indexed or isinstance(source, (Tensor, np.ndarray, Dataset, DataLoader, Samples, Iterable))


def _from_path(
    source: str | os.PathLike[str],
    shape: tuple[int, ...] | None,
    preprocess: ImagePreprocessing | None,
    workers: int,
) -> Samples:
    if source == "demo":
        return demo_photographs(preprocessing_for(shape, preprocess))
    path = Path(source)
    if path.is_dir():
        if is_saved_dataset(path):
            return saved_dataset(path, shape, preprocess, workers)
        return image_folder(path, preprocessing_for(shape, preprocess), workers)
    if not path.is_file():
        raise DataError(f"{printable(path)} is neither a file nor a folder; check the path given as data")
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return array_file(path, preprocess, workers)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        name = printable(path.name)
        return image_files(path.parent, [path.name], name, preprocessing_for(shape, preprocess), workers)
    kinds = ", ".join([*ARRAY_SUFFIXES, *sorted(IMAGE_SUFFIXES)])
    raise DataError(f"{printable(path)} is of no known kind; give a folder of images or a file of {kinds}")
