"""Fisher information: the spectra of the means, and λ_max at samples against the stretch there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ...results import FisherReport, InputFisher
from .. import format as fmt
from .chart import Chart, Figure, Key
from .scale import LogScale

_HEIGHT = 340
_MARGIN = {"l": 8, "r": 24, "t": 12, "b": 44}
_INPUTS = Key("inputs", "accent", "circle")
_PARAMETERS = {
    "true": Key("parameters", "segments", "diamond"),
    "empirical": Key("parameters, empirical", "pairs", "square"),
}


def fisher_charts(report: FisherReport) -> list[Chart | None]:
    """The leading eigenvalues of the means, and each sample's λ_max against Lip(x)², where asked for."""
    return [_spectra(report), None if report.inputs is None else _relation(report.inputs)]


def _spectra(report: FisherReport) -> Chart | None:
    series = [] if report.inputs is None else [(_INPUTS, report.inputs.mean.leading)]
    series += [(_PARAMETERS[spectrum.which], spectrum.leading) for spectrum in report.parameters]
    drawn = [(key, positive) for key, leading in series if (positive := _positive(leading))]
    if not drawn:
        return None
    y = LogScale.over([value for _, leading in drawn for value in leading])
    most = max(len(leading) for _, leading in drawn)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": key.words,
            "x": list(range(1, len(leading) + 1)),
            "y": [y.place(value) for value in leading],
            "line": {"width": 1.5, "color": f"var(--{key.colour})"},
            "marker": {"symbol": key.symbol, "size": 8, "color": f"var(--{key.colour})"},
            "hovertext": [
                f"{key.words}: eigenvalue {place} is {fmt.figure(value)}"
                for place, value in enumerate(leading, 1)
            ],
            "hoverinfo": "text",
            "cliponaxis": False,
        }
        for key, leading in drawn
    ]
    layout = {
        "height": _HEIGHT,
        "margin": _MARGIN,
        "xaxis": {
            "title": {"text": "number of the eigenvalue"},
            "range": [0.7, most + 0.3],
            "tickvals": list(range(1, most + 1, max(1, math.ceil(most / 12)))),
            "showgrid": False,
        },
        "yaxis": y.axis("eigenvalue of the mean, log scale"),
    }
    told = "; ".join(
        f"{key.words} {', '.join(fmt.figure(value, digits=3) for value in leading[:12])}"
        for key, leading in drawn
    )
    keys = tuple(key for key, _ in drawn)
    narrow = {"yaxis": y.fewer_ticks()}
    figure: Figure = {"data": data, "layout": layout, "narrow": narrow}
    return Chart("chart-spectra", figure, f"Leading eigenvalues on a logarithmic axis: {told}.", keys)


def _positive(values: Sequence[float]) -> list[float]:
    return [value for value in values if 0 < value < math.inf]


def _relation(found: InputFisher) -> Chart | None:
    """Each sample's λ_max, and its limit: equal for the Gaussian, above for softmax."""
    squares = [lip * lip for lip in found.stretches]
    if not _positive(squares):
        return None
    factor, limit = (0.5, "Lip(x)²/2") if found.variance is None else (1 / found.variance, "Lip(x)²/σ²")
    x = LogScale.over(squares)
    y = LogScale.over([*found.eigenvalues, *_positive([factor * square for square in squares])])
    ends = [x.low, x.high]
    line = Key(f"the limit {limit}" if found.variance is None else limit, "upper", "solid")
    dots = Key("samples", "accent", "circle")
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": line.words,
            "x": ends,
            "y": [end + math.log10(factor) for end in ends],
            "line": {"width": 1.5, "color": "var(--upper)"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": dots.words,
            "x": [x.place(square) for square in squares],
            "y": [y.place(value) for value in found.eigenvalues],
            "marker": {"symbol": dots.symbol, "size": 6, "opacity": 0.7, "color": "var(--accent)"},
            "hovertext": [
                f"{escape(fmt.elide(fmt.plain(name), 60))}: λ<sub>max</sub> {fmt.figure(value)}, "
                f"Lip(x) {fmt.figure(lip)}"
                for name, value, lip in zip(found.samples, found.eigenvalues, found.stretches, strict=True)
            ],
            "hoverinfo": "text",
            "cliponaxis": False,
        },
    ]
    layout = {
        "height": _HEIGHT,
        "margin": _MARGIN,
        "xaxis": x.axis("Lip(x)², log scale"),
        "yaxis": y.axis("λ<sub>max</sub> of I(x), log scale"),
    }
    narrow = {"xaxis": x.fewer_ticks(), "yaxis": y.fewer_ticks()}
    return Chart(
        "chart-relation",
        {"data": data, "layout": layout, "narrow": narrow},
        f"λ_max of I(x) against Lip(x)² at {fmt.integer(len(squares))} samples, on logarithmic axes, from "
        f"{fmt.figure(min(found.eigenvalues), digits=3)} to {fmt.figure(max(found.eigenvalues), digits=3)}; "
        f"the line is {limit}.",
        (dots, line),
    )
