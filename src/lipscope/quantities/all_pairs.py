"""The largest secant ratio over all pairs of vectors (x_i, y_i), exactly, without most of the work.

Only a pair that beats the best found so far, ‖Δy‖² > b²‖Δx‖², matters. Tests from cheap to dear:

1. Projections (`features.py`) give U ≥ ‖Δy‖² and L ≤ ‖Δx‖², so a pair needs f = U − b²L > 0. Squares
   expanded, f is an inner product of one vector a sample: blocks of pairs cost a small matrix product
   and a maximum. Where the maximum is not positive the whole block is done.
2. Where a block keeps many pairs, products of the whole vectors replace U, then L.
3. What is left is bounded by direct differences of features in float64, then compared by the direct
   difference of outputs, then of inputs, which are read again; steepest pairs first, raising b.

Margins. A product of K factors rounded to a precision of unit u has error ≤ γ_{K+2} Σ|u_k||v_k|, and here
Σ|u_k||v_k| ≤ 2(P_i + P_j) with P = p + b²q, p and q the squared norms of a sample's features. So the margin is a
sum over the two samples, and enters the vectors themselves: p(1 + m) and q(1 − m) in place of p and q. Features
within ε of exact ones move U and L by at most 4.2 ε (p_i + p_j) and likewise q, which goes into m too. What
underflows is covered by a constant. NaN and infinity (numbers out of range) never rule a pair out.

See docs/design/all-pairs.md.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..progress import Progress, silent
from ..rounding import gamma
from .checkpoint import Checkpoint, State, no_checkpoint
from .features import Basis
from .witness import _ROUNDING

SAVE_EVERY = 5.0
"""Seconds between checkpoints."""
KEPT = 16
"""Pairs kept for a re-evaluation of the network."""

_BLOCK = 512
_CROWDED = 1 / 512  # of a block's pairs: more are compared by products of whole vectors
_PIECE = 4096  # entries of an inner product that are summed in low precision
_CACHE = 2**30  # bytes of whole vectors of blocks, for each side
_GATHERED = 2**26  # bytes of vectors that are compared by direct differences at once
_SUBSET, _SEEDS = 512, 64
_SINGLE = 2**29  # unit roundoff of float32 in units of that of float64
_SMALLEST = 2.0**-126  # normal float32 number: what is below it may be flushed to zero

Reader = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Side:
    """The vectors of all samples on one side of the network, inputs or outputs.

    Attributes:
        basis: of the features.
        features: shape (N, k + 1), float64.
        read: the whole vectors of some samples, shape (n, ...).
    """

    basis: Basis
    features: Tensor
    read: Reader


@dataclass
class Found:
    """The steepest pairs, and how many pairs each test left.

    Attributes:
        pairs: at most `KEPT` of (i, j, score), i < j, the best first; score is the ratio by direct differences less
            the allowance for the rounding of outputs (see `witness.py`).
        projected: pairs that the projections in low precision left.
        bounded: of these, those that whole products and direct differences of features left.
        compared: of these, those that the direct difference of outputs left, so that inputs were read.
    """

    pairs: list[tuple[int, int, float]] = field(default_factory=list)
    projected: int = 0
    bounded: int = 0
    compared: int = 0

    @property
    def best(self) -> float:
        """The largest score, not less than 0: what a pair has to beat."""
        return max(0.0, self.pairs[0][2]) if self.pairs else 0.0

    def add(self, i: Tensor, j: Tensor, scores: Tensor) -> None:
        """Enter scored pairs, shape (n,) each; a pair without a number for a score is left out."""
        entered = {(a, b): score for a, b, score in self.pairs}
        leading = scores.nan_to_num(-math.inf, -math.inf).topk(min(KEPT, len(scores))).indices
        for n in leading.tolist():
            if math.isfinite(score := float(scores[n])):
                entered[int(i[n]), int(j[n])] = score
        ranked = sorted(((a, b, score) for (a, b), score in entered.items()), key=lambda p: (-p[2], p[:2]))
        self.pairs = ranked[:KEPT]

    def state(self) -> dict[str, np.ndarray]:
        """As arrays, for a checkpoint."""
        table = np.array(self.pairs, dtype=np.float64).reshape(-1, 3)
        return {"pairs": table, "counts": np.array([self.projected, self.bounded, self.compared])}

    @classmethod
    def from_state(cls, state: State) -> Found:
        """What `state` gave."""
        pairs = [(int(i), int(j), float(score)) for i, j, score in state["pairs"]]
        return cls(pairs, *state["counts"].tolist())


def largest_ratios(
    inputs: Side,
    outputs: Side,
    norms: Tensor,
    *,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    checkpoint: Checkpoint = no_checkpoint,
) -> Found:
    """The steepest pairs of N ≥ 2 samples.

    No pair that is left out has a score above the best one found: its ratio was bounded, rounding included,
    or computed by direct differences. Pairs whose distance vanishes in float64 have no score.

    Args:
        norms: ‖y_i‖ of the outputs, shape (N,), float64.
        device: where the products of blocks are computed.
        progress: shows blocks of rows.
        checkpoint: keeps the state under "empirical.pairs" every few seconds.
    """
    search = _Search(inputs, outputs, norms, device)
    count = len(norms)
    blocks = list(_runs(count, _BLOCK))
    done = 0
    if (saved := checkpoint.load("empirical.pairs")) is not None:
        search.found, done = Found.from_state(saved), int(saved["done"])
    else:
        search.start()
    if search.settled():
        return search.found
    saved_at = time.monotonic()
    for number, rows in enumerate(blocks[done:], start=done):
        search.visit(rows)
        if time.monotonic() - saved_at >= SAVE_EVERY:
            checkpoint.save("empirical.pairs", done=np.array(number + 1), **search.found.state())
            saved_at = time.monotonic()
        progress("empirical: pairs", number + 1, len(blocks))
    return search.found


class _Search:
    def __init__(self, inputs: Side, outputs: Side, norms: Tensor, device: torch.device | str) -> None:
        self.inputs, self.outputs, self.norms = inputs, outputs, norms
        self.count = len(norms)
        self.found = Found()
        self.device = torch.device(device)
        # Products may silently use a lower precision than float32 if the program has asked torch for it.
        exact_single = torch.get_float32_matmul_precision() == "highest"
        self.dtype = torch.float32 if exact_single else torch.float64
        self.squares_x, self.squares_y = _squares(inputs.features), _squares(outputs.features)
        # Features are shifted to norms of at most 1 for the products.
        self.shift_x, self.shift_y = _shift(self.squares_x), _shift(self.squares_y)
        width = inputs.features.shape[1] + outputs.features.shape[1] + 3
        rounding = gamma((width + 8) * (_SINGLE if exact_single else 1))
        self.margin = 2.2 * rounding + 5 * max(inputs.basis.error, outputs.basis.error)
        self.lost = 8 * width * _SMALLEST
        self.right = torch.empty(self.count, width, dtype=self.dtype, device=self.device)
        for part in _runs(self.count, 2**14):
            self.right[part] = self._vectors(part).to(self.device, self.dtype)
        self.whole_x = _Blocks(inputs, self.shift_x, exact_single, self.device)
        self.whole_y = _Blocks(outputs, self.shift_y, exact_single, self.device)
        self.read = _Cache(inputs.read)

    def start(self) -> None:
        """Raise b: direct differences of the most promising pairs of a few samples."""
        farthest = int(self.squares_y.nan_to_num(-1.0).argmax())
        chosen = np.random.default_rng(0).permutation(self.count)[:_SUBSET].tolist()
        chosen = sorted({*chosen, farthest})
        x, y = self.inputs.features[chosen], self.outputs.features[chosen]
        # Beyond the subspace, two samples are taken for orthogonal: an estimate, which proves nothing.
        dx, dy = (_estimated_squares(part) for part in (x, y))
        smallest = 1e-12 * self.squares_x[chosen].mean()
        ratios = (dy / dx.clamp_min(smallest)).nan_to_num(0.0)
        i, j = torch.triu_indices(len(chosen), len(chosen), 1)
        best = ratios[i, j].topk(min(_SEEDS, len(i))).indices
        # Outputs may be equal but for a few: those of the farthest sample differ from others if any do.
        last = chosen.index(farthest)
        beside = (
            ratios[last].index_fill(0, torch.tensor(last), -1.0).topk(min(_SEEDS, len(chosen) - 1)).indices
        )
        pairs = torch.cat(
            [torch.stack([i[best], j[best]]), torch.stack([beside, torch.full_like(beside, last)])], 1
        )
        pairs = torch.unique(torch.tensor(chosen)[pairs.sort(0).values], dim=1)
        self._resolve(pairs[0], pairs[1])

    def settled(self) -> bool:
        """Whether outputs differ by so little that no pair has a positive score."""
        reach = 2 * float(self.squares_y.max()) ** 0.5 * (1 + self.outputs.basis.error + gamma(8))
        least = _ROUNDING * 2 * float(self.norms.min())
        return bool(self.found.pairs) and _scaled(reach, -self.outputs.basis.exponent) <= least * (1 - 1e-9)

    def visit(self, rows: slice) -> None:
        """All pairs of a sample of the rows and a later one."""
        columns = [block for block in _runs(self.count, _BLOCK) if block.start >= rows.start]
        # To and fro, so that the last blocks of whole vectors of one pass are the first of the next.
        for block in columns if rows.start // _BLOCK % 2 == 0 else columns[::-1]:
            f = self._left(rows) @ self.right[block].T
            if block == rows:
                f = f.triu_(1)
            if bool(f.amax() <= 0):
                continue
            alive = ~(f <= 0)
            left = int(alive.sum())
            self.found.projected += left
            if left > alive.numel() * _CROWDED:
                alive = self._compare_whole(rows, block, alive)
            i, j = alive.nonzero(as_tuple=True)
            self._resolve(i.cpu() + rows.start, j.cpu() + block.start)

    # ---- bounds by products ----

    def _factors(self) -> tuple[float, float]:
        """(t, t·b²) in units of the shifted features, neither above 1: f is scaled by t."""
        b = max(0.0, self.threshold)
        shift = self.outputs.basis.exponent + self.shift_y - self.inputs.basis.exponent - self.shift_x
        b = _scaled(b, shift)
        return (1.0, b * b) if b <= 1 else ((1.0 / b) / b, 1.0)

    @property
    def threshold(self) -> float:
        """A ratio up to this one gives no score above the best: the allowance takes 2⁻⁴¹ of it.

        Before any pair has a score, a negative number, which rules out none.
        """
        if not self.found.pairs:
            return -1.0
        return self.found.best * (1 + _ROUNDING / 2)

    def _vectors(self, part: slice) -> Tensor:
        """v_j = (c, s, a, r, p(1 + m), q(1 − m), 1), the right-hand vectors of f."""
        x = self.inputs.features[part] * math.ldexp(1.0, self.shift_x)
        y = self.outputs.features[part] * math.ldexp(1.0, self.shift_y)
        p, q = _squares(y)[:, None], _squares(x)[:, None]
        return torch.cat([x, y, p * (1 + self.margin), q * (1 - self.margin), torch.ones_like(p)], 1)

    def _left(self, rows: slice, outputs: bool = True) -> Tensor:
        """u_i with u_i·v_j ≥ t(U − b²L), or ≥ −t·b²L alone, for all rows."""
        v = self._vectors(rows)
        wide = self.inputs.features.shape[1]
        t, tb2 = self._factors()
        x, y, p, q = v[:, :wide], v[:, wide:-3], v[:, -3:-2], v[:, -2:-1]
        if not outputs:
            t = 0.0
        u = torch.cat(
            [
                2 * tb2 * x,
                -2 * t * y[:, :-1],
                2 * t * y[:, -1:],
                torch.full_like(p, t),
                torch.full_like(p, -tb2),
                t * p - tb2 * q + self.lost,
            ],
            1,
        )
        return u.to(self.device, self.dtype)

    def _compare_whole(self, rows: slice, columns: slice, alive: Tensor) -> Tensor:
        """What products of the whole outputs, then inputs, leave of a block."""
        if self.inputs.basis.whole and self.outputs.basis.whole:
            return alive
        few = alive.numel() * _CROWDED
        t, tb2 = self._factors()
        for precise in (False, True):
            far, error = self.whole_y.squared_distances(rows, columns, precise)
            gain = t * (far + error)
            if not self.outputs.basis.whole:
                near = self._left(rows, outputs=False) @ self.right[columns].T
                alive = alive & ~(gain + near <= 0)
            if self.inputs.basis.whole or int(alive.sum()) <= few:
                break
            near, error = self.whole_x.squared_distances(rows, columns, precise)
            alive = alive & ~(gain - tb2 * (near - error) <= 0)
            if int(alive.sum()) <= few:
                break
        return alive

    # ---- direct differences ----

    def _resolve(self, i: Tensor, j: Tensor) -> None:
        """Bound pairs by features, then compute those that may beat the best, the steepest first."""
        x, y = self.inputs, self.outputs
        kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for part in _runs(len(i), _GATHERED // (8 * (x.basis.width + y.basis.width))):
            first, second = i[part], j[part]
            near, _ = self._distances(x, self.squares_x, first, second)
            _, far = self._distances(y, self.squares_y, first, second)
            alive = ~(far <= near * self.threshold)
            kept.append((first[alive], second[alive], near[alive], far[alive]))
        if not kept:
            return
        i, j, near, far = (torch.cat(column) for column in zip(*kept, strict=True))
        self.found.bounded += len(i)
        order = (far / near).nan_to_num(math.inf).argsort(descending=True, stable=True)
        rows = _GATHERED // (16 * max(1, self.outputs.basis.centre.numel()))
        for part in _runs(len(order), max(1, rows)):
            chosen = order[part]
            chosen = chosen[~(far[chosen] <= near[chosen] * self.threshold)]
            if len(chosen):
                self._compute(i[chosen], j[chosen], near[chosen])

    def _distances(self, side: Side, squares: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of ‖v_i − v_j‖ from direct differences of features, in units of the vectors."""
        a, b = side.features[i], side.features[j]
        inside = (a[:, :-1] - b[:, :-1]).square().sum(1)
        # The roots of the squares may be rounded down by underflow, by no more than the constant.
        slack = 1.01 * side.basis.error * (squares[i].sqrt() + squares[j].sqrt()) + 1e-150
        low = (inside + (a[:, -1] - b[:, -1]).square()).sqrt() * (1 - gamma(a.shape[1] + 8)) - slack
        high = (inside + (a[:, -1] + b[:, -1]).square()).sqrt() * (1 + gamma(a.shape[1] + 8)) + slack
        unit = math.ldexp(1.0, -side.basis.exponent)
        return low.clamp_min(0) * unit, high * unit

    def _compute(self, i: Tensor, j: Tensor, near: Tensor) -> None:
        """Scores of pairs by direct differences; inputs are read only where outputs differ by enough."""
        far = _direct(self.outputs.read, i, j)
        size = max(1, self.inputs.basis.centre.numel())
        alive = ~(far * (1 + gamma(self.outputs.basis.centre.numel() + 8)) <= near * self.threshold)
        i, j, far, near = i[alive], j[alive], far[alive], near[alive]
        for part in _runs(len(i), max(1, _GATHERED // (16 * size))):
            first, second, difference = i[part], j[part], far[part]
            distance = _direct(self.read, first, second)
            ratio = difference / distance
            allowance = _ROUNDING * ((self.norms[first] + self.norms[second]) / distance + ratio)
            self.found.add(first, second, torch.where(distance > 0, ratio - allowance, -math.inf))
            self.found.compared += len(first)


class _Blocks:
    """Squared distances of the whole vectors of two blocks by products, with rigorous errors.

    Inner products are summed in float32 over pieces, and over the pieces in float64, which keeps the error
    constant that of a short sum. Blocks are held in memory up to a size.
    """

    def __init__(self, side: Side, shift: int, exact_single: bool, device: torch.device) -> None:
        self.side, self.shift, self.device = side, shift, device
        self.low = torch.float32 if exact_single else torch.float64
        self.held: OrderedDict[tuple[int, int, torch.dtype], tuple[Tensor, Tensor]] = OrderedDict()

    def squared_distances(self, rows: slice, columns: slice, precise: bool = False) -> tuple[Tensor, Tensor]:
        """‖v_i − v_j‖² in units of shifted features and a bound of its error, (rows, columns), float64."""
        dtype = torch.float64 if precise else self.low
        a, squares_a = self._vectors(rows, dtype)
        b, squares_b = self._vectors(columns, dtype)
        products = torch.zeros(len(a), len(b), dtype=torch.float64, device=self.device)
        for part in _runs(a.shape[1], _PIECE):
            products += (a[:, part] @ b[:, part].T).double()
        total = squares_a[:, None] + squares_b[None, :]
        # Rounding of vectors and products: γ on 2|a||b| ≤ total; squares, sums, centring: float64, doubled.
        size = a.shape[1]
        rounding = gamma((min(size, _PIECE) + 8) * (_SINGLE if dtype == torch.float32 else 1))
        error = (1.1 * rounding + 4 * gamma(size + 16)) * total + 8 * size * _SMALLEST
        return total - 2 * products, error

    def _vectors(self, block: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        key = (block.start, block.stop, dtype)
        if key in self.held:
            self.held.move_to_end(key)
        else:
            z = self.side.basis.centred(self.side.read(range(block.start, block.stop)).to(self.device))
            z *= math.ldexp(1.0, self.shift)
            self.held[key] = (z.to(dtype), _squares(z))
            while len(self.held) > 2 and sum(v.nbytes for v, _ in self.held.values()) > _CACHE:
                self.held.popitem(last=False)
        return self.held[key]


class _Cache:
    """Reads vectors that were read not long ago from memory."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._held: OrderedDict[int, Tensor] = OrderedDict()

    def __call__(self, indices: Sequence[int]) -> Tensor:
        missing = [i for i in dict.fromkeys(indices) if i not in self._held]
        if missing:
            # Copies: a view would keep the whole batch.
            self._held.update({i: x.clone() for i, x in zip(missing, self._read(missing), strict=True)})
        for i in indices:
            self._held.move_to_end(i)
        found: Tensor = torch.stack([self._held[i] for i in indices])
        while len(self._held) * found[0].nbytes > _CACHE // 4:
            self._held.popitem(last=False)
        return found


def _direct(read: Reader, i: Tensor, j: Tensor) -> Tensor:
    """‖v_i − v_j‖ for pairs of indices, each vector read once."""
    needed, where = torch.unique(torch.cat([i, j]), return_inverse=True)
    vectors = read(needed.tolist()).flatten(1).to("cpu", torch.float64)
    distances: Tensor = torch.linalg.vector_norm(vectors[where[: len(i)]] - vectors[where[len(i) :]], dim=1)
    return distances


def _runs(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _squares(rows: Tensor) -> Tensor:
    """Squared norms of the rows, in pieces so that mapped files are not held in memory."""
    return torch.cat([rows[part].square().sum(1) for part in _runs(len(rows), 2**14)])


def _estimated_squares(features: Tensor) -> Tensor:
    squares, inside = _squares(features), features[:, :-1]
    return (squares[:, None] + squares[None, :] - 2 * inside @ inside.T).clamp_min(0)


def _shift(squares: Tensor) -> int:
    """The e for which 2^e times the longest vector has a norm in [1/2, 1]."""
    largest = float(squares.max()) ** 0.5
    return -math.frexp(largest)[1] if math.isfinite(largest) else 0


def _scaled(x: float, exponent: int) -> float:
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return math.inf
