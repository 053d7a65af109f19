"""Lip(x) = σ_max(J(x)) over a data set, and the largest as an attained lower bound."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..engines import SERIAL, Engine
from ..graph import Graph
from ..jacobian import linearize
from ..progress import Progress, silent
from ..results import Cost, Local
from ..spectral import SpectralNorm, spectral_norm
from .checkpoint import Checkpoint, Saver, State, no_checkpoint
from .overflow import check_outputs
from .witness import Pair, pair_along

if TYPE_CHECKING:
    from ..data import Samples

_REFINED = 3
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_CHUNK_BATCHES = 4


def local(
    graph: Graph,
    samples: Samples,
    *,
    limit: int | None = None,
    tolerance: float = 1e-3,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    engine: Engine = SERIAL,
    progress: Progress = silent,
    checkpoint: Checkpoint = no_checkpoint,
) -> tuple[Local, Pair]:
    """Lip(x) at the samples, and a witness for the largest.

    Each Lip(x) is the spectral norm of the Jacobian with the slopes at x, an estimate from below.
    The largest few are refined in float64, and a pair of inputs on the line through x along the
    leading right singular vector gives the reported lower bound of the global constant.

    Memory: a few numbers a sample, and the directions of the largest few. The result does not depend
    on the engine, nor on where an interrupted run was cut.

    Args:
        graph: the network.
        samples: N ≥ 1 inputs.
        limit: visit at most so many, see `visited`; one sample costs some 30 forward passes.
        tolerance: relative accuracy of the estimates.
        batch_size: samples whose Jacobians are treated at once.
        dtype, device: of the estimates, bfloat16 and float16 included; the witness is evaluated in
            float64 on the CPU.
        seed: of the solver's random start, and of the choice of samples.
        engine: where chunks of a few batches run.

    Returns:
        The result and the witness pair.

    Raises:
        ModelError: the network overflows in `dtype`.
        ValueError: `limit` or `batch_size` is not positive.

    Source: Zou, Balan, Singh (2020), local Lipschitz constant.
    """
    started = time.perf_counter()
    if batch_size < 1:
        raise ValueError("batch_size must be positive")
    indices = visited(len(samples), limit, seed)
    step = batch_size * _CHUNK_BATCHES
    chunks = [indices[i : i + step] for i in range(0, len(indices), step)]
    shared = _Task(graph, samples, tolerance, batch_size, dtype, device, seed)
    found = _Found.restored(checkpoint.load("local"))
    saver = Saver(checkpoint, "local")
    for part in engine.map(_chunk, shared, chunks[found.chunks :]):
        found.add(part)
        saver.offer(found.state, last=found.chunks == len(chunks))
        progress("local", len(found.values), len(indices))
    values, count = found.values, len(indices)
    names = [samples.names[i] for i in indices]
    pair = _refine(graph, samples, indices, found.directions, values)
    return (
        Local(
            name="local",
            value=pair.bound,
            method="largest σ_max(J(x)) over the samples by Lanczos; attained by a pair along its singular vector",
            source="Zou, Balan, Singh 2020: Lip(x) = σ_max(∏ D_k(x) T_k)",
            cost=Cost(
                seconds=time.perf_counter() - started, forward_passes=float(2 * found.products + count)
            ),
            witness=pair.witness("local"),
            estimates=values.tolist(),
            samples=names,
            population=len(samples),
            mean=float(values.mean()),
            std=float(values.std(ddof=1)) if count > 1 else 0.0,
            quantiles=quantiles(values),
            relative_error=float((found.errors / np.maximum(values, 1e-300)).max()),
        ),
        pair,
    )


def visited(count: int, limit: int | None = None, seed: int = 0) -> Sequence[int]:
    """The indices of the samples that `local` visits, ascending: all, or `limit` of them at random.

    Raises:
        ValueError: `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise ValueError("limit must be positive")
    if limit is None or limit >= count:
        return range(count)
    chosen: list[int] = np.sort(np.random.default_rng(seed).choice(count, limit, replace=False)).tolist()
    return chosen


@dataclass(frozen=True)
class _Task:
    """What every chunk needs."""

    graph: Graph
    samples: Samples
    tolerance: float
    batch_size: int
    dtype: torch.dtype
    device: torch.device | str
    seed: int


@dataclass
class _Found:
    """What is known of the samples visited so far; directions by position among them, of the largest few."""

    chunks: int = 0
    products: int = 0
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    errors: np.ndarray = field(default_factory=lambda: np.zeros(0))
    directions: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def restored(cls, state: State | None) -> _Found:
        if state is None:
            return cls()
        return cls(
            chunks=int(state["chunks"]),
            products=int(state["products"]),
            values=state["values"],
            errors=state["errors"],
            directions=dict(zip(state["best"].tolist(), torch.from_numpy(state["directions"]), strict=True)),
        )

    def state(self) -> dict[str, np.ndarray]:
        return {
            "chunks": np.array(self.chunks),
            "products": np.array(self.products),
            "values": self.values,
            "errors": self.errors,
            "best": np.array(list(self.directions)),
            "directions": torch.stack(list(self.directions.values())).numpy(),
        }

    def add(self, part: _Found) -> None:
        """Append what follows in the order of the samples."""
        before = len(self.values)
        self.chunks += part.chunks
        self.products += part.products
        self.values = np.concatenate([self.values, part.values])
        self.errors = np.concatenate([self.errors, part.errors])
        self.directions.update({before + i: v for i, v in part.directions.items()})
        reach = self.values + self.errors
        kept = sorted(self.directions, key=lambda i: (-reach[i], i))[:_REFINED]
        self.directions = {i: self.directions[i] for i in kept}


def norms_at(working: Graph, x: Tensor, tolerance: float, seed: int) -> tuple[Tensor, SpectralNorm]:
    """Φ(x) and the leading singular triplet of J(x) at each point of a batch (B, *in), in the graph's precision."""
    y, slopes = working.linearize_at(x)
    operator = linearize(working, slopes, len(x))
    return y, spectral_norm(operator, tolerance=tolerance, seed=seed, dtype=x.dtype, device=x.device)


def quantiles(values: np.ndarray) -> dict[str, float]:
    """The quantiles that results state of a distribution, by their level."""
    return {f"{q:g}": float(np.quantile(values, q)) for q in _QUANTILES}


def _chunk(task: _Task, indices: Sequence[int]) -> _Found:
    """Lip(x) at the samples of the indices, batch by batch."""
    working = task.graph.to(task.dtype, task.device)
    total = _Found(chunks=1)
    for start in range(0, len(indices), task.batch_size):
        batch = indices[start : start + task.batch_size]
        x = task.samples.batch(batch).to(task.device, task.dtype)
        y, found = norms_at(working, x, task.tolerance, task.seed)
        # To the CPU first: not every device has float64.
        values, errors = (x.cpu().double().numpy() for x in (found.value, found.error))
        check_outputs(y, task.samples, batch, task.dtype, np.isfinite(values))
        directions = dict(enumerate(found.right.cpu()))
        total.add(_Found(0, found.steps * len(batch), values, errors, directions))
    return total


def _refine(
    graph: Graph,
    samples: Samples,
    indices: Sequence[int],
    directions: dict[int, Tensor],
    values: np.ndarray,
) -> Pair:
    """Sharpen the leading candidates in float64; keep the best attained pair."""
    exact = graph.to(torch.float64, "cpu")
    for place, direction in directions.items():
        _, slopes = exact.linearize_at(samples.batch([indices[place]]).to("cpu", torch.float64))
        # Random vectors beside the warm start find a larger singular value that it may have missed.
        start = direction[None, None]
        found = spectral_norm(linearize(exact, slopes), tolerance=1e-9, start=start, block=3, max_steps=60)
        values[place], directions[place] = float(found.value), found.right[0]
    best: Pair | None = None
    for place in sorted(directions, key=lambda i: -values[i]):
        # Only where a formal Jacobian is not attained (at a kink) does a later candidate come into play.
        if best is None or best.bound < values[place]:
            x, name = samples.batch([indices[place]])[0], samples.names[indices[place]]
            pair = pair_along(exact, x, directions[place], name)
            best = pair if best is None or pair.bound > best.bound else best
    assert best is not None
    return best
