"""A network in training: the bracket and the estimates by step, and the mean slopes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import DataError
from .canvas import ESTIMATE, LOWER, MUTED, UPPER, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = {
    "upper": ("certified upper bound", UPPER, "-"),
    "local_max": ("max Lip(x) at the probes", ESTIMATE, "-"),
    "lower": ("attained lower bound", LOWER, "--"),
    "local_mean": ("mean Lip(x) at the probes", ESTIMATE, ":"),
}
_MOST_NAMED = 10
_EFFECTIVE = ("-.", "--", ":", "-")


def log_figure(rows: Sequence[Mapping[str, float]]) -> Figure:
    """The bracket, Lip(x) and L_eff by training step on a logarithmic scale; beside them the mean slopes by layer.

    Args:
        rows: as `train.read_log` gives them.

    Raises:
        DataError: there is no row.
        LipscopeError: matplotlib is not installed.
    """
    if not rows:
        raise DataError("the log holds no snapshot yet: nothing to draw")
    names = list(dict.fromkeys(name for row in rows for name in row))
    slopes = [name for name in names if name.startswith("slope:")]
    figure, axes = blank(2 if slopes else 1, width=9.0 if slopes else 6.4, height=3.6)
    effective = [name for name in names if name.startswith("effective_")]
    styles = {
        **_LINES,
        **{
            name: (f"L_eff {name.removeprefix('effective_').replace('_', ', ')}", MUTED, _EFFECTIVE[i % 4])
            for i, name in enumerate(effective)
        },
    }
    for name, (label, colour, style) in styles.items():
        steps, values = _series(rows, name)
        if values:
            axes[0].plot(steps, values, style, color=colour, label=label, linewidth=1.3)
    axes[0].set_yscale("log")
    axes[0].set_xlabel("training step")
    axes[0].set_ylabel("norm out per norm in")
    axes[0].legend(frameon=False, fontsize=7.5)
    if slopes:
        _draw_slopes(axes[1], rows, slopes)
    return figure


def _draw_slopes(axes: Axes, rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> None:
    from matplotlib import colormaps

    for depth, name in enumerate(names):
        colour = colormaps["viridis"](0.9 * depth / max(1, len(names) - 1))
        label = name.removeprefix("slope:") if len(names) <= _MOST_NAMED else None
        axes.plot(*_series(rows, name), color=colour, label=label, linewidth=1.3)
    axes.set_xlabel("training step")
    axes.set_ylabel("running mean slope $p_k$, first layers dark")
    if len(names) <= _MOST_NAMED:
        axes.legend(frameon=False, fontsize=7.5)


def _series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """The steps at which a number is known, positive and finite, and its values."""
    known = [(row["step"], row[name]) for row in rows if 0 < row.get(name, 0.0) < math.inf]
    return [step for step, _ in known], [value for _, value in known]
