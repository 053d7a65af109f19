"""What a command found, as main numbers, one table and sentences: the same words for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

from ...results import Kind
from .. import format as fmt

Write = Callable[..., str]
"""What turns numbers in sentences into text, with the arguments of `format.number`."""


@dataclass(frozen=True)
class Cell:
    """An entry of the table: its text, ` ± …` if its error is known, and the number to sort by, if it is one."""

    text: str
    error: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Column:
    """A column with one cell a row; terminals of fewer than `room` columns leave it out."""

    title: str
    cells: list[Cell]
    kind: Kind = "estimate"
    room: int = 0
    strong: bool = False

    @property
    def sortable(self) -> bool:
        """Whether its cells are numbers."""
        return any(cell.value is not None for cell in self.cells)


@dataclass(frozen=True)
class Main:
    """A number that the page begins with, and what it is."""

    text: str
    kind: Kind
    words: str
    error: str = ""


@dataclass(frozen=True)
class Sheet:
    """One command's findings; names from outside are printable, not escaped."""

    model: str
    subject: str
    """On what, and how; follows the model's name."""
    main: list[Main]
    lead: str
    """A sentence that belongs before the table; may be empty."""
    title: str
    """Of the first column, the names of the rows."""
    names: list[str]
    columns: list[Column]
    lines: list[str]
    """What the table says, in sentences."""
    narrow_name: int = 28
    """Characters of a name in a narrow terminal."""
    room_for_errors: int = 0
    """Terminals of fewer columns leave the errors in the table out."""


def numbers(
    title: str,
    values: Iterable[float | None],
    digits: int,
    *,
    kind: Kind = "estimate",
    errors: Sequence[float | None] | None = None,
    room: int = 0,
    strong: bool = False,
) -> Column:
    """A column of numbers, with their standard errors where they are known."""
    cells = [
        Cell(fmt.number(value, kind, digits), fmt.error(error), value)
        for value, error in zip(values, repeat(None) if errors is None else errors, strict=errors is not None)
    ]
    return Column(title, cells, kind, room, strong)
