"""`lipscope models`: the built-in networks."""

from __future__ import annotations

from .app import app
from .console import open_console


@app.command()
def models() -> None:
    """List the built-in networks."""
    from rich.table import Table

    from ..models import ZOO

    table = Table("name", "input", "description", box=None, pad_edge=False)
    for name, entry in ZOO.items():
        table.add_row(name, "×".join(map(str, entry.input_shape)), entry.description)
    open_console(error=False).print(table)
