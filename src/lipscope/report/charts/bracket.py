"""Everything on one logarithmic axis: bounds, attained numbers, estimates and the distribution of Lip(x)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ...results import Bracket, Kind, Local, Result
from .. import format as fmt
from ..rows import Row, rows
from .chart import SYMBOLS, Chart, Figure
from .scale import LogScale

_GROUPS: dict[Kind, str] = {"upper": "Proved", "lower": "Attained", "estimate": "On these data, estimated"}
_FEW, _ROW, _THIN_ROW = 12, 36, 28
_DISTRIBUTION = "Lip(x), all samples"
_BOX = (("0", "1", 1.5), ("0.05", "0.95", 5.0), ("0.25", "0.75", 13.0))
"""Quantiles of Lip(x) from and to which a line of so many pixels goes."""


@dataclass(frozen=True)
class _Line:
    """One line of the chart: a group's title, a quantity, or the distribution of Lip(x)."""

    label: str
    short: str
    row: Row | None = None


def bracket_chart(report: Result | Bracket) -> Chart:
    """All quantities in groups by kind, the interval that holds L shaded."""
    table = rows(report)
    local = report.local if isinstance(report, Result) else None
    spread = None if local is None else _spread(local)
    lines = _lines(table, spread is not None)
    places = {line.row: place for place, line in enumerate(lines) if line.row is not None}
    scale = LogScale.over(
        [row.value for row in table] + [row.value + (row.error or 0.0) for row in table] + (spread or [])
    )
    traces: list[Figure] = []
    if local is not None and spread is not None:
        place = next(place for place, line in enumerate(lines) if line.label == _DISTRIBUTION)
        traces += _distribution(local, place, scale)
    for kind in _GROUPS:
        if members := [row for row in table if row.kind == kind]:
            traces += _marks(kind, members, places, scale)
    low, high = scale.place(report.lower), scale.place(report.upper)
    if report.upper == math.inf:
        high = scale.range[1]
    top = -0.95
    height = _ROW if len(lines) <= _FEW else _THIN_ROW
    axis: Figure = {
        "range": [len(lines) - 0.4, top],
        "tickvals": list(range(len(lines))),
        "ticktext": [line.label for line in lines],
        "showgrid": False,
    }
    layout = {
        "height": 92 + height * len(lines),
        "margin": {"l": 8, "r": 24, "t": 8, "b": 44},
        "xaxis": scale.axis("norm out / norm in, log scale"),
        "yaxis": axis,
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
    parts = "; ".join(f"{row.full_name} {fmt.typeset(row.value_text)}, {row.kind}" for row in table)
    samples = ""
    if local is not None and spread is not None:
        samples = f" Lip(x) of the samples: {_quantiles(local, '; ')}."
    narrow = {"xaxis": scale.fewer_ticks(), "yaxis": {"ticktext": [line.short for line in lines]}}
    return Chart(
        "chart-bracket",
        {"data": traces, "layout": layout, "narrow": narrow},
        f"Logarithmic axis with {parts}.{samples}",
    )


def _lines(table: Sequence[Row], distribution: bool) -> list[_Line]:
    """The groups from the top down, each under its title; Lip(x) of the samples comes first of the estimates."""
    lines: list[_Line] = []
    for kind, title in _GROUPS.items():
        members = [_Line(*_labels(row), row) for row in table if row.kind == kind]
        if kind == "estimate" and distribution:
            members.insert(0, _Line(_DISTRIBUTION, "Lip(x)"))
        if members:
            short = title.partition(",")[0]
            lines += [_Line(f"<b>{title}</b>", f"<b>{short}</b>"), *members]
    return lines


def _labels(row: Row) -> tuple[str, str]:
    base, sub = row.symbol
    symbol = f"{base}<sub>{sub}</sub>" if sub else base
    if row.key == "local":
        return symbol, symbol
    long = f"{symbol} {row.variant or row.name}"
    # Where there is little room: the symbol alone, but for the many that share one, which the variant tells apart.
    return long, {"effective": row.variant, "second moment": long}.get(row.key, symbol)


def _marks(kind: Kind, members: Sequence[Row], places: dict[Row, int], scale: LogScale) -> list[Figure]:
    """A mark for each quantity of one kind, with bars of one standard error and its number beside them."""
    centres = [scale.place(row.value) for row in members]
    ends = [_error_ends(row, scale) for row in members]
    left = [scale.fraction(row.value) > 0.62 for row in members]
    heights = [places[row] for row in members]
    marks = {
        "type": "scatter",
        "mode": "markers",
        "name": kind,
        "x": centres,
        "y": heights,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - centre for centre, (_, high) in zip(centres, ends, strict=True)],
            "arrayminus": [centre - low for centre, (low, _) in zip(centres, ends, strict=True)],
            "color": f"var(--{kind})",
            "thickness": 2,
            "width": 0,
            "visible": any(row.error for row in members),
        },
        "hovertext": [
            f"{row.full_name}: {fmt.typeset(row.value_text)}<br>{kind}, {escape(row.meaning)}"
            for row in members
        ],
        "hoverinfo": "text",
        "cliponaxis": False,
        "marker": {
            "symbol": SYMBOLS[kind],
            "size": 9 if kind == "estimate" else 14,
            # Hollow, but not see-through: the error bar ends where the mark begins.
            "color": "var(--page)" if kind == "estimate" else f"var(--{kind})",
            "line": {"width": 2, "color": f"var(--{kind})"},
        },
    }
    pad = "\u00a0\u00a0\u00a0"
    texts = {
        "type": "scatter",
        "mode": "text",
        "x": [low if at_left else high for (low, high), at_left in zip(ends, left, strict=True)],
        "y": heights,
        "text": [
            f"{pad}<b>{fmt.typeset(row.figure_text)}</b>{fmt.typeset(row.error_text)}{pad}" for row in members
        ],
        "textposition": ["middle left" if at_left else "middle right" for at_left in left],
        "textfont": {"size": 13, "color": f"var(--{kind})"},
        "hoverinfo": "skip",
        "cliponaxis": False,
    }
    return [marks, texts]


def _error_ends(row: Row, scale: LogScale) -> tuple[float, float]:
    """Where one standard error below and above the value is; the lower end stays on the axis."""
    centre, error = scale.place(row.value), row.error or 0.0
    if not (row.value > 0 and 0 < error < math.inf):
        return centre, centre
    low = scale.place(row.value - error) if row.value > error else scale.range[0]
    return max(low, scale.range[0]), scale.place(row.value + error)


def _spread(local: Local) -> list[float] | None:
    """The quantiles of Lip(x) if there is a distribution to draw."""
    found = [local.quantiles.get(key, math.nan) for key in fmt.QUANTILES]
    return found if len(local.estimates) > 1 and all(map(math.isfinite, found)) else None


def _distribution(local: Local, place: int, scale: LogScale) -> list[Figure]:
    """Lip(x) of the samples: thicker lines for inner quantiles, the median as a gap."""
    shown: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [scale.place(local.quantiles[low]), scale.place(local.quantiles[high])],
            "y": [place, place],
            "line": {"width": width, "color": "var(--fill)"},
            "hovertext": _quantiles(local, "<br>"),
            "hoverinfo": "text",
        }
        for low, high, width in _BOX
    ]
    median = scale.place(local.quantiles["0.5"])
    shown.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": [median, median],
            "y": [place - 0.28, place + 0.28],
            "line": {"width": 2.5, "color": "var(--ink)"},
            "hoverinfo": "skip",
        }
    )
    ends = scale.place(local.quantiles["0"]), scale.place(local.quantiles["1"])
    at_left = scale.fraction(local.quantiles["1"]) > 0.62
    shown.append(
        {
            "type": "scatter",
            "mode": "text",
            "x": [ends[0] if at_left else ends[1]],
            "y": [place],
            "text": [
                f"\u00a0\u00a0\u00a0median <b>{fmt.figure(local.quantiles['0.5'], digits=3)}</b>\u00a0\u00a0\u00a0"
            ],
            "textposition": "middle left" if at_left else "middle right",
            "textfont": {"size": 13, "color": "var(--estimate)"},
            "hoverinfo": "skip",
            "cliponaxis": False,
        }
    )
    return shown


def _quantiles(local: Local, separator: str) -> str:
    return separator.join(f"{fmt.QUANTILES[key]} {fmt.figure(local.quantiles[key])}" for key in fmt.QUANTILES)
