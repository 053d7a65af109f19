"""The certified constants of the layers, and what each does to the most stretched direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..report import format as fmt
from ..results import LayerBound, Slack
from .canvas import ESTIMATE, UPPER, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW, _TALLEST = 0.22, 60.0
_NAME = 40


def layers_figure(layers: Sequence[LayerBound], slack: Slack | None = None) -> Figure | None:
    """Constants as bars from 1 on a logarithmic axis, stretches as dots; None without layers.

    Constants that are 0 or infinite, or nearly so, have no bar: they are written.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    if not layers:
        return None
    figure, [axes] = blank(height=min(1.0 + _ROW * len(layers), _TALLEST))
    axes.set_xscale("log")
    for place, layer in enumerate(layers):
        constant = layer.constant
        drawn = constant if 1e-200 <= constant <= 1e200 else 1.0
        axes.barh(place, drawn - 1.0, left=1.0, height=0.6, color=UPPER, alpha=0.45, linewidth=0)
        axes.annotate(
            fmt.figure(constant, "upper"), (max(drawn, 1.0), place), xytext=(3, 0), textcoords="offset points",
            va="center", color=UPPER,
        )  # fmt: skip
    if slack is not None:
        dots = [(layer.stretch, place) for place, layer in enumerate(slack.layers) if layer.stretch]
        x, y = zip(*dots, strict=True) if dots else ((), ())
        axes.plot(x, y, "o", color=ESTIMATE, markersize=4, label=f"stretch at {fmt.plain(slack.point)}")
        axes.legend(frameon=False, loc="lower right")
        for text in axes.get_legend().get_texts():  # type: ignore[union-attr]
            text.set_parse_math(False)
    axes.margins(x=0.12)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_yticks(range(len(layers)), [fmt.elide(fmt.plain(layer.place), _NAME) for layer in layers])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("certified constant" + ("" if slack is None else ", and stretch"))
    return figure
