"""The charts of the page as plain plotly figures (dictionaries), colours by name.

A colour `var(--name)` is looked up in the page's style sheet when the chart is drawn, so charts
follow light, dark and print. Logarithmic axes are linear axes of log₁₀ with their own ticks:
zero and infinity, which have no place on them, are put at the edge and say so.
Every name is HTML-escaped, since plotly reads a subset of HTML in its texts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...results import (
    Analytical,
    Bracket,
    Comparison,
    ConcentrationReport,
    DiscriminantReport,
    FisherReport,
    Inspection,
    MeanFieldReport,
    Report,
    Result,
)
from .bracket import bracket_chart
from .chart import Chart
from .comparison import comparison_chart
from .concentration import tail_charts
from .discriminant import separation_charts
from .fisher import fisher_charts
from .layers import layer_chart
from .local import local_chart
from .mean_field import field_charts
from .scale import LogScale
from .slopes import slope_chart
from .stretch import stretch_chart

__all__ = ["Chart", "LogScale", "charts"]


def charts(report: Report) -> dict[str, Chart]:
    """The charts this report has data for."""
    return {chart.id.removeprefix("chart-"): chart for chart in _charts(report) if chart is not None}


def _charts(report: Report) -> Sequence[Chart | None]:
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
        case FisherReport():
            return fisher_charts(report)
        case DiscriminantReport():
            return separation_charts(report.discriminant)
        case MeanFieldReport():
            return field_charts(report.mean_field)
        case ConcentrationReport():
            return tail_charts(report.concentration)
    return []
