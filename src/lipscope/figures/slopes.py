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
    if not any(map(_known, [value for values in readings.values() for value in values])):
        return None
    figure, [axes] = blank(height=min(1.0 + _ROW * len(slopes), _TALLEST))
    for place, slope in enumerate(slopes):
        if _known(slope.active) and _known(slope.secant):
            axes.plot([slope.active, slope.secant], [place, place], color=MUTED, alpha=0.4)
    for (reading, values), style in zip(
        readings.items(), ({"marker": "o"}, {"marker": "s", "fillstyle": "none"}), strict=True
    ):
        dots = [(value, place) for place, value in enumerate(values) if _known(value)]
        x, y = zip(*dots, strict=True) if dots else ((), ())
        axes.plot(x, y, linestyle="none", color=ESTIMATE, markersize=5, label=reading, **style)
    axes.set_ylim(len(slopes) - 0.4, -0.6)
    axes.set_yticks(range(len(slopes)), [fmt.elide(fmt.plain(slope.place), _NAME) for slope in slopes])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mean slope p_k")
    axes.legend(frameon=False)
    return figure


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
