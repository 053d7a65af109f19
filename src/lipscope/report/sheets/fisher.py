"""Fisher information: spectra, and what they mean at single samples."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...results import Cost, FisherReport, FisherSpectrum, InputFisher
from .. import format as fmt
from .sheet import Cell, Column, Main, Sheet, Write, numbers

_ROOM_FOR_COST, _ROOM_FOR_NEXT = 90, 110
_DIGITS = 4


def fisher_sheet(report: FisherReport, write: Write) -> Sheet:
    """One row a matrix."""
    samples = report.data.samples
    rows = list(_rows(report))
    spectra = [spectrum for _, spectrum in rows]
    return Sheet(
        model=fmt.plain(report.model.name),
        subject=f"on {fmt.plain(report.data.name)}, {fmt.integer(samples)} samples: Fisher information, "
        f"{_output(report)}",
        main=list(_main(report, write)),
        lead="",
        title="Information about",
        names=[name for name, _ in rows],
        columns=[
            numbers(
                "λ_max",
                [found.value for found in spectra],
                _DIGITS,
                errors=[found.standard_error for found in spectra],
                strong=True,
            ),
            Column("next", [Cell(_next(found)) for found in spectra], room=_ROOM_FOR_NEXT),
            numbers(
                "trace",
                [found.trace for found in spectra],
                _DIGITS,
                errors=[found.trace_error or None for found in spectra],
            ),
            numbers("trace/λ_max", [found.effective_dimension for found in spectra], 3),
            Column("Size", [Cell(fmt.integer(found.size), value=found.size) for found in spectra]),
            Column(
                "Cost",
                [Cell(fmt.duration(x.cost.seconds), value=x.cost.seconds) for x in spectra],
                room=_ROOM_FOR_COST,
            ),
        ],
        lines=[] if report.inputs is None else list(_conclusions(report.inputs, write)),
    )


def _output(report: FisherReport) -> str:
    """What the network's output is the parameter of."""
    likelihood, variance = next(
        (part.likelihood, part.variance) for part in (report.inputs, *report.parameters) if part is not None
    )
    return "softmax output" if likelihood == "softmax" else f"Gaussian output, σ² = {variance:g}"


def _rows(report: FisherReport) -> Iterator[tuple[str, FisherSpectrum]]:
    if report.inputs is not None:
        yield "inputs, mean", report.inputs.mean
        yield "inputs, most", _most(report.inputs)
    for spectrum in report.parameters:
        yield "parameters" + (", empirical" if spectrum.which == "empirical" else ""), spectrum


def _main(report: FisherReport, write: Write) -> Iterator[Main]:
    if (inputs := report.inputs) is not None:
        yield _main_of(inputs.mean, "λ_max of the mean over inputs", write)
        yield Main(write(inputs.eigenvalues[inputs.largest]), "estimate", "λ_max at the most telling input")
        if math.isfinite(inputs.bound):
            yield Main(write(inputs.bound, "upper"), "upper", "λ_max at every input")
    for spectrum in report.parameters:
        empirical = ", empirical" if spectrum.which == "empirical" else ""
        yield _main_of(spectrum, f"λ_max of the parameters{empirical}", write)


def _main_of(spectrum: FisherSpectrum, words: str, write: Write) -> Main:
    return Main(write(spectrum.value), "estimate", words, fmt.error(spectrum.standard_error, write))


def _conclusions(found: InputFisher, write: Write) -> Iterator[str]:
    """What the eigenvalues at the samples mean, in sentences."""
    largest = found.eigenvalues[found.largest]
    if largest > 0:
        yield (
            f"The smallest change that shifts the output's distribution by about one standard deviation: "
            f"{write(1 / math.sqrt(largest), digits=3)}, at {fmt.plain(found.samples[found.largest])}."
        )
    if found.likelihood == "softmax":
        shares = sorted(
            2 * value / lip / lip
            for value, lip in zip(found.eigenvalues, found.stretches, strict=True)
            if lip > 0
        )
        if shares:
            yield (
                f"λ_max over its limit Lip(x)²/2: {write(shares[0], digits=3)} to "
                f"{write(shares[-1], digits=3)}, median {write(shares[len(shares) // 2], digits=3)}."
            )
    if math.isinf(found.bound):
        yield "No bound of λ_max for all inputs is known: the network has no certified constant."
    else:
        formula = "L²/2" if found.likelihood == "softmax" else "L²/σ²"
        yield f"Certified for every input: λ_max ≤ {formula} ≤ {write(found.bound, 'upper')}."


def _next(found: FisherSpectrum) -> str:
    return ", ".join(fmt.number(value, digits=3) for value in found.leading[1:4])


def _most(found: InputFisher) -> FisherSpectrum:
    """I(x) at the sample of the largest λ_max, in the form of a mean."""
    place = found.largest
    return found.mean.model_copy(
        update={
            "leading": [found.eigenvalues[place]],
            "trace": found.traces[place],
            "trace_error": 0.0,
            "standard_error": None,
            "cost": Cost(seconds=math.nan),
        }
    )
