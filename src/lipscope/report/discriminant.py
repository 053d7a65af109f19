"""Class separation layer by layer, in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from ..results import Discriminant, DiscriminantReport, LayerSeparation
from . import format as fmt
from .slack import percent
from .terminal import empty_table, shown

_ROOM_FOR_NAMES, _ROOM_FOR_STRETCH, _ROOM_FOR_CERTIFIED = 80, 108, 136
_NARROW, _WIDE = 10, 26


def print_discriminant(report: DiscriminantReport, console: Console) -> None:
    """Print one row a layer, and where the classes are farthest apart."""
    found = report.discriminant
    classes, samples = len(found.classes), report.data.samples
    console.print()
    console.print(
        Text.assemble(
            shown(console, fmt.plain(report.model.name), "bold"),
            shown(
                console,
                f" on {fmt.plain(report.data.name)}: {classes} classes, {fmt.integer(samples)} samples",
                "dim",
            ),
        )
    )
    console.print()
    _table(found, console)
    console.print()
    for line in conclusions(found):
        console.print(shown(console, line))


def conclusions(found: Discriminant) -> list[str]:
    """What the table says, in sentences."""
    first = found.layers[0]
    best = max(found.layers, key=lambda layer: layer.ratio)
    lines = [
        f"Between/within is {fmt.number(first.ratio, digits=3)} at the input and largest at {fmt.plain(best.place)}: "
        f"{fmt.number(best.ratio, digits=3)}."
    ]
    above = best.ratio > found.limit
    lines.append(
        f"By stretch, no map reaches more than {fmt.number(found.limit, digits=3)} on these samples"
        + (": what is above that in the first column is contraction within classes." if above else ".")
    )
    if any(math.isinf(layer.quotient) for layer in found.layers):
        lines.append(
            "Fisher's quotient is ∞ where features have more dimensions than there are samples, and says nothing there; "
            "the held-out one does."
        )
    if found.chance is not None:
        lines.append(f"Held out, about {fmt.number(found.chance, digits=2)} is chance.")
    return lines


def _table(found: Discriminant, console: Console) -> None:
    columns: list[tuple[str, int, Callable[[LayerSeparation], str]]] = [
        ("Between/within", 0, lambda layer: fmt.number(layer.ratio, digits=3)),
        ("By stretch", 0, lambda layer: fmt.number(layer.attained_separation, digits=3)),
        ("Certified", _ROOM_FOR_CERTIFIED, lambda layer: fmt.number(layer.certified_separation, digits=3)),
        ("Fisher", 0, lambda layer: fmt.number(layer.quotient, digits=3)),
        ("Held out", 0, lambda layer: fmt.number(layer.held_out, digits=3)),
        ("Stretch between", _ROOM_FOR_STRETCH, lambda layer: fmt.number(layer.between_stretch, digits=3)),
        ("within", _ROOM_FOR_STRETCH, lambda layer: fmt.number(layer.within_stretch, digits=3)),
        ("largest", _ROOM_FOR_STRETCH, lambda layer: fmt.number(layer.attained, digits=3)),
        ("L ≤", _ROOM_FOR_CERTIFIED, lambda layer: fmt.number(layer.certified, "upper", digits=3)),
    ]
    if found.layers[0].accuracy is not None:
        columns.append(
            ("LDA", 0, lambda layer: fmt.MISSING if layer.accuracy is None else percent(layer.accuracy))
        )
    columns = [column for column in columns if console.width >= column[1]]
    table = empty_table()
    table.add_column("Layer", overflow="fold")
    length = _NARROW if console.width < _ROOM_FOR_NAMES else _WIDE
    for title, _, _ in columns:
        table.add_column(shown(console, title), justify="right", overflow="fold")
    for layer in found.layers:
        cells = (shown(console, cell(layer)) for _, _, cell in columns)
        table.add_row(shown(console, fmt.elide(fmt.plain(layer.place), length)), *cells)
    console.print(table)
