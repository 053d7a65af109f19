"""The linear program over energies: how much of the input's energy can reach the output.

The unknowns are the energies e_v = ‖Δ_v‖² of a difference at every node v, the input's being 1. A layer
of constant c gives e_v ≤ c² e_u, a concatenation e_v = Σ e_u, a filter bank Σ_v e_v ≤ B e_u with
the Bessel bound B of the stacked filters. A sum gives e_v ≤ (Σ gᵢ√eᵢ)², which is concave: it is the
least of the linear bounds Σ (gᵢ²/tᵢ) eᵢ over weights t > 0 with Σ tᵢ = 1 (Cauchy–Schwarz), and
those are added where a solution violates it. The largest e at the output bounds L².

The solver proves nothing. Its multipliers μ are completed, from the output back to the input,
until they are feasible for the dual program, in exact rational arithmetic; weak duality then makes
λ_0 a bound, whatever the solver did. With μ = 0 the completion gives the product rule.

Source: D. Zou, R. Balan, M. Singh, On Lipschitz bounds of general convolutional neural networks
(IEEE Trans. Information Theory 66, 2020), the program for L_c.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from ..graph import INPUT, Graph
from ..layers.aggregation import Product
from ..layers.merge import Concatenation, Stack
from ..rounding import up, up_ldexp, up_product, up_sum
from .stacks import JointBound

_ROUNDS = 40
_TOLERANCE = 1e-9
_SMALLEST_SHARE = 1e-6


@dataclass(frozen=True)
class _Row:
    """Σ left[v]·e_v ≤ Σ right[u]·e_u, proved; every v comes after every u."""

    left: dict[int, float]
    right: dict[int, float]


class EnergyProgram:
    """The program of one graph: its rows, its solution by HiGHS, and the proof of a bound.

    Energies are kept as e_v / 4^k with 2^k just above the product bound of node v, so that all lie in [0, 1].

    Args:
        graph: the network.
        constants: certified Lipschitz constant of every node's layer alone (1 for the input).
        bounds: certified Lipschitz constant of every node by the product rule, all finite.
        joint: certified bounds of several layers together.
    """

    def __init__(
        self, graph: Graph, constants: Sequence[float], bounds: Sequence[float], joint: Iterable[JointBound]
    ) -> None:
        self._bounds = bounds
        self._exponents = [math.frexp(bound)[1] for bound in bounds]
        self._sums: dict[int, list[tuple[int, float]]] = {}
        # One row a node comes first; these alone give the product rule.
        self._own = [_Row({INPUT: 1.0}, {})]
        for index, node in enumerate(graph.nodes):
            if node.layer is None:
                continue
            if len(node.inputs) == 1:
                row = self._row([index], [(node.inputs[0], constants[index])])
            elif isinstance(node.layer, (Concatenation, Stack)):
                row = self._row([index], [(i, 1.0) for i in node.inputs])
            else:
                # Let one input move at a time: ‖Δ_v‖ ≤ Σ gᵢ‖Δᵢ‖.
                shapes = graph.shapes_into(index)
                gains = [node.layer.lipschitz(unit, shapes) for unit in np.eye(len(shapes)).tolist()]
                row = self._first_tangent(index, zip(node.inputs, gains, strict=True))
            self._own.append(row)
        self._extra: list[_Row] = []
        for index, node in enumerate(graph.nodes):
            if isinstance(node.layer, Product):
                pair = graph.nodes[node.inputs[0]]
                if isinstance(pair.layer, Stack) and pair.layer.axis == 0:
                    # Δ(ab) by its two factors is tighter than by their stack.
                    self._add(
                        self._first_tangent(index, zip(pair.inputs, reversed(node.layer.bounds), strict=True))
                    )
        for bound in joint:
            members = [v for v in bound.members if bounds[v] > 0]
            if members:
                self._add(self._row(members, [(u, bound.norm) for u in bound.sources]))

    @property
    def improvable(self) -> bool:
        """Whether there is any row beyond those of the product rule."""
        return bool(self._extra)

    def bound(self) -> float:
        """Certified upper bound of the network's Lipschitz constant: solve, then prove."""
        return self.prove(self.solve())

    def solve(self) -> list[float]:
        """Multipliers of the rows beyond those of single nodes, near the optimum: a proposal, nothing is proved."""
        multipliers: list[float] = []
        best = math.inf
        for _ in range(_ROUNDS):
            solution = self._optimum()
            if solution is None:
                break
            energies, multipliers = solution
            if not self._cut(energies) or energies[-1] > best * (1 - _TOLERANCE):
                break
            best = energies[-1]
        return multipliers

    def prove(self, multipliers: Sequence[float]) -> float:
        """The bound that weak duality gives for any multipliers μ of the rows beyond those of single nodes.

        From the output back to the input, λ_v collects what the rows that read node v ask of it; the row
        of v alone gets what the other rows about v leave uncovered. All numbers are exact rationals but
        for that multiplier, which is rounded up, so e_out ≤ Σ_v λ_v-covered rows ≤ λ_0 e_0 holds exactly.
        """
        last = len(self._own) - 1
        needed = [Fraction(0)] * last + [Fraction(1)]
        covered = [Fraction(0)] * (last + 1)
        for multiplier, row in zip(multipliers, self._extra, strict=False):
            if 0 < multiplier < math.inf:
                for v, weight in row.left.items():
                    covered[v] += Fraction(multiplier) * Fraction(weight)
                for u, weight in row.right.items():
                    needed[u] += Fraction(multiplier) * Fraction(weight)
        for v in range(last, INPUT, -1):
            if needed[v] > covered[v]:
                missing = Fraction(_rounded_up(needed[v] - covered[v]))
                for u, weight in self._own[v].right.items():
                    needed[u] += missing * Fraction(weight)
        root = up(math.sqrt(_rounded_up(needed[INPUT])), 1)
        return up_ldexp(root, self._exponents[last] - self._exponents[INPUT])

    def _optimum(self) -> tuple[list[float], list[float]] | None:
        """The energies that maximise the output's, the input's being 1, and the multipliers of the extra rows."""
        rows = [*self._own[1:], *self._extra]
        entries = [
            (r, v, weight)
            for r, row in enumerate(rows)
            for side, sign in ((row.left, 1.0), (row.right, -1.0))
            for v, weight in ((v, sign * weight) for v, weight in side.items())
        ]
        numbers, columns, values = (np.array(part) for part in zip(*entries, strict=True))
        count = len(self._own)
        solution = linprog(
            -np.eye(count)[-1],
            A_ub=csr_array((values, (numbers, columns)), shape=(len(rows), count)),
            b_ub=np.zeros(len(rows)),
            bounds=[(1, 1), *[(0, None)] * (count - 1)],
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if not solution.success:
            return None
        return solution.x.tolist(), (-solution.ineqlin.marginals[count - 1 :]).tolist()

    def _cut(self, energies: Sequence[float]) -> bool:
        """Add, for each sum whose bound (Σ gᵢ√eᵢ)² the energies violate, its tangent there; whether any was added."""
        added = False
        for index, moving in self._sums.items():
            roots = [math.sqrt(max(energies[i], 0.0)) for i, _ in moving]
            shares = self._shares(index, roots)
            if energies[index] > sum(shares) ** 2 * (1 + _TOLERANCE):
                floor = _SMALLEST_SHARE * max(1e-9, *roots)
                self._add(self._tangent(index, [max(root, floor) for root in roots]))
                added = True
        return added

    def _shares(self, index: int, roots: Sequence[float]) -> list[float]:
        """gᵢ√eᵢ in the units of node `index`, from the roots in the units of its inputs."""
        return [
            math.ldexp(g * root, self._exponents[i] - self._exponents[index])
            for (i, g), root in zip(self._sums[index], roots, strict=True)
        ]

    def _first_tangent(self, index: int, gains: Iterable[tuple[int, float]]) -> _Row:
        """Note the bound √e_index ≤ Σ gᵢ√eᵢ, and give its tangent at the product rule's energies."""
        moving = [(i, g) for i, g in gains if g > 0 and self._bounds[i] > 0]
        self._sums[index] = moving
        return self._tangent(index, [math.ldexp(self._bounds[i], -self._exponents[i]) for i, _ in moving])

    def _tangent(self, index: int, roots: Sequence[float]) -> _Row:
        """The bound (Σ gᵢ√eᵢ)² ≤ Σ tᵢ · Σ gᵢ² eᵢ/tᵢ with tᵢ = gᵢ·rootᵢ: equality where √eᵢ = rootᵢ."""
        shares = [max(share, 1e-200) for share in self._shares(index, roots)]
        total = up_sum(*shares)
        gains = [
            (i, up_product(g, up(math.sqrt(total / share), 2)))
            for (i, g), share in zip(self._sums[index], shares, strict=True)
        ]
        return self._row([index], gains)

    def _row(self, members: Sequence[int], gains: Iterable[tuple[int, float]]) -> _Row:
        """Σ_members e_v ≤ Σ g²·e_u over (u, g), in the units of the program; gains of one node add in squares."""
        top = max(self._exponents[v] for v in members)
        amplitudes: dict[int, list[float]] = {}
        for u, gain in gains:
            # Where the product rule proves zero there is no energy.
            if self._bounds[u] > 0:
                amplitudes.setdefault(u, []).append(up_ldexp(gain, self._exponents[u] - top))
        return _Row(
            # Rounding a tiny weight on the left down to zero weakens the row, which stays true.
            left={v: math.ldexp(1.0, 2 * (self._exponents[v] - top)) for v in members},
            right={u: up_sum(*(up_product(a, a) for a in parts)) for u, parts in amplitudes.items()},
        )

    def _add(self, row: _Row) -> None:
        if all(weight < math.inf for weight in row.right.values()):
            self._extra.append(row)


def _rounded_up(x: Fraction) -> float:
    """The least float64 that is not below x ≥ 0."""
    nearest = float(x)
    return nearest if Fraction(nearest) >= x else math.nextafter(nearest, math.inf)
