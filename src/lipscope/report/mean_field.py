"""Mean-field theory beside a network as a table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from ..results import DepthScale, LayerField, MeanField, MeanFieldReport, Measured
from . import format as fmt
from .terminal import empty_table, shown

_DIGITS = 3
_ROOM_FOR_LENGTHS, _ROOM_FOR_CORRELATIONS, _ROOM_FOR_ERRORS = 86, 104, 150
_NAME = 28


def print_mean_field(report: MeanFieldReport, console: Console) -> None:
    """Print what the theory predicts of every layer beside what is measured, and the sums."""
    field = report.mean_field
    inputs = f"{fmt.integer(field.samples)} Gaussian inputs, q₀ = {fmt.number(field.input_length)}"
    if report.data is not None:
        inputs = f"{fmt.integer(field.samples)} samples of {fmt.plain(report.data.name)}"
    title = shown(console, fmt.plain(report.model.name), "bold")
    rest = shown(console, f" on {inputs}: random weights of the same variances, and these", "dim")
    console.print()
    console.print(Text.assemble(title, rest))
    console.print()
    _table(field, console)
    console.print()
    for line in conclusions(field):
        console.print(shown(console, line))


def conclusions(field: MeanField) -> list[str]:
    """What the table amounts to, in sentences."""
    return list(_conclusions(field))


def _conclusions(field: MeanField) -> Iterator[str]:
    if field.phase is not None and field.log_growth is not None:
        layers = f"{field.depth} activation{'s' * (field.depth != 1)}"
        yield (
            f"Random weights of these variances are {field.phase}: over {layers} ‖J‖_F² per unit changes by "
            f"×{fmt.number(_exp(field.log_growth), digits=_DIGITS)}."
        )
    scales = f"ξ_c {_scales(field.correlation_scale)}, ξ_q {_scales(field.length_scale)}"
    yield f"Depth scales in layers, theory and here: {scales}."
    yield f"E ‖J‖_F²: {fmt.number(field.frobenius)} predicted, {_measured(field.measured_frobenius)} measured."
    if field.spectral_edge is not None:
        yield (
            f"σ_max(J): {fmt.number(field.spectral_edge)} for wide layers of independent Gaussian weights, "
            f"{_measured(field.measured_norm)} measured."
        )
    taken = [row for row in field.layers if row.approximated]
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        yield f"Taken for Gaussian though they are not: what enters {fmt.plain(taken[0].place)}{more}."
    for end in field.not_covered:
        yield f"The theory ends at {fmt.plain(end.place)}: {end.reason}."


def _exp(log: float) -> float:
    return math.exp(log) if log < 709 else math.inf


def _scales(scale: DepthScale) -> str:
    return f"{fmt.number(scale.predicted, digits=_DIGITS)} and {fmt.number(scale.measured, digits=_DIGITS)}"


def _measured(value: Measured | None) -> str:
    return fmt.MISSING if value is None else f"{fmt.number(value.value)}{fmt.error(value.error)}"


def _table(field: MeanField, console: Console) -> None:
    """Theory and measurement side by side; the wider the console, the more is told."""
    columns: list[tuple[str, int, Callable[[LayerField], str]]] = [
        ("σ_w²", 0, lambda row: fmt.number(row.weight_gain, digits=_DIGITS)),
        *_both("p", "slope", 0),
        (
            "p Gauss",
            _ROOM_FOR_CORRELATIONS,
            lambda row: fmt.number(row.measured.gaussian_slope, digits=_DIGITS),
        ),
        *_both("χ", "chi", 0),
        *_both("q", "length", _ROOM_FOR_LENGTHS),
        *_both("c", "correlation", _ROOM_FOR_CORRELATIONS),
    ]
    columns = [column for column in columns if console.width >= column[1]]
    table = empty_table()
    table.add_column("Layer", overflow="fold")
    for title, _, _ in columns:
        table.add_column(shown(console, title), justify="right", no_wrap=True)
    errors = console.width >= _ROOM_FOR_ERRORS
    for row in field.layers:
        name = shown(console, fmt.elide(fmt.plain(row.place), _NAME))
        cells = [cell(row) for _, _, cell in columns]
        if not errors:
            cells = [cell.split(" ± ")[0] for cell in cells]
        table.add_row(name, *(shown(console, cell) for cell in cells))
    console.print(table)


def _both(symbol: str, name: str, room: int) -> list[tuple[str, int, Callable[[LayerField], str]]]:
    """A column of what is predicted and one of what is measured."""

    def predicted(row: LayerField) -> str:
        return fmt.number(getattr(row.predicted, name, None), digits=_DIGITS)

    def measured(row: LayerField) -> str:
        value: Measured | None = getattr(row.measured, name)
        if value is None:
            return fmt.MISSING
        return f"{fmt.number(value.value, digits=_DIGITS)}{fmt.error(value.error)}"

    return [(f"{symbol} theory", room, predicted), (f"{symbol} here", room, measured)]
