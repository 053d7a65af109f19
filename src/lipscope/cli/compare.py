"""`lipscope compare`: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError, RunFolderError
from .app import app
from .console import open_console, written


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of finished runs, all of analyze or all of certify, or their JSON files."
        ),
    ],
    label: Annotated[
        list[str] | None,
        typer.Option(help="What to call a run, once for each in their order. Default: the folders' names."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for comparison.json and report.html. Default: a folder under runs/."),
    ] = None,
) -> None:
    """Compare models, or checkpoints of one: the quantities of finished runs side by side.

    The first run is what the others are measured by.

    [bold]Examples[/]

      lipscope compare runs/plain runs/regularised

      lipscope compare runs/epoch-1 runs/epoch-5 runs/epoch-20 --output runs/training
    """
    from ..atomic import write_atomically
    from ..jobs.comparison import compare
    from ..jobs.folder import COMPARISON, REPORT, default_output
    from ..report import print_comparison, write_html

    if len(runs) < 2:
        raise DataError("a comparison needs two runs or more, such as: lipscope compare runs/a runs/b")
    if label and len(label) != len(runs):
        raise DataError(f"--label was given {len(label)} times for {len(runs)} runs; give it once for each")
    found = compare(*runs, labels=label)
    folder = output or default_output(
        "compare", runs[0].name, {"runs": [str(run) for run in runs], "label": label}
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_html(found, folder / REPORT)
        text = found.to_json().encode()
        write_atomically(folder / COMPARISON, lambda file: file.write(text))
    except OSError as error:
        raise RunFolderError(f"cannot write in {folder}: {error.strerror or error}") from error
    print_comparison(found, open_console(error=False))
    written(folder / COMPARISON, folder / REPORT)
