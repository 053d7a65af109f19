"""Fisher information: the spectra of the means, and λ_max at samples against the stretch there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..results import FisherReport, InputFisher
from .canvas import ESTIMATE, LOWER, MUTED, UPPER, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STEPS = 100


def fisher_figure(report: FisherReport) -> Figure:
    """Left the leading eigenvalues of the mean matrices; right each sample's λ_max against Lip(x)², where asked for.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    figure, axes = blank(1 if report.inputs is None else 2, width=6.4 if report.inputs else 3.6, height=3.2)
    _spectra(axes[0], report)
    if report.inputs is not None:
        _relation(axes[1], report.inputs)
    return figure


def _spectra(axes: Axes, report: FisherReport) -> None:
    series = [] if report.inputs is None else [("inputs", report.inputs.mean.leading, LOWER)]
    for spectrum, colour in zip(report.parameters, (ESTIMATE, MUTED), strict=False):
        name = "parameters" if spectrum.which == "true" else "parameters, empirical"
        series.append((name, spectrum.leading, colour))
    for name, leading, colour in series:
        positive = [value for value in leading if value > 0]
        axes.plot(
            range(1, len(positive) + 1), positive, "o-", color=colour, label=name, markersize=3.5, linewidth=1
        )
    axes.set_yscale("log")
    axes.set_xlabel("number of the eigenvalue")
    axes.set_ylabel("eigenvalue of the mean Fisher information")
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False, loc="lower left", fontsize=8)


def _relation(axes: Axes, found: InputFisher) -> None:
    """Bounds of λ_max beside it: equal for the Gaussian, above for softmax."""
    squares = [lip**2 for lip in found.stretches]
    axes.semilogy(squares, found.eigenvalues, "o", color=LOWER, markersize=3, alpha=0.7)
    factor = 0.5 if found.variance is None else 1 / found.variance
    low, high = min(squares), max(squares)
    steps = [low + (high - low) * k / _STEPS for k in range(_STEPS + 1)]
    axes.semilogy(steps, [factor * step for step in steps], color=UPPER, linewidth=1)
    axes.set_xlabel("Lip(x)²")
    axes.set_ylabel("λ_max of I(x)")
    line = "Lip(x)²/2" if found.variance is None else "Lip(x)²/σ²"
    axes.set_title(f"at {len(squares)} samples; the line is {line}", fontsize=9)
