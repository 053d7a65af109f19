"""Mean-field theory beside a network: mean slopes and χ, layer by layer."""

from __future__ import annotations

from ...results import LayerField, MeanField
from .by_layer import Series, layers_chart
from .chart import Chart, Key

_THEORY = Key("random weights, theory", "estimate", "circle-open")
_HERE = Key("these, measured", "accent", "square")


def field_charts(field: MeanField) -> list[Chart | None]:
    """What is predicted as a line, what is measured with two standard errors."""
    active = [row for row in field.layers if row.measured.slope is not None]
    gaussian = Series(
        Key("Gaussian of the measured mean and length", "segments", "x-thin"),
        [row.measured.gaussian_slope for row in active],
        joined=False,
    )
    slopes = layers_chart(
        "fieldslopes",
        "mean slope p",
        "mean slope p",
        [row.place for row in active],
        [*_both(active, "slope"), gaussian],
        logarithmic=False,
    )
    steps = [row for row in field.layers if row.measured.chi is not None]
    factors = layers_chart(
        "chi",
        "χ",
        "χ",
        [row.place for row in steps],
        _both(steps, "chi"),
        reference=(Key("differences are kept", "muted", "dash"), 1.0),
    )
    return [slopes, factors]


def _both(layers: list[LayerField], name: str) -> list[Series]:
    measured = [getattr(row.measured, name) for row in layers]
    return [
        Series(_THEORY, [getattr(row.predicted, name, None) for row in layers]),
        Series(_HERE, [found.value for found in measured], [found.error for found in measured], joined=False),
    ]
