"""Mean-field theory beside a network."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...results import DepthScale, MeanField, MeanFieldReport, Measured
from .. import format as fmt
from .sheet import Column, Main, Sheet, Write, numbers

_DIGITS = 3
_ROOM_FOR_LENGTHS, _ROOM_FOR_CORRELATIONS, _ROOM_FOR_ERRORS = 86, 104, 150


def mean_field_sheet(report: MeanFieldReport, write: Write) -> Sheet:
    """What the theory predicts of every layer beside what is measured, and the sums."""
    field = report.mean_field
    inputs = f"{fmt.integer(field.samples)} Gaussian inputs, q₀ = {write(field.input_length)}"
    if report.data is not None:
        inputs = f"{fmt.integer(field.samples)} samples of {fmt.plain(report.data.name)}"
    return Sheet(
        model=fmt.plain(report.model.name),
        subject=f"on {inputs}: random weights of the same variances, and these",
        main=list(_main(field, write)),
        lead="",
        title="Layer",
        names=[fmt.plain(row.place) for row in field.layers],
        columns=list(_columns(field)),
        lines=list(_conclusions(field, write)),
        room_for_errors=_ROOM_FOR_ERRORS,
    )


def _columns(field: MeanField) -> Iterator[Column]:
    """Theory and measurement side by side; the wider the terminal, the more is told."""
    yield numbers("σ_w²", [row.weight_gain for row in field.layers], _DIGITS)
    yield from _both(field, "p", "slope", 0)
    gaussian = [row.measured.gaussian_slope for row in field.layers]
    yield numbers("p Gauss", gaussian, _DIGITS, room=_ROOM_FOR_CORRELATIONS)
    yield from _both(field, "χ", "chi", 0)
    yield from _both(field, "q", "length", _ROOM_FOR_LENGTHS)
    yield from _both(field, "c", "correlation", _ROOM_FOR_CORRELATIONS)


def _both(field: MeanField, symbol: str, name: str, room: int) -> Iterator[Column]:
    """A column of what is predicted and one of what is measured."""
    predicted = [getattr(row.predicted, name, None) for row in field.layers]
    yield numbers(f"{symbol} theory", predicted, _DIGITS, room=room)
    measured: list[Measured | None] = [getattr(row.measured, name) for row in field.layers]
    yield numbers(
        f"{symbol} here",
        [None if found is None else found.value for found in measured],
        _DIGITS,
        errors=[None if found is None else found.error for found in measured],
        room=room,
    )


def _main(field: MeanField, write: Write) -> Iterator[Main]:
    if field.frobenius is not None:
        yield Main(write(field.frobenius), "estimate", "E ‖J‖_F² of random weights, by theory")
    if field.measured_frobenius is not None:
        found = field.measured_frobenius
        error = fmt.error(found.error, write)
        yield Main(write(found.value), "estimate", "E ‖J‖_F² of these, measured", error)


def _conclusions(field: MeanField, write: Write) -> Iterator[str]:
    """What the table amounts to, in sentences."""
    if field.phase is not None and field.log_growth is not None:
        layers = f"{field.depth} activation{'s' * (field.depth != 1)}"
        yield (
            f"Random weights of these variances are {field.phase}: over {layers} ‖J‖_F² per unit changes by "
            f"×{write(_exp(field.log_growth), digits=_DIGITS)}."
        )
    correlation, length = _scales(field.correlation_scale, write), _scales(field.length_scale, write)
    yield f"Depth scales in layers, theory and here: ξ_c {correlation}, ξ_q {length}."
    yield (
        f"E ‖J‖_F²: {write(field.frobenius)} predicted, {_measured(field.measured_frobenius, write)} measured."
    )
    if field.spectral_edge is not None:
        yield (
            f"σ_max(J): {write(field.spectral_edge)} for wide layers of independent Gaussian weights, "
            f"{_measured(field.measured_norm, write)} measured."
        )
    taken = [row for row in field.layers if row.approximated]
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        yield f"Taken for Gaussian though they are not: what enters {fmt.plain(taken[0].place)}{more}."
    for end in field.not_covered:
        yield f"The theory ends at {fmt.plain(end.place)}: {end.reason}."


def _exp(log: float) -> float:
    return math.exp(log) if log < 709 else math.inf


def _scales(scale: DepthScale, write: Write) -> str:
    return f"{write(scale.predicted, digits=_DIGITS)} and {write(scale.measured, digits=_DIGITS)}"


def _measured(found: Measured | None, write: Write) -> str:
    return fmt.MISSING if found is None else write(found.value) + fmt.error(found.error, write)
