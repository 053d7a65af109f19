"""`lipscope report`: the table and the page of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError, LipscopeError, RunFolderError
from .app import app
from .console import escaped, open_console, say


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or its result.json.")],
    html: Annotated[
        Path | None, typer.Option(help="Write the HTML page here. Default: report.html in the run folder.")
    ] = None,
) -> None:
    """Print the table of a finished run again and rebuild its HTML page from result.json."""
    from ..analysis import witness_pictures
    from ..report import print_result, write_html
    from ..results import Result
    from ..runs import REPORT, RESULT, WITNESS, read_bytes, read_tensors

    path = run / RESULT if run.is_dir() else run
    try:
        result = Result.from_json(read_bytes(path))
    except DataError:
        raise
    except LipscopeError as error:
        raise DataError(f"{path}: {error}") from error
    stored = path.parent / WITNESS
    pictures = witness_pictures(read_tensors(stored)) if stored.exists() else {}
    target = html or path.parent / REPORT
    try:
        try:
            write_html(result, target, pictures)
        except OSError as error:
            raise RunFolderError(f"cannot write {target}: {error.strerror or error}") from error
        print_result(result, open_console(error=False))
    except (ArithmeticError, LookupError, ValueError) as error:
        raise DataError(
            f"{path} cannot be shown, since its numbers do not fit together ({type(error).__name__}: {error}); "
            "ask for an unaltered copy"
        ) from error
    say(f"\nwrote {escaped(str(target))}")
