"""A chart: a plotly figure with what the page needs to show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...results import Kind

Figure = dict[str, Any]

SYMBOLS: dict[Kind, str] = {"upper": "triangle-left", "lower": "triangle-right", "estimate": "circle"}


MARKS = {
    "circle": "●",
    "circle-open": "○",
    "diamond": "◆",
    "square": "■",
    "triangle-left": "◀",
    "x-thin": "×",
    "solid": "—",
    "dash": "- -",
}
"""Characters that look like plotly's marks and lines."""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: words, the colour by its name in the style sheet, and plotly's name of the mark."""

    words: str
    colour: str
    symbol: str

    @property
    def mark(self) -> str:
        """The mark as a character."""
        return MARKS[self.symbol]


@dataclass(frozen=True)
class Chart:
    """A figure with its element's id, a description for those who do not see it, and its legend if it has one."""

    id: str
    figure: Figure
    description: str
    keys: tuple[Key, ...] = ()
