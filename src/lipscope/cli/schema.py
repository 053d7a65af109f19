"""`lipscope schema`: the JSON schemas of what commands write."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .app import app

File = Literal[
    "result",
    "bracket",
    "inspect",
    "check",
    "comparison",
    "fisher",
    "mean-field",
    "concentration",
    "discriminant",
]


@app.command()
def schema(
    file: Annotated[
        File, typer.Argument(help="The file without its .json; `result` is what `analyze` writes.")
    ] = "result",
) -> None:
    """Print the JSON schema of result.json, or of what another command writes."""
    import json

    from .. import results

    kinds: dict[File, type[results.Report]] = {
        "result": results.Result,
        "bracket": results.Bracket,
        "inspect": results.Inspection,
        "check": results.Gate,
        "comparison": results.Comparison,
        "fisher": results.FisherReport,
        "mean-field": results.MeanFieldReport,
        "concentration": results.ConcentrationReport,
        "discriminant": results.DiscriminantReport,
    }
    print(json.dumps(kinds[file].json_schema(), indent=2))
