"""Tails of a network's outputs as a table in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from ..results import Concentration, ConcentrationReport, TailLevel
from . import format as fmt
from .terminal import empty_table, shown

_LAWS = {"gaussian": "Gaussian", "uniform": "uniform", "signs": "±σ"}
_DIGITS = 3


def print_concentration(report: ConcentrationReport, console: Console) -> None:
    """Print, for a few probabilities, the deviations that are exceeded no more often: proved and measured."""
    found = report.concentration
    title = shown(console, fmt.plain(report.model.name), "bold")
    noise = f"{_LAWS[found.law]} noise, σ = {fmt.number(found.sigma)}"
    console.print()
    console.print(
        Text.assemble(title, shown(console, f" at {fmt.plain(report.center)}, {noise} in each entry", "dim"))
    )
    console.print(shown(console, conclusion(found)))
    console.print()
    table = empty_table()
    table.add_column(shown(console, "Exceeded with\nprobability"), no_wrap=True)
    for tail in found.tails:
        what = "norm" if tail.statistic == "norm" else f"output {tail.index}"
        for how in ("proved", "by J(x)", "measured"):
            table.add_column(shown(console, f"{what}\n{how}"), justify="right", no_wrap=True)
    for rows in zip(*(tail.levels for tail in found.tails), strict=True):
        cells = [cell for row in rows for cell in _cells(row)]
        table.add_row(shown(console, f"≤ {rows[0].probability:g}"), *(shown(console, cell) for cell in cells))
    console.print(table)
    spreads = " and ".join(fmt.number(tail.spread, digits=_DIGITS) for tail in found.tails)
    line = f"Root mean square deviations from the mean over {fmt.integer(found.draws)} draws: {spreads}."
    console.print(shown(console, line))


def conclusion(found: Concentration) -> str:
    """What the tails rest on, in a sentence."""
    if found.no_bound is not None:
        return f"Nothing is proved: no constant is known that holds everywhere{fmt.reason(found.no_bound)}."
    where = "" if found.ball_radius is None else f" within {fmt.number(found.ball_radius)} of it"
    leaves = (
        "" if found.outside == 0 else f", left with probability ≤ {fmt.number(found.outside, 'upper', 2)}"
    )
    return (
        f"L ≤ {fmt.number(found.lipschitz, 'upper')}{where} ({found.rests_on}){leaves}; "
        f"Lip(x) = {fmt.number(found.local)} there."
    )


def _cells(row: TailLevel) -> list[str]:
    return [
        fmt.number(row.proved, "upper", _DIGITS),
        fmt.number(row.local, digits=_DIGITS),
        fmt.number(row.measured, digits=_DIGITS),
    ]
