"""The empirical constant L_emp: the largest secant ratio over all pairs of a data set, exactly.

Squared distances of all pairs come from blocked matrix products (the Gram trick), in float64.
The trick cancels for near pairs, so each squared distance carries a rigorous rounding interval;
every pair whose interval could hold the maximum is recomputed from direct differences.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph
from ..progress import Progress, silent
from ..results import Cost, Duplicate, Empirical
from ..rounding import gamma
from .witness import Pair, evaluate_pair

if TYPE_CHECKING:
    from ..data import Samples

_BLOCK = 256
_LISTED_DUPLICATES = 100


def empirical(
    graph: Graph,
    samples: Samples,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> tuple[Empirical, Pair] | None:
    """Max over pairs of ‖Φ(x₁) − Φ(x₂)‖ / ‖x₁ − x₂‖, and the pair that attains it.

    Outputs are computed in float64. Pairs at distance zero (equal samples) are counted and left out.

    Args:
        graph: the network.
        samples: N inputs.
        batch_size: samples evaluated at once.

    Returns:
        The result and the witness pair, or None if there are fewer than two distinct samples.

    Source: Zou, Balan, Singh (2020), empirical Lipschitz constant (printed there squared).
    """
    started = time.perf_counter()
    inputs, outputs, groups = _evaluate(graph, samples, batch_size, progress)
    distinct = [members[0] for members in groups]
    if len(distinct) < 2:
        return None
    candidates = _candidates(inputs[distinct], outputs[distinct], progress)
    exact = graph.to(torch.float64, "cpu")
    best: Pair | None = None
    for i, j in _recheck_order(inputs[distinct], outputs[distinct], candidates):
        first, second = distinct[i], distinct[j]
        names = (samples.names[first], samples.names[second])
        pair = evaluate_pair(exact, inputs[first], inputs[second], names)
        if best is None or pair.bound > best.bound:
            best = pair
    assert best is not None
    count = len(samples)
    duplicate_count = sum(len(members) * (len(members) - 1) // 2 for members in groups)
    result = Empirical(
        name="empirical",
        value=best.bound,
        method="largest secant ratio over all pairs: blocked products, candidates re-evaluated in float64",
        source="Zou, Balan, Singh 2020: empirical Lipschitz constant",
        cost=Cost(seconds=time.perf_counter() - started, forward_passes=float(count)),
        witness=best.witness("empirical"),
        pairs=count * (count - 1) // 2 - duplicate_count,
        rechecked=len(candidates),
        duplicates=list(_duplicates(groups, samples.names)),
        duplicate_count=duplicate_count,
    )
    return result, best


def _evaluate(
    graph: Graph, samples: Samples, batch_size: int, progress: Progress
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """All inputs and float64 outputs, and the samples grouped by equality."""
    exact = graph.to(torch.float64, "cpu")
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    groups: dict[bytes, list[int]] = defaultdict(list)
    for start in range(0, len(samples), batch_size):
        x = samples.batch(range(start, min(start + batch_size, len(samples))))
        for offset, sample in enumerate(x):
            # Adding 0 turns −0 into 0, which compares equal.
            digest = hashlib.sha256((sample + 0.0).numpy().tobytes()).digest()
            groups[digest].append(start + offset)
        inputs.append(x)
        outputs.append(exact.evaluate(x.to(torch.float64)))
        progress("empirical: outputs", start + len(x), len(samples))
    return torch.cat(inputs), torch.cat(outputs), list(groups.values())


def _candidates(inputs: Tensor, outputs: Tensor, progress: Progress) -> list[tuple[int, int]]:
    """Every pair (i < j) that may attain the maximum, given the rounding of the Gram trick."""
    x, y = inputs.flatten(1), outputs.flatten(1)
    centre_x, centre_y = x.to(torch.float64).mean(0), y.mean(0)
    squares_x = torch.cat([_centred(x, block, centre_x).square().sum(1) for block in _blocks(len(x))])
    squares_y = torch.cat([_centred(y, block, centre_y).square().sum(1) for block in _blocks(len(y))])
    best = 0.0
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    blocks = list(_blocks(len(x)))
    for number, rows in enumerate(blocks):
        x_rows, y_rows = _centred(x, rows, centre_x), _centred(y, rows, centre_y)
        for columns in blocks[number:]:
            x_columns = x_rows if columns == rows else _centred(x, columns, centre_x)
            y_columns = y_rows if columns == rows else _centred(y, columns, centre_y)
            dx, ex = _squared_distances(x_rows, x_columns, squares_x[rows], squares_x[columns])
            dy, ey = _squared_distances(y_rows, y_columns, squares_y[rows], squares_y[columns])
            at_least = (dy - ey).clamp_min(0) / (dx + ex)
            at_most = torch.where(dx > ex, (dy + ey) / (dx - ex).clamp_min(1e-300), torch.inf)
            if columns == rows:
                upper_triangle = torch.ones_like(dx, dtype=torch.bool).triu(1)
                at_least, at_most = at_least * upper_triangle, at_most.where(upper_triangle, -1.0)
            best = max(best, float(at_least.max()))
            i, j = (at_most >= best).nonzero(as_tuple=True)
            kept.append((i + rows.start, j + columns.start, at_most[i, j]))
        progress("empirical: pairs", number + 1, len(blocks))
    rows_kept, columns_kept, bounds = (torch.cat(part) for part in zip(*kept, strict=True))
    alive = bounds >= best
    return list(zip(rows_kept[alive].tolist(), columns_kept[alive].tolist(), strict=True))


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))


def _centred(x: Tensor, block: slice, centre: Tensor) -> Tensor:
    """A block in float64 about the mean, which shortens vectors and so the rounding of products."""
    return x[block].to(torch.float64) - centre


def _squared_distances(a: Tensor, b: Tensor, squares_a: Tensor, squares_b: Tensor) -> tuple[Tensor, Tensor]:
    """‖a_i − b_j‖² for all pairs, and a bound of its rounding error (see `rounding.py`)."""
    total = squares_a[:, None] + squares_b[None, :]
    # Products and squares: γ_D each on ≤ (‖a‖² + ‖b‖²)/2, doubled; centring: 2u on each entry.
    return total - 2 * (a @ b.T), 2 * gamma(a.shape[1] + 8) * total


def _recheck_order(
    inputs: Tensor, outputs: Tensor, candidates: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The candidates worth a full re-evaluation: the best few by direct differences of stored outputs."""
    ratios = np.empty(len(candidates))
    for n, (i, j) in enumerate(candidates):
        distance = (inputs[i].to(torch.float64) - inputs[j].to(torch.float64)).norm()
        ratios[n] = float((outputs[i] - outputs[j]).norm() / distance)
    order = np.argsort(-ratios, kind="stable")
    best = ratios[order[0]]
    # Stored outputs are float64 too: only ties within their rounding need more than one look.
    return [candidates[n] for n in order[:16] if ratios[n] >= best * (1 - 1e-6)]


def _duplicates(groups: list[list[int]], names: Sequence[str]) -> Iterator[Duplicate]:
    listed = 0
    for members in groups:
        for other in members[1:]:
            if listed == _LISTED_DUPLICATES:
                return
            yield Duplicate(first=names[members[0]], second=names[other])
            listed += 1
