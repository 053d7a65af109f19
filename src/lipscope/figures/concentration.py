"""Tails of a network's outputs under noise: proved, and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..results import ConcentrationReport
from .canvas import ESTIMATE, MUTED, UPPER, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def concentration_figure(report: ConcentrationReport) -> Figure:
    """The probability of a deviation against its size, for one output and for all in norm.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    found = report.concentration
    figure, panels = blank(2, width=8.4, height=3.4)
    titles = {"output": "|f − E f|, the output that varies most", "norm": "‖Φ − E Φ‖"}
    for axes, tail in zip(panels, found.tails, strict=True):
        deviations = [p.deviation for p in tail.points]
        axes.plot(deviations, [p.bound for p in tail.points], color=UPPER, label="proved, from L")
        axes.plot(
            deviations,
            [p.local for p in tail.points],
            "--",
            color=MUTED,
            label="the same for J(x) alone: no bound",
        )
        axes.fill_between(
            deviations,
            [max(p.low, 1e-9) for p in tail.points],
            [p.high for p in tail.points],
            color=ESTIMATE,
            alpha=0.25,
            linewidth=0,
        )
        seen = [p for p in tail.points if p.measured > 0]
        label = f"measured, {found.draws:,} draws, {found.confidence:.0%} intervals"
        axes.plot([p.deviation for p in seen], [p.measured for p in seen], color=ESTIMATE, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(1e-6, 2)
        axes.set_xlabel(f"deviation t: {titles[tail.statistic]}")
    panels[0].set_ylabel("probability to exceed t")
    panels[0].legend(frameon=False, fontsize=7.5, loc="lower left")
    figure.suptitle(
        f"{report.model.name} at {report.center}, {found.law} noise, σ = {found.sigma:g}", fontsize=9.5
    )
    return figure
