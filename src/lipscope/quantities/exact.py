"""The exact Lipschitz constant of a small piecewise-linear network, by branch and bound over its regions.

A piecewise-linear network is affine on finitely many polyhedral regions, and its Lipschitz constant
is the largest operator norm of a Jacobian over the regions with interior points. A node of the
search is a set of regions: each unit is confined to some of its linear pieces. Its upper bound is
the certified bound of the Jacobian with the slopes of the units not yet fixed left free; it is
split at a unit whose pre-activation is affine on it, so that the parts are polyhedra too. A part is
dropped only if it is proved in rational arithmetic to have no interior point (`regions/polyhedra.py`), or
if its bound is no larger than what is attained.
"""

# ruff: noqa: N806  (matrices have the names of the papers)
from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph
from ..progress import Progress, silent
from ..regions import (
    Ball,
    ExactForms,
    Form,
    IntegerRow,
    Piecewise,
    Region,
    Units,
    free_slope_bound,
    proved_empty,
    uncertainty_bound,
)
from ..results import Cost, Exact, Norm
from ..rounding import up_sum
from .ascent import ascent
from .witness import Pair, evaluate_pair

Array = np.ndarray
_RANDOM_POINTS = 48
_NODES_BEFORE_ASCENT = 300
_ASCENT_STEPS = 30


def exact(
    graph: Graph,
    *,
    norm: Norm = "2",
    seconds: float = 60.0,
    tolerance: float = 1e-6,
    max_units: int = 200,
    max_nodes: int | None = None,
    center: Tensor | None = None,
    radius: float | None = None,
    ball_norm: Norm = "2",
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[Exact, Pair]:
    """The Lipschitz constant, globally or over a ball, as an anytime bracket with a proof and a witness.

    Linear layers, ReLU, leaky ReLU (abs too), clamp and max pooling. The result is the same for the same
    seed and `max_nodes` if time does not run out. The float64 weights of the graph are taken as
    exact (see `regions/piecewise.py`).

    Args:
        graph: the network; every region costs dense algebra of its size.
        norm: q of the operator norm ℓ_q → ℓ_q.
        seconds: stop after this time at the latest (checked between nodes).
        tolerance: stop when upper ≤ lower·(1 + tolerance).
        max_units: refuse networks with more scalar nonlinear units.
        max_nodes: stop after bounding so many nodes.
        center, radius, ball_norm: restrict both points to ‖x − center‖ ≤ radius; center (*in),
            `ball_norm` "2" or "inf".
        seed: of the points the search starts from.

    Returns:
        The bracket and the pair that attains its lower end.

    Raises:
        LipscopeError: a layer is not piecewise linear, or the network has too many units.
        DataError: the ball does not fit the network.
        CertificateError: a weight is NaN or infinite.

    Source: branch and bound over activation patterns as in M. Jordan, A. Dimakis, Exactly Computing
    the Local Lipschitz Constant of ReLU Networks (2020), with quadratic bounds (M. Fazlyab et al., 2019).
    """
    started = time.perf_counter()
    network = Piecewise(graph, max_units)
    ball = Ball.around(graph.input_shape, center, radius, ball_norm)
    search = _Search(network, norm, ball, seed)
    climbed = False
    while not search.closed(tolerance) and search.open:
        if time.perf_counter() - started > seconds or (max_nodes is not None and search.nodes >= max_nodes):
            break
        if not climbed and search.nodes >= _NODES_BEFORE_ASCENT:
            # Easy networks close before; on the others a good lower end saves many nodes.
            _, pair = ascent(
                graph,
                norm=norm,
                steps=_ASCENT_STEPS,
                seed=seed,
                center=center,
                radius=radius,
                ball_norm=ball_norm,
            )
            search.offer(pair)
            climbed = True
        if not search.expand(tolerance):
            break
        progress("exact", search.nodes, max_nodes or search.nodes + len(search.open))
    upper = search.upper
    return (
        Exact(
            name="exact",
            value=upper,
            method="branch and bound over activation regions; upper end proved, lower end attained by a pair",
            source="Jordan, Dimakis 2020: the largest Jacobian norm over regions with interior",
            cost=Cost(seconds=time.perf_counter() - started),
            norm=norm,
            lower=search.best.bound,
            upper=upper,
            closed=search.closed(tolerance),
            tolerance=tolerance,
            nodes=search.nodes,
            units=network.units,
            witness=search.best.witness("exact"),
        ),
        search.best,
    )


@dataclass(frozen=True)
class _Cut:
    """One half-space of a region: unit's pre-activation above (side 1) or below (side −1) a break."""

    unit: int
    side: int
    at: float


@dataclass(frozen=True)
class _Node:
    """Regions on which unit i is on one of the pieces low[i] … high[i]; `point` lies inside, if known."""

    low: Array
    high: Array
    cuts: tuple[_Cut, ...]
    region: Region
    point: Array | None
    bound: float

    @property
    def fixed(self) -> Array:
        """The piece of every fixed unit, −1 elsewhere."""
        return np.where(self.low == self.high, self.low, -1)


class _Search:
    """The state of one search: open nodes, best first, and the attained pair."""

    def __init__(self, network: Piecewise, norm: Norm, ball: Ball | None, seed: int) -> None:
        self.network, self.norm, self.ball = network, norm, ball
        self.exact_forms = ExactForms(network)
        self.nodes = 0
        self.finished = 0.0
        self.open: list[tuple[float, int, _Node]] = []
        self._number = itertools.count()
        self._source = np.zeros((network.units, 2), dtype=int)
        for step in network.steps:
            if isinstance(step, Units):
                size = network.sizes[step.source]
                self._source[step.first : step.first + size, 0] = step.source
                self._source[step.first : step.first + size, 1] = np.arange(size)
        n = network.inputs
        self.origin = np.zeros(n) if ball is None else ball.centre
        self.best = self._start(np.random.default_rng(seed))
        low = np.zeros(network.units, dtype=int)
        high = np.array([len(p.breaks) for p in network.pieces], dtype=int)
        whole = Region(np.zeros((0, n)), np.zeros(0), ball)
        self._push(_Node(low, high, (), whole, self.origin.copy(), math.inf))

    @property
    def upper(self) -> float:
        """The certified upper bound so far."""
        return max(self.finished, -self.open[0][0] if self.open else 0.0, self.best.bound)

    def closed(self, tolerance: float) -> bool:
        return self.upper <= self.best.bound * (1 + tolerance)

    # ---- upper bounds ---------------------------------------------------------------------------------

    def _push(self, node: _Node) -> None:
        self.nodes += 1
        forms = self.network.forms(node.low, node.high)
        bound = min(node.bound, self._bound(node, forms))
        if node.point is not None:
            self._try_point(node.point)
        heapq.heappush(self.open, (-bound, next(self._number), replace(node, bound=bound)))

    def _system(self, node: _Node, forms: list[Form]) -> tuple[Array, Array, Array, Array, Array]:
        """Free units, their rows A and the outputs' C over (x, free z), and the radii of both."""
        free = np.flatnonzero(node.low < node.high)
        n = self.network.inputs
        columns = np.r_[:n, n + free]
        rows = [(forms[s].centre[i, columns], forms[s].radius[i, columns]) for s, i in self._source[free]]
        A = np.array([centre for centre, _ in rows]).reshape(len(free), len(columns))
        A_radius = np.array([radius for _, radius in rows]).reshape(len(free), len(columns))
        out = forms[self.network.output]
        return free, A, out.centre[:, columns], A_radius, out.radius[:, columns]

    def _slopes(self, node: _Node, free: Array) -> tuple[Array, Array]:
        ranges = [self.network.pieces[i].slopes[node.low[i] : node.high[i] + 1] for i in free]
        return np.array([min(r) for r in ranges]), np.array([max(r) for r in ranges])

    def _bound(self, node: _Node, forms: list[Form]) -> float:
        free, A, C, A_radius, C_radius = self._system(node, forms)
        alpha, beta = self._slopes(node, free)
        largest = np.maximum(np.abs(alpha), np.abs(beta))
        rounding = uncertainty_bound(A, C, largest, A_radius, C_radius, self.norm)
        return up_sum(free_slope_bound(A, C, alpha, beta, self.norm), rounding)

    # ---- branching ------------------------------------------------------------------------------------

    def expand(self, tolerance: float) -> bool:
        """Split the open node of the largest bound; False if it is one region and cannot be split."""
        _, _, node = self.open[0]
        while True:
            forms = self.network.forms(node.low, node.high)
            node, settled = self._settle(node, forms)
            if settled:
                continue
            unit = self._branching_unit(node, forms)
            if unit is None:
                break
            parts = [part for part in self._split(node, unit, forms) if part is not None]
            if len(parts) != 1:
                break
            node = parts[0]
        heapq.heappop(self.open)
        if unit is None:
            # Nothing is free any more: the bound is final.
            self.nodes += 1
            final = min(node.bound, self._bound(node, forms))
            if node.point is not None:
                self._try_point(node.point)
            self.finished = max(self.finished, final)
            return self.finished < self.upper or self.closed(tolerance)
        for part in parts:
            self._push(part)
        return True

    def _settle(self, node: _Node, forms: list[Form]) -> tuple[_Node, bool]:
        """Fix units whose pre-activation is proved constant on the region: both slopes then act on zero."""
        n = self.network.inputs
        for unit in np.flatnonzero(node.low < node.high):
            step, index = self._source[unit]
            centre, radius = forms[step].centre[index], forms[step].radius[index]
            if centre[n:-1].any() or radius[n:-1].any() or bool((np.abs(centre[:n]) > radius[:n]).any()):
                continue
            (*coefficients, constant), shift = self.exact_forms.row(step, index, node.fixed)
            if any(coefficients):
                continue
            breaks = self.network.pieces[unit].breaks
            piece = sum(_compare(constant, shift, at) > 0 for at in breaks)
            low, high = node.low.copy(), node.high.copy()
            low[unit] = high[unit] = min(max(piece, low[unit]), high[unit])
            return replace(node, low=low, high=high), True
        return node, False

    def _branching_unit(self, node: _Node, forms: list[Form]) -> int | None:
        """Among the free units that act on the output and are affine in x, the one that seems to matter most."""
        free, A, C, A_radius, C_radius = self._system(node, forms)
        if not len(free):
            return None
        n, k = self.network.inputs, len(free)
        alpha, beta = self._slopes(node, free)
        reads, shown = (A != 0) | (A_radius != 0), (C != 0) | (C_radius != 0)
        middle = (alpha + beta) / 2
        # Triangular systems; the counts of paths are sums of ones, so they vanish only where no path is.
        eye, inner = np.eye(k), reads[:, n:].astype(float)
        reached = np.linalg.solve(eye - inner, reads[:, :n].any(1).astype(float)) > 0
        acts = np.linalg.solve((eye - inner).T, shown[:, n:].any(0).astype(float)) > 0
        backward = np.linalg.solve((eye - middle[:, None] * A[:, n:]).T, C[:, n:].T)
        affine = ~reads[:, n:].any(1)
        candidates = np.flatnonzero(acts & reached & affine)
        if not len(candidates):
            return None
        length = np.linalg.norm(A[candidates, :n], axis=1)
        score = (beta - alpha)[candidates] * length * (np.linalg.norm(backward[candidates], axis=1) + 1e-12)
        return int(free[candidates[int(np.argmax(score))]])

    def _split(self, node: _Node, unit: int, forms: list[Form]) -> list[_Node | None]:
        """The two parts below and above a break of the unit; None for one proved to be empty."""
        step, index = self._source[unit]
        row, radius = forms[step].centre[index], forms[step].radius[index]
        n = self.network.inputs
        normal, offset = row[:n], row[-1]
        if np.linalg.norm(normal) <= np.linalg.norm(radius[:n]):
            # All digits cancelled; settled units aside, the exact row is not zero.
            integers, shift = self.exact_forms.row(step, index, node.fixed)
            *coefficients, offset = (float(Fraction(value, 1 << shift)) for value in integers)
            normal = np.array(coefficients)
        length = float(np.linalg.norm(normal)) or 1.0
        middle = int(node.low[unit] + node.high[unit] - 1) // 2
        at = self.network.pieces[unit].breaks[middle]
        parts: list[_Node | None] = []
        for side in (-1, 1):
            low, high = node.low.copy(), node.high.copy()
            if side < 0:
                high[unit] = middle
            else:
                low[unit] = middle + 1
            region = Region(
                np.concatenate([node.region.normals, side * normal[None] / length]),
                np.append(node.region.offsets, side * (offset - at) / length),
                self.ball,
            )
            cuts = (*node.cuts, _Cut(unit, side, at))
            point, empty = self._inhabitant(region, cuts, node)
            parts.append(None if empty else _Node(low, high, cuts, region, point, node.bound))
        if sum(part is None for part in parts) == 1:
            # The other part is all of the region but a set without interior: it needs no new half-space.
            kept = next(part for part in parts if part is not None)
            whole = replace(kept, cuts=node.cuts, region=node.region)
            return [whole if part is kept else None for part in parts]
        return parts

    def _inhabitant(self, region: Region, cuts: tuple[_Cut, ...], parent: _Node) -> tuple[Array | None, bool]:
        """A point inside the region, or none and whether it is proved to have no interior."""
        if parent.point is not None and region.contains(parent.point, 1e-9):
            return parent.point, False
        near = self.origin if parent.point is None else parent.point
        point, multipliers = region.interior_point(near)
        # Linear programming is slower and more accurate: the second opinion.
        for second in (False, True):
            if second:
                point, multipliers = region.centre()
            if point is not None:
                return point, False
            if proved_empty([self._exact_cut(cut, parent) for cut in cuts], multipliers, self.ball):
                return None, True
        return None, False

    def _exact_cut(self, cut: _Cut, node: _Node) -> IntegerRow:
        step, index = self._source[cut.unit]
        row, shift = self.exact_forms.row(step, index, node.fixed)
        numerator, denominator = float(cut.at).as_integer_ratio()
        places = max(shift, denominator.bit_length() - 1)
        row = [value << (places - shift) for value in row]
        row[-1] -= numerator << (places - denominator.bit_length() + 1)
        return [cut.side * value for value in row], places

    # ---- lower bounds ---------------------------------------------------------------------------------

    def _start(self, generator: np.random.Generator) -> Pair:
        """An attained pair to start from: the steepest of some regions met at random."""
        n = self.network.inputs
        around = generator.standard_normal((_RANDOM_POINTS, n))
        if self.ball is None:
            points = around * np.resize((0.3, 1.0, 3.0), (_RANDOM_POINTS, 1))
        else:
            length = np.linalg.norm(around, 2 if self.ball.norm == "2" else np.inf, axis=1, keepdims=True)
            inside = generator.random((_RANDOM_POINTS, 1)) ** (1 / max(n, 1))
            points = self.ball.centre + 0.99 * self.ball.radius * inside * around / length
        size = 0.5 if self.ball is None else 0.5 * self.ball.radius
        step = np.eye(1, n)[0] * size
        self.best = self._pair(self.origin, self.origin + step)
        for x in points:
            self._try_point(x)
        return self.best

    def offer(self, pair: Pair) -> None:
        """Keep a pair if it attains more."""
        if pair.bound > self.best.bound:
            self.best = pair

    def _pair(self, x1: Array, x2: Array) -> Pair:
        shape = self.network.graph.input_shape
        first, second = (torch.from_numpy(x).reshape(shape) for x in (x1, x2))
        return evaluate_pair(self.network.graph, first, second, (), self.norm)

    def _try_point(self, x: Array, centred: bool = False) -> None:
        """Attain the Jacobian norm at x by a pair inside its region, if that is more than is attained."""
        n = self.network.inputs
        pattern = self.network.pattern(x)
        forms = self.network.forms(pattern, pattern)
        value, direction = _norm_and_direction(forms[self.network.output].centre[:, :n], self.norm)
        if not value > self.best.bound:
            return
        region = self._linear_region(pattern, forms)
        ends = region.chord(x, direction)
        if ends is not None:
            self.offer(self._pair(x + ends[0] * direction, x + ends[1] * direction))
        if not centred and self.best.bound < value * (1 - 1e-9):
            # A longer pair loses less to rounding.
            middle, _ = region.centre()
            if middle is not None:
                self._try_point(middle, centred=True)

    def _linear_region(self, pattern: Array, forms: list[Form]) -> Region:
        """The half-spaces on which every unit is on the given piece."""
        n = self.network.inputs
        normals, offsets = [np.zeros(n)][:0], []
        for unit, (step, index) in enumerate(self._source):
            row = forms[step].centre[index]
            length = float(np.linalg.norm(row[:n]))
            if length > float(np.linalg.norm(forms[step].radius[index])):
                breaks, piece = self.network.pieces[unit].breaks, pattern[unit]
                for side, at in [(1, a) for a in breaks[:piece][-1:]] + [(-1, a) for a in breaks[piece:][:1]]:
                    normals.append(side * row[:n] / length)
                    offsets.append(side * (row[-1] - at) / length)
        return Region(np.array(normals).reshape(-1, n), np.array(offsets), self.ball)


def _norm_and_direction(matrix: Array, norm: Norm) -> tuple[float, Array]:
    """The operator norm (an estimate) and a vector that attains it."""
    if norm == "2":
        _, values, right = np.linalg.svd(matrix, full_matrices=False)
        return float(values[0]), right[0]
    sums = np.abs(matrix).sum(0 if norm == "1" else 1)
    largest = int(np.argmax(sums))
    if norm == "1":
        return float(sums[largest]), np.eye(matrix.shape[1])[largest]
    return float(sums[largest]), np.where(matrix[largest] < 0, -1.0, 1.0)


def _compare(constant: int, shift: int, at: float) -> int:
    """The sign of constant·2^−shift − at, exactly."""
    numerator, denominator = float(at).as_integer_ratio()
    difference = constant * denominator - (numerator << shift)
    return (difference > 0) - (difference < 0)
