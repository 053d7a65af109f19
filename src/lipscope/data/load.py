"""`load_samples`: whatever the user calls data, as `Samples`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .arrays import ARRAY_SUFFIXES, array_file, from_array, from_dataset
from .demo import demo_photographs
from .files import printable
from .images import IMAGE_SUFFIXES, ImagePreprocessing, image_folder, images
from .samples import Samples

Source = (
    str | os.PathLike[str] | Tensor | npt.NDArray[Any] | Sequence[Any] | Dataset[Any] | DataLoader[Any]
)  # fmt: skip


def load_samples(
    source: Source, shape: Sequence[int] | None = None, preprocess: ImagePreprocessing | None = None
) -> Samples:
    """Samples as the network sees them.

    Args:
        source: a folder of images (searched recursively, sorted by name), an image, a .npy, .npz,
            .safetensors or .pt file, "demo" for built-in photographs (a folder of that name is "./demo"),
            a tensor or array (samples, *shape), a list of tensors, a torch Dataset (deterministic:
            samples are fetched more than once) or DataLoader; of (sample, label) the sample is taken.
        shape: the model's input shape, without the batch; checked if given.
        preprocess: how images become inputs: image files, the demo and 8-bit image arrays. Without
            it, image files are cropped to `shape` with values in 0..1, and arrays taken as stored
            (integers converted to float). Floating-point arrays are always taken as stored.

    Raises:
        DataError: the source cannot be read, holds no samples, or does not fit the shape. Image files
            are read later, batch by batch, and raise then.
    """
    samples = _load(source, None if shape is None else tuple(shape), preprocess)
    if shape is not None and samples.shape != tuple(shape):
        hint = "reshape the data, or name the input shape the model takes"
        if len(samples) == shape[0] and samples.shape == tuple(shape)[1:]:
            hint = "a single sample needs a first dimension of 1"
        raise DataError(
            f"{samples.name}: samples of shape {samples.shape} do not fit the model's input of shape "
            f"{tuple(shape)}; {hint}"
        )
    return samples


def _load(source: Source, shape: tuple[int, ...] | None, preprocess: ImagePreprocessing | None) -> Samples:
    if isinstance(source, (Tensor, np.ndarray)):
        return from_array(source, "tensor" if isinstance(source, Tensor) else "array", preprocess)
    if not isinstance(source, (str, os.PathLike)):
        if isinstance(source, (list, tuple, Dataset, DataLoader)):
            return from_dataset(source, type(source).__name__, preprocess)
        raise DataError(
            f"cannot read data from a {type(source).__name__}; give a path, a tensor or a torch Dataset"
        )
    if source == "demo":
        return demo_photographs(_for_images(shape, preprocess))
    path = Path(source)
    if path.is_dir():
        return image_folder(path, _for_images(shape, preprocess))
    if not path.is_file():
        raise DataError(f"{printable(path)} is neither a file nor a folder; check the path given as data")
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return array_file(path, preprocess)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return images([path], [path.name], printable(path.name), _for_images(shape, preprocess))
    kinds = ", ".join([*ARRAY_SUFFIXES, *sorted(IMAGE_SUFFIXES)])
    raise DataError(f"{printable(path)} is of no known kind; give a folder of images or a file of {kinds}")


def _for_images(shape: tuple[int, ...] | None, preprocess: ImagePreprocessing | None) -> ImagePreprocessing:
    if preprocess is not None:
        return preprocess
    if shape is None:
        raise DataError(
            "images need the model's input shape (channels, height, width) to be cropped to; give it"
        )
    return ImagePreprocessing.for_shape(shape)
