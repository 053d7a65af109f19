"""Stretch against distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..report import format as fmt
from ..report.charts.stretch import FAMILIES
from ..results import Result
from .canvas import LOWER, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"steepest": "#74439c", "segments": "#a8500a", "pairs": "#1d7a55"}


def stretch_figure(result: Result) -> Figure | None:
    """Medians and 5–95 % bands of the stretch of each family of pairs by distance; None if there are none.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    curves = [] if result.mid_range is None else [curve for curve in result.mid_range.curves if curve.bins]
    if not curves:
        return None
    figure, [axes] = blank(height=3.6)
    for curve in curves:
        x = [found.distance for found in curve.bins]
        low, middle, high = ([found.quantiles[q] for found in curve.bins] for q in ("0.05", "0.5", "0.95"))
        colour = _COLOURS[curve.name]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, middle, "o-", color=colour, markersize=3, label=FAMILIES[curve.name].words)
    lines = [("max Lip(x)", result.local.value)]
    if result.empirical is not None:
        lines.append((r"$L_\mathrm{emp}$", result.empirical.value))
    for words, value in lines:
        if 1e-200 <= value <= 1e200:
            axes.axhline(value, color=LOWER, linestyle="--", linewidth=1)
            axes.annotate(
                f"{words} {fmt.figure(value, 'lower')}", (1, value), xycoords=("axes fraction", "data"),
                xytext=(0, 2), textcoords="offset points", ha="right", color=LOWER,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("distance ‖x₁ − x₂‖")
    axes.set_ylabel("stretch")
    figure.legend(loc="outside upper left", frameon=False, fontsize="medium")
    return figure
