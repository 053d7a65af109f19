"""The effective constant L_eff: the spectral norm of the Jacobian under averaged slopes.

J_eff = E[P_M] E[D_M] T_M ⋯ E[P_1] E[D_1] T_1, the slopes averaged over data by layer, channel or
unit. It is an estimate: averaging layer by layer assumes that layers are independent, and any
finite sample is a sample. (Level `full`, without that assumption, is in `mean_jacobian.py`.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ..engines import SERIAL, Engine
from ..graph import Graph, Slopes
from ..jacobian import linearize
from ..layers.max_pool import MaxPool
from ..progress import Progress, silent
from ..results import Cost, Effective, LayerSlope
from ..slopes import AveragedSlope, Level, subsampling, uniform_taps
from ..spectral import spectral_norm
from .checkpoint import Checkpoint, Saver, no_checkpoint
from .draws import Batch, chunks, draw
from .jackknife import jackknife_error
from .overflow import check_outputs, overflow
from .slope_sums import Kind, SlopeSums, slope_totals

if TYPE_CHECKING:
    from ..data import Samples

Reading = Literal["active", "secant", "paper"]

_KINDS: dict[Reading, Kind] = {"active": "active", "secant": "secant", "paper": "active"}


@dataclass(frozen=True)
class MeanSlopes:
    """Means of every unit's slopes, at points and over pairs (coarser levels follow)."""

    graph: Graph
    sums: SlopeSums
    seconds: float

    @property
    def samples(self) -> int:
        """Points behind the active means."""
        return self.sums.count("active")

    @property
    def pairs(self) -> int:
        """Pairs behind the secant means; none if there were fewer than two samples."""
        return self.sums.count("secant")

    def at(self, level: Level, reading: Reading) -> Slopes:
        """The slopes of J_eff.

        `scalar`: one p_k a layer, pooling as the mean over the tile. `channel`: one a channel,
        pooling by the selection frequency of each tap in each channel. `unit`: one a unit, pooling
        by those of each window. Reading `paper` is the source's printed formula: pooling as 1/τ
        times plain subsampling.

        Raises:
            ValueError: the secant reading without pairs, or `paper` at another level than scalar.
        """
        slopes = self._without(level, reading, None)
        if slopes is None:
            raise ValueError("secant slopes need at least two samples")
        return slopes

    def left_out(self, level: Level, reading: Reading) -> list[Slopes]:
        """`at`, leaving out each group of samples in turn; empty where nothing would be left."""
        groups = self.sums.groups(_KINDS[reading])
        found = [slopes for g in groups if (slopes := self._without(level, reading, g)) is not None]
        return found if len(found) == len(groups) > 1 else []

    def fractions(self, reading: Reading) -> list[float]:
        """p_k: the mean slope (or weight) of each nonlinear layer but max pooling, in graph order."""
        means = self.sums.mean(_KINDS[reading]) or {}
        return _fractions(means)

    def table(self) -> list[LayerSlope]:
        """One row a nonlinear layer: the p_k in both readings (None for pooling)."""
        active, secant = self.sums.mean("active") or {}, self.sums.mean("secant") or {}
        return [
            LayerSlope(
                place=self.graph.nodes[i].place,
                layer=layer.kind,
                active=_mean(active.get(i)),
                secant=_mean(secant.get(i)),
            )
            for i, layer in self.graph.nonlinear().items()
        ]

    def _without(self, level: Level, reading: Reading, group: int | None) -> Slopes | None:
        if reading == "paper" and level != "scalar":
            raise ValueError("the paper's reading has one slope a layer: level 'scalar'")
        means = self.sums.mean(_KINDS[reading], group)
        if means is None:
            return None
        if reading == "paper":
            return scalar_slopes(self.graph, _fractions(means), pooling="paper")
        return {i: slope.coarsened(level) for i, slope in means.items()}


def _mean(slope: AveragedSlope | None) -> float | None:
    return None if slope is None else slope.fraction


def _fractions(means: Mapping[int, AveragedSlope]) -> list[float]:
    """In graph order."""
    found = (_mean(means[i]) for i in sorted(means))
    return [p for p in found if p is not None]


def scalar_slopes(
    graph: Graph, fractions: Sequence[float], pooling: Literal["mean", "paper"] = "mean"
) -> Slopes:
    """Slopes with one given p_k for each nonlinear layer but max pooling, in graph order.

    Args:
        fractions: p_1 … p_M.
        pooling: "mean" averages each tile; "paper" subsamples and divides by the tile size τ.

    Raises:
        ValueError: the number of fractions is not the number of those layers.
    """
    averaged = [i for i, layer in graph.nonlinear().items() if not isinstance(layer, MaxPool)]
    if len(fractions) != len(averaged):
        raise ValueError(f"{len(fractions)} slopes for {len(averaged)} activation layers")
    given = dict(zip(averaged, fractions, strict=True))
    slopes: Slopes = {}
    for index, layer in graph.nonlinear().items():
        if isinstance(layer, MaxPool):
            slopes[index] = uniform_taps(layer.windows) if pooling == "mean" else subsampling(layer.windows)
        else:
            (shape,) = graph.shapes_into(index)
            slopes[index] = layer.averaged(torch.tensor(given[index], dtype=torch.float64).expand(1, *shape))
    return slopes


def mean_slopes(
    graph: Graph,
    samples: Samples,
    *,
    pairs: int = 10_000,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Checkpoint = no_checkpoint,
    engine: Engine = SERIAL,
) -> MeanSlopes:
    """Average slopes over the samples and over random pairs of them, in passes over the data.

    One evaluation of a batch serves the means of all levels, at its points and over its pairs;
    memory does not grow with the data (see `SlopeSums`).

    Args:
        pairs: number of pairs wanted, see `draw`; one pass suffices for 15 pairs a sample.
        batch_size: samples evaluated at once; larger batches give more pairs a pass.
        dtype, device: of the evaluation; sums are kept in float32 at least, in main memory.
        seed: of the draw of pairs.
        engine: where chunks of the data are evaluated.

    Raises:
        DataError: a sample cannot be read.
    """
    started = time.perf_counter()
    parts = chunks(draw(len(samples), pairs, batch_size, seed))
    total, done = SlopeSums(), 0
    if (saved := checkpoint.load("slopes")) is not None:
        total, done = SlopeSums.restored(graph, saved), int(saved["done"])
    shared = _Evaluation(graph.to(dtype, device), samples, dtype, device)
    saver = Saver(checkpoint, "slopes")
    for sums in engine.map(_chunk_sums, shared, parts[done:]):
        total.merge(sums)
        done += 1
        saver.offer(partial(_state, done, total), last=done == len(parts))
        progress("slopes", done, len(parts))
    return MeanSlopes(graph, total, time.perf_counter() - started)


def _state(done: int, sums: SlopeSums) -> dict[str, np.ndarray]:
    return {"done": np.array(done), **sums.state()}


@dataclass(frozen=True)
class _Evaluation:
    graph: Graph
    samples: Samples
    dtype: torch.dtype
    device: torch.device | str


def _chunk_sums(shared: _Evaluation, batches: Sequence[Batch]) -> SlopeSums:
    sums = SlopeSums()
    read = shared.samples.batches([batch.indices for batch in batches])
    for batch, x in zip(batches, read, strict=True):
        y = _add_batch(sums, shared.graph, x.to(shared.device, shared.dtype), batch)
        check_outputs(y, shared.samples, batch.indices, shared.dtype)
    return sums.cpu()


def _add_batch(sums: SlopeSums, graph: Graph, x: Tensor, batch: Batch) -> Tensor:
    """Add the slopes at the samples x of a batch, and return the network's outputs."""
    y, active, secant = slope_totals(graph, x, batch.pairs, points=batch.new)
    if batch.new:
        sums.add("active", batch.groups, active, len(batch.indices))
    for run, found in secant.items():
        sums.add("secant", batch.groups, found, run.count)
    return y


def effective(
    slopes: MeanSlopes,
    level: Level = "scalar",
    reading: Reading = "active",
    *,
    tolerance: float = 1e-6,
    seed: int = 0,
    start: Tensor | None = None,
) -> tuple[Effective, Tensor]:
    """L_eff = σ_max(J_eff) at one level and reading; an estimate.

    Args:
        slopes: from `mean_slopes`.
        level: "scalar" (one p_k a layer), "channel" or "unit".
        reading: "active" (slopes at points), "secant" (over pairs) or "paper" (see `MeanSlopes.at`).
        tolerance: relative accuracy of the spectral norm.
        start: a direction to start from (*in), such as that of another level.

    Returns:
        The result, and the leading right singular vector, shape (*in).

    Its `standard_error` is the jackknife's over groups of samples, of the first-order change uᵀJv of
    the norm with the singular vectors u, v held.

    Source: W. Czaja, R. Balan, P.-E. Jabin (2020), effective Lipschitz constant; B. Efron, C. Stein (1981).
    """
    started = time.perf_counter()
    operator = linearize(slopes.graph, slopes.at(level, reading))
    block = None if start is None else start[None, None]
    found = spectral_norm(operator, tolerance=tolerance, block=2, start=block, seed=seed, max_steps=200)
    value = float(found.value)
    if not math.isfinite(value):
        raise overflow(f"the {level} means of its slopes", slopes.graph.dtype)
    others = slopes.left_out(level, reading)
    replicates = [
        float((linearize(slopes.graph, other).matvec(found.right[None]) * found.left).sum())
        for other in others
    ]
    result = Effective(
        name="effective",
        value=value,
        method=f"spectral norm of the Jacobian with {level} means of the {_MEANING[reading]}",
        source="Czaja, Balan, Jabin 2020: effective Lipschitz constant",
        cost=Cost(
            seconds=time.perf_counter() - started + slopes.seconds,
            forward_passes=float(slopes.samples + 4 * found.steps + len(replicates)),
        ),
        level=level,
        reading=reading,
        slope_product=math.prod(slopes.fractions(reading)) if level == "scalar" else None,
        relative_error=float(found.error) / value if value > 0 else 0.0,
        standard_error=jackknife_error(replicates),
    )
    return result, found.right[0]


_MEANING = {
    "active": "slopes at the samples",
    "secant": "secant slopes of pairs",
    "paper": "slopes at the samples, pooling as 1/τ times subsampling",
}
