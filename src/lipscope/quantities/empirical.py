"""The empirical constant L_emp: the largest secant ratio over all pairs of a data set, exactly.

One pass evaluates all outputs in float64 and keeps them, with a few features of each input; inputs are not
kept. Then all pairs are searched (`all_pairs.py`): pairs are ruled out only by rigorous bounds, and every pair
that could hold the maximum given rounding is computed from direct differences of inputs read again.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..engines import SERIAL, Engine
from ..graph import Graph
from ..progress import Progress, silent
from ..results import Cost, Duplicate, Empirical
from .all_pairs import Found, Side, largest_ratios
from .checkpoint import Checkpoint, Saver, no_checkpoint
from .draws import CHUNK
from .features import PILOT, Basis, bytes_of_features, direction_count
from .overflow import check_outputs
from .scratch import Scratch, scratch
from .witness import Pair, evaluate_pair

if TYPE_CHECKING:
    from ..data import Samples

_LISTED_DUPLICATES = 100
_DIGEST = 16


def empirical(
    graph: Graph,
    samples: Samples,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
    checkpoint: Checkpoint = no_checkpoint,
    engine: Engine = SERIAL,
    device: torch.device | str = "cpu",
) -> tuple[Empirical, Pair] | None:
    """Max over pairs of ‖Φ(x₁) − Φ(x₂)‖ / ‖x₁ − x₂‖, and the pair that attains it.

    Outputs are computed in float64. Pairs at distance zero (equal samples) are counted and left out. The ratio that
    counts is the attained one, less its allowance for rounding (`witness.py`).

    Args:
        graph: the network.
        samples: N inputs, read in batches: once each, some hundred at random before that, and candidates again.
        batch_size: samples evaluated at once.
        checkpoint: keeps what is done; its folder holds outputs and features of all samples. Without one, they
            are in memory, or in temporary files if they are large.
        engine: where samples are evaluated.
        device: of evaluations and of products; the witness is evaluated on the CPU.

    Returns:
        The result and the witness pair, or None if there are fewer than two distinct samples.

    Raises:
        LipscopeError: the disk has no room for the outputs.

    Source: Zou, Balan, Singh (2020), empirical Lipschitz constant (printed there squared).
    """
    started = time.perf_counter()
    count, size = len(samples), int(np.prod(graph.output_shape))
    room = 8 * size + bytes_of_features((size,)) + bytes_of_features(samples.shape)
    with scratch(checkpoint, "empirical", count * room) as store:
        rows = _evaluate(graph, samples, batch_size, store, progress, checkpoint, engine, device)
        groups = _equal(rows.digests)
        distinct = np.delete(np.arange(count), [i for group in groups for i in group[1:]])
        if len(distinct) < 2:
            return None
        found = _search(rows, samples, distinct, store, progress, checkpoint, device)
    exact = graph.to(torch.float64, "cpu")
    best: Pair | None = None
    for i, j, score in found.pairs:
        # The outputs that were compared are float64 too: only ties within their rounding need another look.
        if best is None or score >= found.best * (1 - 1e-6):
            first, second = (int(distinct[k]) for k in (i, j))
            x1, x2 = samples.batch([first, second])
            pair = evaluate_pair(exact, x1, x2, (samples.names[first], samples.names[second]))
            if best is None or pair.bound > best.bound:
                best = pair
    if best is None:
        return None
    duplicate_count = sum(len(members) * (len(members) - 1) // 2 for members in groups)
    result = Empirical(
        name="empirical",
        value=best.bound,
        method="largest secant ratio over all pairs: pairs ruled out by bounds from projections and products, "
        "the others computed by direct differences in float64",
        source="Zou, Balan, Singh 2020: empirical Lipschitz constant",
        cost=Cost(seconds=time.perf_counter() - started, forward_passes=float(count)),
        witness=best.witness("empirical"),
        pairs=count * (count - 1) // 2 - duplicate_count,
        candidates=found.projected,
        rechecked=found.compared,
        duplicates=list(_duplicates(groups, samples.names)),
        duplicate_count=duplicate_count,
    )
    return result, best


@dataclass(frozen=True)
class _Shared:
    """What the evaluation of a chunk needs."""

    graph: Graph
    samples: Samples
    basis: Basis
    batch_size: int
    device: torch.device | str


@dataclass(frozen=True)
class _Rows:
    """One row a sample: outputs (N, d) and features (N, k + 1) of the inputs in `basis`, float64, and digests.

    Of images also averages, float32 (N, W + 1).
    """

    basis: Basis
    outputs: np.ndarray
    features: np.ndarray
    digests: np.ndarray
    averages: np.ndarray | None


def _evaluate(
    graph: Graph,
    samples: Samples,
    batch_size: int,
    store: Scratch,
    progress: Progress,
    checkpoint: Checkpoint,
    engine: Engine,
    device: torch.device | str,
) -> _Rows:
    """The rows of all samples, chunk by chunk; what a checkpoint has counted is not computed again."""
    count = len(samples)
    length = int(np.prod(graph.output_shape))
    directions = direction_count(count, samples.shape, int(np.prod(samples.shape)) + length)
    basis = Basis.fit(samples.batch(_pilot(count, directions)), directions)
    rows = _Rows(
        basis,
        store.array("outputs", (count, length), np.float64),
        store.array("inputs", (count, basis.width), np.float64),
        store.array("digests", (count, _DIGEST), np.uint8),
        store.array("averages", (count, basis.averaged + 1), np.float32) if basis.averaged else None,
    )
    saved = checkpoint.load("empirical.samples")
    done = int(saved["done"]) if saved is not None and not store.fresh else 0
    shared = _Shared(graph.to(torch.float64, device), samples, basis, batch_size, device)
    chunks = [(start, min(start + CHUNK, count)) for start in range(done, count, CHUNK)]
    saver = Saver(checkpoint, "empirical.samples")
    for (start, stop), part in zip(chunks, engine.map(_evaluate_chunk, shared, chunks), strict=True):
        rows.outputs[start:stop], rows.features[start:stop], rows.digests[start:stop], averages = part
        if rows.averages is not None:
            rows.averages[start:stop] = averages
        saver.offer(partial(_flushed, store, stop), last=stop == count)
        progress("empirical: outputs", stop, count)
    return rows


def _flushed(store: Scratch, done: int) -> dict[str, np.ndarray]:
    """The state that counts the first rows as done: what they hold is handed to the system before."""
    store.flush()
    return {"done": np.array(done)}


def _evaluate_chunk(shared: _Shared, chunk: tuple[int, int]) -> tuple[np.ndarray | None, ...]:
    """Outputs, features, digests and averages of the samples start ≤ i < stop."""
    outputs, features, digests, averages = [], [], [], []
    for start in range(*chunk, shared.batch_size):
        batch = range(start, min(start + shared.batch_size, chunk[1]))
        x = shared.samples.batch(batch)
        # Adding 0 turns −0 into 0, which compares equal.
        digests += [_digest(sample + 0.0) for sample in x]
        x = x.to(shared.device)
        of_images = shared.basis.averages(x)
        features.append(shared.basis.features_of(of_images).cpu())
        if shared.basis.averaged:
            averages.append(of_images.float().cpu())
        y = shared.graph.evaluate(x.to(torch.float64))
        check_outputs(y, shared.samples, batch, torch.float64)
        outputs.append(y.flatten(1).cpu())
    table = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST)
    kept = torch.cat(averages).numpy() if averages else None
    return torch.cat(outputs).numpy(), torch.cat(features).numpy(), table, kept


def _digest(sample: Tensor) -> bytes:
    return hashlib.blake2b(sample.numpy().tobytes(), digest_size=_DIGEST).digest()


def _pilot(count: int, directions: int) -> list[int]:
    """Some of `count` indices at random, in order, as many as it takes to find the directions."""
    chosen: list[int] = np.sort(np.random.default_rng(0).permutation(count)[: PILOT * directions]).tolist()
    return chosen


def _equal(digests: np.ndarray) -> list[list[int]]:
    """The groups of equal samples, two or more each, by index; groups and members in order."""
    first: dict[bytes, int] = {}
    groups: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(digests):
        if (leader := first.setdefault(row.tobytes(), i)) != i:
            groups[leader].append(i)
    return [[leader, *others] for leader, others in sorted(groups.items())]


def _search(
    rows: _Rows,
    samples: Samples,
    distinct: np.ndarray,
    store: Scratch,
    progress: Progress,
    checkpoint: Checkpoint,
    device: torch.device | str,
) -> Found:
    """All pairs of the distinct samples."""
    count = len(distinct)

    def outputs(indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(rows.outputs[distinct[list(indices)]])

    def inputs(indices: Sequence[int]) -> Tensor:
        return samples.batch(distinct[list(indices)].tolist())

    def averages(indices: Sequence[int]) -> Tensor:
        assert rows.averages is not None
        return torch.from_numpy(rows.averages[distinct[list(indices)]])

    shape = rows.outputs.shape[1:]
    directions = direction_count(count, shape, shape[0] + int(np.prod(samples.shape)))
    basis = Basis.fit(outputs(_pilot(count, directions)), directions)
    features = torch.from_numpy(store.array("projected", (count, basis.width), np.float64))
    norms = torch.empty(count, dtype=torch.float64)
    for start in range(0, count, CHUNK):
        part = slice(start, min(start + CHUNK, count))
        y = outputs(range(part.start, part.stop))
        features[part], norms[part] = basis.features(y), torch.linalg.vector_norm(y, dim=1)
    of_inputs = rows.features if count == len(rows.features) else rows.features[distinct]
    return largest_ratios(
        Side(
            rows.basis, torch.from_numpy(of_inputs), inputs, averages if rows.averages is not None else None
        ),
        Side(basis, features, outputs),
        norms,
        device=device,
        progress=progress,
        checkpoint=checkpoint,
    )


def _duplicates(groups: list[list[int]], names: Sequence[str]) -> Iterator[Duplicate]:
    listed = 0
    for members in groups:
        for other in members[1:]:
            if listed == _LISTED_DUPLICATES:
                return
            yield Duplicate(first=names[members[0]], second=names[other])
            listed += 1
