"""Stretch against distance: from Lip(x) at distance 0 to L_emp between samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...results import Result, StretchCurve
from .. import format as fmt
from .chart import Chart, Figure
from .scale import LogScale


@dataclass(frozen=True)
class Family:
    """A family of pairs: its words, the CSS variables' name and the mark of its curve."""

    words: str
    colour: str
    mark: str


FAMILIES: dict[str, Family] = {
    "steepest": Family("a sample and its most stretched direction", "steepest", "circle"),
    "segments": Family("a sample and part of the way to another", "segments", "diamond"),
    "pairs": Family("two samples", "pairs", "square"),
}

_BAND = ("0.05", "0.95")
_NEAR = 1.0
"""Decades above the curves within which the certified bound is drawn as a line."""


def stretch_chart(result: Result) -> Chart | None:
    """Median and 5–95 % band of the ratios of each family by distance; None if there are no ratios."""
    curves = [] if result.mid_range is None else [curve for curve in result.mid_range.curves if curve.bins]
    if not curves:
        return None
    bins = [found for curve in curves for found in curve.bins]
    x = LogScale.over([end for found in bins for end in (found.low, found.high)])
    references = _references(result)
    ratios = [found.quantiles[key] for found in bins for key in ("0.5", *_BAND)]
    ratios += [value for _, value, _ in references]
    upper = result.upper
    top = max(ratios)
    near = math.isfinite(upper) and (top == 0 or upper <= top * 10**_NEAR)
    bound = f"certified {fmt.figure(upper, 'upper')}"
    if near:
        references.append((bound, upper, "upper"))
        ratios.append(upper)
    y = LogScale.over(ratios)
    axis = y.axis("stretch, log scale") | {"showgrid": True}
    traces = [trace for curve in curves for trace in _traces(curve, x, y)]
    layout = {
        "height": 420,
        "margin": {"l": 8, "r": 24, "t": 28, "b": 44},
        "xaxis": x.axis("distance ‖x₁ − x₂‖, log scale"),
        "yaxis": axis,
        "shapes": [_line(y.place(value), colour) for _, value, colour in references],
        # L_emp is written where it is far from the curves it comes near to, on the left.
        "annotations": [
            _label(text, y.place(value), colour, on_left=text.startswith("L"))
            for text, value, colour in references
        ]
        + ([] if near or not math.isfinite(upper) else [_above(bound)]),
    }
    parts = "; ".join(
        f"{FAMILIES[curve.name].words}: median {fmt.figure(curve.bins[0].quantiles['0.5'], digits=3)} at "
        f"distance {fmt.figure(curve.bins[0].distance, digits=3)}, "
        f"{fmt.figure(curve.bins[-1].quantiles['0.5'], digits=3)} at "
        f"{fmt.figure(curve.bins[-1].distance, digits=3)}"
        for curve in curves
    )
    lines = ", ".join(text for text, _, _ in references)
    narrow = {"xaxis": x.fewer_ticks(), "yaxis": y.fewer_ticks()}
    return Chart(
        "chart-stretch",
        {"data": traces, "layout": layout, "narrow": narrow},
        f"Stretch against distance on logarithmic axes. {parts}. Horizontal lines: {lines}.",
    )


def _references(result: Result) -> list[tuple[str, float, str]]:
    """Text, value and colour of the horizontal lines."""
    found = [(f"max Lip(x) {fmt.figure(result.local.value, 'lower')}", result.local.value, "lower")]
    if (empirical := result.empirical) is not None:
        text = f"L<sub>emp</sub> {fmt.figure(empirical.value, 'lower')}"
        found.append((text, empirical.value, "lower"))
    return [(text, value, colour) for text, value, colour in found if math.isfinite(value)]


def _traces(curve: StretchCurve, x: LogScale, y: LogScale) -> list[Figure]:
    family = FAMILIES[curve.name]
    places = [x.place(found.distance) for found in curve.bins]
    low, high = ([y.place(found.quantiles[key]) for found in curve.bins] for key in _BAND)
    band = {
        "type": "scatter",
        "mode": "lines",
        "x": places + places[::-1],
        "y": high + low[::-1],
        "fill": "toself",
        "fillcolor": f"var(--{family.colour}band)",
        # A single bin has no area: its edge alone shows the band.
        "line": {"width": 1, "color": f"var(--{family.colour}band)"},
        "hoverinfo": "skip",
    }
    median = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": curve.name,
        "x": places,
        "y": [y.place(found.quantiles["0.5"]) for found in curve.bins],
        "line": {"width": 2, "color": f"var(--{family.colour})"},
        "marker": {"size": 7, "symbol": family.mark, "color": f"var(--{family.colour})"},
        "hovertext": [
            f"{family.words}<br>distance {fmt.figure(found.low, digits=3)} to "
            f"{fmt.figure(found.high, digits=3)}, {fmt.integer(found.count)} pair{'s' * (found.count != 1)}<br>"
            f"median {fmt.figure(found.quantiles['0.5'])}, 5–95 % {fmt.figure(found.quantiles['0.05'])} to "
            f"{fmt.figure(found.quantiles['0.95'])}, max {fmt.figure(found.quantiles['1'])}"
            for found in curve.bins
        ],
        "hoverinfo": "text",
        "cliponaxis": False,
    }
    return [band, median]


def _line(position: float, colour: str) -> Figure:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": position,
        "y1": position,
        "layer": "below",
        "line": {"color": f"var(--{colour})", "width": 1.25, "dash": "dash"},
    }


def _label(text: str, position: float, colour: str, on_left: bool) -> Figure:
    return {
        "xref": "paper",
        "x": 0 if on_left else 1,
        "xanchor": "left" if on_left else "right",
        "y": position,
        "yanchor": "bottom",
        "text": text,
        "showarrow": False,
        "font": {"color": f"var(--{colour})", "size": 12},
    }


def _above(text: str) -> Figure:
    """The bound's number at the top edge: it lies beyond the axis."""
    return _label(f"{text} ↑", 0, "upper", on_left=True) | {"yref": "paper", "y": 1}
