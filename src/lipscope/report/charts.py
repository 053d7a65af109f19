"""The charts of the page as plain plotly figures (dictionaries), colours by name.

A colour `var(--name)` is looked up in the page's style sheet when the chart is drawn, so charts
follow light, dark and print. Logarithmic axes are linear axes of log₁₀ with their own ticks:
zero and infinity, which have no place on them, are put at the edge and say so.
Every name is HTML-escaped, since plotly reads a subset of HTML in its texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from ..results import Kind, LayerBound, LayerSlope, Local, Result
from . import format as fmt
from .rows import Row, rows

Figure = dict[str, Any]

SYMBOLS: dict[Kind, str] = {"upper": "triangle-left", "lower": "triangle-right", "estimate": "circle-open"}

_MOST_BINS = 60
_MOST_POINTS = 2000
_MOST_TICKS = 60
_WIDE_NAME, _NARROW_NAME = 36, 16
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Chart:
    """A figure with its element's id and a description for those who do not see it."""

    id: str
    figure: Figure
    description: str


def charts(result: Result) -> dict[str, Chart]:
    """The charts this result has data for."""
    found = [
        bracket_chart(result),
        local_chart(result.local),
        layer_chart(result.analytical.layers),
        slope_chart(result.slopes),
    ]
    return {chart.id.removeprefix("chart-"): chart for chart in found if chart is not None}


def bracket_chart(result: Result) -> Chart:
    """All quantities on one logarithmic axis, the interval that holds L shaded."""
    table = rows(result)
    scale = LogScale.over([row.value for row in table])
    traces = []
    for kind in ("upper", "lower", "estimate"):
        members = [(place, row) for place, row in enumerate(table) if row.kind == kind]
        if members:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers+text",
                    "name": kind,
                    "x": [scale.place(row.value) for _, row in members],
                    "y": [place for place, _ in members],
                    "text": [f"\u00a0<b>{row.value_text}</b>\u00a0" for _, row in members],
                    "textposition": [
                        "middle left" if scale.fraction(row.value) > 0.72 else "middle right"
                        for _, row in members
                    ],
                    "textfont": {"size": 13, "color": f"var(--{kind})"},
                    "hovertext": [
                        f"{row.full_name}: {row.value_text}<br>{kind}, {escape(row.meaning)}"
                        for _, row in members
                    ],
                    "hoverinfo": "text",
                    "cliponaxis": False,
                    "marker": {
                        "symbol": SYMBOLS[kind],
                        "size": 12 if kind == "estimate" else 14,
                        "color": f"var(--{kind})",
                        "line": {"width": 2, "color": f"var(--{kind})"},
                    },
                }
            )
    low, high = scale.place(result.lower), scale.place(result.upper)
    top = -0.95
    layout = {
        "height": 92 + 40 * len(table),
        "margin": {"l": 8, "r": 24, "t": 8, "b": 44},
        "xaxis": scale.axis("norm out / norm in, log scale"),
        "yaxis": {
            "range": [len(table) - 0.4, top],
            "tickvals": list(range(len(table))),
            "ticktext": [_label(row) for row in table],
            "showgrid": False,
        },
        "shapes": [
            {
                "type": "rect",
                "layer": "below",
                "x0": low,
                "x1": max(low, high),
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "fillcolor": "var(--band)",
                "line": {"width": 0},
            }
        ],
        "annotations": [
            {
                "x": (low + high) / 2,
                "y": top,
                "yanchor": "top",
                "text": "L lies here",
                "showarrow": False,
                "font": {"color": "var(--accent)", "size": 12},
            }
        ],
    }
    parts = "; ".join(f"{row.full_name} {row.value_text}, {row.kind}" for row in table)
    narrow = {"xaxis": scale.fewer_ticks()}
    return Chart(
        "chart-bracket",
        {"data": traces, "layout": layout, "narrow": narrow},
        f"Logarithmic axis with {parts}.",
    )


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
                f"{fmt.number(back(left), digits=3)} to {fmt.number(back(right), digits=3)}: {count}"
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
                f"{escape(fmt.elide(fmt.plain(name), 60))}: {fmt.number(value)}" for value, name in strip
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
                "hovertext": [f"attained: {fmt.number(local.value, 'lower')}"],
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
                "text": f"mean {fmt.number(local.mean, digits=3)}",
                "showarrow": False,
                "font": {"color": "var(--ink)", "size": 12},
            }
        ]
    return Chart(
        "chart-local",
        {"data": data, "layout": layout, "narrow": narrow},
        f"Histogram of Lip(x) over {fmt.integer(len(values))} samples, from {fmt.number(low)} to "
        f"{fmt.number(high)}, mean {fmt.number(local.mean)}; below it, one point per sample.",
    )


def layer_chart(layers: Sequence[LayerBound]) -> Chart | None:
    """Certified constants of the layers as bars from 1 on a logarithmic axis."""
    if not layers:
        return None
    scale = LogScale.over([layer.constant for layer in layers] + [1.0])
    lengths = [scale.place(layer.constant) for layer in layers]
    low, high = min([0.0, *lengths]), max([0.0, *lengths])
    room = 0.16 * (high - low)
    texts = [fmt.number(layer.constant, "upper") for layer in layers]
    names = [fmt.plain(layer.place) for layer in layers]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": lengths,
            "y": list(range(len(layers))),
            "text": texts if len(layers) <= _MOST_TICKS else None,
            "textposition": "outside",
            "textangle": 0,
            "cliponaxis": False,
            "constraintext": "none",
            "textfont": {"size": 12, "color": "var(--ink)"},
            "hovertext": [
                f"{escape(name)} ({escape(fmt.plain(layer.layer))}): {text}"
                for name, layer, text in zip(names, layers, texts, strict=True)
            ],
            "hoverinfo": "text",
            "marker": {"color": "var(--fill)"},
            "width": 0.62,
        }
    ]
    layout = {
        "height": 64 + _row_height(len(layers)) * len(layers),
        "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        "xaxis": scale.axis("certified constant, log scale")
        | {
            "range": [low - (room if low < 0 else 0), high + room],
            "zeroline": True,
            "zerolinecolor": "var(--muted)",
        },
        "yaxis": _places(names, _WIDE_NAME),
    }
    parts = "; ".join(f"{name} {text}" for name, text in zip(names[:40], texts[:40], strict=True))
    more = f"; and {len(layers) - 40} more" if len(layers) > 40 else ""
    narrow = {"xaxis": scale.fewer_ticks(), "yaxis": _places(names, _NARROW_NAME)}
    return Chart(
        "chart-layers",
        {"data": data, "layout": layout, "narrow": narrow},
        f"Bars of certified constants: {parts}{more}.",
    )


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
                    f"{escape(name)}: {reading} {fmt.number(value, digits=3)}"
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
        "height": 64 + max(_row_height(len(slopes)), 10) * len(slopes) + 12,
        "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        "xaxis": {
            "title": {"text": "mean slope p<sub>k</sub>"},
            "range": [low - (0.06 * span if low < 0 else 0), high + 0.06 * span],
            "nticks": 6,
            "zeroline": True,
            "zerolinecolor": "var(--muted)",
        },
        "yaxis": _places(names, _WIDE_NAME),
    }
    parts = "; ".join(
        f"{name} {fmt.number(slope.active, digits=3)}, {fmt.number(slope.secant, digits=3)}"
        for name, slope in list(zip(names, slopes, strict=True))[:40]
    )
    narrow = {"yaxis": _places(names, _NARROW_NAME)}
    return Chart(
        "chart-slopes",
        {"data": data, "layout": layout, "narrow": narrow},
        f"Mean slopes, active and secant: {parts}.",
    )


@dataclass(frozen=True)
class LogScale:
    """log₁₀ positions from `low` to `high`, with a place at the edge for zero and for infinity."""

    low: float
    high: float
    zero: bool
    infinite: bool

    @classmethod
    def over(cls, values: Sequence[float]) -> LogScale:
        """A scale that holds all `values`."""
        logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)]
        low, high = (min(logs), max(logs)) if logs else (0.0, 0.0)
        if high - low < 0.5:
            low, high = low - 0.25, high + 0.25
        return cls(low, high, any(value <= 0 for value in values), any(value == math.inf for value in values))

    @property
    def edge(self) -> float:
        """How far outside zero and infinity are put."""
        return 0.12 * (self.high - self.low)

    @property
    def range(self) -> tuple[float, float]:
        """The axis with its margins."""
        pad = 0.05 * (self.high - self.low)
        return (
            self.low - pad - (self.edge if self.zero else 0),
            self.high + pad + (self.edge if self.infinite else 0),
        )

    def place(self, value: float) -> float:
        """The position of `value`."""
        if math.isnan(value) or value <= 0:
            return self.low - self.edge
        return math.log10(value) if math.isfinite(value) else self.high + self.edge

    def fraction(self, value: float) -> float:
        """The position of `value`, 0 at the left and 1 at the right."""
        low, high = self.range
        return (self.place(value) - low) / (high - low)

    def axis(self, title: str) -> Figure:
        """The plotly axis."""
        positions, texts = self._ticks()
        if self.zero:
            positions, texts = [self.low - self.edge, *positions], ["0", *texts]
        if self.infinite:
            positions, texts = [*positions, self.high + self.edge], [*texts, "∞"]
        return {"title": {"text": title}, "range": list(self.range), "tickvals": positions, "ticktext": texts}

    def fewer_ticks(self) -> Figure:
        """The ticks for a narrow screen: every other one, and always those at the edges for 0 and ∞."""
        full = self.axis("")
        ticks = list(zip(full["tickvals"], full["ticktext"], strict=True))
        first, last = int(self.zero), len(ticks) - int(self.infinite)
        inner = ticks[first:last]
        kept = [*ticks[:first], *(inner[::2] if len(inner) > 5 else inner), *ticks[last:]]
        return {"tickvals": [position for position, _ in kept], "ticktext": [text for _, text in kept]}

    def _ticks(self) -> tuple[list[float], list[str]]:
        slack = 0.04 * (self.high - self.low)
        first, last = math.floor(self.low - slack), math.ceil(self.high + slack)
        decades = last - first
        if decades <= 3:
            mantissas: tuple[int, ...] = (
                (1, 2, 5) if self.high - self.low > 0.6 else (1, 2, 3, 4, 5, 6, 7, 8, 9)
            )
            steps = [(decade, m) for decade in range(first, last + 1) for m in mantissas]
        else:
            stride = max(1, math.ceil(decades / 10))
            steps = [(decade, 1) for decade in range(first - first % stride, last + 1, stride)]
        kept = [
            (decade + math.log10(m), _tick(decade, m))
            for decade, m in steps
            if self.low - slack <= decade + math.log10(m) <= self.high + slack
        ]
        return [position for position, _ in kept], [text for _, text in kept]


def _tick(decade: int, mantissa: int) -> str:
    if 0 <= decade <= 3:
        return str(mantissa * 10**decade)
    if -3 <= decade < 0:
        return f"{mantissa * 10.0**decade:.{-decade}f}"
    return f"10<sup>{decade}</sup>" if mantissa == 1 else f"{mantissa}·10<sup>{decade}</sup>"


def _label(row: Row) -> str:
    base, sub = row.symbol
    symbol = f"{base}<sub>{sub}</sub>" if sub else base
    return f"{symbol} {row.variant or row.name}" if row.key != "local" else symbol


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _row_height(count: int) -> int:
    return 28 if count <= 30 else 20 if count <= _MOST_TICKS else 8


def _places(names: list[str], length: int) -> Figure:
    """A downward axis with one place per name of `length`, not all of them written if they are many."""
    stride = math.ceil(len(names) / _MOST_TICKS) if len(names) <= _MOST_TICKS else 3
    shown = range(0, len(names), stride)
    short = _without_common_start(names) if any(len(name) > length for name in names) else names
    return {
        "range": [len(names) - 0.4, -0.6],
        "tickvals": list(shown),
        "ticktext": [escape(fmt.elide(short[place], length)) for place in shown],
        "showgrid": False,
    }


def _without_common_start(names: list[str]) -> list[str]:
    """Dotted names such as `encoder.layers.3.mlp` without the parts that all of them begin with."""
    parts = [name.split(".") for name in names]
    common = 0
    for column in zip(*(part[:-1] for part in parts), strict=False):
        if len(set(column)) > 1:
            break
        common += 1
    return ["…" + ".".join(part[common:]) for part in parts] if common else names


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
