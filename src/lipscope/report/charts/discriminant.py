"""Class separation layer by layer, beside what stretching alone could do."""

from __future__ import annotations

from ...results import Discriminant
from .by_layer import Series, layers_chart
from .chart import Chart, Key


def separation_charts(found: Discriminant) -> list[Chart | None]:
    """The separations, and the stretches from the input."""
    layers = found.layers
    names = [layer.place for layer in layers]
    separation = layers_chart(
        "separation",
        "separation of the classes",
        "separation",
        names,
        [
            Series(Key("between/within", "steepest", "circle"), [layer.ratio for layer in layers]),
            Series(Key("held out", "pairs", "square"), [layer.held_out for layer in layers]),
            Series(Key("by stretch", "segments", "diamond"), [layer.attained_separation for layer in layers]),
        ],
        reference=(Key("the most by stretch", "segments", "dash"), found.limit),
    )
    stretches = layers_chart(
        "stretches",
        "stretch from the input",
        "stretch",
        names,
        [
            Series(Key("certified L", "upper", "triangle-left"), [layer.certified for layer in layers]),
            Series(Key("largest of a pair, κ", "segments", "diamond"), [layer.attained for layer in layers]),
            Series(Key("between classes", "steepest", "circle"), [layer.between_stretch for layer in layers]),
            Series(Key("within classes", "pairs", "square"), [layer.within_stretch for layer in layers]),
        ],
    )
    return [separation, stretches]
