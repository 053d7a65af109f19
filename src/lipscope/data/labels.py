"""The classes of labelled samples: from sub-folders of images, files, arrays, or the user's Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..errors import DataError
from .arrays import read_numpy
from .callables import called, named_object
from .files import printable, read_tensors
from .huggingface import is_saved_dataset, saved_column
from .samples import Samples

LABEL_KEYS = ("y", "labels", "label", "targets", "target")
"""Names under which labels are looked for among several arrays."""
_SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")

LabelSource = str | os.PathLike[str] | Tensor | npt.NDArray[Any] | Sequence[int] | Sequence[str]


@dataclass(frozen=True, eq=False)
class Labels:
    """Which class each sample is of.

    Attributes:
        classes: their names, sorted (numbers by size); each has a sample.
        index: (samples,) int64, the place of each sample's class in `classes`.
    """

    classes: tuple[str, ...]
    index: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Samples of each class."""
        return np.bincount(self.index, minlength=len(self.classes)).astype(np.int64)

    @property
    def outputs(self) -> npt.NDArray[np.int64]:
        """The number of the classifier's output for each sample: the label if all are whole numbers, else its place."""
        try:
            numbers = np.array([int(name) for name in self.classes], np.int64)
        except ValueError:
            return self.index
        return numbers[self.index]

    def select(self, chosen: Sequence[int]) -> Labels:
        """The labels of the samples at the indices; classes without any are dropped."""
        present, index = np.unique(self.index[list(chosen)], return_inverse=True)
        return Labels(tuple(self.classes[c] for c in present), index.astype(np.int64))

    def share(self, count: int, seed: int, least: int = 2) -> list[int]:
        """Ascending indices of about `count` samples at random, each class in its proportion.

        A class keeps at least `least` samples, or all of its own if there are fewer.
        """
        generator = np.random.default_rng(seed)
        chosen: list[int] = []
        for number, size in enumerate(self.counts.tolist()):
            wanted = min(size, max(least, round(size * count / len(self))))
            chosen += generator.choice(np.flatnonzero(self.index == number), wanted, replace=False).tolist()
        return sorted(chosen)


def load_labels(source: LabelSource | None, samples: Samples) -> Labels:
    """The class of each sample.

    Args:
        source: one of
            - None: images in a folder are of the class that its sub-folder names;
            - a path of a .npy, .npz, .safetensors or .pt file with one whole number or text a sample; among
              several arrays the one called y, labels, label, targets or target; or of a Hugging Face data set on
              disk, of which a column is called so;
            - "module:name" or "file.py:name": a function in the user's Python that returns them, or they
              themselves;
            - an array or sequence of them.
        samples: what they are the labels of.

    Raises:
        DataError: there are none, not one for each sample, or they are no whole numbers or text.
    """
    if source is None:
        return _of(_sub_folders(samples), f"the folder names of {samples.name}")
    name = "the labels"
    if isinstance(source, (str, os.PathLike)):
        name = printable(source)
        return _checked(_read(source), name, samples)
    return _checked(source, name, samples)


def _sub_folders(samples: Samples) -> list[str]:
    folders = []
    for name in samples.names:
        folder, slash, _ = name.partition("/")
        if not slash:
            raise DataError(
                f"{samples.name}: {name} is in no class sub-folder; give the classes with --labels, such as an "
                ".npy file of one label a sample"
            )
        folders.append(folder)
    return folders


def _read(source: str | os.PathLike[str]) -> object:
    path = Path(source)
    if not path.exists() and ":" in str(source):
        place, _, attribute = str(source).rpartition(":")
        found = named_object(place, attribute, "labels", DataError)
        return called(found, str(source), DataError) if callable(found) else found

    def key(keys: list[str]) -> str:
        found = [k for k in LABEL_KEYS if k in keys] or (keys if len(keys) == 1 else [])
        if not found:
            raise DataError(
                f"{printable(path)} holds no array of labels ({', '.join(keys[:20]) or 'nothing'}); name them y or labels"
            )
        return found[0]

    if path.is_dir() and is_saved_dataset(path):
        return saved_column(path, key)
    if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        what = "is no file of labels" if path.exists() else "does not exist"
        raise DataError(
            f"{printable(path)} {what}; give one of {', '.join(_SUFFIXES)}, or file.py:name in your Python"
        )

    if path.suffix.lower() in (".npy", ".npz"):
        return read_numpy(path, key)
    held = read_tensors(path, DataError)
    return held[key([str(k) for k in held])] if isinstance(held, dict) else held


def _checked(found: object, name: str, samples: Samples) -> Labels:
    values = found.detach().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (len(samples),):
        raise DataError(
            f"{name}: an array of shape {values.shape} for {len(samples)} samples of {samples.name}; one label "
            "a sample is needed"
        )
    return _of(values, name)


def _of(found: npt.ArrayLike, name: str) -> Labels:
    values = np.asarray(found)
    whole = values.dtype.kind in "bui" or (
        values.dtype.kind == "f" and bool((np.isfinite(values) & (values == np.rint(values))).all())
    )
    if not whole and values.dtype.kind not in "US":
        raise DataError(f"{name}: labels are whole numbers or text, not {values.dtype.name} values")
    distinct, index = np.unique(values.astype(np.int64) if whole else values, return_inverse=True)
    return Labels(tuple(str(value) for value in distinct), index.astype(np.int64))
