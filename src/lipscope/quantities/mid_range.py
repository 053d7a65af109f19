"""Stretch against distance: how Lip(x) at distance 0 turns into L_emp between samples far apart.

Lip(x) is what the network does to small steps in the worst direction, L_emp what it does to steps
between samples. Three families of pairs lead from one to the other; each keeps one of the two reasons
for the gap apart. `steepest` keeps the worst direction and lets the step grow: how fast does the worst
case die out? `segments` keeps the directions of the data and lets the step shrink: how much of the gap
is there at any distance, since differences of samples are not the worst direction? `pairs` are the
samples themselves.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ..engines import SERIAL, Engine
from ..graph import Graph
from ..progress import Progress, silent
from ..results import Cost, MidRange, StretchBin, StretchCurve
from .checkpoint import Checkpoint, Saver, no_checkpoint
from .draws import Batch, chunks, draw
from .local import norms_at, quantiles

if TYPE_CHECKING:
    from ..data import Samples

Family = Literal["steepest", "segments", "pairs"]

_FAMILIES: tuple[Family, ...] = ("steepest", "segments", "pairs")
_STEPS = np.logspace(-4, 0, 13)
"""Distances of `steepest`, in units of the typical distance between samples."""
_FRACTIONS = np.logspace(-3, 0, 10)
"""The t of `segments`."""
_PAIRS_PER_SAMPLE = 4
_LEAST_PAIRS, _MOST_BINS, _BINS_PER_DECADE = 10, 24, 4
# Closer than this (relative to the points' norms), rounding in float64 may show in the ratio.
_COINCIDE = 1e-9


@dataclass(frozen=True)
class _Bases:
    """Base points, by index, and the sample each segment leads to (none if there is one sample only)."""

    indices: tuple[int, ...]
    partners: tuple[int, ...]


@dataclass(frozen=True)
class _Shared:
    graph: Graph
    samples: Samples
    dtype: torch.dtype
    device: torch.device | str
    tolerance: float
    seed: int
    scale: float
    """Typical distance between samples."""


@dataclass(frozen=True)
class _Part:
    """Distances and ratios by family, and the network evaluations they took."""

    secants: dict[Family, tuple[np.ndarray, np.ndarray]]
    passes: int


def mid_range(
    graph: Graph,
    samples: Samples,
    *,
    pairs: int = 2000,
    bases: int = 24,
    tolerance: float = 1e-3,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Checkpoint = no_checkpoint,
    engine: Engine = SERIAL,
) -> MidRange:
    """Secant ratios ‖Φ(x₁) − Φ(x₂)‖ / ‖x₁ − x₂‖ by distance, in three families of pairs; estimates.

    - `steepest`: x ± (h/2)·v(x) on either side of a base point along the leading right singular vector
      of J(x), for h on a logarithmic grid from 1e-4 of the typical distance between samples up to it.
      The two sides make the ratio independent of the sign of v, and accurate to second order: as
      h → 0 it is Lip(x), wherever Φ is differentiable.
    - `segments`: (x, x + t(x′ − x)) from a base point towards another sample, t from 1e-3 to 1.
    - `pairs`: random pairs of samples. They are drawn among at most pairs/4 samples, so that a large
      data set costs no more than a small one.

    Pairs are binned by distance on a logarithmic scale: those of `steepest` and `segments` about the
    steps of their grids, those of `pairs` in equal bins. Bins of fewer than ten pairs join a neighbour,
    but not those of `steepest`, where each step h has one pair a base point. Pairs that coincide
    (duplicate samples) have no ratio and are left out, as are pairs closer than 1e-9 of their norms,
    where rounding shows, and pairs whose outputs overflow. All differences are those of float64
    evaluations, since float32 would lose short steps to rounding; only v(x) is computed in `dtype`.

    The cost is about pairs/4 + 70·bases forward passes, 2,200 with the defaults.

    Args:
        graph: the network.
        samples: N ≥ 1 inputs; with one sample there is only `steepest`.
        pairs: pairs of samples wanted.
        bases: samples from which segments and steepest directions start.
        tolerance: relative accuracy of the norm whose singular vector v(x) is.
        batch_size: samples evaluated at once.
        dtype, device: of the singular vectors; differences are float64 on `device`.
        seed: of the draws and of the solver's random start.
        engine: maps the parts of the work.

    Returns:
        The curves that have pairs, from `steepest` to `pairs`.

    Source: docs/result.md, stretch against distance.
    """
    started = time.perf_counter()
    generator = np.random.default_rng(seed)
    starts = _base_points(len(samples), bases, batch_size, generator)
    # Pairs among samples of their own: a subset in random order, of which `draw` sees the positions.
    visited = min(len(samples), max(2, -(-pairs // _PAIRS_PER_SAMPLE)))
    chosen = generator.permutation(len(samples))[:visited].tolist()
    batches = [
        Batch(tuple(chosen[i] for i in batch.indices), batch.pairs, batch.groups, batch.new)
        for batch in draw(visited, pairs, batch_size, seed)
        if batch.pairs
    ]
    work: list[_Bases | tuple[Batch, ...]] = [*starts, *chunks(batches)]
    shared = _Shared(graph, samples, dtype, device, tolerance, seed, _scale(samples, starts))

    found: dict[Family, list[tuple[np.ndarray, np.ndarray]]] = {family: [] for family in _FAMILIES}
    done = passes = 0
    seconds = 0.0
    if (saved := checkpoint.load("mid_range")) is not None:
        done, passes, seconds = int(saved["done"]), int(saved["passes"]), float(saved["seconds"])
        for family in _FAMILIES:
            found[family] = [(saved[f"{family}.distances"], saved[f"{family}.ratios"])]

    def state() -> dict[str, np.ndarray]:
        elapsed = seconds + time.perf_counter() - started
        counts = {"done": np.array(done), "passes": np.array(passes), "seconds": np.array(elapsed)}
        for family in _FAMILIES:
            counts[f"{family}.distances"], counts[f"{family}.ratios"] = _joined(found[family])
        return counts

    saver = Saver(checkpoint, "mid_range")
    for part in engine.map(_evaluate, shared, work[done:]):
        done, passes = done + 1, passes + part.passes
        for family, secants in part.secants.items():
            found[family].append(secants)
        saver.offer(state)
        progress("mid-range", done, len(work))

    joined = {family: _joined(secants) for family, secants in found.items()}
    # On the grid of its steps a bin holds every base point, not whichever has a neighbour at that distance.
    edges = {
        "steepest": _halfway(shared.scale * _STEPS),
        "segments": _halfway(shared.scale * _FRACTIONS),
        "pairs": _edges(joined["pairs"][0]),
    }
    least = {"steepest": 1, "segments": _LEAST_PAIRS, "pairs": _LEAST_PAIRS}
    curves = [_curve(family, *joined[family], edges[family], least[family]) for family in _FAMILIES]
    return MidRange(
        curves=[curve for curve in curves if curve.bins],
        cost=Cost(
            seconds=seconds + time.perf_counter() - started,
            forward_passes=float(passes),
        ),
    )


def _base_points(count: int, bases: int, batch_size: int, generator: np.random.Generator) -> list[_Bases]:
    """Up to `bases` random samples, each with another one to lead to, in batches."""
    indices = generator.permutation(count)[:bases]
    partners = (indices + generator.integers(1, count, len(indices))) % count if count > 1 else indices[:0]
    return [
        _Bases(
            tuple(indices[i : i + batch_size].tolist()),
            tuple(partners[i : i + batch_size].tolist()),
        )
        for i in range(0, len(indices), batch_size)
    ]


def _scale(samples: Samples, starts: Sequence[_Bases]) -> float:
    """The median length of the segments; failing that the median norm of the samples, or 1."""
    lengths: list[float] = []
    norms: list[float] = []
    for bases in starts:
        x = samples.batch(bases.indices).to(torch.float64)
        norms += _norms(x).tolist()
        if bases.partners:
            lengths += _norms(samples.batch(bases.partners).to(torch.float64) - x).tolist()
    for sizes in (lengths, norms):
        if positive := [size for size in sizes if size > 0]:
            return float(np.median(positive))
    return 1.0


def _evaluate(shared: _Shared, item: _Bases | tuple[Batch, ...]) -> _Part:
    """The secants of one part of the work."""
    exact = shared.graph.to(torch.float64, shared.device)
    return _from_bases(shared, exact, item) if isinstance(item, _Bases) else _between(shared, exact, item)


def _between(shared: _Shared, exact: Graph, batches: tuple[Batch, ...]) -> _Part:
    """Random pairs of samples; one evaluation of a sample serves all of its pairs in the batch."""
    secants = []
    for batch in batches:
        x = shared.samples.batch(batch.indices).to(shared.device, torch.float64)
        y = exact.evaluate(x)
        for run in batch.pairs:
            one, two = slice(run.first, run.first + run.count), slice(run.second, run.second + run.count)
            secants.append(_secants(x[one], y[one], x[two], y[two]))
    return _Part({"pairs": _joined(secants)}, sum(len(batch.indices) for batch in batches))


def _from_bases(shared: _Shared, exact: Graph, bases: _Bases) -> _Part:
    """Segments to other samples, and steps along the most stretched directions."""
    x = shared.samples.batch(bases.indices).to(shared.device, torch.float64)
    direction, passes = _steepest_directions(shared, x)
    steepest, segments = [], []
    for step in shared.scale * _STEPS:
        ahead, behind = x + step / 2 * direction, x - step / 2 * direction
        steepest.append(_secants(ahead, exact.evaluate(ahead), behind, exact.evaluate(behind)))
    passes += 2 * len(x) * len(_STEPS)
    if bases.partners:
        towards = shared.samples.batch(bases.partners).to(shared.device, torch.float64) - x
        y = exact.evaluate(x)
        for fraction in _FRACTIONS:
            point = x + fraction * towards
            segments.append(_secants(x, y, point, exact.evaluate(point)))
        passes += len(x) * (1 + len(_FRACTIONS))
    return _Part({"steepest": _joined(steepest), "segments": _joined(segments)}, passes)


def _steepest_directions(shared: _Shared, x: Tensor) -> tuple[Tensor, int]:
    """v(x) as unit vectors (B, *in) in float64, and the passes it took."""
    working = shared.graph.to(shared.dtype, shared.device)
    _, found = norms_at(working, x.to(shared.dtype), shared.tolerance, shared.seed)
    right = found.right.to(torch.float64)
    # Where J(x) = 0 every direction is as good as any other.
    right = torch.where(_columns(_norms(right), right) > 0.5, right, torch.ones_like(right))
    return right / _columns(_norms(right), right), len(x) * (1 + 2 * found.steps)


def _secants(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Distances and ratios of the pairs (x1[b], x2[b]) that have one."""
    distances = _norms(x1 - x2)
    ratios = _norms(y1 - y2) / distances
    apart = (distances > _COINCIDE * (_norms(x1) + _norms(x2))) & ratios.isfinite()
    return distances[apart].cpu().numpy(), ratios[apart].cpu().numpy()


def _norms(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample of a batch (B, *shape)."""
    norms: Tensor = x.flatten(1).norm(dim=1)
    return norms


def _columns(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) in the shape in which they broadcast over samples (B, *shape)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _joined(secants: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    distances = np.concatenate([np.empty(0), *(distances for distances, _ in secants)])
    return distances, np.concatenate([np.empty(0), *(ratios for _, ratios in secants)])


def _halfway(grid: np.ndarray) -> np.ndarray:
    """Edges half-way between the points of a logarithmic grid of distances."""
    return np.asarray(np.sqrt(grid[1:] * grid[:-1]))


def _edges(distances: np.ndarray) -> np.ndarray:
    """Inner edges of equal bins of log-distance: some a decade, but finer where that makes too few to see."""
    if len(distances) == 0 or distances.min() == distances.max():
        return np.empty(0)
    low, high = np.log10(distances.min()), np.log10(distances.max())
    bins = min(_MOST_BINS, max(_BINS_PER_DECADE * int(np.ceil(high - low)), 2 * _BINS_PER_DECADE))
    return np.asarray(np.logspace(low, high, bins + 1)[1:-1])


def _curve(
    name: Family, distances: np.ndarray, ratios: np.ndarray, edges: np.ndarray, least: int
) -> StretchCurve:
    """Bins between the edges, each joined with its right neighbour (the last: its left) up to `least` pairs."""
    order = np.argsort(distances, kind="stable")
    distances, ratios = distances[order], ratios[order]
    cuts = [0]
    for stop in [*np.searchsorted(distances, edges).tolist(), len(distances)]:
        if stop - cuts[-1] >= least:
            cuts.append(stop)
    if len(cuts) > 1:
        cuts[-1] = len(distances)
    elif len(distances):
        cuts.append(len(distances))
    return StretchCurve(
        name=name,
        bins=[
            StretchBin(
                low=float(distances[start]),
                high=float(distances[stop - 1]),
                distance=float(np.median(distances[start:stop])),
                count=stop - start,
                quantiles=quantiles(ratios[start:stop]),
            )
            for start, stop in itertools.pairwise(cuts)
        ],
    )
