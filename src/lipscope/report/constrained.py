"""A constrained network in the terminal."""

from __future__ import annotations

from rich.console import Console

from ..results import Constrained
from . import format as fmt
from .terminal import empty_table, shown


def print_constrained(found: Constrained, console: Console) -> None:
    """Print the certified constant before and after, and each weight's share."""
    title = f"{fmt.plain(found.model)}: L ≤ {fmt.number(found.before, 'upper')} before, "
    title += f"L ≤ {fmt.number(found.after, 'upper', digits=7)} now (certified; asked for {found.bound:g})"
    console.print()
    console.print(shown(console, title, "bold"))
    console.print()
    table = empty_table()
    table.add_column("Weight", overflow="fold")
    for heading in ("Norm before ≤", "Bound", "Norm now ≤", "Times"):
        table.add_column(shown(console, heading), justify="right", no_wrap=True)
    for weight in found.weights:
        table.add_row(
            shown(console, fmt.plain(weight.name)),
            shown(console, fmt.number(weight.before, "upper")),
            shown(console, fmt.number(weight.bound, "upper")),
            shown(console, fmt.number(weight.after, "upper")),
            shown(console, fmt.number(weight.scale)),
        )
    console.print(table)
