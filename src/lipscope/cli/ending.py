"""How a command ends: whatever stops it, with one sentence and an exit code (docs/exit-codes.md)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from ..errors import LipscopeError, is_out_of_memory
from .console import escaped, say

OUT_OF_MEMORY, SYSTEM_REFUSED, CLOSED_PIPE = 9, 10, 141
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(BaseException):
    """A signal asked the command to end; no `except Exception` on the way out holds it up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ending(goes_on: Callable[[], bool]) -> Iterator[None]:
    """Errors that a user or the machine can cause end the process in one sentence and their exit code.

    Anything else is an error of lipscope's own and goes through, with its traceback.

    Args:
        goes_on: whether the same command, given again, goes on where this one stopped.

    Raises:
        SystemExit: with the exit code.
    """
    again = "the same command goes on where this run stopped"
    try:
        with _signals_raise():
            yield
            # What is still buffered is refused here, if it is, and not after the last word.
            sys.stdout.flush()
    except LipscopeError as error:
        _fail(str(error), error.exit_code)
    except Stopped as stop:
        say(f"[bold]{_STOPPED[signal.Signals(stop.number)]}[/]" + (f": {again}" if goes_on() else ""))
        sys.exit(128 + stop.number)
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough.
        _discard_output()
        sys.exit(CLOSED_PIPE)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        then = f"; {again}" if goes_on() else ""
        _fail(f"not enough memory; free some, or take a smaller --batch-size or network{then}", OUT_OF_MEMORY)
    except OSError as error:
        _discard_output()
        what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        _fail(f"the system refused to read or write: {what}{error.strerror or error}", SYSTEM_REFUSED)


def _fail(sentence: str, code: int) -> NoReturn:
    # Where even standard error takes nothing more, the code has to do.
    with suppress(OSError):
        say(f"[bold red]error:[/] {escaped(sentence)}")
    sys.exit(code)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Within, a first signal raises `Stopped`, so that locks and drafts go; a second one ends the process."""

    def stop(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    try:
        before = {each: signal.signal(each, stop) for each in _SIGNALS}
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _discard_output() -> None:
    """Let Python's own flush at the end succeed where standard output takes nothing more."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
