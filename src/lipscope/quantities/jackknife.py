"""Standard errors by leaving out groups of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def jackknife_error(replicates: Sequence[float]) -> float | None:
    """The standard error of an estimate, from its values with each of G groups of samples left out.

    Over pairs, a group is left out with every pair that touches it. The mean over all pairs that are
    left is then an estimate from the samples that are left, so the formula is the usual one; where few
    of the pairs across groups are drawn it errs on the large side, since such a pair counts twice.

    Returns:
        The error, or None for fewer than two values.

    Source: B. Efron, C. Stein (1981), The jackknife estimate of variance.
    """
    count = len(replicates)
    if count < 2:
        return None
    values = np.asarray(replicates)
    return float(np.sqrt((count - 1) / count * np.square(values - values.mean()).sum()))
