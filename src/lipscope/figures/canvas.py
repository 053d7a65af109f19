"""An empty figure in the house style, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import write_atomically
from ..errors import LipscopeError, RunFolderError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UPPER, LOWER, ESTIMATE, MUTED = "#b4432f", "#2f6db4", "#3f8f5f", "#767676"
"""Colours of what is proved, attained, estimated, and of all that stands beside."""

_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9.0,
    "grid.alpha": 0.25,
    "svg.fonttype": "path",
    "svg.hashsalt": "lipscope",  # the same figure is the same file
}


def blank(
    columns: int = 1, *, rows: int = 1, width: float = 6.4, height: float = 4.0
) -> tuple[Figure, list[Axes]]:
    """A figure of `rows`×`columns` axes, `width`×`height` inches, and its axes row by row.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    check_installed()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def check_installed() -> None:
    """Raise a `LipscopeError` if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise LipscopeError("figures need matplotlib: pip install 'lipscope[figures]'") from error


def check_drawable(path: Path) -> str:
    """What kind of file `save` makes of the path: "svg", "pdf" or "png".

    Raises:
        LipscopeError: another suffix, or matplotlib is not installed.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in ("svg", "pdf", "png"):
        raise LipscopeError(f"{path}: figures are written as .svg, .pdf or .png")
    check_installed()
    return suffix


def save(figure: Figure, path: Path) -> None:
    """Write a figure as .svg, .pdf or .png, by the suffix of `path`.

    Raises:
        LipscopeError: see `check_drawable`.
        RunFolderError: the file cannot be written.
    """
    import io

    import matplotlib

    suffix = check_drawable(path)
    buffer = io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format=suffix, dpi=160, metadata=undated)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(buffer.getvalue()))
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
