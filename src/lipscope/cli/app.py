"""The application itself: its name and help, `--version`, and how errors end."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from .._version import __version__
from .ending import ending

_GO_ON = ("analyze", "certify", "inspect", "fisher", "mean-field", "concentration", "discriminant")
"""Commands that write a run folder and go on from it."""


class _Commands(TyperGroup):
    """The commands, each of which ends as `ending` says."""

    def invoke(self, ctx: Any) -> Any:
        with ending(lambda: ctx.invoked_subcommand in _GO_ON):
            return super().invoke(ctx)


app = typer.Typer(
    name="lipscope",
    cls=_Commands,
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets its number.
            stream.reconfigure(errors="backslashreplace")
    app(standalone_mode=True)
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
