"""Tails of a network's outputs under noise: proved, and measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...results import Concentration, Tail, TailPoint
from .. import format as fmt
from .chart import Chart, Figure, Key
from .scale import LogScale

_LEAST, _MOST = 1e-6, 1.0
"""The probabilities that are drawn."""
_TITLES = {"output": "deviation of output {}", "norm": "deviation in norm"}


def tail_charts(found: Concentration) -> list[Chart | None]:
    """The probability of a deviation against its size, for one output and for all in norm."""
    return [_tail_chart(tail, found) for tail in found.tails]


def _tail_chart(tail: Tail, found: Concentration) -> Chart | None:
    points = [point for point in tail.points if 0 < point.deviation < math.inf]
    if not points:
        return None
    x = LogScale.over([point.deviation for point in points])
    y = LogScale.over([_LEAST, _MOST])
    proved = Key("proved, from L", "upper", "solid")
    local = Key("the same for J(x) alone: no bound", "estimate", "dash")
    measured = Key(
        f"measured on {fmt.integer(found.draws)} draws, {found.confidence:.0%} intervals", "segments", "solid"
    )
    data = [_band(points, x)]
    for key, values in (
        (local, [point.local for point in points]),
        (proved, [point.bound for point in points]),
        (measured, [point.measured for point in points]),
    ):
        there = [(p.deviation, value) for p, value in zip(points, values, strict=True) if value > 0]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": key.words,
                "x": [x.place(deviation) for deviation, _ in there],
                "y": [math.log10(value) for _, value in there],
                "line": {"width": 2, "color": f"var(--{key.colour})", "dash": key.symbol},
                "hovertext": [
                    f"{key.words}<br>deviation {fmt.figure(deviation, digits=3)}: probability "
                    f"{fmt.figure(value, 'upper' if key is proved else 'estimate', digits=3)}"
                    for deviation, value in there
                ],
                "hoverinfo": "text",
            }
        )
    title = _TITLES[tail.statistic].format(tail.index)
    layout = {
        "height": 360,
        "margin": {"l": 8, "r": 24, "t": 12, "b": 44},
        "xaxis": x.axis(f"{title}, log scale"),
        "yaxis": y.axis("probability to exceed it, log scale"),
    }
    told = "; ".join(
        f"probability {row.probability:g}: proved {fmt.figure(row.proved, 'upper', 3)}, by J(x) "
        f"{fmt.figure(row.local, digits=3)}, measured {fmt.figure(row.measured, digits=3)}"
        for row in tail.levels
    )
    return Chart(
        f"chart-{tail.statistic}",
        {
            "data": data,
            "layout": layout,
            "narrow": {"xaxis": x.fewer_ticks(), "yaxis": y.fewer_ticks()},
        },
        f"Probability of a {title} on logarithmic axes. {told}.",
        (proved, local, measured),
    )


def _band(points: Sequence[TailPoint], x: LogScale) -> Figure:
    """The intervals of what is measured."""
    places = [x.place(point.deviation) for point in points]
    low = [math.log10(max(point.low, _LEAST / 10)) for point in points]
    high = [math.log10(max(point.high, _LEAST / 10)) for point in points]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": places + places[::-1],
        "y": high + low[::-1],
        "fill": "toself",
        "fillcolor": "var(--segmentsband)",
        "line": {"width": 0, "color": "var(--segmentsband)"},
        "hoverinfo": "skip",
    }
