"""A chart: a plotly figure with what the page needs to show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...results import Kind

Figure = dict[str, Any]

SYMBOLS: dict[Kind, str] = {"upper": "triangle-left", "lower": "triangle-right", "estimate": "circle"}


@dataclass(frozen=True)
class Chart:
    """A figure with its element's id and a description for those who do not see it."""

    id: str
    figure: Figure
    description: str
