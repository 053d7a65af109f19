"""The largest secant ratio over all pairs of vectors (x_i, y_i), exactly, without most of the work.

Only a pair that beats the best found so far, ‖Δy‖² > b²‖Δx‖², matters. Tests from cheap to dear:

1. Projections (`features.py`) give U ≥ ‖Δy‖² and L ≤ ‖Δx‖², so a pair needs f = U − b²L > 0. Squares
   expanded, f is an inner product of one vector a sample: blocks of pairs cost a small matrix product
   and a maximum. Where the maximum is not positive the whole block is done. Of the features only the first
   few enter, as many as a sample of pairs shows to pay.
2. Where a block keeps many pairs, products of the whole vectors replace U, then L.
3. What is left is bounded by direct differences of all features in float64, then by the direct difference of
   outputs, then computed from that of inputs, which are read again; steepest pairs first, raising b.

Margins. A product of K factors rounded to a precision of unit u has error ≤ γ_{K+2} Σ|u_k||v_k|, and here
Σ|u_k||v_k| ≤ 2(P_i + P_j) with P = p + b²q, p and q the squared norms of a sample's features. So the margin is a
sum over the two samples, and enters the vectors themselves: p(1 + m) and q(1 − m) in place of p and q. Features
within ε of exact ones move U and L by at most 4.2 ε (p_i + p_j) and likewise q, which goes into m too. What
underflows is covered by a constant. NaN and infinity (numbers out of range) never rule a pair out.

See docs/design/all-pairs.md.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..progress import Progress, silent
from ..rounding import UNIT, gamma
from .checkpoint import Checkpoint, Saver, State, no_checkpoint
from .features import Basis
from .witness import WITNESS_ROUNDING

KEPT = 16
"""Pairs kept for a re-evaluation of the network."""

_BLOCK = 512
_DIRECT = 256  # a direct difference costs as much as so many products of vectors of that length
_PIECE = 4096  # entries of an inner product that are summed in low precision
_CACHE = 2**30  # bytes of whole vectors of blocks, for each side
_GATHERED = 2**26  # bytes of vectors that are compared by direct differences at once
_SUBSET, _SEEDS = 1024, 64
_PROBED = 256  # samples whose pairs tell how many features the products should take
_WAITING = 512  # pairs for which inputs are read together
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
        averages: of some samples, `Basis.averages` of images rounded to float32, shape (n, W + 1).
    """

    basis: Basis
    features: Tensor
    read: Reader
    averages: Reader | None = None


@dataclass
class Found:
    """The steepest pairs, and how many pairs each test left.

    Attributes:
        pairs: at most `KEPT` of (i, j, score), i < j, the best first; score is the ratio by direct differences less
            the allowance for the rounding of outputs (see `witness.py`).
        projected: pairs that the projections in low precision left.
        bounded: of these, those that whole products or direct differences of all features left.
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
        checkpoint: keeps the state under "empirical.pairs" now and then.
    """
    search = _Search(inputs, outputs, norms, device)
    count = len(norms)
    blocks = list(_runs(count, _BLOCK))
    done = 0
    if (saved := checkpoint.load("empirical.pairs")) is not None:
        search.found, done = Found.from_state(saved), int(saved["done"])
        search.arrange(*saved["prefix"].tolist())
    else:
        search.start()
        search.arrange(*search.choose_prefix())
    if search.settled():
        return search.found
    saver = Saver(checkpoint, "empirical.pairs")
    for rows in blocks[done:]:
        search.visit(rows)
        done += 1
        saver.offer(partial(search.state, done))
        progress("empirical: pairs", done, len(blocks))
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
        self.waiting = _Waiting()
        self.whole_x = _Blocks(inputs, self.shift_x, exact_single, self.device)
        self.whole_y = _Blocks(outputs, self.shift_y, exact_single, self.device)
        self.read = _Cache(inputs.read)

    def choose_prefix(self) -> tuple[int, int]:
        """How many coordinates of inputs and outputs the products should take, by a count on a few pairs.

        Any number gives valid bounds.
        """
        chosen = np.random.default_rng(1).permutation(self.count)[:_PROBED].tolist()
        t, tb2 = self._factors()
        scale_x, scale_y = (math.ldexp(1.0, shift) for shift in (self.shift_x, self.shift_y))
        x, y = self.inputs.features[chosen] * scale_x, self.outputs.features[chosen] * scale_y
        near = {k: _bounds_of_squares(_shortened(x, k), -1) for k in _prefixes(self.inputs)}
        far = {k: _bounds_of_squares(_shortened(y, k), 1) for k in _prefixes(self.outputs)}
        numbers = self.inputs.basis.width + self.outputs.basis.width

        def cost(prefix: tuple[int, int]) -> float:
            alive = ~(t * far[prefix[1]] <= tb2 * near[prefix[0]])
            # As `visit` goes on: the features of each pair, or products of the outputs.
            then = numbers * _DIRECT * float(alive.double().mean())
            return sum(prefix) + min(then, self.outputs.basis.centre.numel())

        return min(((of_x, of_y) for of_x in near for of_y in far), key=cost)

    def arrange(self, inputs: int, outputs: int) -> None:
        """Lay out the vectors of the products with so many coordinates of inputs and outputs."""
        self.prefix = inputs, outputs
        width = inputs + outputs + 5
        precision = _SINGLE if self.dtype == torch.float32 else 1
        widest = max(self.inputs.basis.width, self.outputs.basis.width)
        error = max(self.inputs.basis.error, self.outputs.basis.error) + gamma(widest + 8)
        self.margin = 2.2 * gamma((width + 8) * precision) + 5 * error
        self.lost = 8 * width * _SMALLEST
        self.right = torch.empty(self.count, width, dtype=self.dtype, device=self.device)
        for part in _runs(self.count, 2**14):
            self.right[part] = self._vectors(part).to(self.device, self.dtype)

    def state(self, done: int) -> dict[str, np.ndarray]:
        """What a run that goes on after the first blocks of rows needs."""
        return {"done": np.array(done), "prefix": np.array(self.prefix), **self.found.state()}

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
        self._await(*self._bound(pairs[0], pairs[1]))
        self._compute()

    def settled(self) -> bool:
        """Whether outputs differ by so little that no pair has a positive score."""
        reach = 2 * float(self.squares_y.max()) ** 0.5 * (1 + self.outputs.basis.error + gamma(8))
        least = WITNESS_ROUNDING * 2 * float(self.norms.min())
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
            numbers = self.inputs.basis.width + self.outputs.basis.width
            size = alive.numel() * self.outputs.basis.centre.numel()
            if left * numbers * _DIRECT <= size:
                pairs = self._bound(*_indices(alive, rows, block))
                if crowded := len(pairs[0]) > alive.numel() / _DIRECT:
                    alive = torch.zeros_like(alive)
                    alive[pairs[0] - rows.start, pairs[1] - block.start] = True
            else:
                crowded = True
            if crowded:
                pairs = self._bound(*_indices(self._compare_whole(rows, block, alive), rows, block))
            self.found.bounded += len(pairs[0])
            self._await(*pairs)
            if len(self.waiting) > _WAITING:
                self._compute()
        self._compute()

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
        return self.found.best * (1 + WITNESS_ROUNDING / 2)

    def _vectors(self, part: slice) -> Tensor:
        """v_j = (c, s, a, r, p(1 + m), q(1 − m), 1), the right-hand vectors of f."""
        of_x, of_y = self.prefix
        x = _shortened(self.inputs.features[part], of_x) * math.ldexp(1.0, self.shift_x)
        y = _shortened(self.outputs.features[part], of_y) * math.ldexp(1.0, self.shift_y)
        p, q = _squares(y)[:, None], _squares(x)[:, None]
        return torch.cat([x, y, p * (1 + self.margin), q * (1 - self.margin), torch.ones_like(p)], 1)

    def _left(self, rows: slice, outputs: bool = True) -> Tensor:
        """u_i with u_i·v_j ≥ t(U − b²L), or ≥ −t·b²L alone, for all rows."""
        v = self._vectors(rows)
        wide = self.prefix[0] + 1
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
        few = alive.numel() / _DIRECT
        t, tb2 = self._factors()
        for precise in (False, True):
            far, error = self.whole_y.squared_distances(rows, columns, precise)
            gain = t * (far + error)
            if not self.outputs.basis.whole:
                near = self._left(rows, outputs=False) @ self.right[columns].T
                alive = alive & ~(gain + near <= 0)
            if not precise:
                alive = self._compare_averages(rows, columns, alive, gain, tb2)
            if self.inputs.basis.whole or int(alive.sum()) <= few:
                break
            near, error = self.whole_x.squared_distances(rows, columns, precise)
            alive = alive & ~(gain - tb2 * (near - error) <= 0)
            if int(alive.sum()) <= few:
                break
        return alive

    def _compare_averages(
        self, rows: slice, columns: slice, alive: Tensor, gain: Tensor, tb2: float
    ) -> Tensor:
        """What averages of inputs leave of a block, if this costs less than products of inputs."""
        basis, averages = self.inputs.basis, self.inputs.averages
        left = int(alive.sum())
        if averages is None or left * basis.averaged * _DIRECT > alive.numel() * basis.centre.numel():
            return alive
        remaining = torch.zeros_like(alive)
        scale = math.ldexp(1.0, basis.exponent + self.shift_x)
        i, j = alive.nonzero(as_tuple=True)
        for part in _runs(left, max(1, _GATHERED // (8 * basis.averaged))):
            first, second = i[part], j[part]
            near = self._distances_of_averages(
                averages, first.cpu() + rows.start, second.cpu() + columns.start
            )
            least = tb2 * (near.to(gain.device) * scale).square() * (1 - gamma(16))
            remaining[first, second] = ~(gain[first, second] <= least)
        return remaining

    # ---- direct differences ----

    def _bound(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs that bounds by all features and averages leave, and lower bounds of the distances of inputs."""
        x, y = self.inputs, self.outputs
        kept = []
        widest = x.basis.width + y.basis.width + x.basis.averaged
        # An empty part too, so that there is something to put together.
        for part in [slice(0, 0), *_runs(len(i), max(1, _GATHERED // (8 * widest)))]:
            first, second = i[part], j[part]
            near, _ = self._distances(x, self.squares_x, first, second)
            _, far = self._distances(y, self.squares_y, first, second)
            alive = ~(far <= near * self.threshold)
            first, second, near, far = first[alive], second[alive], near[alive], far[alive]
            if x.averages is not None and len(first):
                near = torch.maximum(near, self._distances_of_averages(x.averages, first, second))
                alive = ~(far <= near * self.threshold)
                first, second, near = first[alive], second[alive], near[alive]
            kept.append((first, second, near))
        i, j, near = (torch.cat(column) for column in zip(*kept, strict=True))
        return i, j, near

    def _await(self, i: Tensor, j: Tensor, near: Tensor) -> None:
        """Bound pairs by outputs; those left wait for their inputs."""
        length, read = self.outputs.basis.centre.numel(), self.outputs.read
        for part in _runs(len(i), max(1, _GATHERED // (16 * max(1, length)))):
            far = _direct(read(i[part].tolist()), read(j[part].tolist()))
            alive = ~(far * (1 + gamma(length + 8)) <= near[part] * self.threshold)
            self.waiting.add(i[part][alive], j[part][alive], near[part][alive], far[alive])

    def _distances_of_averages(self, averages: Reader, i: Tensor, j: Tensor) -> Tensor:
        """Lower bounds of ‖x_i − x_j‖ from all averages of two images."""
        squares = self.squares_x
        slack = (
            1.01 * (self.inputs.basis.error + 2 * _SINGLE * UNIT) * (squares[i].sqrt() + squares[j].sqrt())
        )
        low = _direct(averages(i.tolist()), averages(j.tolist())) * (
            1 - gamma(self.inputs.basis.averaged + 9)
        )
        # What float32 lost to underflow is less than the constant; what overflowed bounds nothing.
        low = (low - slack - 2.0**-100).nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
        return low * math.ldexp(1.0, -self.inputs.basis.exponent)

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

    def _compute(self) -> None:
        """Scores of the waiting pairs by direct differences, steepest first; inputs are read where b leaves it open."""
        i, j, near, far = self.waiting.take()
        size = max(1, self.inputs.basis.centre.numel())
        order = (far / near).nan_to_num(math.inf).argsort(descending=True, stable=True)
        start, length = 0, 4
        while start < len(order):
            chosen = order[start : start + length]
            start, length = start + length, 2 * length
            steep = far[chosen] * (1 + gamma(self.outputs.basis.centre.numel() + 8))
            # By index, so that inputs are read in order and few times.
            chosen = chosen[~(steep <= near[chosen] * self.threshold)]
            chosen = chosen[(i[chosen] * self.count + j[chosen]).argsort()]
            for part in _runs(len(chosen), max(1, _GATHERED // (16 * size))):
                self._score(i[chosen[part]], j[chosen[part]], far[chosen[part]])

    def _score(self, i: Tensor, j: Tensor, far: Tensor) -> None:
        # Each input is read once.
        needed, where = torch.unique(torch.cat([i, j]), return_inverse=True)
        x = self.read(needed.tolist())
        distance = _direct(x[where[: len(i)]], x[where[len(i) :]])
        ratio = far / distance
        allowance = WITNESS_ROUNDING * ((self.norms[i] + self.norms[j]) / distance + ratio)
        self.found.add(i, j, torch.where(distance > 0, ratio - allowance, -math.inf))
        self.found.compared += len(i)


class _Waiting:
    """Pairs (i, j), lower bounds of the distance of their inputs, and distances of their outputs."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def __len__(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    def add(self, i: Tensor, j: Tensor, near: Tensor, far: Tensor) -> None:
        self._parts.append((i, j, near, far))

    def take(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All of them, and none waits any longer."""
        index, number = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        i, j, near, far = (
            torch.cat(p) for p in zip((index, index, number, number), *self._parts, strict=True)
        )
        self._parts = []
        return i, j, near, far


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


def _direct(a: Tensor, b: Tensor) -> Tensor:
    """‖a_n − b_n‖ of rows, in float64."""
    difference = a.flatten(1).to("cpu", torch.float64, copy=True)
    difference -= b.flatten(1).to("cpu")
    distances: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return distances


def _runs(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _indices(alive: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """The pairs of a block that are left."""
    i, j = alive.nonzero(as_tuple=True)
    return i.cpu() + rows.start, j.cpu() + columns.start


def _squares(rows: Tensor) -> Tensor:
    """Squared norms of the rows, in pieces so that mapped files are not held in memory."""
    return torch.cat([rows[part].square().sum(1) for part in _runs(len(rows), 2**14)])


def _prefixes(side: Side) -> list[int]:
    """Numbers of coordinates that products may take: vectors kept whole stay so."""
    most = side.basis.width - 1
    return [most] if side.basis.whole else sorted({min(2**n, most) for n in range(3, 10)})


def _shortened(features: Tensor, count: int) -> Tensor:
    """The first coordinates of features (n, k + 1), and the norm of all else."""
    if count == features.shape[1] - 1:
        return features
    rest = torch.linalg.vector_norm(features[:, count:], dim=1, keepdim=True)
    return torch.cat([features[:, :count], rest], 1)


def _bounds_of_squares(features: Tensor, sign: int) -> Tensor:
    """‖Δc‖² + (s_i ± s_j)² of all pairs, by products and without a margin."""
    ends = features.clone()
    ends[:, -1] *= -sign
    squares = features.square().sum(1)
    return (squares[:, None] + squares[None, :] - 2 * features @ ends.T).clamp_min(0)


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
