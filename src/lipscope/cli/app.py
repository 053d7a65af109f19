"""The application itself: its name and help, `--version`, and how errors end."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from .._version import __version__
from ..errors import LipscopeError
from .console import escaped, say

app = typer.Typer(
    name="lipscope",
    help="How much can a trained network stretch its input? "
    "Certified from above, attained from below, effectively on your data.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> NoReturn:
    """Entry point: errors a user can cause end in one sentence and their exit code."""
    try:
        app(standalone_mode=True)
    except LipscopeError as error:
        say(f"[bold red]error:[/] {escaped(str(error))}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("[bold]interrupted[/]: the same command goes on where this run stopped")
        sys.exit(130)
    sys.exit(0)


def _version(shown: bool) -> None:
    if shown:
        print(f"lipscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
