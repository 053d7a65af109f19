"""A network in training, in the terminal: the last snapshot, and how its numbers have moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..results import Snapshot
from ..results.monitor import kind_of
from . import format as fmt
from .rows import READINGS, SIGNS
from .terminal import STYLES, empty_table, shown

Row = Mapping[str, float]
"""`step`, `seconds` and `Snapshot.numbers`."""

_NAMES = {
    "upper": "certified upper bound",
    "lower": "attained lower bound",
    "local_max": "max Lip(x) at the probes",
    "local_mean": "mean Lip(x) at the probes",
}
_ASIDE = ("step", "seconds", "drift", "share")
_SPARKS = "▁▂▃▄▅▆▇█"
_LEAST_TREND, _MOST_TREND = 10, 32
_BESIDE_TREND = 62
_MOST_SLOPES = 16


def print_log(rows: Sequence[Row], console: Console, title: str = "") -> None:
    """Print the last of the snapshots, with the trend of every number."""
    console.print(log_view(rows, console, title))


def log_view(rows: Sequence[Row], console: Console, title: str = "") -> RenderableType:
    """The last of the snapshots, with the trend of every number."""
    if not rows:
        return shown(console, f"{fmt.plain(title)} no snapshot yet".strip(), "dim")
    last = rows[-1]
    where = f"step {fmt.integer(int(last['step']))}, {fmt.duration(last['seconds'])}"
    head = Text.assemble(
        shown(console, f"{fmt.plain(title)} ".lstrip(), "bold"), shown(console, where, "dim")
    )
    parts: list[RenderableType] = [head]
    if "lower" in last and "upper" in last:
        parts.append(shown(console, "".join(fmt.bracket(last["lower"], last["upper"])), "bold"))
    parts += [Text(), _table(rows, console), shown(console, _notes(last), "dim")]
    return Group(*parts)


def _table(rows: Sequence[Row], console: Console) -> RenderableType:
    table = empty_table()
    for title in ("Quantity", "Kind", "Now", "First", "Trend"):
        right = title in ("Now", "First")
        table.add_column(title, justify="right" if right else "left", no_wrap=title == "Trend")
    width = min(_MOST_TREND, max(_LEAST_TREND, console.width - _BESIDE_TREND))
    names = [name for name in rows[-1] if name not in _ASIDE]
    slopes = [name for name in names if name.startswith("slope:")]
    for name in [n for n in names if n not in slopes] + slopes[:_MOST_SLOPES]:
        values = [row[name] for row in rows if name in row]
        kind = kind_of(name)
        table.add_row(
            shown(console, _label(name)),
            shown(console, f"{SIGNS[kind]} {kind}", STYLES[kind]),
            shown(console, fmt.number(values[-1], kind), f"bold {STYLES[kind]}"),
            shown(console, fmt.number(values[0], kind), "dim"),
            shown(console, sparkline(values, width), STYLES[kind]),
        )
    return table


def _label(name: str) -> str:
    what, _, rest = name.partition(":" if ":" in name else "_")
    if what == "slope":
        return f"mean slope of {fmt.elide(fmt.plain(rest), 32)}"
    level, _, reading = rest.partition("_")
    if what == "effective" and reading in READINGS:
        return f"L_eff {level}, {reading}"
    return _NAMES.get(name, fmt.plain(name))


def _notes(last: Row) -> str:
    notes = []
    if last.get("drift", 1.0) != 1.0:
        notes.append(
            f"of the upper bound, ×{fmt.number(last['drift'], 'upper')} is change since the last proofs"
        )
    if "share" in last:
        notes.append(f"monitor's share of the time {100 * last['share']:.1f} %")
    return "; ".join(notes)


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as bars of eight heights: at most `width` of them, spread evenly over all, the last included.

    Logarithmic where all are positive and span more than a factor of four.
    """
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return _SPARKS[-1] * len(values)
    logarithmic = min(finite) > 0 and max(finite) > 4 * min(finite)
    heights = [math.log(v) if logarithmic and math.isfinite(v) else v for v in values]
    known = [h for h in heights if math.isfinite(h)]
    low, span = min(known), (max(known) - min(known)) or 1.0
    top = len(_SPARKS) - 1
    return "".join(_SPARKS[round(top * (h - low) / span) if math.isfinite(h) else top] for h in heights)


class LiveView:
    """A table in the terminal that follows a training, as a log of the monitor.

        with LiveView("training") as view:
            monitor = Monitor(model, data, logs=[view])
            ...

    Where standard output is no terminal, only the last state is printed, at the end.

    Args:
        title: of the table.
        console: where to show it; standard output by default.
    """

    def __init__(self, title: str = "", console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(highlight=False)
        self.rows: list[Row] = []
        self._live = Live(console=self.console, get_renderable=self._view, refresh_per_second=4)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if not self.console.is_terminal:
            self.console.line()

    def __call__(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        self.show([*self.rows, {"step": snapshot.step, "seconds": snapshot.seconds, **snapshot.numbers}])

    def show(self, rows: Sequence[Row]) -> None:
        """Show these snapshots instead of those so far."""
        self.rows = list(rows)
        self._live.refresh()

    def _view(self) -> RenderableType:
        return log_view(self.rows, self.console, self.title)
