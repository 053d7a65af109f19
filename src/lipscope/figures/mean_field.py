"""Mean-field theory beside a network: mean slopes and χ, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..results import LayerField, MeanFieldReport
from .canvas import ESTIMATE, LOWER, MUTED, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = 16


def mean_field_figure(report: MeanFieldReport) -> Figure:
    """Mean slopes p on the left, χ on the right: what the theory predicts and what is measured.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    figure, (slopes, factors) = blank(2, width=8.4, height=3.6)
    layers = report.mean_field.layers
    active = [row for row in layers if row.measured.slope is not None]
    _draw(slopes, active, "slope")
    places = range(len(active))
    gaussian = [(i, row.measured.gaussian_slope) for i, row in zip(places, active, strict=True)]
    known = [(i, p) for i, p in gaussian if p is not None]
    if known:
        label = "Gaussian with the measured mean and length"
        slopes.plot(*zip(*known, strict=True), "x", color=MUTED, label=label)
    slopes.set_ylabel("mean slope p")
    slopes.set_ylim(bottom=0)
    slopes.legend(frameon=False, fontsize=7.5)
    steps = [row for row in layers if row.measured.chi is not None]
    _draw(factors, steps, "chi")
    factors.axhline(1, color=MUTED, linewidth=0.8, linestyle="--")
    factors.set_ylabel("χ: growth of ‖J‖²_F per unit over the layer")
    factors.set_yscale("log")
    factors.yaxis.set_major_formatter("{x:g}")
    factors.yaxis.set_minor_formatter("{x:.1g}")
    factors.legend(frameon=False, fontsize=7.5)
    figure.suptitle(f"{report.model.name}: random weights of the same variances, and these", fontsize=9.5)
    return figure


def _draw(axes: Axes, layers: list[LayerField], name: str) -> None:
    """What is predicted as a line, what is measured as dots with two standard errors."""
    places = range(len(layers))
    predicted = [(i, getattr(row.predicted, name, None)) for i, row in zip(places, layers, strict=True)]
    known = [(i, value) for i, value in predicted if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "-o", color=ESTIMATE, markersize=4, label="mean-field theory")
    measured = [getattr(row.measured, name) for row in layers]
    axes.errorbar(
        list(places),
        [m.value for m in measured],
        [2 * (m.error or 0.0) for m in measured],
        fmt="s",
        color=LOWER,
        markersize=4,
        label="measured (± 2 standard errors)",
    )
    shown = [row.place.split(" ")[0] for row in layers]
    step = -(-len(shown) // _LABELS) if shown else 1
    axes.set_xticks(list(places)[::step], shown[::step], rotation=60, ha="right", fontsize=7)
