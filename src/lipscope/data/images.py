"""Photographs: decoding, and the preprocessing between an image and the network."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import DataError
from .files import printable, reason
from .names import FileNames
from .samples import Samples

T = TypeVar("T")
R = TypeVar("R")

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}

DECODERS = min(8, os.cpu_count() or 1)
"""Threads that decode images unless told otherwise: beyond these, Python's lock gives little more."""

_MAX_ENLARGED_PIXELS = 2**26


@dataclass(frozen=True)
class ImagePreprocessing:
    """From an image to a tensor (channels, height, width): resize, centre crop, 0..1, minus mean over std.

    Attributes:
        size: (height, width) of the centre crop. A smaller image is enlarged until it covers the crop.
        mean, std: one a channel.
        mode: "RGB", or "L" for grey.
        resize: resize the shorter side to this before the crop (bilinear, antialiased, as torchvision does).

    Raises:
        DataError: mean or std does not fit the mode, or a size or std is not positive.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: Literal["RGB", "L"] = "RGB"
    resize: int | None = None

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == len(self.mode):
            raise DataError(f"{self.mode} images need {len(self.mode)} values of mean and of std")
        if min(*self.size, 1 if self.resize is None else self.resize) < 1 or not min(self.std) > 0:
            raise DataError("the sizes and std of an image preprocessing must be positive")

    @classmethod
    def for_shape(cls, shape: Sequence[int]) -> ImagePreprocessing:
        """A crop to the model's input (channels, height, width), values in 0..1.

        Raises:
            DataError: the shape is not that of a grey or RGB image.
        """
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise DataError(
                f"images do not fit the model's input of shape {tuple(shape)}, which is no (1 or 3, height, "
                "width); give the data as an array file"
            )
        channels, height, width = shape
        mode: Literal["RGB", "L"] = "RGB" if channels == 3 else "L"
        return cls((height, width), (0.0,) * channels, (1.0,) * channels, mode)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the result: (channels, height, width)."""
        return (len(self.mode), *self.size)

    def __call__(self, image: Image.Image) -> Tensor:
        """The image as the network sees it: float32 (channels, height, width).

        EXIF orientation is applied, an alpha channel dropped (as torchvision's loader does), 16-bit
        values rounded to 8 bits, and of an animation the first frame is taken.

        Raises:
            DataError: the pixels have no known range (32-bit images), or enlarging takes too much memory.
        """
        image = self._resized(_eight_bits(image).convert(self.mode))
        height, width = self.size
        top = round((image.height - height) / 2)
        left = round((image.width - width) / 2)
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32)
        # In NumPy: torch would spread these small operations over threads that compete with the decoders'.
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        x = (pixels.reshape(height, width, -1) / np.float32(255) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if self.resize is not None:
            shorter = min(width, height)
            width, height = int(self.resize * width / shorter), int(self.resize * height / shorter)
        cover = max(self.size[0] / height, self.size[1] / width)
        if cover > 1:
            width, height = max(self.size[1], round(width * cover)), max(self.size[0], round(height * cover))
        if (width, height) == image.size:
            return image
        if width * height > max(_MAX_ENLARGED_PIXELS, image.width * image.height):
            raise DataError(
                f"its sides of {image.width}×{image.height} are too unequal to enlarge it to {width}×{height}"
            )
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def key(self) -> bytes:
        """All that decides the result, without rounding: two that differ give different bytes."""
        mean, std = ([float(v) for v in values] for values in (self.mean, self.std))
        return f"{self.size} {mean} {std} {self.mode} {self.resize}".encode()

    def describe(self) -> str:
        """What is done, as a sentence part."""
        height, width = self.size
        steps = (
            [] if self.resize is None else [f"shorter side resized to {self.resize} (bilinear, antialiased)"]
        )
        steps += [f"centre crop {height}×{width} (smaller images enlarged)", f"{self.mode} in 0..1"]
        if any(self.mean) or any(s != 1 for s in self.std):
            mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
            steps += [f"minus mean ({mean})", f"over std ({std})"]
        return ", ".join(steps)


def preprocessing_for(
    shape: Sequence[int] | None, preprocess: ImagePreprocessing | None
) -> ImagePreprocessing:
    """The preprocessing asked for, else a crop to the model's input shape.

    Raises:
        DataError: neither is known, or the shape is not that of an image.
    """
    if preprocess is not None:
        return preprocess
    if shape is None:
        raise DataError(
            "images need the model's input shape (channels, height, width) to be cropped to; give it"
        )
    return ImagePreprocessing.for_shape(shape)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Upright, in a mode that `Image.convert` takes to RGB or grey without clipping."""
    # Pillow opens 16-bit PNG and PPM as "I;16" or "I" depending on its version; other "I" is 32-bit.
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not sixteen:
        raise DataError("its 32-bit pixels have no known range, convert it to 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if sixteen:
        return Image.fromarray(np.rint(np.asarray(image, np.float64) / 257).astype(np.uint8))
    # Palette transparency may be given in bytes, which only the conversion to RGBA understands.
    return image.convert("RGBA") if image.mode == "P" else image


@dataclass(frozen=True)
class EncodedImage:
    """An image file, or its bytes, and what to call it in errors."""

    name: str
    content: Path | bytes

    def decoded(self, preprocess: ImagePreprocessing) -> Tensor:
        """The image as the network sees it: float32 (channels, height, width).

        Raises:
            DataError: it is no readable image; it is named.
        """
        try:
            self._check_not_empty()
            with Image.open(
                io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content
            ) as image:
                return preprocess(image)
        except UnidentifiedImageError:
            why = "its content is no known image format"
        except Image.DecompressionBombError:
            why = "it has too many pixels (a decompression bomb?)"
        except Exception as error:  # Pillow's plug-ins raise many types on malformed files
            why = reason(error)
        raise DataError(f"cannot read the image {self.name}: {why}; repair or remove it")

    def mark(self, preprocess: ImagePreprocessing) -> bytes:
        """A digest of the encoded bytes and the preprocessing, see `Marker`.

        Raises:
            DataError: the file cannot be read; it is named.
        """
        start = hashlib.sha256(preprocess.key() + b"\0")
        try:
            self._check_not_empty()
            if isinstance(self.content, bytes):
                start.update(self.content)
                return start.digest()
            with self.content.open("rb") as file:
                return hashlib.file_digest(file, start.copy).digest()
        except (OSError, DataError) as error:
            raise DataError(
                f"cannot read the image {self.name}: {reason(error)}; repair or remove it"
            ) from error

    def _check_not_empty(self) -> None:
        size = len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size
        if size == 0:
            raise DataError("it is empty (0 bytes)")


@dataclass(frozen=True)
class ImageReader:
    """Reads and marks encoded images, see `Reader` and `Marker`, on threads of its own.

    Attributes:
        encoded: the images at the indices.
        workers: number of threads.
    """

    encoded: Callable[[Sequence[int]], Sequence[EncodedImage]]
    preprocess: ImagePreprocessing
    workers: int

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """The images as the network sees them."""
        images = self.encoded(indices)
        seen = on_threads(lambda image: image.decoded(self.preprocess), images, self.workers)
        return stacked(seen, self.preprocess.shape)

    def mark(self, indices: Sequence[int]) -> list[bytes]:
        """One digest an image."""
        return on_threads(lambda image: image.mark(self.preprocess), self.encoded(indices), self.workers)


def on_threads(task: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """What the task gives for each item, in order; the first exception in that order is raised."""
    with ThreadPoolExecutor(workers, "lipscope-decode") as pool:
        return list(pool.map(task, items))


def stacked(seen: Iterable[Tensor], shape: tuple[int, ...]) -> Tensor:
    """The preprocessed images as one tensor (images, *shape); there may be none."""
    pixels = [x.numpy() for x in seen]
    return torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0, *shape)


@dataclass(frozen=True)
class _ImageFiles:
    folder: Path
    files: Sequence[str]

    def __call__(self, indices: Sequence[int]) -> list[EncodedImage]:
        paths = [self.folder / self.files[i] for i in indices]
        return [EncodedImage(printable(path), path) for path in paths]


def image_folder(folder: Path, preprocess: ImagePreprocessing, workers: int = DECODERS) -> Samples:
    """All images below a folder, sorted by name; hidden files are skipped, links to folders followed.

    Raises:
        DataError: there is no image, or a folder cannot be listed.
    """
    files = sorted(path.relative_to(folder).as_posix() for path in _find_images(folder))
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise DataError(
            f"the folder {printable(folder)} holds no images ({kinds}); name another folder or file"
        )
    return image_files(folder, files, printable(folder.absolute().name or folder), preprocess, workers)


def image_files(
    folder: Path, files: Sequence[str], name: str, preprocess: ImagePreprocessing, workers: int = DECODERS
) -> Samples:
    """Samples that are image files of a folder, decoded batch by batch on some threads."""
    read = ImageReader(_ImageFiles(folder.absolute(), files), preprocess, workers)
    return Samples(FileNames(files), preprocess.shape, preprocess.describe(), name, read, read.mark)


def _find_images(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot list the folder {printable(error.filename)}: {reason(error)}; check its permissions"
        )

    visited: set[Path] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = Path(place).resolve()
        if real in visited:  # a link back: walking on would never end, or count images twice
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        visible = (f for f in files if not f.startswith(".") and Path(f).suffix.lower() in IMAGE_SUFFIXES)
        yield from (Path(place, f) for f in visible)
