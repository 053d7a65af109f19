"""Several numbers of each layer, one place a layer from the top down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .. import format as fmt
from .chart import Chart, Figure, Key
from .places import NARROW_NAME, WIDE_NAME, places, row_height
from .scale import LogScale

_TOLD = 40
_LEAST_HEIGHT = 220


@dataclass(frozen=True)
class Series:
    """A number of each layer, None where it has none; with its standard errors, or joined by a line."""

    key: Key
    values: Sequence[float | None]
    errors: Sequence[float | None] | None = None
    joined: bool = True


def layers_chart(
    name: str,
    title: str,
    short: str,
    places_named: Sequence[str],
    series: Sequence[Series],
    *,
    logarithmic: bool = True,
    reference: tuple[Key, float] | None = None,
) -> Chart | None:
    """The series over the layers, on one axis; None if there is nothing to draw.

    Errors are drawn as two standard errors on either side. `short` is the axis' title where there is little room,
    `reference` a vertical line.
    """
    names = [fmt.plain(place) for place in places_named]
    drawn = [one for one in series if any(map(_there, one.values))]
    if not drawn:
        return None
    line = [] if reference is None or not math.isfinite(reference[1]) else [reference]
    known = [value for one in drawn for value in one.values if value is not None and _there(value)]
    known += [value for _, value in line]
    axis, narrow, scale = _axis(
        title, short, known, [end for one in drawn for end in _ends(one)], logarithmic
    )
    layout: Figure = {
        "height": max(_LEAST_HEIGHT, 64 + row_height(len(names)) * len(names)),
        "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        "xaxis": axis,
        "yaxis": places(names, WIDE_NAME),
    }
    told = "; ".join(f"{one.key.words}: {_told(names, one)}" for one in drawn)
    lines = "".join(f"; {key.words}: {fmt.figure(value, digits=3)}" for key, value in line)
    return Chart(
        f"chart-{name}",
        {
            "data": [
                *(
                    _vertical(key, value if scale is None else scale.place(value), len(names))
                    for key, value in line
                ),
                *(_trace(one, names, scale) for one in drawn),
            ],
            "layout": layout,
            "narrow": {"xaxis": narrow, "yaxis": places(names, NARROW_NAME)},
        },
        f"By layer, {told}{lines}.",
        (*(one.key for one in drawn), *(key for key, _ in line)),
    )


def _there(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _ends(series: Series) -> list[float]:
    """Where the bars of errors end."""
    return [
        value + sign * 2 * error
        for value, error in zip(series.values, series.errors or [], strict=False)
        if value is not None and error is not None and math.isfinite(error)
        for sign in (-1, 1)
    ]


def _axis(
    title: str, short: str, known: Sequence[float], ends: Sequence[float], logarithmic: bool
) -> tuple[Figure, Figure, LogScale | None]:
    """The axis, what is different on a narrow screen, and the scale if it is logarithmic."""
    if logarithmic:
        scale = LogScale.over([*known, *(end for end in ends if end > 0)])
        narrow = scale.fewer_ticks() | {"title": {"text": f"{short}, log scale"}}
        return scale.axis(f"{title}, log scale"), narrow, scale
    finite = [value for value in (*known, *ends, 0.0) if math.isfinite(value)]
    low, high = min(finite), max(finite)
    room = 0.06 * ((high - low) or 1.0)
    axis: Figure = {
        "title": {"text": title},
        "range": [low - (room if low < 0 else 0), high + room],
        "nticks": 6,
        "zeroline": True,
        "zerolinecolor": "var(--muted)",
    }
    return axis, {"nticks": 4, "title": {"text": short}}, None


def _trace(series: Series, names: Sequence[str], scale: LogScale | None) -> Figure:
    """Marks at the layers that have the number, joined over those that do not."""
    there = [place for place, value in enumerate(series.values) if _there(value)]
    values = [series.values[place] or 0.0 for place in there]
    if scale is None:
        there = [place for place, value in zip(there, values, strict=True) if math.isfinite(value)]
        values = [value for value in values if math.isfinite(value)]
    errors = [(series.errors[place] if series.errors else None) or 0.0 for place in there]
    centres = values if scale is None else [scale.place(value) for value in values]
    colour = f"var(--{series.key.colour})"
    trace: Figure = {
        "type": "scatter",
        "mode": "lines+markers" if series.joined else "markers",
        "name": series.key.words,
        "x": centres,
        "y": there,
        "hovertext": [
            f"{escape(names[place])}: {series.key.words} {fmt.figure(value, digits=3)}"
            f"{fmt.error(error or None, fmt.figure)}"
            for place, value, error in zip(there, values, errors, strict=True)
        ],
        "hoverinfo": "text",
        "cliponaxis": False,
        "line": {"width": 1.5, "color": colour},
        "marker": {
            "symbol": series.key.symbol,
            "size": 8,
            "color": colour,
            "line": {"width": 2 if series.key.symbol.endswith(("open", "thin")) else 0, "color": colour},
        },
    }
    if any(errors):
        trace["error_x"] = _bars(values, errors, centres, scale, colour)
    return trace


def _bars(
    values: Sequence[float],
    errors: Sequence[float],
    centres: Sequence[float],
    scale: LogScale | None,
    colour: str,
) -> Figure:
    """Two standard errors on either side; on a logarithmic axis the lower one stays on it."""
    above, below = [], []
    for value, error, centre in zip(values, errors, centres, strict=True):
        low, high = value - 2 * error, value + 2 * error
        if scale is not None:
            low, high = scale.place(low) if low > 0 else scale.range[0], scale.place(high)
        above.append(high - centre)
        below.append(centre - low)
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "color": colour,
        "thickness": 1.5,
        "width": 0,
    }


def _vertical(key: Key, position: float, count: int) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": key.words,
        "x": [position, position],
        "y": [-1, count],
        "line": {"color": f"var(--{key.colour})", "width": 1.25, "dash": key.symbol},
        "hoverinfo": "skip",
    }


def _told(names: Sequence[str], series: Series) -> str:
    told = [
        f"{name} {fmt.figure(value, digits=3)}"
        for name, value in zip(names, series.values, strict=True)
        if _there(value)
    ]
    more = f", and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
    return ", ".join(told[:_TOLD]) + more
