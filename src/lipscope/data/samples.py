"""The one form in which data reach the analysis: batches of named samples, read on demand."""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from ..errors import DataError
from .names import ChosenNames

T = TypeVar("T")

Reader = Callable[[Sequence[int]], Tensor]
"""Reads the samples at the indices as one tensor (len(indices), *shape), float32 or float64.

Those of this package are objects of plain classes, so that samples can be pickled.
"""

Marker = Callable[[Sequence[int]], Iterable[bytes]]
"""A digest for each sample at the indices, of all that decides what a `Reader` gives for it."""

_HASHED_ELEMENTS = 2**22  # per batch while hashing: 16 MB of float32
_HASHED_SAMPLES = 4096


@dataclass(eq=False)
class Samples:
    """Named samples of one shape, read in batches; only the batch asked for is held in memory.

    They can be pickled, and then read in another process: files are named by their absolute paths
    and opened again, tensors and arrays travel with them. A user's data set must be picklable itself.

    Attributes:
        names: one a sample, printable; made when asked for where they follow a rule.
        shape: per-sample shape, without the batch.
        preprocessing: what was done to the stored data, as a sentence.
        name: what to call the whole (folder, file, "demo", ...).
        read: reads samples by index, see `Reader`.
        mark: tells samples apart without reading them, see `Marker`, where reading is dear.

    Raises:
        DataError: there is no sample.
    """

    names: Sequence[str] = field(repr=False)
    shape: tuple[int, ...]
    preprocessing: str
    name: str
    read: Reader = field(repr=False)
    mark: Marker | None = field(default=None, repr=False)
    _digest: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.names) == 0:
            raise DataError(f"{self.name} holds no samples; at least one is needed")

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """The samples at the indices, a new tensor (len(indices), *shape), float32 (float64 if stored so).

        Raises:
            DataError: a sample cannot be read, has another shape, or holds NaN or infinities; it is named.
        """
        x = self.read(indices)
        if x.shape != (len(indices), *self.shape):
            raise DataError(f"{self.name}: samples of shape {tuple(x.shape[1:])} among those of {self.shape}")
        finite = np.isfinite(x.numpy()).reshape(len(indices), math.prod(self.shape)).all(1)
        if not finite.all():
            culprit = self.names[indices[int(finite.argmin())]]
            raise DataError(
                f"{self.name}: {culprit} holds NaN or infinite values; repair or remove that sample"
            )
        return x

    def batches(self, index_batches: Iterable[Sequence[int]], ahead: int = 2) -> Iterator[Tensor]:
        """`batch` of each, in order, read ahead in a background thread while the caller computes.

        One thread reads, batch after batch, so a data set need not be safe for threads; images of a
        batch are decoded on `workers` threads more. Reading starts with the first batch asked for.
        The threads end with the iterator: when it is exhausted, has raised, or is closed or dropped.

        Args:
            index_batches: what to read; taken from in the caller's thread.
            ahead: how many batches are held or being read beyond the one asked for.

        Raises:
            DataError: as `batch`, in the place of the batch that cannot be read.
        """
        reading: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1, "lipscope-read") as thread:
            try:
                for indices in index_batches:
                    reading.append(thread.submit(self.batch, indices))
                    if len(reading) > ahead:
                        yield reading.popleft().result()
                while reading:
                    yield reading.popleft().result()
            finally:
                for unread in reading:
                    unread.cancel()

    def fingerprint(self) -> str:
        """SHA-256 over all samples in order: over their dtype, shape and values as the network sees them.

        Where samples are decoded images, it is instead over the bytes of each image as encoded and
        all numbers of the preprocessing, since decoding a large data set only to name it is dear. So it
        is the same for a folder and for a table of the same image files, and changes when a file is
        encoded anew, though its pixels be the same. Names, places and times of files never enter.

        Read in batches, once; the result does not depend on the batch size.

        Raises:
            DataError: as `batch`; a damaged image is found only when it is decoded.
        """
        if self._digest is None:
            self._digest = self._hash_values() if self.mark is None else self._hash_marks(self.mark)
        return self._digest

    def _hash_values(self) -> str:
        digest = hashlib.sha256()
        step = max(1, min(_HASHED_SAMPLES, _HASHED_ELEMENTS // max(1, math.prod(self.shape))))
        for place, batch in enumerate(self.batches(_consecutive(len(self), step), ahead=1)):
            x = batch.numpy()
            if place == 0:
                digest.update(f"{x.dtype.name} {len(self)} {self.shape}".encode())
            digest.update(np.ascontiguousarray(x, x.dtype.newbyteorder("<")).data)
        return digest.hexdigest()

    def _hash_marks(self, mark: Marker) -> str:
        digest = hashlib.sha256(f"encoded {len(self)} {self.shape}".encode())
        for indices in _consecutive(len(self), _HASHED_SAMPLES):
            for one in mark(indices):
                digest.update(one)
        return digest.hexdigest()

    def take(self, count: int, seed: int | None = None) -> Samples:
        """The first `count` samples, or `count` at random if a seed is given; all if there are fewer.

        Random samples stay in the order of the data.

        Raises:
            DataError: count is not positive.
        """
        if count < 1:
            raise DataError(f"{self.name}: cannot take {count} samples; take at least one")
        if count >= len(self):
            return self
        return self.select(range(count) if seed is None else self.draw(count, seed))

    def draw(self, count: int, seed: int) -> Sequence[int]:
        """The indices, ascending, of `count` samples at random; of all if there are fewer."""
        if count >= len(self):
            return range(len(self))
        return array("q", sorted(random.Random(seed).sample(range(len(self)), count)))

    def select(self, chosen: Sequence[int]) -> Samples:
        """The samples at the indices, in that order."""
        return Samples(
            names=ChosenNames(self.names, chosen),
            shape=self.shape,
            preprocessing=self.preprocessing,
            name=self.name,
            read=_Chosen(self.read, chosen),
            mark=None if self.mark is None else _Chosen(self.mark, chosen),
        )


@dataclass(frozen=True)
class _Chosen(Generic[T]):
    """A function of indices, taken at some of them."""

    function: Callable[[Sequence[int]], T]
    chosen: Sequence[int]

    def __call__(self, indices: Sequence[int]) -> T:
        return self.function([self.chosen[i] for i in indices])


def _consecutive(count: int, step: int) -> Iterator[range]:
    return (range(start, min(start + step, count)) for start in range(0, count, step))
