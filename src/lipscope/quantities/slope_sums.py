"""Sums of slopes over a data set, kept so that any group of samples can be left out again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph
from ..slopes import AveragedSlope
from .checkpoint import State
from .draws import GROUPS, PairRun

Kind = Literal["active", "secant"]
_ALL = -1


def slope_totals(
    graph: Graph, x: Tensor, runs: Sequence[PairRun] = (), points: bool = True
) -> tuple[Tensor, dict[int, AveragedSlope], dict[PairRun, dict[int, AveragedSlope]]]:
    """Sums of the slopes of every nonlinear node, unit by unit, in one evaluation of a batch (B, *in).

    Args:
        runs: pairs of the batch.
        points: whether the sums at the points are wanted.

    Returns:
        The network's outputs (B, *out), the sums over the points (empty if they are not wanted), and those over the
        pairs of each run.
    """
    layers = graph.nonlinear()
    active: dict[int, AveragedSlope] = {}
    secant: dict[PairRun, dict[int, AveragedSlope]] = {run: {} for run in runs}

    def visit(index: int, a: Tensor) -> Tensor:
        layer = layers[index]
        point = layer.at(a)
        if points:
            active[index] = point.slope.total()
        for run, found in secant.items():
            ends = point.rows(run.first, run.count), point.rows(run.second, run.count)
            found[index] = layer.between(*ends).total()
        return point.value

    return graph.evaluate(x, visit), active, secant


class SlopeSums:
    """Sums over all slopes, and over those that touch each group, unit by unit, at points and over pairs.

    Memory: (1 + groups) float32 numbers a unit and kind, whatever the number of samples.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[Kind, int, int], AveragedSlope] = {}
        self._counts: dict[tuple[Kind, int], float] = defaultdict(float)

    def add(self, kind: Kind, groups: Iterable[int], slopes: Mapping[int, AveragedSlope], count: int) -> None:
        """Add the sums, by node, over `count` points or pairs of samples in the groups."""
        for row in {_ALL, *groups}:
            for node, slope in slopes.items():
                self._accumulate((kind, row, node), slope)
            self._counts[kind, row] += count

    def merge(self, other: SlopeSums) -> None:
        """Add the sums of another part of the data."""
        for key, slope in other._sums.items():
            self._accumulate(key, slope)
        for row, count in other._counts.items():
            self._counts[row] += count

    def count(self, kind: Kind) -> int:
        """How many points or pairs the sums run over."""
        return int(self._counts.get((kind, _ALL), 0))

    def mean(self, kind: Kind, without: int | None = None) -> dict[int, AveragedSlope] | None:
        """Mean slopes by node in float64, leaving out what touches a group; None if nothing is left."""
        touched = self._counts.get((kind, without), 0.0) if without is not None else 0.0
        left = self.count(kind) - touched
        if left <= 0:
            return None
        means = {}
        for (which, row, node), slope in self._sums.items():
            if which == kind and row == _ALL:
                values = slope.values.to(torch.float64)
                if touched and without is not None:
                    values = values - self._sums[kind, without, node].values
                means[node] = slope.with_values(values / left)
        return means

    def groups(self, kind: Kind) -> list[int]:
        """The groups that some point or pair touches."""
        return [g for g in range(GROUPS) if (kind, g) in self._counts]

    def cpu(self) -> SlopeSums:
        """The sums in main memory."""
        moved = SlopeSums()
        moved._counts.update(self._counts)
        moved._sums = {key: slope.with_values(slope.values.cpu()) for key, slope in self._sums.items()}
        return moved

    def state(self) -> dict[str, np.ndarray]:
        """As named arrays."""
        sums = {f"sum.{k}.{row}.{node}": s.values.numpy() for (k, row, node), s in self._sums.items()}
        return sums | {f"count.{k}.{row}": np.array(count) for (k, row), count in self._counts.items()}

    @classmethod
    def restored(cls, graph: Graph, state: State) -> SlopeSums:
        """From what `state` gave for the same graph."""
        found, layers = cls(), graph.nonlinear()
        for name, values in state.items():
            what, *where = name.split(".")
            if what == "sum":
                kind, row, node = where
                slope = layers[int(node)].averaged(torch.from_numpy(values))
                found._sums[kind, int(row), int(node)] = slope  # type: ignore[index]
            elif what == "count":
                found._counts[where[0], int(where[1])] = float(values)  # type: ignore[index]
        return found

    def _accumulate(self, key: tuple[Kind, int, int], slope: AveragedSlope) -> None:
        known = self._sums.get(key)
        if known is None:
            # A copy: the same sums are added to several rows.
            self._sums[key] = slope.with_values(slope.values.clone())
        else:
            known.values += slope.values
