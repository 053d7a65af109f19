"""A vertical axis with one place a layer."""

from __future__ import annotations

import math
from html import escape

from .. import format as fmt
from .chart import Figure

MOST_TICKS = 60
WIDE_NAME, NARROW_NAME = 36, 16


def row_height(count: int) -> int:
    """Pixels a place, less the more there are."""
    return 28 if count <= 30 else 20 if count <= MOST_TICKS else 8


def places(names: list[str], length: int) -> Figure:
    """A downward axis with one place per name of `length`, not all of them written if they are many."""
    stride = math.ceil(len(names) / MOST_TICKS) if len(names) <= MOST_TICKS else 3
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
