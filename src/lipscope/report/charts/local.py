"""The distribution of Lip(x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from itertools import pairwise

from ...results import Local
from .. import format as fmt
from .chart import SYMBOLS, Chart, Figure
from .scale import LogScale

_MOST_BINS = 60
_MOST_POINTS = 2000
_GOLDEN = (math.sqrt(5) - 1) / 2


def local_chart(local: Local) -> Chart | None:
    """Histogram of Lip(x) above a strip of the samples; None for fewer than two of them."""
    visited = [
        (value, local.samples[place] if place < len(local.samples) else f"sample {place}")
        for place, value in enumerate(local.estimates)
        if math.isfinite(value) and value >= 0
    ]
    if len(visited) < 2:
        return None
    values = [value for value, _ in visited]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > 100
    place: Callable[[float], float] = math.log10 if logarithmic else float
    edges, counts = _bins([place(value) for value in values])
    bins = list(pairwise(edges))
    centres = [(left + right) / 2 for left, right in bins]
    back: Callable[[float], float] = (lambda position: 10.0**position) if logarithmic else float
    strip = _thinned(visited)
    axis: Figure = {"title": {"text": "Lip(x)"}, "nticks": 8}
    narrow: Figure = {"xaxis": {"nticks": 5}}
    if logarithmic:
        scale = LogScale.over(values)
        axis, narrow = scale.axis("Lip(x), log scale"), {"xaxis": scale.fewer_ticks()}
    margin = 0.03 * (edges[-1] - edges[0])
    axis |= {"range": [edges[0] - margin, edges[-1] + margin], "anchor": "y2"}
    data: list[Figure] = [
        {
            "type": "bar",
            "x": centres,
            "y": counts,
            "width": [right - left for left, right in bins],
            "hovertext": [
                f"{fmt.figure(back(left), digits=3)} to {fmt.figure(back(right), digits=3)}: {count}"
                for (left, right), count in zip(bins, counts, strict=True)
            ],
            "hoverinfo": "text",
            "marker": {"color": "var(--fill)", "line": {"width": 1, "color": "var(--page)"}},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "yaxis": "y2",
            "x": [place(value) for value, _ in strip],
            "y": [(index * _GOLDEN) % 1 for index in range(len(strip))],
            "hovertext": [
                f"{escape(fmt.elide(fmt.plain(name), 60))}: {fmt.figure(value)}" for value, name in strip
            ],
            "hoverinfo": "text",
            "marker": {"color": "var(--estimate)", "size": 5, "opacity": 0.55 if len(strip) <= 500 else 0.25},
        },
    ]
    if math.isfinite(local.value) and (local.value > 0 or not logarithmic):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "yaxis": "y2",
                "x": [place(local.value)],
                "y": [0.5],
                "hovertext": [f"attained: {fmt.figure(local.value, 'lower')}"],
                "hoverinfo": "text",
                "cliponaxis": False,
                "marker": {"color": "var(--lower)", "size": 14, "symbol": SYMBOLS["lower"]},
            }
        )
    layout: Figure = {
        "height": 320,
        "margin": {"l": 8, "r": 24, "t": 24, "b": 44},
        "bargap": 0,
        "xaxis": axis,
        "yaxis": {"domain": [0.3, 1], "title": {"text": "samples"}, "nticks": 5, "rangemode": "tozero"},
        "yaxis2": {"domain": [0, 0.22], "range": [-0.3, 1.3], "showticklabels": False, "showgrid": False},
        "shapes": [],
        "annotations": [],
    }
    if math.isfinite(local.mean) and (local.mean > 0 or not logarithmic):
        position = place(local.mean)
        layout["shapes"] = [
            {
                "type": "line",
                "x0": position,
                "x1": position,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": "var(--ink)", "width": 1.5, "dash": "dot"},
            }
        ]
        layout["annotations"] = [
            {
                "x": position,
                "yref": "paper",
                "y": 1,
                "yanchor": "bottom",
                "text": f"mean {fmt.figure(local.mean, digits=3)}",
                "showarrow": False,
                "font": {"color": "var(--ink)", "size": 12},
            }
        ]
    return Chart(
        "chart-local",
        {"data": data, "layout": layout, "narrow": narrow},
        f"Histogram of Lip(x) over {fmt.integer(len(values))} samples, from {fmt.figure(low)} to "
        f"{fmt.figure(high)}, mean {fmt.figure(local.mean)}; below it, one point per sample.",
    )


def _bins(positions: list[float]) -> tuple[list[float], list[int]]:
    """Equal bins of the Freedman–Diaconis width."""
    ordered = sorted(positions)
    low, high = ordered[0], ordered[-1]
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        half = 0.05 * max(abs(low), 1e-3)
        return [low - half, low + half], [len(ordered)]
    quarter = len(ordered) // 4
    width = 2 * (ordered[-1 - quarter] - ordered[quarter]) / len(ordered) ** (1 / 3)
    wanted = math.ceil((high - low) / width) if width > 0 else 1
    bins = max(min(wanted, _MOST_BINS), min(5, len(ordered)))
    counts = [0] * bins
    for position in ordered:
        counts[min(int((position - low) / (high - low) * bins), bins - 1)] += 1
    return [low + (high - low) * step / bins for step in range(bins + 1)], counts


def _thinned(visited: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """At most `_MOST_POINTS` samples, evenly by rank, the smallest and the largest among them."""
    if len(visited) <= _MOST_POINTS:
        return visited
    ordered = sorted(visited, key=lambda item: item[0])
    step = (len(ordered) - 1) / (_MOST_POINTS - 1)
    return [ordered[round(place * step)] for place in range(_MOST_POINTS)]
