"""The product of two matrices that both depend on the input: what attention is made of.

(A, B) ↦ AB is bilinear, so Δ(AB) = ΔA·B̄ + Ā·ΔB exactly, with the means Ā, B̄ of the two points: the slope
of a pair is that of its midpoint, and a slope is the pair (A, B) itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..results import Norm
from ..rounding import (
    TINY,
    gamma,
    middle_and_radius,
    up,
    up_product,
    up_root,
    up_tensor,
    widen,
)
from ..slopes import AveragedSlope, Level, Point, Slope, inner_mean
from .aggregation import gradient_norm
from .base import NonlinearLayer, Range, Reference, Shape, TracedCall
from .copies import expanded
from .merge import Join


@dataclass
class BilinearSlope(AveragedSlope):
    """(ΔA, ΔB) ↦ ΔA·B + A·ΔB; `values` (B, entries of A and of B) is the pair (A, B), joined."""

    values: Tensor
    join: Join

    def apply(self, v: Tensor) -> Tensor:
        a, b = self.join.parts(self.values)
        da, db = self.join.parts(v)
        return da @ b + a @ db

    def transpose(self, u: Tensor) -> Tensor:
        a, b = self.join.parts(self.values)
        return torch.cat([(u @ b.mT).flatten(2), (a.mT @ u).flatten(2)], 2)

    def coarsened(self, level: Level) -> BilinearSlope:
        # A product of matrices needs their sizes: means are written out to the full shape.
        parts = (inner_mean(part, level).expand_as(part).flatten(1) for part in self.join.parts(self.values))
        return BilinearSlope(torch.cat(list(parts), 1), self.join)


@dataclass(eq=False)
class MatrixProduct(NonlinearLayer):
    """AB of factors A (*n, m, k) and B (*n, k, l) in a joined vector, for |A_ij| ≤ bounds[0], |B_ij| ≤ bounds[1].

    With ‖A‖ ≤ √(mk)·max|A_ij|, ‖Δ(AB)‖_F ≤ ‖B‖‖ΔA‖_F + ‖A‖‖ΔB‖_F. Unless both bounds are finite there is
    no global Lipschitz constant (`constant` is infinite), but one over every ball of inputs.
    """

    kind = "matrix product"
    why_unbounded = "product of two matrices of which one is unbounded"
    join: Join
    bounds: tuple[float, float]
    stochastic: bool = False
    """Whether the rows of A are probability vectors: then ‖A‖ ≤ √m, and in ℓ_∞ it is 1."""

    def forward(self, *xs: Tensor) -> Tensor:
        a, b = self.join.parts(xs[0])
        return a @ b

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        return self.forward(x), BilinearSlope(x, self.join)

    def between(self, first: Point, second: Point) -> BilinearSlope:
        return BilinearSlope((first.x + second.x) / 2, self.join)

    def averaged(self, values: Tensor) -> BilinearSlope:
        return BilinearSlope(values, self.join)

    def constant(self, shape: Shape) -> float:
        """The longest row (‖B‖, ‖A‖) of bounds."""
        return gradient_norm("2", *self._factor_norms("2", *self.bounds))

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """As `constant`, with the entrywise ℓ_q norms of matrices.

        Entrywise, ‖ΔA·B‖_∞ ≤ max_j Σ_k|B_kj|·‖ΔA‖_∞ and ‖ΔA·B‖₁ ≤ max_k Σ_j|B_kj|·‖ΔA‖₁; likewise for A·ΔB.
        """
        constant = gradient_norm(norm, *self._factor_norms(norm, *self.bounds))
        return up_product(bounds[0], constant)

    def _factor_norms(self, norm: Norm, first: float, second: float) -> tuple[float, float]:
        """Bounds of what A does to ΔB and B to ΔA, from the largest entries."""
        (*_, m, k), (*_, _, columns) = self.join.shapes
        if self.stochastic:
            own = {"2": up_root(m), "1": float(m), "inf": 1.0}[norm]
            theirs = {"2": up_root(k * columns), "1": float(columns), "inf": float(k)}[norm]
            return own, up_product(second, theirs)
        ways = {"2": (up_root(m * k), up_root(k * columns)), "1": (m, columns), "inf": (k, k)}[norm]
        return up_product(first, float(ways[0])), up_product(second, float(ways[1]))

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """By middles and radii: AB lies within |A_m|R_B + R_A|B_m| + R_A R_B of A_m B_m."""
        a_low, b_low = self.join.parts(low)
        a_high, b_high = self.join.parts(high)
        (a, ra), (b, rb) = middle_and_radius(a_low, a_high), middle_and_radius(b_low, b_high)
        size = a.abs() @ b.abs()
        margin = 4 * gamma(a.shape[-1] + 8)
        reach = (a.abs() + ra) @ rb + ra @ b.abs()
        radius = up_tensor(reach * (1 + margin) + margin * size + TINY)
        return widen(a @ b, radius)

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        """The slopes of a pair are its mean point."""
        limits = torch.cat(
            [
                torch.full((math.prod(s),), bound, dtype=low.dtype)
                for s, bound in zip(self.join.shapes, self.bounds, strict=True)
            ]
        )
        return self.averaged(torch.maximum(low, -limits)), self.averaged(torch.minimum(high, limits))

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        """From sums of rows and columns of the largest moduli in the hull."""
        steepest = torch.maximum(*(slope.values.abs() for slope in hull))
        norms = []
        for number, part in enumerate(self.join.parts(steepest)):
            # A meets ΔB from the left and B meets ΔA from the right.
            rows, columns = (float(part.sum(axis).max()) if part.numel() else 0.0 for axis in (-1, -2))
            length = sum(part.shape[-2:])
            ways = {"1": (columns, rows), "inf": (rows, columns)}
            if norm == "2":
                spectral = math.sqrt(rows) * math.sqrt(columns)
                longest = float(torch.linalg.vector_norm(part, dim=(-2, -1)).max()) if part.numel() else 0.0
                norms.append(up(min(spectral, longest), part.shape[-1] * part.shape[-2] + 8))
            else:
                norms.append(up(ways[norm][number], length + 8))
        return gradient_norm(norm, *norms)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        # With probabilities every output is a mean of entries of B, but for rounding.
        length = 1 + 2.0**-20 if self.stochastic else float(self.join.shapes[0][-1])
        largest = up_product(*self.bounds, length)
        return -largest, largest


def matrix_product(
    call: TracedCall, first: Reference, second: Reference, stochastic: bool = False
) -> Reference:
    """The product of two signals whose last two axes are matrices, the others broadcast against each other."""
    lead = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    first = expanded(call, first, (*lead, *first.shape[-2:]))
    second = expanded(call, second, (*lead, *second.shape[-2:]))
    join = Join((first.shape, second.shape))
    layer = MatrixProduct(join, (first.largest, second.largest), stochastic)
    return call.apply(layer, call.apply(join, first, second))
