"""Where a command writes: tables to standard output, progress and messages to standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..text import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from ..progress import Progress
    from ..results import Report


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A bar for each stage while the block runs; nothing where standard error is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = open_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, object] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(escaped(stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield show


def open_console(error: bool = True) -> Console:
    """Standard error, or standard output."""
    from rich.console import Console

    console = Console(stderr=error, highlight=False)
    # Rich would end the process with code 1, which stands for errors of lipscope's own.
    console.on_broken_pipe = _broken_pipe  # type: ignore[method-assign]
    return console


def _broken_pipe() -> None:
    raise BrokenPipeError


def say(message: str) -> None:
    """One message in Rich's markup."""
    open_console().print(message, soft_wrap=True)


def escaped(text: str) -> str:
    """Text from outside, whose brackets are no markup and whose control characters do nothing."""
    from rich.markup import escape

    return escape(plain(text))


def written(*paths: Path) -> None:
    """Say which files a command wrote."""
    say("\nwrote " + " and ".join(escaped(str(path)) for path in paths))


def draw(figure: Figure, path: Path) -> None:
    """Write a figure, and say so."""
    from ..figures import save

    save(figure, path)
    written(path)


def print_json(report: Report) -> None:
    """A report as JSON on standard output, whose control characters and direction overrides are escaped."""
    print("".join(c if c == "\n" or plain(c) == c else f"\\u{ord(c):04x}" for c in report.to_json()))
