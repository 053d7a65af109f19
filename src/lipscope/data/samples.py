"""The one form in which data reach the analysis: batches of named samples, read on demand."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..errors import DataError

Reader = Callable[[Sequence[int]], Tensor]
"""Reads the samples at the indices as one tensor (len(indices), *shape), float32 or float64."""

_HASHED_ELEMENTS = 2**22  # per batch while hashing: 16 MB of float32
_HASHED_SAMPLES = 4096


@dataclass(eq=False)
class Samples:
    """Named samples of one shape, read in batches; only the batch asked for is held in memory.

    Attributes:
        names: one a sample, printable.
        shape: per-sample shape, without the batch.
        preprocessing: what was done to the stored data, as a sentence.
        name: what to call the whole (folder, file, "demo", ...).
        read: reads samples by index, see `Reader`.

    Raises:
        DataError: there is no sample.
    """

    names: list[str] = field(repr=False)
    shape: tuple[int, ...]
    preprocessing: str
    name: str
    read: Reader = field(repr=False)
    _digest: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.names:
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

    def fingerprint(self) -> str:
        """SHA-256 over dtype, shape and values of all samples as the network sees them, in order.

        Names do not enter. Read in batches, once; the result does not depend on the batch size.

        Raises:
            DataError: as `batch`.
        """
        if self._digest is None:
            digest = hashlib.sha256()
            step = max(1, min(_HASHED_SAMPLES, _HASHED_ELEMENTS // max(1, math.prod(self.shape))))
            for start in range(0, len(self), step):
                x = self.batch(range(start, min(start + step, len(self)))).numpy()
                if start == 0:
                    digest.update(f"{x.dtype.name} {len(self)} {self.shape}".encode())
                digest.update(np.ascontiguousarray(x, x.dtype.newbyteorder("<")).data)
            self._digest = digest.hexdigest()
        return self._digest

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
        chosen = list(range(count))
        if seed is not None:
            chosen = sorted(random.Random(seed).sample(range(len(self)), count))
        read = self.read
        return Samples(
            names=[self.names[i] for i in chosen],
            shape=self.shape,
            preprocessing=self.preprocessing,
            name=self.name,
            read=lambda indices: read([chosen[i] for i in indices]),
        )
