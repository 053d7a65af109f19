"""Which samples are evaluated together, and which of them are paired: the passes over a data set.

Pairs are drawn within batches: sample i of a batch against the sample a rotation away. So one
evaluation of a sample serves several pairs, pairs are runs of neighbours (views, no copies), and
each pass shuffles the data anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 512
"""Samples of one chunk of work: what an engine sends to a worker, and the grain of checkpoints."""


@dataclass(frozen=True)
class PairRun:
    """The pairs (first + i, second + i), i < count, as positions in the batch."""

    first: int
    second: int
    count: int


@dataclass(frozen=True)
class Batch:
    """Samples evaluated together, by index, and the pairs made of them."""

    indices: tuple[int, ...]
    pairs: tuple[PairRun, ...]
    new: bool
    """Whether this is the first pass, in which every sample comes once."""

    @property
    def pair_count(self) -> int:
        """How many pairs are drawn from this batch."""
        return sum(run.count for run in self.pairs)


def draw(count: int, pairs: int, batch_size: int, seed: int = 0) -> list[Batch]:
    """Batches that visit each of `count` samples once, and as often again as the pairs wanted need.

    Args:
        pairs: number of pairs wanted, spread evenly over the batches of a pass; as many are drawn,
            but no more than there are, count·(count − 1)/2. A pair may come again in a later pass.
        batch_size: the most samples in a batch (two, if one is given and pairs are wanted).
        seed: of the shuffles.
    """
    generator = np.random.default_rng(seed)
    missing = min(pairs, count * (count - 1) // 2)
    batch_size = max(batch_size, 2 if missing else 1)
    batches: list[Batch] = []
    new = True
    while new or missing > 0:
        order = generator.permutation(count).tolist()
        # Even batches: no batch of one sample, which would have no pair.
        number = max(1, -(-count // batch_size))
        edges = np.linspace(0, count, number + 1).round().astype(int).tolist()
        wanted = missing
        for start, stop in itertools.pairwise(edges):
            due = -(-wanted * stop // count) - (wanted - missing)
            runs = _rotations(stop - start, due)
            missing -= sum(run.count for run in runs)
            if new or runs:
                batches.append(Batch(tuple(order[start:stop]), runs, new))
        new = False
    return batches


def chunks(batches: Sequence[Batch]) -> list[tuple[Batch, ...]]:
    """Consecutive batches in groups of about `CHUNK` samples, at least one batch each."""
    grouped: list[list[Batch]] = []
    room = 0
    for batch in batches:
        if room < len(batch.indices):
            grouped.append([])
            room = CHUNK
        grouped[-1].append(batch)
        room -= len(batch.indices)
    return [tuple(group) for group in grouped]


def _rotations(size: int, wanted: int) -> tuple[PairRun, ...]:
    """Up to `wanted` distinct pairs of `size` samples, from the half turn (disjoint pairs) downwards."""
    runs: list[PairRun] = []
    for shift in range(size // 2, 0, -1):
        # Rotations by s and size − s give the same pairs; half a turn gives each pair twice.
        straight = min(size - shift, wanted) if 2 * shift != size else min(shift, wanted)
        around = 0 if 2 * shift == size else min(shift, wanted - straight)
        runs += [
            run for run in (PairRun(0, shift, straight), PairRun(size - shift, 0, around)) if run.count > 0
        ]
        wanted -= straight + around
        if wanted <= 0:
            break
    return tuple(runs)
