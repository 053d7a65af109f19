"""Runs side by side, as text: the same words for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from ..results import Comparison, Kind, Result
from . import format as fmt
from .rows import Row, rows


@dataclass(frozen=True)
class Cell:
    """One quantity of one run."""

    row: Row
    ratio: float | None
    """By the value of the first run; None for that run itself, and where there is no such ratio."""

    @property
    def ratio_text(self) -> str:
        """The ratio such as ×0.93; empty if there is none."""
        return "" if self.ratio is None else f"×{fmt.number(self.ratio, digits=3)}"


@dataclass(frozen=True)
class Line:
    """One quantity over all runs; None where a run does not have it."""

    name: str
    symbol: tuple[str, str]
    variant: str
    kind: Kind
    cells: list[Cell | None]

    @property
    def full_name(self) -> str:
        """The quantity in words, with its variant."""
        return f"{self.name}, {self.variant}" if self.variant else self.name


def lines(comparison: Comparison) -> list[Line]:
    """The quantities in the order of the first run that has them, over all runs."""
    tables = [{(row.key, row.variant, row.kind): row for row in rows(run.report)} for run in comparison.runs]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    # Proved bounds first, then attained ones, as in the table of each run.
    keys.sort(key=lambda key: ("upper", "lower", "estimate").index(key[2]))
    found: list[Line] = []
    for key in keys:
        given = [table.get(key) for table in tables]
        some = next(row for row in given if row is not None)
        cells = [None if row is None else Cell(row, _ratio(row, given[0])) for row in given]
        found.append(Line(some.name, some.symbol, some.variant, some.kind, cells))
    return found


def _ratio(row: Row, first: Row | None) -> float | None:
    if first is None or row is first or not (0 < first.value < math.inf) or not math.isfinite(row.value):
        return None
    return row.value / first.value


def verdict(comparison: Comparison, write: Callable[..., str] = fmt.number) -> str:
    """What the brackets decide about which constant is smaller, in a sentence or two; `write` writes numbers."""
    runs = comparison.runs
    names = {run.label: fmt.plain(run.label) for run in runs}
    decided = [
        (one, other) if one.report.upper < other.report.lower else (other, one)
        for one, other in combinations(runs, 2)
        if one.report.upper < other.report.lower or other.report.upper < one.report.lower
    ]
    if len(runs) == 2:
        if not decided:
            return "The brackets overlap: which of the two constants is larger is not decided."
        [(small, large)] = decided
        more = f"It is proved that {names[large.label]} stretches more than {names[small.label]}"
        if small.report.upper == 0:
            return f"{more}."
        factor = write(large.report.lower / small.report.upper, "lower", digits=3)
        return f"{more}, at least {factor} times as much."
    least = min(runs, key=lambda run: run.report.upper)
    most = max(runs, key=lambda run: run.report.lower)
    pairs = math.comb(len(runs), 2)
    return (
        f"Least is certified of {names[least.label]} ({write(least.report.upper, 'upper')}), most attained by "
        f"{names[most.label]} ({write(most.report.lower, 'lower')}). "
        f"Brackets are apart, so that it is proved which constant is larger, for {len(decided)} of {pairs} pairs."
    )


def notices(comparison: Comparison) -> list[str]:
    """What to keep in mind when reading the numbers side by side."""
    reports = [run.report for run in comparison.runs]
    found = []
    if not comparison.same_data:
        found.append(
            "The runs are on different data: attained and estimated numbers differ for that reason too."
        )
    visited = {len(report.local.estimates) for report in reports if isinstance(report, Result)}
    if comparison.same_data and len(visited) > 1:
        found.append("Lip(x) was computed at different numbers of samples.")
    if len({report.model.fingerprint for report in reports}) < len(reports):
        found.append("Some of the runs are of the same network, weights and all.")
    return found
