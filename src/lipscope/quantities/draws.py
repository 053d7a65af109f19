"""Which samples are evaluated together, and which of them are paired: the passes over a data set.

The samples are split into groups at random. A batch holds samples of one group, or of two whose
samples are then paired across. So one evaluation of a sample serves several pairs, pairs are runs
of neighbours (views, no copies), and leaving a group out, with every pair that touches it, is
leaving out batches: the jackknife over groups is honest for pairs, and free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

GROUPS = 8
"""Groups of samples, each left out once for a standard error."""

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
    groups: tuple[int, ...]
    """The group of all samples, or the two groups of the two ends of every pair."""
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
            but no more than there are, count·(count − 1)/2. Where every group fits into half a
            batch they are distinct; else a pair may come again in a later pass.
        batch_size: the most samples in a batch (two, if one is given and pairs are wanted).
        seed: of the groups and shuffles.
    """
    generator = np.random.default_rng(seed)
    groups = [g.tolist() for g in np.array_split(generator.permutation(count), min(GROUPS, count))]
    missing = min(pairs, count * (count - 1) // 2)
    batch_size = max(batch_size, 2 if missing else 1)
    batches: list[Batch] = []
    for number in itertools.count():
        if number > 0 and missing == 0:
            return batches
        # Passes within groups and across pairs of groups take turns, each on newly shuffled samples.
        passes = _within if number % 2 == 0 else _across
        drawn = list(passes(groups, batch_size))
        offered = [sum(run.count for run in rotations) for _, _, rotations in drawn]
        wanted, total, passed = missing, max(1, sum(offered)), 0
        for (indices, owners, rotations), offer in zip(drawn, offered, strict=True):
            passed += offer
            due = -(-min(wanted, total) * passed // total) - (wanted - missing)
            runs = tuple(_first(rotations, due))
            missing -= sum(run.count for run in runs)
            if number == 0 or runs:
                batches.append(Batch(tuple(indices), runs, owners, number == 0))
        for group in groups:
            generator.shuffle(group)
    raise AssertionError("unreachable")


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


_Drawn = tuple[list[int], tuple[int, ...], list[PairRun]]
"""Indices of a batch, the groups they are from, and the runs of all its pairs."""


def _within(groups: list[list[int]], batch_size: int) -> Iterator[_Drawn]:
    for number, group in enumerate(groups):
        for part in _parts(group, -(-len(group) // batch_size)):
            yield part, (number,), _rotations(len(part))


def _across(groups: list[list[int]], batch_size: int) -> Iterator[_Drawn]:
    half = max(1, batch_size // 2)
    for (i, first), (j, second) in itertools.combinations(enumerate(groups), 2):
        number = -(-max(len(first), len(second)) // half)
        for a, b in zip(_parts(first, number), _parts(second, number), strict=True):
            if a and b:
                yield a + b, (i, j), _cross_rotations(len(a), len(b))


def _parts(group: list[int], number: int) -> Iterator[list[int]]:
    """Even parts: no batch of one sample, which would have no pair, beside larger ones."""
    edges = np.linspace(0, len(group), max(1, number) + 1).round().astype(int).tolist()
    for start, stop in itertools.pairwise(edges):
        yield group[start:stop]


def _rotations(size: int) -> list[PairRun]:
    """All pairs of `size` samples as runs, from the half turn (disjoint pairs) downwards."""
    runs: list[PairRun] = []
    for shift in range(size // 2, 0, -1):
        # Rotations by s and size − s give the same pairs; half a turn gives each pair twice.
        runs.append(PairRun(0, shift, size - shift if 2 * shift != size else shift))
        if 2 * shift != size:
            runs.append(PairRun(size - shift, 0, shift))
    return runs


def _cross_rotations(first: int, second: int) -> list[PairRun]:
    """All pairs of one of the `first` samples and one of the `second` behind them."""
    if first > second:
        return [PairRun(run.second, run.first, run.count) for run in _turned(second, first, first, 0)]
    return _turned(first, second, 0, first)


def _turned(few: int, many: int, few_at: int, many_at: int) -> list[PairRun]:
    runs: list[PairRun] = []
    for shift in range(many):
        straight = min(few, many - shift)
        runs.append(PairRun(few_at, many_at + shift, straight))
        if few > straight:
            runs.append(PairRun(few_at + straight, many_at, few - straight))
    return runs


def _first(runs: Sequence[PairRun], wanted: int) -> Iterator[PairRun]:
    """The first `wanted` pairs of the runs."""
    for run in runs:
        if wanted <= 0:
            return
        yield PairRun(run.first, run.second, min(run.count, wanted))
        wanted -= run.count
