"""Class separation layer by layer, beside what stretching alone could do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..results import Discriminant, LayerSeparation
from .canvas import ESTIMATE, LOWER, MUTED, UPPER, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def discriminant_figure(found: Discriminant) -> Figure:
    """Left the separations, right the stretches, one place a layer.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    figure, (separations, stretches) = blank(2, width=8.0, height=3.8)
    _lines(
        separations, found.layers,
        [
            ("between / within", [layer.ratio for layer in found.layers], ESTIMATE),
            ("held out", [layer.held_out for layer in found.layers], MUTED),
            ("between / (κ² · within at the input)", [layer.attained_separation for layer in found.layers], LOWER),
        ],
    )  # fmt: skip
    separations.axhline(found.limit, color=UPPER, linewidth=1, label="limit of that")
    separations.set_ylabel("separation of the classes")
    _lines(
        stretches, found.layers,
        [
            ("certified L", [layer.certified for layer in found.layers], UPPER),
            ("largest of a pair, κ", [layer.attained for layer in found.layers], LOWER),
            ("between classes", [layer.between_stretch for layer in found.layers], ESTIMATE),
            ("within classes", [layer.within_stretch for layer in found.layers], MUTED),
        ],
    )  # fmt: skip
    stretches.set_ylabel("stretch from the input")
    for axes in (separations, stretches):
        axes.legend(frameon=False, fontsize=7)
    return figure


def _lines(
    axes: Axes,
    layers: Sequence[LayerSeparation],
    series: Sequence[tuple[str, Sequence[float | None], str]],
) -> None:
    for name, values, colour in series:
        points = [(k, v) for k, v in enumerate(values) if v is not None and 0 < v < math.inf]
        if points:
            places, heights = zip(*points, strict=True)
            axes.plot(places, heights, "o-", color=colour, label=name, markersize=3, linewidth=1)
    axes.set_yscale("log")
    step = max(1, len(layers) // 30)
    axes.set_xticks(
        range(0, len(layers), step), [layer.place for layer in layers[::step]], rotation=90, fontsize=7
    )
