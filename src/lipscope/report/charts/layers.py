"""The certified constants of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ...results import LayerBound
from .. import format as fmt
from .chart import Chart
from .places import MOST_TICKS, NARROW_NAME, WIDE_NAME, places, row_height
from .scale import LogScale


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
    layout = {
        "height": 64 + row_height(len(layers)) * len(layers),
        "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        "xaxis": scale.axis("certified constant, log scale")
        | {
            "range": [low - (room if low < 0 else 0), high + room],
            "zeroline": True,
            "zerolinecolor": "var(--muted)",
        },
        "yaxis": places(names, WIDE_NAME),
    }
    parts = "; ".join(f"{name} {text}" for name, text in zip(names[:40], texts[:40], strict=True))
    more = f"; and {len(layers) - 40} more" if len(layers) > 40 else ""
    narrow = {"xaxis": scale.fewer_ticks(), "yaxis": places(names, NARROW_NAME)}
    return Chart(
        "chart-layers",
        {"data": data, "layout": layout, "narrow": narrow},
        f"Bars of certified constants: {parts}{more}.",
    )
