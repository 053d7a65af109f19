"""All figures of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..results import (
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
from .bracket import bracket_figure
from .comparison import comparison_figure
from .concentration import concentration_figure
from .discriminant import discriminant_figure
from .fisher import fisher_figure
from .layers import layers_figure
from .local import local_figure
from .mean_field import mean_field_figure
from .slopes import slopes_figure
from .stretch import stretch_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures_of(report: Report) -> dict[str, Figure]:
    """The charts that the report's page has, as matplotlib figures by name.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    found: dict[str, Figure | None] = {}
    match report:
        case Result():
            found = {
                "bracket": bracket_figure(report),
                "local": local_figure(report.local),
                "stretch": stretch_figure(report),
                "layers": layers_figure(report.analytical.layers, report.slack),
                "slopes": slopes_figure(report.slopes),
            }
        case Bracket():
            listed = next((bound.layers for bound in report.bounds if isinstance(bound, Analytical)), [])
            found = {"bracket": bracket_figure(report), "layers": layers_figure(listed)}
        case Inspection():
            found = {"layers": layers_figure(report.analytical.layers, report.slack)}
        case Comparison():
            found = {"comparison": comparison_figure(report)}
        case FisherReport():
            found = {"fisher": fisher_figure(report)}
        case DiscriminantReport():
            found = {"discriminant": discriminant_figure(report.discriminant)}
        case MeanFieldReport():
            found = {"mean-field": mean_field_figure(report)}
        case ConcentrationReport():
            found = {"concentration": concentration_figure(report)}
    return {name: figure for name, figure in found.items() if figure is not None}
