"""All quantities of a run on one logarithmic axis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..report import format as fmt
from ..report.rows import Row, rows
from ..results import Bracket, Kind, Result
from .canvas import ESTIMATE, LOWER, MUTED, UPPER, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: dict[Kind, str] = {"upper": UPPER, "lower": LOWER, "estimate": ESTIMATE}
MARKS: dict[Kind, str] = {"upper": "<", "lower": ">", "estimate": "o"}
_ROW = 0.24
_SMALLEST, _LARGEST = 1e-200, 1e200


def bracket_figure(report: Result | Bracket) -> Figure:
    """Proved, attained and estimated constants, the interval that holds L shaded.

    What is not between 1e-200 and 1e200, as zero and infinity, has no place on the axis: it is named at its edge.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    table = rows(report)
    figure, [axes] = blank(height=1.1 + _ROW * len(table))
    shown = [row.value for row in table if _SMALLEST <= row.value <= _LARGEST]
    low, high = (min(shown), max(shown)) if shown else (1.0, 1.0)
    left, right = low / 2, high * 2
    if report.upper > left:
        axes.axvspan(
            min(max(report.lower, left), right), min(report.upper, right), color=LOWER, alpha=0.1, linewidth=0
        )
    for place, row in enumerate(table):
        _mark(axes, place, row, left, right)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_yticks(range(len(table)), [row.full_name for row in table])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("norm out / norm in")
    axes.set_title(fmt.plain(report.model.name), loc="left", parse_math=False)
    return figure


def _mark(axes: Axes, place: int, row: Row, left: float, right: float) -> None:
    colour, there = COLOURS[row.kind], _SMALLEST <= row.value <= _LARGEST
    value = row.value if there else right if row.value > 1 else left
    ends = (value, value)
    if there:
        error = row.error if row.error is not None and math.isfinite(row.error) else 0.0
        ends = (max(value - error, left), min(value + error, right))
        axes.plot(value, place, MARKS[row.kind], color=colour, markersize=6)
        axes.plot(ends, [place, place], color=colour, linewidth=1.5)
    # Beside the mark, on the side where there is more room.
    at_left = math.log(value / left) > 0.7 * math.log(right / left)
    axes.annotate(
        fmt.figure(row.value, row.kind) + fmt.typeset(row.error_text),
        (ends[0] if at_left else ends[1], place),
        xytext=(-8 if at_left else 8, 0),
        textcoords="offset points",
        ha="right" if at_left else "left",
        va="center",
        color=colour if there else MUTED,
    )
