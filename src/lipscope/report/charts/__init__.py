"""The charts of the page as plain plotly figures (dictionaries), colours by name.

A colour `var(--name)` is looked up in the page's style sheet when the chart is drawn, so charts
follow light, dark and print. Logarithmic axes are linear axes of log₁₀ with their own ticks:
zero and infinity, which have no place on them, are put at the edge and say so.
Every name is HTML-escaped, since plotly reads a subset of HTML in its texts.
"""

from __future__ import annotations

from ...results import Result
from .bracket import bracket_chart
from .chart import Chart
from .layers import layer_chart
from .local import local_chart
from .scale import LogScale
from .slopes import slope_chart
from .stretch import stretch_chart

__all__ = ["Chart", "LogScale", "charts"]


def charts(result: Result) -> dict[str, Chart]:
    """The charts this result has data for."""
    found = [
        bracket_chart(result),
        local_chart(result.local),
        stretch_chart(result),
        layer_chart(result.analytical.layers, result.slack),
        slope_chart(result.slopes),
    ]
    return {chart.id.removeprefix("chart-"): chart for chart in found if chart is not None}
