"""Tails of a network's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...results import Concentration, ConcentrationReport
from .. import format as fmt
from .sheet import Column, Main, Sheet, Write, numbers

LAWS = {"gaussian": "Gaussian", "uniform": "uniform", "signs": "±σ"}
_DIGITS = 3


def concentration_sheet(report: ConcentrationReport, write: Write) -> Sheet:
    """For a few probabilities, the deviations that are exceeded no more often: proved and measured."""
    found = report.concentration
    spreads = " and ".join(write(tail.spread, digits=_DIGITS) for tail in found.tails)
    return Sheet(
        model=fmt.plain(report.model.name),
        subject=f"at {fmt.plain(report.center)}, {LAWS[found.law]} noise, σ = {write(found.sigma)} in each entry",
        main=list(_main(found, write)),
        lead=_conclusion(found, write),
        title="Exceeded with\nprobability",
        names=[f"≤ {write(level.probability)}" for level in found.tails[0].levels],
        columns=list(_columns(found)),
        lines=[
            f"Root mean square deviations from the mean over {fmt.integer(found.draws)} draws: {spreads}."
        ],
    )


def _columns(found: Concentration) -> Iterator[Column]:
    for tail in found.tails:
        what = "norm" if tail.statistic == "norm" else f"output {tail.index}"
        yield numbers(f"{what}\nproved", [row.proved for row in tail.levels], _DIGITS, kind="upper")
        yield numbers(f"{what}\nby J(x)", [row.local for row in tail.levels], _DIGITS)
        yield numbers(f"{what}\nmeasured", [row.measured for row in tail.levels], _DIGITS)


def _main(found: Concentration, write: Write) -> Iterator[Main]:
    """The deviation in norm at the least probability that is measured, and what the proof rests on."""
    levels = [row for tail in found.tails if tail.statistic == "norm" for row in tail.levels]
    seen = [row for row in levels if row.measured is not None]
    if seen:
        row = min(seen, key=lambda row: row.probability)
        often = f"exceeded with probability ≤ {write(row.probability)}"
        if math.isfinite(row.proved):
            yield Main(write(row.proved, "upper", _DIGITS), "upper", f"deviation in norm {often}")
        yield Main(
            write(row.measured, digits=_DIGITS),
            "estimate",
            f"the same, measured on {fmt.integer(found.draws)} draws",
        )


def _conclusion(found: Concentration, write: Write) -> str:
    """What the tails rest on, in a sentence."""
    if found.no_bound is not None:
        return f"Nothing is proved: no constant is known that holds everywhere{fmt.reason(found.no_bound)}."
    where = "" if found.ball_radius is None else f" within {write(found.ball_radius)} of it"
    leaves = "" if found.outside == 0 else f", left with probability ≤ {write(found.outside, 'upper', 2)}"
    return (
        f"L ≤ {write(found.lipschitz, 'upper')}{where} ({found.rests_on}){leaves}; "
        f"Lip(x) = {write(found.local)} there."
    )
