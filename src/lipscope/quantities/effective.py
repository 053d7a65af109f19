"""The effective constant L_eff: the spectral norm of the Jacobian under averaged slopes.

J_eff = E[P_M] E[D_M] T_M ⋯ E[P_1] E[D_1] T_1, the slopes averaged over data. It is an estimate:
averaging layer by layer assumes that layers are independent, and any finite sample is a sample.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ..graph import Graph, Slopes
from ..jacobian import linearize
from ..layers.max_pool import MaxPool
from ..progress import Progress, silent
from ..results import Cost, Effective, LayerSlope
from ..slopes import AveragedSlope, TapWeights, subsampling, uniform_taps
from ..spectral import spectral_norm
from .checkpoint import Checkpoint, State, no_checkpoint

if TYPE_CHECKING:
    from ..data import Samples

EffectiveLevel = Literal["scalar", "channel"]
Reading = Literal["active", "secant", "paper"]


@dataclass(frozen=True)
class MeanSlopes:
    """Channel means of every nonlinear layer's slopes, at points and over pairs (coarser levels follow)."""

    graph: Graph
    active: dict[int, AveragedSlope]
    secant: dict[int, AveragedSlope] | None
    """None if no pair was drawn (fewer than two samples)."""
    pairs: int
    samples: int
    seconds: float

    def at(self, level: EffectiveLevel, reading: Reading) -> Slopes:
        """The slopes of J_eff.

        `scalar`: one p_k a layer, pooling as the mean over the tile. `channel`: one a channel,
        pooling by the selection frequency of each tap in each channel. Reading `paper` is the
        source's printed formula: pooling as 1/τ times plain subsampling.

        Raises:
            ValueError: the secant reading without pairs, or `paper` at another level than scalar.
        """
        if reading == "secant":
            if self.secant is None:
                raise ValueError("secant slopes need at least two samples")
            return {i: slope.mean(level) for i, slope in self.secant.items()}
        if reading == "paper":
            if level != "scalar":
                raise ValueError("the paper's reading has one slope a layer: level 'scalar'")
            return scalar_slopes(self.graph, self.fractions(self.active), pooling="paper")
        return {i: slope.mean(level) for i, slope in self.active.items()}

    def fractions(self, slopes: dict[int, AveragedSlope]) -> list[float]:
        """p_k: the mean slope (or weight) of each nonlinear layer but max pooling, in graph order."""
        return [float(s.values.mean()) for s in slopes.values() if not isinstance(s, TapWeights)]

    def table(self) -> list[LayerSlope]:
        """One row a nonlinear layer: the p_k in both readings (None for pooling)."""

        def mean(slopes: dict[int, AveragedSlope] | None, index: int) -> float | None:
            slope = None if slopes is None else slopes[index]
            return None if slope is None or isinstance(slope, TapWeights) else float(slope.values.mean())

        return [
            LayerSlope(
                place=self.graph.nodes[i].place,
                layer=layer.kind,
                active=mean(self.active, i),
                secant=mean(self.secant, i),
            )
            for i, layer in self.graph.nonlinear().items()
        ]


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
) -> MeanSlopes:
    """Average slopes over the samples and over random pairs of them, in passes over the data.

    Each pass shuffles the data and evaluates it once in batches; pairs are the batch against
    rotations of itself, so one evaluation of a sample serves several pairs.

    Args:
        pairs: number of pairs wanted; at least that many are used if the data hold as many.
        batch_size: samples evaluated at once; larger batches give more pairs a pass.
    """
    started = time.perf_counter()
    working = graph.to(dtype, device)
    plan = list(_plan(len(samples), pairs, batch_size, seed))
    total = _Sums()
    first = total.restore(working, checkpoint.load("slopes"))
    for number, (indices, shifts, first_pass) in enumerate(plan[first:], first):
        x = samples.batch(indices).to(device, dtype)
        _, before = working.preactivations(x)
        for index, layer in working.nonlinear().items():
            a = before[index]
            if first_pass:
                total.add("active", index, layer.linearize(a)[1].mean("channel"), len(indices))
            for shift, count in shifts:
                slope = layer.secant(a[:count], a.roll(-shift, 0)[:count]).mean("channel")
                total.add("secant", index, slope, count)
        checkpoint.save("slopes", **total.state(number + 1))
        progress("slopes", number + 1, len(plan))
    counted = [count for _, shifts, _ in plan for _, count in shifts]
    return MeanSlopes(
        graph=graph,
        active=total.means("active"),
        secant=total.means("secant") if counted else None,
        pairs=sum(counted),
        samples=len(samples),
        seconds=time.perf_counter() - started,
    )


def _plan(
    count: int, pairs: int, batch_size: int, seed: int
) -> list[tuple[list[int], list[tuple[int, int]], bool]]:
    """Batches of indices, the rotations (shift, pairs used) to pair each batch by, and whether it is a first pass."""
    generator = np.random.default_rng(seed)
    wanted = min(pairs, count * (count - 1) // 2)
    plan: list[tuple[list[int], list[tuple[int, int]], bool]] = []
    drawn, passes = 0, 0
    while passes == 0 or drawn < wanted:
        order = generator.permutation(count).tolist()
        # Even batches: no batch of one sample, which would have no pair.
        number = max(1, -(-count // batch_size))
        edges = np.linspace(0, count, number + 1).round().astype(int).tolist()
        for start, stop in itertools.pairwise(edges):
            size = stop - start
            shifts: list[tuple[int, int]] = []
            # Rotations by s and size − s give the same pairs; half a turn gives each pair twice.
            for shift in range(1, size // 2 + 1):
                distinct = size // 2 if 2 * shift == size else size
                take = min(distinct, wanted - drawn)
                if take > 0:
                    shifts.append((shift, take))
                    drawn += take
            if passes == 0 or shifts:
                plan.append((order[start:stop], shifts, passes == 0))
        passes += 1
    return plan


@dataclass
class _Sums:
    """Weighted sums of averaged slopes, by reading and node."""

    slopes: dict[tuple[str, int], AveragedSlope] = field(default_factory=dict)
    weights: dict[tuple[str, int], float] = field(default_factory=dict)

    def add(self, reading: str, index: int, slope: AveragedSlope, weight: float) -> None:
        key = (reading, index)
        values = slope.values.cpu() * weight
        if key in self.slopes:
            values = values + self.slopes[key].values
        self.slopes[key] = slope.with_values(values)
        self.weights[key] = self.weights.get(key, 0.0) + weight

    def means(self, reading: str) -> dict[int, AveragedSlope]:
        return {
            index: slope.with_values(slope.values / self.weights[reading, index])
            for (kind, index), slope in self.slopes.items()
            if kind == reading
        }

    def state(self, done: int) -> dict[str, np.ndarray]:
        arrays = {f"{kind}.{index}": s.values.numpy() for (kind, index), s in self.slopes.items()}
        weights = {f"weight.{kind}.{index}": np.array(w) for (kind, index), w in self.weights.items()}
        return {"done": np.array(done), **arrays, **weights}

    def restore(self, graph: Graph, state: State | None) -> int:
        if state is None:
            return 0
        for name, values in state.items():
            kind, _, number = name.partition(".")
            if kind in ("active", "secant"):
                index = int(number)
                layer = graph.nonlinear()[index]
                self.slopes[kind, index] = layer.averaged(torch.from_numpy(values))
                self.weights[kind, index] = float(state[f"weight.{name}"])
        return int(state["done"])


def effective(
    slopes: MeanSlopes,
    level: EffectiveLevel = "scalar",
    reading: Reading = "active",
    *,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Effective:
    """L_eff = σ_max(J_eff) at one level and reading; an estimate.

    Args:
        slopes: from `mean_slopes`.
        level: "scalar" (one p_k a layer) or "channel".
        reading: "active" (slopes at points), "secant" (over pairs) or "paper" (see `MeanSlopes.at`).
        tolerance: relative accuracy of the spectral norm.

    Source: W. Czaja, R. Balan, P.-E. Jabin (2020), effective Lipschitz constant.
    """
    started = time.perf_counter()
    operator = linearize(slopes.graph, slopes.at(level, reading))
    found = spectral_norm(operator, tolerance=tolerance, block=2, seed=seed, max_steps=200)
    value = float(found.value)
    fractions = slopes.fractions((slopes.secant if reading == "secant" else slopes.active) or {})
    return Effective(
        name="effective",
        value=value,
        method=f"spectral norm of the Jacobian with {level} means of the {_MEANING[reading]}",
        source="Czaja, Balan, Jabin 2020: effective Lipschitz constant",
        cost=Cost(
            seconds=time.perf_counter() - started + slopes.seconds,
            forward_passes=float(slopes.samples + 4 * found.steps),
        ),
        level=level,
        reading=reading,
        slope_product=_product(fractions) if level == "scalar" else None,
        relative_error=float(found.error) / value if value > 0 else 0.0,
    )


_MEANING = {
    "active": "slopes at the samples",
    "secant": "secant slopes of pairs",
    "paper": "slopes at the samples, pooling as 1/τ times subsampling",
}


def _product(fractions: Sequence[float]) -> float:
    product = 1.0
    for p in fractions:
        product *= p
    return product
