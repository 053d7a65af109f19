"""Hugging Face data sets: those saved to disk by `save_to_disk`, and such objects in memory.

Read through the Arrow table, memory mapped: no decoder, transform or download of the library runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .arrays import SAMPLE_KEYS, Array, from_rows
from .files import printable, reason
from .images import EncodedImage, ImagePreprocessing, ImageReader, preprocessing_for
from .names import RowNames
from .samples import Samples

if TYPE_CHECKING:
    import datasets
    import pyarrow

_SPLITS = "dataset_dict.json"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    table = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return table or (folder / _SPLITS).is_file()


def is_dataset(source: object) -> bool:
    """Whether this is a data set of the library, which need not be installed."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(source, getattr(library, "Dataset", ()))


def saved_dataset(
    folder: Path, shape: Sequence[int] | None, preprocess: ImagePreprocessing | None, workers: int
) -> Samples:
    """The samples of a folder written by `save_to_disk`; of several splits, one must be named as sub-folder.

    Raises:
        DataError: the library is missing, the folder is damaged or holds several splits, or as `from_table`.
    """
    held = _opened(folder)
    return from_table(held, printable(folder.absolute().name), shape, preprocess, workers, folder.resolve())


def saved_column(folder: Path, key: Callable[[list[str]], str]) -> Array:
    """The values of the column that `key` picks by its name, in a folder written by `save_to_disk`.

    Raises:
        DataError: as `saved_dataset`.
    """
    held = _opened(folder)
    cells = held.with_format("arrow").select_columns([key(held.column_names)])[:]
    return np.asarray(cells.column(0).to_pylist())


def _opened(folder: Path) -> datasets.Dataset:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{printable(folder)} is a Hugging Face data set, which takes the datasets library; run: "
            "pip install 'lipscope[datasets]'"
        ) from error
    if (folder / _SPLITS).is_file():
        folder = _only_split(folder)
    _check_table_files(folder)
    try:
        # Absolute, since pickled tables name their files as they were opened.
        return datasets.load_from_disk(str(folder.absolute()))
    except Exception as error:  # the library and Arrow raise many types on damaged folders
        raise DataError(
            f"the data set {printable(folder)} cannot be read: {reason(error)}; save it again"
        ) from error


def _check_table_files(folder: Path) -> None:
    """Raise a `DataError` if the data set names files of its table that lie elsewhere."""
    state = folder / "state.json"
    try:
        named = [str(file["filename"]) for file in json.loads(state.read_bytes())["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{printable(state)} cannot be read: {reason(error)}; save the data set again"
        ) from error
    for file in named:
        if not (folder / file).resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"{printable(state)} names {file}, which lies outside of its folder; save the data set again"
            )


def _only_split(folder: Path) -> Path:
    try:
        splits = json.loads((folder / _SPLITS).read_bytes())["splits"]
        names = [str(split) for split in splits]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{printable(folder / _SPLITS)} cannot be read: {reason(error)}; save it again"
        ) from error
    if len(names) != 1:
        example = f"; name one as a folder, such as {printable(folder / names[0])}" if names else ""
        raise DataError(f"{printable(folder)} holds the splits {', '.join(names) or '(none)'}{example}")
    return folder / names[0]


def from_table(
    held: datasets.Dataset,
    name: str,
    shape: Sequence[int] | None,
    preprocess: ImagePreprocessing | None,
    workers: int,
    folder: Path | None = None,
) -> Samples:
    """The rows of one column: images, decoded and preprocessed, or arrays of numbers, as stored.

    A column named x, data, images, image or pixel_values is taken before others; else the only column of
    images, else the only one of arrays. Image files that the table refers to must lie in `folder`, if one is given.

    Raises:
        DataError: no or several columns may hold the samples, or images come without preprocessing.
    """
    from datasets import Image

    images = [column for column, feature in held.features.items() if isinstance(feature, Image)]
    types = held.features.arrow_schema
    arrays = [column for column in held.column_names if _is_array(types.field(column).type)]
    column = _chosen(images, arrays, held.column_names, name)
    if len(held) == 0:
        raise DataError(f"{name} holds no samples; at least one is needed")
    # Arrow tables of one column: whatever format and transform were set, rows come as stored.
    cells = _Cells(held.with_format("arrow").select_columns([column]), f"{name}[{{}}].{column}")
    if column in images:
        seen = preprocessing_for(shape, preprocess)
        read = ImageReader(_Images(cells, folder), seen, workers)
        sentence = f"column {column}, {seen.describe()}"
        return Samples(RowNames(name, len(held)), seen.shape, sentence, name, read, read.mark)
    samples = from_rows(_Arrays(cells), len(held), name, preprocess, workers)
    samples.preprocessing = f"column {column}, {samples.preprocessing}"
    return samples


def _chosen(images: list[str], arrays: list[str], columns: Sequence[str], name: str) -> str:
    for candidates in ([key for key in SAMPLE_KEYS if key in images + arrays], images, arrays):
        if len(candidates) == 1 or (candidates[:1] and candidates[0] in SAMPLE_KEYS):
            return candidates[0]
        if candidates:
            raise DataError(
                f"{name} holds samples in several columns ({', '.join(candidates)}); rename the one to take to x"
            )
    raise DataError(
        f"{name} holds no column of images or arrays of numbers (its columns: {', '.join(columns) or 'none'})"
    )


def _is_array(kind: pyarrow.DataType) -> bool:
    """Whether the cells are lists, of lists perhaps, of numbers."""
    from pyarrow import types

    kind, depth = getattr(kind, "storage_type", kind), 0
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth > 0 and (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


@dataclass(frozen=True)
class _Cells:
    """Cells of the only column of a table, by row."""

    table: datasets.Dataset
    label: str
    """What to call a cell, with {} for the number of its row."""

    def __call__(self, indices: Sequence[int]) -> pyarrow.Array:
        column: pyarrow.ChunkedArray = self.table[list(indices)].column(0)
        cells: Any = column.combine_chunks()
        return getattr(cells, "storage", cells)

    def name(self, index: int) -> str:
        return self.label.format(index)


@dataclass(frozen=True)
class _Images:
    cells: _Cells
    folder: Path | None

    def __call__(self, indices: Sequence[int]) -> list[EncodedImage]:
        rows = zip(indices, self.cells(indices).to_pylist(), strict=True)
        return [_encoded(row, self.cells.name(index), self.folder) for index, row in rows]


def _encoded(cell: dict[str, Any] | None, name: str, folder: Path | None) -> EncodedImage:
    held = cell or {}
    if held.get("bytes") is not None:
        return EncodedImage(name, held["bytes"])
    path = held.get("path")
    if not path:
        raise DataError(f"{name} holds no image; remove that row")
    if "://" in path:
        raise DataError(f"{name} is only a reference to {path}; save the data set with its images embedded")
    if folder is not None and not Path(path).resolve().is_relative_to(folder):
        raise DataError(
            f"{name} refers to {path}, outside of its folder; save the data set with its images embedded"
        )
    return EncodedImage(name, Path(path))


@dataclass(frozen=True)
class _Arrays:
    cells: _Cells

    def __call__(self, indices: Sequence[int]) -> Array:
        values: Any = self.cells(indices)
        shape = [len(values)]
        while hasattr(values.type, "value_type"):
            lengths = set(values.value_lengths().to_pylist())
            if values.null_count or len(lengths) != 1:
                raise DataError(
                    f"{self.cells.name(indices[0])} and the rows read with it differ in shape or hold nothing; "
                    "bring them to one shape"
                )
            shape.append(lengths.pop())
            values = values.flatten()
        if values.null_count:
            raise DataError(
                f"{self.cells.name(indices[0])} or a row read with it lacks numbers; remove or fill that row"
            )
        return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)
