"""The mean slopes of the nonlinear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ...results import LayerSlope
from .. import format as fmt
from .chart import Chart, Figure
from .places import NARROW_NAME, WIDE_NAME, places, row_height


def slope_chart(slopes: Sequence[LayerSlope]) -> Chart | None:
    """Mean slopes of every nonlinear layer: active as dots, secant as open squares."""
    known = [
        value
        for slope in slopes
        for value in (slope.active, slope.secant)
        if value is not None and math.isfinite(value)
    ]
    if not known:
        return None
    names = [fmt.plain(slope.place) for slope in slopes]
    both = [slope.active is not None and slope.secant is not None for slope in slopes]
    bridge_x: list[float | None] = []
    bridge_y: list[int | None] = []
    for place, (slope, joined) in enumerate(zip(slopes, both, strict=True)):
        if joined:
            bridge_x += [_finite(slope.active), _finite(slope.secant), None]
            bridge_y += [place, place, None]
    data: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": bridge_x,
            "y": bridge_y,
            "hoverinfo": "skip",
            "line": {"color": "var(--rule)", "width": 2},
        }
    ]
    for reading, values, symbol, colour in (
        ("active", [slope.active for slope in slopes], "circle", "var(--accent)"),
        ("secant", [slope.secant for slope in slopes], "square-open", "var(--ink)"),
    ):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": reading,
                "x": [_finite(value) for value in values],
                "y": list(range(len(slopes))),
                "hovertext": [
                    f"{escape(name)}: {reading} {fmt.figure(value, digits=3)}"
                    for name, value in zip(names, values, strict=True)
                ],
                "hoverinfo": "text",
                "cliponaxis": False,
                "marker": {
                    "color": colour,
                    "size": 10,
                    "symbol": symbol,
                    "line": {"width": 2, "color": colour},
                },
            }
        )
    low, high = min([0.0, *known]), max([0.0, *known])
    span = (high - low) or 1.0
    layout = {
        "height": 64 + max(row_height(len(slopes)), 10) * len(slopes) + 12,
        "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        "xaxis": {
            "title": {"text": "mean slope p<sub>k</sub>"},
            "range": [low - (0.06 * span if low < 0 else 0), high + 0.06 * span],
            "nticks": 6,
            "zeroline": True,
            "zerolinecolor": "var(--muted)",
        },
        "yaxis": places(names, WIDE_NAME),
    }
    parts = "; ".join(
        f"{name} {fmt.figure(slope.active, digits=3)}, {fmt.figure(slope.secant, digits=3)}"
        for name, slope in list(zip(names, slopes, strict=True))[:40]
    )
    narrow = {"yaxis": places(names, NARROW_NAME)}
    return Chart(
        "chart-slopes",
        {"data": data, "layout": layout, "narrow": narrow},
        f"Mean slopes, active and secant: {parts}.",
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
