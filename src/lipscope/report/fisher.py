"""Fisher information as a table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from ..results import Cost, FisherReport, FisherSpectrum, InputFisher
from . import format as fmt
from .terminal import empty_table, shown

_ROOM_FOR_COST, _ROOM_FOR_NEXT = 90, 110


def print_fisher(report: FisherReport, console: Console) -> None:
    """Print the spectra, and what the input's information says about single samples."""
    likelihoods = [part.likelihood for part in (report.inputs, *report.parameters) if part is not None]
    variances = [part.variance for part in (report.inputs, *report.parameters) if part is not None]
    output = "softmax output" if likelihoods[0] == "softmax" else f"Gaussian output, σ² = {variances[0]:g}"
    console.print()
    console.print(
        Text.assemble(
            shown(console, fmt.plain(report.model.name), "bold"),
            shown(
                console,
                f" on {fmt.plain(report.data.name)}, {fmt.integer(report.data.samples)} samples: Fisher information, "
                f"{output}",
                "dim",
            ),
        )
    )
    console.print()
    _table(report, console)
    if report.inputs is not None:
        console.print()
        for line in conclusions(report.inputs):
            console.print(shown(console, line))


def conclusions(found: InputFisher) -> list[str]:
    """What the eigenvalues at the samples mean, in sentences."""
    largest = found.eigenvalues[found.largest]
    name = fmt.plain(found.samples[found.largest])
    lines = []
    if largest > 0:
        lines.append(
            f"The smallest change that shifts the output's distribution by about one standard deviation: "
            f"{fmt.number(1 / math.sqrt(largest), digits=3)}, at {name}."
        )
    if found.likelihood == "softmax":
        shares = sorted(
            2 * value / lip**2
            for value, lip in zip(found.eigenvalues, found.stretches, strict=True)
            if lip > 0
        )
        if shares:
            lines.append(
                f"λ_max over its limit Lip(x)²/2: {fmt.number(shares[0], digits=3)} to "
                f"{fmt.number(shares[-1], digits=3)}, median {fmt.number(shares[len(shares) // 2], digits=3)}."
            )
    if math.isinf(found.bound):
        lines.append("No bound of λ_max for all inputs is known: the network has no certified constant.")
    else:
        formula = "L²/2" if found.likelihood == "softmax" else "L²/σ²"
        lines.append(f"Certified for every input: λ_max ≤ {formula} ≤ {fmt.number(found.bound, 'upper')}.")
    return lines


def _table(report: FisherReport, console: Console) -> None:
    """One row a matrix; the wider the console, the more is told of it."""
    rows = []
    if report.inputs is not None:
        rows += [("inputs, mean", report.inputs.mean), ("inputs, most", _most(report.inputs))]
    for spectrum in report.parameters:
        rows.append(("parameters" + (", empirical" if spectrum.which == "empirical" else ""), spectrum))
    columns: list[tuple[str, int, Callable[[FisherSpectrum], str]]] = [
        ("λ_max", 0, lambda found: fmt.number(found.value) + fmt.error(found.standard_error)),
        (
            "next",
            _ROOM_FOR_NEXT,
            lambda found: ", ".join(fmt.number(x, digits=3) for x in found.leading[1:4]),
        ),
        ("trace", 0, lambda found: fmt.number(found.trace) + fmt.error(found.trace_error or None)),
        ("trace/λ_max", 0, lambda found: fmt.number(found.effective_dimension, digits=3)),
        ("Size", 0, lambda found: fmt.integer(found.size)),
        ("Cost", _ROOM_FOR_COST, lambda found: fmt.duration(found.cost.seconds)),
    ]
    table = empty_table()
    table.add_column("Information about", overflow="fold")
    listed = [(title, cell) for title, least, cell in columns if console.width >= least]
    for title, _ in listed:
        table.add_column(shown(console, title), justify="right", overflow="fold")
    for about, found in rows:
        cells = (
            shown(console, cell(found), "bold cyan" if title == "λ_max" else "") for title, cell in listed
        )
        table.add_row(shown(console, about), *cells)
    console.print(table)


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
