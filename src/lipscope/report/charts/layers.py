"""The certified constants of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ...results import LayerBound, Slack
from .. import format as fmt
from .chart import Chart, Figure
from .places import MOST_TICKS, NARROW_NAME, WIDE_NAME, places, row_height
from .scale import LogScale


def layer_chart(layers: Sequence[LayerBound], slack: Slack | None = None) -> Chart | None:
    """Certified constants of the layers as bars from 1 on a logarithmic axis, and dots where layers get to."""
    if not layers:
        return None
    reached = [] if slack is None else [layer.stretch for layer in slack.layers]
    # A layer in which all dies out would stretch the axis for one dot: it has none.
    dots = {place: stretch for place, stretch in enumerate(reached) if stretch}
    scale = LogScale.over([layer.constant for layer in layers] + [1.0, *dots.values()])
    lengths = [scale.place(layer.constant) for layer in layers]
    marks = {place: scale.place(stretch) for place, stretch in dots.items()}
    low, high = min([0.0, *lengths, *marks.values()]), max([0.0, *lengths, *marks.values()])
    room = 0.16 * (high - low)
    texts = [fmt.figure(layer.constant, "upper") for layer in layers]
    names = [fmt.plain(layer.place) for layer in layers]
    data: list[Figure] = [
        {
            "type": "bar",
            "orientation": "h",
            "x": lengths,
            "y": list(range(len(layers))),
            "text": texts if len(layers) <= MOST_TICKS else None,
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
    if marks:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "stretch",
                "x": list(marks.values()),
                "y": list(marks),
                "hovertext": [
                    f"{escape(names[place])}: stretch {fmt.figure(stretch, digits=3)}"
                    for place, stretch in dots.items()
                ],
                "hoverinfo": "text",
                "cliponaxis": False,
                "marker": {"color": "var(--segments)", "size": 9, "symbol": "circle"},
            }
        )
    layout = {
        "height": 64 + row_height(len(layers)) * len(layers),
        "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        "xaxis": scale.axis("certified constant" + (", and stretch" if marks else "") + ", log scale")
        | {
            "range": [low - (room if low < 0 else 0), high + room],
            "zeroline": True,
            "zerolinecolor": "var(--muted)",
        },
        "yaxis": places(names, WIDE_NAME),
    }
    parts = "; ".join(f"{name} {text}" for name, text in zip(names[:40], texts[:40], strict=True))
    more = f"; and {len(layers) - 40} more" if len(layers) > 40 else ""
    short = {"title": {"text": "constant, log scale"}}
    narrow = {"xaxis": scale.fewer_ticks() | short, "yaxis": places(names, NARROW_NAME)}
    return Chart(
        "chart-layers",
        {"data": data, "layout": layout, "narrow": narrow},
        f"Bars of certified constants: {parts}{more}.",
    )
