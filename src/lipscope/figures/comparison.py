"""The brackets of several runs on one axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..report import format as fmt
from ..results import Comparison, Kind
from .bracket import COLOURS, MARKS
from .canvas import MUTED, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = 0.4
_NAME = 40


def comparison_figure(comparison: Comparison) -> Figure:
    """One line a run, from what is attained to what is certified; an end that is not on the axis has no mark.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    runs = comparison.runs
    ends = [end for run in runs for end in (run.report.lower, run.report.upper) if 1e-200 <= end <= 1e200]
    left, right = (min(ends) / 2, max(ends) * 2) if ends else (0.5, 2.0)
    figure, [axes] = blank(height=1.0 + _ROW * len(runs))
    axes.set_xscale("log")
    for place, run in enumerate(runs):
        low, high = (min(max(end, left), right) for end in (run.report.lower, run.report.upper))
        axes.plot([low, high], [place, place], color=MUTED, alpha=0.4, linewidth=3)
        found: dict[Kind, float] = {"lower": run.report.lower, "upper": run.report.upper}
        for kind, value in found.items():
            if left < value < right:
                axes.plot(value, place, MARKS[kind], color=COLOURS[kind], markersize=6)
                axes.annotate(
                    fmt.figure(value, kind), (value, place), xytext=(0, 6), textcoords="offset points",
                    ha="center", color=COLOURS[kind],
                )  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(len(runs) - 0.5, -0.8)
    axes.set_yticks(range(len(runs)), [fmt.elide(fmt.plain(run.label), _NAME) for run in runs])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("norm out / norm in")
    return figure
