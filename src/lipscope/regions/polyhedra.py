"""Regions of the input space cut out by half-spaces: interior points, and exact proofs that there are none.

A region is {x in the ball's interior (or anywhere) : σᵢ(gᵢ·x + cᵢ) > 0 for all i}. Points are found
in floating point and prove nothing. Emptiness is proved in rational arithmetic: by Farkas' lemma it
follows from multipliers λ ≥ 0, not all zero, for which Σ λᵢσᵢ(gᵢ·x + cᵢ) ≤ 0 throughout the ball.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

from ..errors import DataError
from ..results import Norm

Array = np.ndarray
IntegerRow = tuple[list[int], int]
"""Coefficients of (x, 1) times 2^shift, and the shift; see `ExactForms.row`."""

_MARGINS = (1e-2, 1e-5, 1e-9)
_INFEASIBLE = 1e-9


@dataclass(frozen=True)
class Ball:
    """{x : ‖x − centre‖_q < radius}, q = 2 or ∞; centre (n,)."""

    centre: Array
    radius: float
    norm: Literal["2", "inf"]

    @classmethod
    def around(
        cls, shape: tuple[int, ...], center: Tensor | None, radius: float | None, norm: Norm
    ) -> Ball | None:
        """The ball asked for, or None if neither center nor radius is given.

        Raises:
            DataError: only one of them is given, the center's shape is not `shape`, a number is not
                finite or the radius not positive, or the norm is not supported.
        """
        if center is None and radius is None:
            return None
        if center is None or radius is None:
            raise DataError("a ball needs both a center and a radius")
        if tuple(center.shape) != tuple(shape):
            raise DataError(f"the center has shape {tuple(center.shape)}; the network takes {tuple(shape)}")
        if not (math.isfinite(radius) and radius > 0 and bool(torch.isfinite(center).all())):
            raise DataError("the ball needs a finite center and a finite positive radius")
        if norm == "1":
            raise DataError('balls are supported in the norms "2" and "inf"')
        return cls(center.detach().to("cpu", torch.float64).flatten().numpy(), float(radius), norm)

    def holds(self, x: Array) -> bool:
        """Whether x seems to lie well inside."""
        return self.distance(x) < self.radius * (1 - 1e-9)

    def distance(self, x: Array) -> float:
        """The ball's norm of x − centre."""
        return float(np.linalg.norm(x - self.centre, 2 if self.norm == "2" else np.inf))


@dataclass(frozen=True)
class Region:
    """Half-spaces normals·x + offsets > 0, normals of length one, inside a ball or not."""

    normals: Array
    offsets: Array
    ball: Ball | None

    def contains(self, x: Array, margin: float = 0.0) -> bool:
        """Whether x seems to lie inside, by a margin."""
        inside = bool((self.normals @ x + self.offsets > margin).all())
        return inside and (self.ball is None or self.ball.holds(x))

    def interior_point(self, near: Array) -> tuple[Array | None, Array]:
        """A point inside, not far from `near` if possible, or multipliers that suggest there is none.

        Returns:
            The point, or None, and multipliers (one a half-space) of the last attempt without a point.

        Source: the least distance problem by nonnegative least squares, C. Lawson, R. Hanson,
        Solving Least Squares Problems (1974), chapter 23.
        """
        reference, normals, offsets = near, self.normals, self.offsets
        if self.ball is not None:
            reference = self.ball.centre
            if self.ball.norm == "inf":
                unit = np.eye(len(near))
                normals = np.concatenate([normals, unit, -unit])
                sides = np.concatenate([-reference, reference]) + self.ball.radius
                offsets = np.concatenate([offsets, sides])
        multipliers = np.zeros(len(normals))
        size = self.ball.radius if self.ball else 1.0
        for margin in _MARGINS:
            needed = margin * size - offsets - normals @ reference
            stacked = np.concatenate([normals.T, needed[None]])
            try:
                multipliers, _ = nnls(stacked, np.append(np.zeros(len(near)), 1.0))
            except RuntimeError:
                continue
            residual = stacked @ multipliers
            residual[-1] -= 1.0
            if residual[-1] < -_INFEASIBLE:
                x = reference - residual[:-1] / residual[-1]
                if self.contains(x):
                    return x, multipliers[: len(self.normals)]
        return None, multipliers[: len(self.normals)]

    def chord(self, x: Array, direction: Array) -> tuple[float, float] | None:
        """Two parameters s < 0 < t with x + s·d, x + t·d inside, for a point x inside; at most of order |x|."""
        limit = max(1.0, float(np.linalg.norm(x))) / float(np.linalg.norm(direction))
        slack, rate = self.normals @ x + self.offsets, self.normals @ direction
        if self.ball is not None:
            shift, radius = x - self.ball.centre, self.ball.radius
            if self.ball.norm == "inf":
                slack = np.concatenate([slack, radius - shift, radius + shift])
                rate = np.concatenate([rate, -direction, direction])
            else:
                a, b = float(direction @ direction), float(direction @ shift)
                inside = radius**2 - float(shift @ shift)
                root = math.sqrt(max(b * b + a * inside, 0.0))
                # As two half-lines: t ≤ (root − b)/a and t ≥ −(root + b)/a.
                slack, rate = np.append(slack, [root - b, root + b]), np.append(rate, [-a, a])
        forth = np.min(np.where(rate < 0, slack / np.where(rate < 0, -rate, 1.0), math.inf), initial=limit)
        back = np.min(np.where(rate > 0, slack / np.where(rate > 0, rate, 1.0), math.inf), initial=limit)
        # A little inside, so that rounding does not carry the ends across.
        return (-0.999 * float(back), 0.999 * float(forth)) if min(back, forth) > 0 else None

    def centre(self) -> tuple[Array | None, Array]:
        """The point farthest from all sides (by at most one), and the multipliers, by linear programming."""
        count, n = self.normals.shape
        limit = 1.0 if self.ball is None else self.ball.radius
        bounds = [(None, None)] * n + [(None, limit)]
        if self.ball is not None:
            low, high = self.ball.centre - self.ball.radius, self.ball.centre + self.ball.radius
            bounds[:n] = list(zip(low, high, strict=True))
        system = np.concatenate([-self.normals, np.ones((count, 1))], 1)
        found = linprog(np.append(np.zeros(n), -1.0), system, self.offsets, bounds=bounds, method="highs")
        if found.x is None:
            return None, np.zeros(count)
        x = found.x[:-1]
        return (x if self.contains(x) else None), -found.ineqlin.marginals


def proved_empty(rows: Sequence[IntegerRow], multipliers: Array, ball: Ball | None) -> bool:
    """Whether it is proved, without rounding, that no x in the (open) ball makes all rows positive.

    Args:
        rows: the half-spaces σᵢ(gᵢ·x + cᵢ) as exact integers.
        multipliers: a guess of λ for rows scaled to |gᵢ| = 1, in floating point.
    """
    support = [i for i in np.argsort(-multipliers) if multipliers[i] > 1e-10 * multipliers.max(initial=0.0)]
    if not support:
        return False
    shift = max(rows[i][1] for i in support)
    aligned = [[value << (shift - rows[i][1]) for value in rows[i][0]] for i in support]
    digits = max(max(map(abs, row)).bit_length() for row in aligned)
    weights = [_integer_weight(multipliers[i], row, digits) for i, row in zip(support, aligned, strict=True)]
    if ball is None:
        return _cancels(aligned, weights)
    total = [sum(w * row[j] for w, row in zip(weights, aligned, strict=True)) for j in range(len(aligned[0]))]
    centre, radius = [Fraction(float(c)) for c in ball.centre], Fraction(ball.radius)
    at_centre = sum((c * v for c, v in zip(centre, total, strict=False)), Fraction(total[-1]))
    # The largest value over the closed ball is that at the centre plus the radius times the dual norm.
    if ball.norm == "inf":
        return sum(weights) > 0 and at_centre + radius * sum(map(abs, total[:-1])) <= 0
    return sum(weights) > 0 and at_centre <= 0 and at_centre**2 >= radius**2 * sum(v * v for v in total[:-1])


def _integer_weight(multiplier: float, row: list[int], digits: int) -> int:
    """Multiplier / |g| · 2^(digits + 124), to some fifty binary digits: a guess need not be better."""
    dropped = max(0, max(map(abs, row[:-1]), default=0).bit_length() - 60)
    length = float(np.linalg.norm([float(value >> dropped) for value in row[:-1]])) or 1.0
    return int(multiplier / length * 2.0**120) << (digits + 4 - dropped)


def _cancels(rows: list[list[int]], weights: list[int]) -> bool:
    """Whether some λ ≥ 0, near the weights, has Σ λ·g = 0 exactly and Σ λ·c ≤ 0.

    Fraction-free Gauss–Jordan elimination (E. Bareiss, 1968) over the rows as columns, those of large
    weight first: they become pivots, whose λ follow from the weights of the others.
    """
    count, n = len(rows), len(rows[0]) - 1
    matrix = [[row[j] for row in rows] for j in range(n)]
    pivots: list[int] = []
    divisor = 1
    for column in range(count):
        top = len(pivots)
        place = next((i for i in range(top, n) if matrix[i][column] != 0), None)
        if place is None:
            continue
        matrix[top], matrix[place] = matrix[place], matrix[top]
        pivot_row = matrix[top]
        pivot = pivot_row[column]
        for i in range(n):
            if i != top:
                factor = matrix[i][column]
                matrix[i] = [
                    (a * pivot - factor * b) // divisor for a, b in zip(matrix[i], pivot_row, strict=True)
                ]
        divisor = pivot
        pivots.append(column)
    free = [column for column in range(count) if column not in pivots]
    if not free:
        return False
    exact = [0] * count
    sign = 1 if divisor > 0 else -1
    for column in free:
        exact[column] = weights[column] * abs(divisor)
    for i, column in enumerate(pivots):
        exact[column] = -sign * sum(matrix[i][f] * weights[f] for f in free)
    return (
        min(exact) >= 0
        and max(exact) > 0
        and sum(w * row[-1] for w, row in zip(exact, rows, strict=True)) <= 0
    )
