"""`lipscope report`: the table, the page and the figures of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import DataError, RunFolderError
from .app import app
from .console import open_console, written


@app.command()
def report(
    run: Annotated[
        Path,
        typer.Argument(help="The folder of a run of analyze, certify, inspect or compare, or its JSON file."),
    ],
    html: Annotated[
        Path | None, typer.Option(help="Write the HTML page here. Default: report.html in the run folder.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Also draw the charts into this folder, one file each (needs the extra `figures`)."
        ),
    ] = None,
    format: Annotated[
        Literal["svg", "pdf", "png"], typer.Option(help="What the files of --figures are.")
    ] = "svg",
) -> None:
    """Print the table of a finished run again and rebuild its HTML page; draw its charts as files.

    [bold]Examples[/]

      lipscope report runs/demo

      lipscope report runs/demo --html page.html --figures figures --format pdf
    """
    from ..jobs.folder import REPORT, read_arrays, read_report
    from ..report import print_report, write_html

    found = read_report(run)
    folder = run if run.is_dir() else run.parent
    target = html or folder / REPORT
    arrays = read_arrays(folder)
    try:
        try:
            write_html(found, target, arrays)
        except OSError as error:
            raise RunFolderError(f"cannot write {target}: {error.strerror or error}") from error
        print_report(found, open_console(error=False))
    except (ArithmeticError, LookupError, ValueError) as error:
        raise DataError(
            f"{run} cannot be shown, since its numbers do not fit together ({type(error).__name__}: {error}); "
            "ask for an unaltered copy"
        ) from error
    written(target)
    if figures is not None:
        from ..figures import figures_of, save

        for name, figure in figures_of(found).items():
            path = figures / f"{name}.{format}"
            save(figure, path)
            written(path)
