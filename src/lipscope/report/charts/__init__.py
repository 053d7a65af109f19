"""The charts of the page as plain plotly figures (dictionaries), colours by name.

A colour `var(--name)` is looked up in the page's style sheet when the chart is drawn, so charts
follow light, dark and print. Logarithmic axes are linear axes of log₁₀ with their own ticks:
zero and infinity, which have no place on them, are put at the edge and say so.
Every name is HTML-escaped, since plotly reads a subset of HTML in its texts.
"""

from __future__ import annotations

from ...results import Analytical, Bracket, Comparison, Inspection, Report, Result
from .bracket import bracket_chart
from .chart import Chart
from .comparison import comparison_chart
from .layers import layer_chart
from .local import local_chart
from .scale import LogScale
from .slopes import slope_chart
from .stretch import stretch_chart

__all__ = ["Chart", "LogScale", "charts"]


def charts(report: Report) -> dict[str, Chart]:
    """The charts this report has data for."""
    return {chart.id.removeprefix("chart-"): chart for chart in _charts(report) if chart is not None}


def _charts(report: Report) -> list[Chart | None]:
    match report:
        case Result():
            return [
                bracket_chart(report),
                local_chart(report.local),
                stretch_chart(report),
                layer_chart(report.analytical.layers, report.slack),
                slope_chart(report.slopes),
            ]
        case Bracket():
            listed = [bound for bound in report.bounds if isinstance(bound, Analytical)]
            return [bracket_chart(report), *(layer_chart(bound.layers) for bound in listed)]
        case Inspection():
            return [layer_chart(report.analytical.layers, report.slack)]
        case Comparison():
            return [comparison_chart(report)]
    return []
