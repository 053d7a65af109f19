"""The distribution of Lip(x) over the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..report import format as fmt
from ..results import Local
from .canvas import ESTIMATE, LOWER, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def local_figure(local: Local) -> Figure | None:
    """A histogram of Lip(x), its mean and the attained largest; None for fewer than two finite values.

    Raises:
        LipscopeError: matplotlib is not installed.
    """
    values = [value for value in local.estimates if math.isfinite(value)]
    if len(values) < 2:
        return None
    figure, [axes] = blank(height=2.8)
    axes.hist(values, bins="auto", color=ESTIMATE, alpha=0.55, label=f"{fmt.integer(len(values))} samples")
    if math.isfinite(local.mean):
        mean = f"mean {fmt.figure(local.mean, digits=3)}"
        axes.axvline(local.mean, color=ESTIMATE, linestyle=":", linewidth=1.5, label=mean)
    attained = f"attained {fmt.figure(local.value, 'lower')}"
    axes.axvline(local.value, color=LOWER, linewidth=1.5, label=attained)
    axes.set_xlabel("Lip(x)")
    axes.set_ylabel("samples")
    axes.legend(frameon=False)
    return figure
