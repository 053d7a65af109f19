"""E[J]: the mean of the Jacobians at the samples, or of pairs of them, as an operator streamed over the data.

No independence of layers is assumed, so no mean of slopes will do: a product with E[J] is a pass over
the data, each Jacobian applied to the same block of vectors. What is linear before the first and
after the last nonlinear layer is the same for all Jacobians and is applied once, not once each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ..engines import SERIAL, Engine
from ..graph import INPUT, Graph, Slopes
from ..jacobian import Jacobian, linearize
from ..layers.base import Shape
from ..progress import Progress, silent
from .checkpoint import Checkpoint, Saver, State, no_checkpoint
from .draws import GROUPS, Batch, chunks, draw
from .overflow import check_outputs, overflow

if TYPE_CHECKING:
    from ..data import Samples

PointsOrPairs = Literal["active", "secant"]
"""active: J(x) at the samples; secant: J with J Δx = Δy for pairs of samples."""


@dataclass(frozen=True)
class JacobianStream:
    """The Jacobians whose mean is taken, a batch at a time; what engines send to their workers.

    Attributes:
        graph: in the precision and on the device the products are done in.
        batches: which samples are evaluated together, and which are paired.
    """

    graph: Graph
    samples: Samples
    reading: PointsOrPairs
    batches: tuple[Batch, ...]

    @classmethod
    def over(
        cls,
        graph: Graph,
        samples: Samples,
        reading: PointsOrPairs,
        *,
        pairs: int = 10_000,
        batch_size: int = 32,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> JacobianStream:
        """All samples once (active), or the pairs that `draws.draw` draws (secant).

        Raises:
            ValueError: the secant reading needs at least two samples and one pair.
        """
        count = len(samples)
        batches = draw(count, pairs if reading == "secant" else 0, batch_size, seed)
        if reading == "secant":
            batches = [batch for batch in batches if batch.pairs]
            if not batches:
                raise ValueError("secant slopes need at least two samples and one pair")
        return cls(graph.to(dtype, device), samples, reading, tuple(batches))

    def __len__(self) -> int:
        """The number of Jacobians."""
        return sum(self._size(batch) for batch in self.batches)

    @property
    def evaluations(self) -> int:
        """How many forward passes of one sample the slopes take."""
        return sum(len(batch.indices) for batch in self.batches)

    def part(self, batches: tuple[Batch, ...]) -> JacobianStream:
        """The Jacobians of some batches."""
        return replace(self, batches=batches)

    def jacobians(self, batches: Sequence[Batch]) -> Iterator[tuple[Jacobian, Batch]]:
        """The Jacobians between `head` and `tail`, batch by batch."""
        layers = self.graph.nonlinear()
        read = self.samples.batches([batch.indices for batch in batches])
        for batch, x in zip(batches, read, strict=True):
            x = x.to(self.graph.device, self.graph.dtype)
            if self.reading == "active":
                y, slopes = self.graph.linearize_at(x)
                check_outputs(y, self.samples, batch.indices, self.graph.dtype)
                yield self._between(slopes, len(x)), batch
                continue
            y, points = self.graph.points(x)
            check_outputs(y, self.samples, batch.indices, self.graph.dtype)
            for run in batch.pairs:
                secants = {
                    i: layers[i].between(p.rows(run.first, run.count), p.rows(run.second, run.count))
                    for i, p in points.items()
                }
                yield self._between(secants, run.count), batch

    @cached_property
    def ends(self) -> tuple[int, int]:
        """The last node before which, and the first after which, there is nothing nonlinear; all paths pass them."""
        nonlinear, cuts = list(self.graph.nonlinear()), self.graph.cuts()
        if not nonlinear:
            return cuts[-1], cuts[-1]
        return max(c for c in cuts if c < nonlinear[0]), min(c for c in cuts if c >= nonlinear[-1])

    @cached_property
    def head(self) -> Jacobian:
        """The linear part before all nonlinear layers."""
        return linearize(self.graph.between(INPUT, self.ends[0]), {})

    @cached_property
    def tail(self) -> Jacobian:
        """The linear part after all nonlinear layers."""
        return linearize(self.graph.between(self.ends[1], len(self.graph.nodes) - 1), {})

    @cached_property
    def _core(self) -> Graph:
        return self.graph.between(*self.ends)

    def _between(self, slopes: Slopes, count: int) -> Jacobian:
        return linearize(self._core, {i - self.ends[0]: slope for i, slope in slopes.items()}, count)

    def _size(self, batch: Batch) -> int:
        return len(batch.indices) if self.reading == "active" else batch.pair_count


@dataclass
class Sums:
    """What one pass adds up over Jacobians J_b, in float64 on the CPU; None where it was not asked for.

    `image`: Σ J_b V (P, *out); `back`: Σ J_bᵀ U (Q, *in), or Σ J_bᵀ J_b V for the second moment.
    `small` (G + 1, Q, P): Uᵀ J_b V (or (J_b V)ᵀ J_b V), summed over the Jacobians that touch each group
    of samples and, last, over all; `counts` (G + 1) says how many those are.
    """

    image: Tensor | None
    back: Tensor | None
    small: Tensor
    counts: Tensor

    def plus(self, other: Sums) -> Sums:
        """With what another part of the data gave added in place."""
        for name in ("image", "back", "small", "counts"):
            mine, more = getattr(self, name), getattr(other, name)
            if mine is not None:
                mine += more
        return self

    def state(self) -> dict[str, np.ndarray]:
        """As arrays, for a checkpoint."""
        return {name: value.numpy() for name, value in vars(self).items() if value is not None}

    @classmethod
    def of_state(cls, state: State) -> Sums:
        """From `state`."""
        held = {name: torch.from_numpy(state[name].copy()) for name in vars(_NOTHING) if name in state}
        return replace(_NOTHING, **held)


def _saved(done: int, sums: Sums) -> dict[str, np.ndarray]:
    return {"done": np.array(done), **sums.state()}


_NOTHING = Sums(None, None, torch.zeros(0), torch.zeros(0))


@dataclass(frozen=True)
class _Pass:
    """One pass: which Jacobians, applied to what; `right` (P, 1, *core in), `left` (Q, 1, *core out)."""

    stream: JacobianStream
    right: Tensor | None
    left: Tensor | None
    gram: bool


def _sum_chunk(task: _Pass, chunk: tuple[Batch, ...]) -> Sums:
    stream, right, left = task.stream, task.right, task.left
    rows = len(right) if task.gram and right is not None else 0 if left is None else len(left)
    columns = 0 if right is None else len(right)
    total = replace(_NOTHING, small=torch.zeros(GROUPS + 1, rows, columns, dtype=torch.float64))
    total.counts = torch.zeros(GROUPS + 1, dtype=torch.float64)
    for jacobian, batch in stream.jacobians(chunk):
        touched = [*batch.groups, -1]
        total.counts[touched] += jacobian.batch
        against = left
        if right is not None:
            images = jacobian.matvec(_for_each(right, jacobian.batch))
            total.image = _plus(total.image, images)
            if task.gram:
                against = stream.tail.rmatvec(stream.tail.matvec(images.flatten(0, 1).unsqueeze(1)))
                against = against.reshape(images.shape)
            if against is not None:
                products = against.flatten(2).permute(1, 0, 2) @ images.flatten(2).permute(1, 2, 0)
                total.small[touched] += products.to("cpu", torch.float64).sum(0)
        if against is not None:
            backs = jacobian.rmatvec(_for_each(against, jacobian.batch))
            total.back = _plus(total.back, backs)
    return total


def _for_each(block: Tensor, batch: int) -> Tensor:
    return block.expand(-1, batch, *block.shape[2:])


def _plus(total: Tensor | None, products: Tensor) -> Tensor:
    """Sums over the batch, kept in float64: in float32 a million small terms would be lost."""
    part = products.sum(1).to("cpu", torch.float64)
    return part if total is None else total.add_(part)


def run_pass(
    stream: JacobianStream,
    right: Tensor | None = None,
    left: Tensor | None = None,
    *,
    gram: bool = False,
    engine: Engine = SERIAL,
    progress: Progress = silent,
    stage: str = "mean Jacobian",
    checkpoint: Checkpoint = no_checkpoint,
    name: str = "pass",
) -> Sums:
    """Σ J V and Σ Jᵀ U over the stream in one pass, or Σ J V and Σ JᵀJ V.

    Args:
        right: V (P, *in), or None.
        left: U (Q, *out), or None; not with `gram`.
        gram: products with JᵀJ.
        checkpoint: keeps the sums under `name`, now and then and when the pass is done.
    """
    device, dtype = stream.graph.device, stream.graph.dtype
    task = _Pass(
        stream,
        None if right is None else stream.head.matvec(right.unsqueeze(1).to(device, dtype)),
        None if left is None else stream.tail.rmatvec(left.unsqueeze(1).to(device, dtype)),
        gram,
    )
    parts = chunks(stream.batches)
    done, total = 0, None
    if (state := checkpoint.load(name)) is not None:
        done, total = int(state["done"]), Sums.of_state(state)
    saver = Saver(checkpoint, name)
    for part in engine.map(_sum_chunk, task, parts[done:]):
        total = part if total is None else total.plus(part)
        done += 1
        saver.offer(partial(_saved, done, total), last=done == len(parts))
        progress(stage, done, len(parts))
    assert total is not None
    if not all(
        bool(sums.isfinite().all()) for sums in (total.image, total.back, total.small) if sums is not None
    ):
        raise overflow("the products of its Jacobians", dtype)
    if total.image is not None:
        image = total.image.unsqueeze(1).to(device, dtype)
        total.image = stream.tail.matvec(image)[:, 0].to("cpu", torch.float64)
    if total.back is not None:
        back = total.back.unsqueeze(1).to(device, dtype)
        total.back = stream.head.rmatvec(back)[:, 0].to("cpu", torch.float64)
    return total


@dataclass(frozen=True)
class MeanJacobian:
    """E[J] over a stream as a linear operator (batch 1): every product is one pass over the data.

    `spectral_norm(MeanJacobian(stream), dtype=..., block=2)` is the many-pass answer;
    `sketch.mean_jacobian_norm` needs one pass. Blocks have shapes (P, 1, *in) and (P, 1, *out).
    """

    stream: JacobianStream
    engine: Engine = SERIAL
    progress: Progress = silent

    @property
    def batch(self) -> int:
        """One operator."""
        return 1

    @property
    def input_shape(self) -> Shape:
        """Per-sample shape *in."""
        return self.stream.graph.input_shape

    @property
    def output_shape(self) -> Shape:
        """Per-sample shape *out."""
        return self.stream.graph.output_shape

    def matvec(self, v: Tensor) -> Tensor:
        """E[J] v, (P, 1, *in) → (P, 1, *out)."""
        return self._mean(self._run(v, None).image, v)

    def rmatvec(self, u: Tensor) -> Tensor:
        """E[J]ᵀ u, (P, 1, *out) → (P, 1, *in)."""
        return self._mean(self._run(None, u).back, u)

    def both(self, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """E[J] v and E[J]ᵀ u in the same pass."""
        sums = self._run(v, u)
        return self._mean(sums.image, v), self._mean(sums.back, u)

    def gram(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """E[JᵀJ] v (P, 1, *in) and, at no further cost, E[J] v (P, 1, *out)."""
        sums = self._run(v, None, gram=True)
        return self._mean(sums.back, v), self._mean(sums.image, v)

    def _run(self, v: Tensor | None, u: Tensor | None, gram: bool = False) -> Sums:
        return run_pass(
            self.stream,
            None if v is None else v[:, 0],
            None if u is None else u[:, 0],
            gram=gram,
            engine=self.engine,
            progress=self.progress,
        )

    def _mean(self, total: Tensor | None, like: Tensor) -> Tensor:
        assert total is not None
        return (total / len(self.stream)).unsqueeze(1).to(like.device, like.dtype)
