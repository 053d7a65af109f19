"""σ_max(E[J]) and the leading directions of E[JᵀJ] in one pass over the data, or a few.

Warm start. For E[J], the leading singular vectors of J_eff, the Jacobian under mean slopes: they come
from all the data, at the cost of a few products. On AlexNet they are a better start than E[J] over
a part of the data, whose noise ‖E_part[J] − E[J]‖ is often above σ_max(E[J]). For E[JᵀJ], which the
fluctuations of slopes dominate, block power iteration, every step on Jacobians not seen before, in parts of
the data that double in size: a step on a fresh part only adds the noise of that part along directions
that do not depend on it.

Pass over all data. Products E[J]V and E[J]ᵀU with right and left blocks V, U at once. Any E[J] with
these products has norm at least max(‖E[J]V‖, ‖E[J]ᵀU‖), and the bound is sharp (S. Parrott 1978): this is
the value, from below. How far above the norm may be is estimated from the Rayleigh–Ritz residuals. Further
passes extend V and U by the residuals (block Davidson, here the same Krylov space as Golub–Kahan).

Sources: N. Halko, P.-G. Martinsson, J. Tropp (2011), sections 5.5 and 9.4 (one pass, subspace iteration);
B. Parlett (1998), The symmetric eigenvalue problem, sections 10.5 and 11.4 (residual bounds).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engines import SERIAL, Engine
from ..graph import Graph
from ..jacobian import linearize
from ..layers.base import Shape
from ..progress import Progress, silent
from ..results import Cost, Effective, SecondMoment
from .checkpoint import Checkpoint, no_checkpoint
from .draws import GROUPS
from .effective import MeanSlopes
from .jackknife import jackknife_error
from .mean_jacobian import JacobianStream, PointsOrPairs, Sums, run_pass

if TYPE_CHECKING:
    from ..data import Samples

WARM_FRACTION = 1 / 4
"""Jacobians spent on the warm start, as a part of all."""
SMALLEST_PART = 32
"""Jacobians of the first parts of the warm start."""
STEPS = 8
"""Steps of the warm start at least; on few data, parts come again."""
START_STEPS = 10
"""Steps of subspace iteration on J_eff; its directions are a start, not an answer."""


def mean_jacobian_norm(
    slopes: MeanSlopes,
    samples: Samples,
    reading: PointsOrPairs,
    *,
    pairs: int = 10_000,
    block: int = 2,
    passes: int = 2,
    tolerance: float = 0.0,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    engine: Engine = SERIAL,
    progress: Progress = silent,
    checkpoint: Checkpoint = no_checkpoint,
) -> Effective:
    """L_eff at level "full": σ_max(E[J]) with no independence of layers assumed; an estimate.

    `value` never exceeds the norm of the mean over these very Jacobians (but for rounding in `dtype`);
    `relative_error` estimates from residuals how far below it may be, and is pessimistic where the leading
    singular values lie close. `standard_error` is the sampling error. The norm of a mean over n Jacobians
    is biased upwards, and above all so where few are taken: noise adds about E‖J v‖²/n to its square (on
    AlexNet 40 pairs give 1.5 times what 160 pairs give). The value is not corrected for that.

    Args:
        slopes: means over the same data, from `mean_slopes`; where the search starts.
        samples: N ≥ 1 inputs (two for secants).
        reading: "active", Jacobians at all samples, or "secant", Jacobians of pairs.
        pairs: how many pairs are drawn for the secant reading, at most N(N − 1)/2.
        block: right vectors, and as many left ones, a pass is made with; at least two.
        passes: passes over all data at most; each refines.
        tolerance: no further pass once `relative_error` is at most this.
        batch_size: samples evaluated at once.
        dtype, device: of the products; sums are kept in float64.
        seed: of the draw, the groups left out and the random start.
        engine: where chunks of the data are worked on; all give the same result.
        checkpoint: a run that was killed goes on from there with the identical result.

    Raises:
        ValueError: `block` or `passes` is not positive, or there is no pair for the secant reading.
    """
    started = time.perf_counter()
    graph = slopes.graph
    stream = JacobianStream.over(
        graph, samples, reading, pairs=pairs, batch_size=batch_size, dtype=dtype, device=device, seed=seed
    )
    work = _Work(stream, block, passes, engine, progress, checkpoint, f"mean Jacobian, {reading}")
    right, left = _leading(slopes, reading, work.block, seed)
    bases, small = _Bases(graph), None
    for _ in range(passes):
        sums = work.run(stream, right, left)
        bases.extend(right, left, sums, len(stream))
        small = small or (sums.small, sums.counts)
        value, error = bases.norm(torch.finfo(dtype).eps)
        if error <= tolerance * value:
            break
        right, left = bases.residuals(block)
        if not len(right) and not len(left):
            break
    assert small is not None
    return Effective(
        name="effective",
        value=value,
        method=f"spectral norm of the mean Jacobian {_MEANING[reading]}, by {_times(work.full)} over "
        f"{len(stream)} of them",
        source="docs/design/effective-full.md; Halko, Martinsson, Tropp 2011",
        cost=Cost(seconds=time.perf_counter() - started, forward_passes=float(work.forward_passes)),
        level="full",
        reading=reading,
        slope_product=None,
        relative_error=error / value if value > 0 else 0.0,
        standard_error=_standard_error(*small, lambda m: float(torch.linalg.matrix_norm(m, 2))),
    )


def second_moment(
    graph: Graph,
    samples: Samples,
    reading: PointsOrPairs,
    *,
    directions: int = 4,
    pairs: int = 10_000,
    passes: int = 1,
    tolerance: float = 0.0,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    engine: Engine = SERIAL,
    progress: Progress = silent,
    checkpoint: Checkpoint = no_checkpoint,
) -> tuple[SecondMoment, Tensor]:
    """√λ of the leading directions of E[JᵀJ], the root-mean-square stretches, and the directions (p, *in), float64.

    λ are Ritz values: never above the eigenvalues of the mean over these very Jacobians, in order.
    For a Gaussian output of variance 1, E[JᵀJ] is the mean input Fisher information. Directions of few
    data follow their noise; see `mean_jacobian_norm`, also for the arguments.

    Args:
        directions: how many, p (at least two, at most the size of the input).

    Raises:
        ValueError: `directions` or `passes` is not positive, or there is no pair for the secant reading.
    """
    started = time.perf_counter()
    stream = JacobianStream.over(
        graph, samples, reading, pairs=pairs, batch_size=batch_size, dtype=dtype, device=device, seed=seed
    )
    work = _Work(stream, directions, passes, engine, progress, checkpoint, f"second moment, {reading}")
    right = work.start(seed)
    space, small = _Space(graph), None
    for _ in range(passes):
        sums = work.run(stream, right, None, gram=True)
        space.extend(right, sums, len(stream))
        small = small or (sums.small, sums.counts)
        values, vectors, error = space.leading(directions, torch.finfo(dtype).eps)
        if error <= tolerance * values[0]:
            break
        right = space.residuals(directions)
        if not len(right):
            break
    assert small is not None
    stretches = [math.sqrt(value) for value in values]
    moment = SecondMoment(
        name="second moment",
        value=stretches[0],
        method=f"leading eigenvalues of the mean of JᵀJ {_MEANING[reading]}, by {_times(work.full)} over "
        f"{len(stream)} of them",
        source="docs/design/effective-full.md; Constantine 2015: active subspaces",
        cost=Cost(seconds=time.perf_counter() - started, forward_passes=float(work.forward_passes)),
        reading=reading,
        leading=stretches,
        directions=[f"second_moment.{reading}.{k}" for k in range(len(vectors))],
        # √(λ + e) ≈ √λ (1 + e/2λ), from above.
        relative_error=0.5 * error / values[0] if values[0] > 0 else 0.0,
        standard_error=_standard_error(
            *small, lambda m: math.sqrt(max(0.0, float(torch.linalg.eigvalsh(m)[-1])))
        ),
    )
    return moment, vectors.reshape(-1, *graph.input_shape)


_MEANING = {"active": "at the samples", "secant": "of pairs of samples"}


def _times(passes: int) -> str:
    return "one pass" if passes == 1 else f"{passes} passes"


class _Work:
    """The passes of one computation: numbered, counted and checkpointed under one name."""

    def __init__(
        self,
        stream: JacobianStream,
        block: int,
        passes: int,
        engine: Engine,
        progress: Progress,
        checkpoint: Checkpoint,
        stage: str,
    ) -> None:
        if block < 1 or passes < 1:
            raise ValueError("the number of vectors and of passes must be positive")
        # One vector alone cannot see a second singular value close by, and its stated error would be blind.
        block = max(block, 2)
        self.stream, self.engine, self.progress, self.checkpoint = stream, engine, progress, checkpoint
        self.stage, self.name = stage, stage.replace(", ", ".").replace(" ", "-")
        shape_in, shape_out = stream.graph.input_shape, stream.graph.output_shape
        self.block = min(block, math.prod(shape_in), math.prod(shape_out))
        self.passes = self.full = 0
        self.forward_passes = 0

    def run(
        self, stream: JacobianStream, right: Tensor | None, left: Tensor | None, gram: bool = False
    ) -> Sums:
        """One pass over a part or all of the data; a finished pass that was kept is not made again."""
        name = f"{self.name}.{self.passes}"
        vectors = sum(len(block) for block in (right, left) if block is not None) * (1 + gram)
        self.forward_passes += stream.evaluations + vectors * len(stream)
        self.full += stream is self.stream
        self.passes += 1
        return run_pass(
            stream,
            right if right is not None and len(right) else None,
            left if left is not None and len(left) else None,
            gram=gram,
            engine=self.engine,
            progress=self.progress,
            stage=self.stage,
            checkpoint=self.checkpoint,
            name=name,
        )

    def start(self, seed: int) -> Tensor:
        """An orthonormal block from a random one, by power iteration with E[JᵀJ] on fresh parts of the data."""
        right = _random(self.block, self.stream.graph.input_shape, seed)
        for part in _parts(self.stream):
            right = _full(self.run(part, right, None, gram=True).back, self.block)
        return right


def _leading(slopes: MeanSlopes, reading: PointsOrPairs, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Orthonormal blocks near the leading singular vectors of J_eff at level unit, by subspace iteration."""
    jacobian = linearize(slopes.graph, slopes.at("unit", reading))
    right = _random(count, slopes.graph.input_shape, seed)
    for _ in range(START_STEPS):
        left = _full(jacobian.matvec(right.unsqueeze(1))[:, 0], count)
        right = _full(jacobian.rmatvec(left.unsqueeze(1))[:, 0], count)
    return right, left


def _random(count: int, shape: Shape, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return _full(torch.randn(count, *shape, generator=generator, dtype=torch.float64), count)


def _parts(stream: JacobianStream) -> list[JacobianStream]:
    """Parts of the data for the steps; each of the last is twice the one before."""
    size = len(stream)
    wanted = [WARM_FRACTION / 2 * size]
    while wanted[-1] > 2 * SMALLEST_PART:
        wanted.append(wanted[-1] / 2)
    wanted += [float(SMALLEST_PART)] * (STEPS - len(wanted))
    per_batch = size / len(stream.batches)
    parts, position = [], 0
    for share in reversed(wanted):
        count = min(max(1, round(share / per_batch)), len(stream.batches))
        taken = itertools.islice(itertools.cycle(stream.batches), position, position + count)
        parts.append(stream.part(tuple(taken)))
        position = (position + count) % len(stream.batches)
    return parts


def _orthonormal(block: Tensor, basis: Tensor | None = None) -> Tensor:
    """Orthonormal vectors (≤ P, *s) that span the block (beside the basis); those made of rounding are dropped."""
    rows = block.flatten(1)
    if not len(rows):
        return block
    floor = 1e-10 * float(rows.norm(dim=1).amax())
    if basis is not None:
        known = basis.flatten(1)
        for _ in range(2):
            rows = rows - (rows @ known.mT) @ known
    lengths, directions = _row_space(rows)
    kept = directions[lengths > floor]
    return kept.reshape(-1, *block.shape[1:])


def _full(block: Tensor | None, count: int) -> Tensor:
    """`count` orthonormal vectors whose span holds the block; random ones where its rank is less."""
    assert block is not None
    found = _orthonormal(block)
    generator = torch.Generator().manual_seed(count)
    random = torch.randn(count, *block.shape[1:], generator=generator, dtype=torch.float64)
    return torch.cat([found, _orthonormal(random[len(found) :], found)])


def _unflattened(rows: Tensor, shape: Shape) -> Tensor:
    return rows.reshape(len(rows), *shape)


def _row_space(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors (as rows), accurate also for the small ones."""
    q, r = torch.linalg.qr(rows.mT)
    p, lengths, _ = torch.linalg.svd(r)
    return lengths, (q @ p[:, : len(lengths)]).mT


@dataclass
class _Side:
    """Orthonormal vectors (k, n) and their products with the mean (k, m), as rows."""

    vectors: Tensor
    products: Tensor

    @classmethod
    def empty(cls, size: int, image_size: int) -> _Side:
        return cls(*(torch.zeros(0, n, dtype=torch.float64) for n in (size, image_size)))

    def extend(self, block: Tensor, total: Tensor | None, count: int) -> None:
        if total is not None:
            self.vectors = torch.cat([self.vectors, block.flatten(1)])
            self.products = torch.cat([self.products, total.flatten(1) / count])


class _Bases:
    """Right vectors V with A V and left vectors U with Aᵀ U, for A = E[J]."""

    def __init__(self, graph: Graph) -> None:
        self.input_shape, self.output_shape = graph.input_shape, graph.output_shape
        columns, rows = math.prod(self.input_shape), math.prod(self.output_shape)
        self.right, self.left = _Side.empty(columns, rows), _Side.empty(rows, columns)

    def extend(self, right: Tensor, left: Tensor, sums: Sums, count: int) -> None:
        self.right.extend(right, sums.image, count)
        self.left.extend(left, sums.back, count)

    def norm(self, rounding: float) -> tuple[float, float]:
        """max(‖A V‖, ‖Aᵀ U‖), and how far above it ‖A‖ may be."""
        value = max(float(torch.linalg.matrix_norm(side.products, 2)) for side in (self.right, self.left))
        values, right, left = self._ritz()
        above = _above(values, left.norm(dim=1), right.norm(dim=1))
        return value, max(0.0, above - value) + rounding * value

    def residuals(self, count: int) -> tuple[Tensor, Tensor]:
        """Orthonormal blocks that extend V and U towards the leading singular vectors."""
        _, right, left = self._ritz()
        return (
            _unflattened(_orthonormal(right[:count], self.right.vectors), self.input_shape),
            _unflattened(_orthonormal(left[:count], self.left.vectors), self.output_shape),
        )

    def _ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values σ of UᵀAV, largest first, and the residuals Aᵀu − σv and A v − σu of each, as rows."""
        p, values, qh = torch.linalg.svd(self.left.vectors @ self.right.products.mT, full_matrices=False)
        sigma = values.unsqueeze(1)
        right = p.mT @ self.left.products - sigma * (qh @ self.right.vectors)
        left = qh @ self.right.products - sigma * (p.mT @ self.left.vectors)
        return values, right, left


class _Space:
    """Vectors V with A V, for A = E[JᵀJ]."""

    def __init__(self, graph: Graph) -> None:
        self.shape = graph.input_shape
        size = math.prod(self.shape)
        self.side = _Side.empty(size, size)

    def extend(self, right: Tensor, sums: Sums, count: int) -> None:
        self.side.extend(right, sums.back, count)

    def leading(self, count: int, rounding: float) -> tuple[list[float], Tensor, float]:
        """The leading Ritz values and vectors (p, *s), and how far above the first ‖A‖ may be."""
        values, vectors, residuals = self._ritz()
        lengths = residuals.norm(dim=1)
        error = _above(values, lengths, lengths) - float(values[0])
        return values[:count].tolist(), vectors[:count], max(0.0, error) + rounding * float(values[0])

    def residuals(self, count: int) -> Tensor:
        """An orthonormal block that extends V towards the leading eigenvectors."""
        _, _, residuals = self._ritz()
        return _unflattened(_orthonormal(residuals[:count], self.side.vectors), self.shape)

    def _ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values, largest first, vectors and residuals, as rows."""
        small = self.side.vectors @ self.side.products.mT
        values, q = torch.linalg.eigh((small + small.mT) / 2)
        values, q = values.flip(0).clamp_min(0), q.flip(1)
        vectors = q.mT @ self.side.vectors
        return values, vectors, q.mT @ self.side.products - values.unsqueeze(1) * vectors


def _above(values: Tensor, left: Tensor, right: Tensor) -> float:
    """An estimate of ‖A‖ from above, from the Ritz values and the lengths of the first one's residuals.

    With the first Ritz vectors as the first basis vectors, A = [[σ, r₂ᵀ], [r₁, C]], so
    ‖A‖ ≤ ‖[[σ, ‖r₂‖], [‖r₁‖, ‖C‖]]‖. ‖C‖ is not known; the second Ritz value stands for it.
    For a clear gap this is σ + ‖r‖²/gap, without one σ + ‖r‖.
    """
    rest = values[min(1, len(values) - 1)]
    corners = torch.stack([values[0], right[0], left[0], rest]).reshape(2, 2)
    return float(torch.linalg.matrix_norm(corners, 2))


def _standard_error(small: Tensor, counts: Tensor, norm: Callable[[Tensor], float]) -> float | None:
    """Of norm(mean), by the jackknife, from the sums that touch each group and, last, all (G + 1, ·, ·)."""
    groups = [g for g in range(GROUPS) if counts[g] > 0]
    if any(counts[g] == counts[-1] for g in groups):
        return None  # leaving out the group leaves nothing
    return jackknife_error([norm((small[-1] - small[g]) / (counts[-1] - counts[g])) for g in groups])
