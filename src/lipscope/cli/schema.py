"""`lipscope schema`: the JSON schemas of what commands write."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .app import app


@app.command()
def schema(
    file: Annotated[
        Literal["result", "bracket", "inspect"],
        typer.Argument(
            help="result.json of `analyze`, bracket.json of `certify` or inspect.json of `inspect`."
        ),
    ] = "result",
) -> None:
    """Print the JSON schema of result.json, bracket.json or inspect.json."""
    import json

    from ..results import Bracket, Inspection, Report, Result

    kinds: dict[str, type[Report]] = {"result": Result, "bracket": Bracket, "inspect": Inspection}
    print(json.dumps(kinds[file].json_schema(), indent=2))
