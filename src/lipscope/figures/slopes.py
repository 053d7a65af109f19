"""The mean slopes of the nonlinear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..report import format as fmt
from ..results import LayerSlope
from .canvas import ESTIMATE, MUTED, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW, _TALLEST = 0.24, 60.0
_NAME = 40


def slopes_figure(slopes: Sequence[LayerSlope]) -> Figure | None:
    """Mean slopes, active as dots and secant as open squares; None if none is known.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    readings = {"active": [slope.active for slope in slopes], "secant": [slope.secant for slope in slopes]}
    dots = {name: _dots(values) for name, values in readings.items()}
    if not any(dots.values()):
        return None
    figure, [axes] = blank(height=min(1.0 + _ROW * len(slopes), _TALLEST))
    for place in dots["active"].keys() & dots["secant"].keys():
        axes.plot([found[place] for found in dots.values()], [place, place], color=MUTED, alpha=0.4)
    for (name, found), marker in zip(dots.items(), "os", strict=True):
        x, y = list(found.values()), list(found)
        fill = "full" if name == "active" else "none"
        axes.plot(x, y, marker, color=ESTIMATE, markersize=5, label=name, fillstyle=fill)
    axes.set_ylim(len(slopes) - 0.4, -0.6)
    axes.set_yticks(range(len(slopes)), [fmt.elide(fmt.plain(slope.place), _NAME) for slope in slopes])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mean slope p_k")
    axes.legend(frameon=False)
    return figure


def _dots(values: Sequence[float | None]) -> dict[int, float]:
    """The values that are there, by their place."""
    known = ((place, value) for place, value in enumerate(values) if value is not None)
    return {place: value for place, value in known if math.isfinite(value)}
