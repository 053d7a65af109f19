"""Matrices with a proved bound of their error: a computed midpoint and a radius in the Frobenius norm.

A batch of block-diagonal matrices has shape (F, g, r, c): F matrices of g diagonal blocks. The
exact matrix differs from the midpoint by at most `radius` (F,) in the Frobenius norm, so also in
the spectral norm. Every operation adds its own rounding (`rounding.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rounding import COMPLEX_FACTOR, UNIT, gamma

_TINY = 1e-200
"""Added to every radius: more than all underflow in one operation, less than anything that matters."""


def frobenius(x: Tensor) -> Tensor:
    """An upper bound of the Frobenius norm of each matrix in a batch (F, …); shape (F,)."""
    entries = x.flatten(1).abs()
    # Scaled by the largest entry, so that no square underflows.
    largest = entries.amax(1, keepdim=True).clamp_min(_TINY)
    norm = (entries / largest).square().sum(1).sqrt() * largest[:, 0]
    return norm * (1 + gamma(math.prod(x.shape[1:]) + 16)) + _TINY


def regroup(x: Tensor, groups: int) -> Tensor:
    """The same block-diagonal matrices (F, g, r, c) written with fewer, larger diagonal blocks."""
    if x.shape[1] == groups:
        return x
    count, g, r, c = x.shape
    inner = g // groups
    split = x.reshape(count, groups, inner, r, c).movedim(2, -1)
    return torch.diag_embed(split, dim1=2, dim2=4).reshape(count, groups, inner * r, inner * c)


def aligned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the diagonal blocks of the coarser one."""
    groups = min(a.shape[1], b.shape[1])
    return regroup(a, groups), regroup(b, groups)


@dataclass(frozen=True)
class Enclosure:
    """Matrices (F, g, r, c) known up to `radius` (F,)."""

    mid: Tensor
    radius: Tensor

    @classmethod
    def exact(cls, mid: Tensor) -> Enclosure:
        """Matrices without error."""
        return cls(mid, mid.new_zeros(len(mid), dtype=torch.float64))

    @property
    def adjoint(self) -> Enclosure:
        """Conjugate transposes."""
        return Enclosure(self.mid.mH, self.radius)

    def __matmul__(self, other: Enclosure) -> Enclosure:
        a, b = aligned(self.mid, other.mid)
        norm_a, norm_b = frobenius(a), frobenius(b)
        rounding = COMPLEX_FACTOR * gamma(a.shape[-1] + 4)
        radius = norm_a * other.radius + norm_b * self.radius + self.radius * other.radius
        return Enclosure(a @ b, _outward(radius + rounding * norm_a * norm_b))

    def __add__(self, other: Enclosure) -> Enclosure:
        a, b = aligned(self.mid, other.mid)
        total = a + b
        return Enclosure(total, _outward(self.radius + other.radius + 2 * UNIT * frobenius(total)))

    def scaled(self, factor: float) -> Enclosure:
        """`factor` times the matrices."""
        radius = abs(factor) * self.radius + 2 * UNIT * abs(factor) * frobenius(self.mid)
        return Enclosure(factor * self.mid, _outward(radius))

    def scaled_rows(self, factors: Tensor) -> Enclosure:
        """Rows multiplied by real `factors` (r·g,), in the order of the whole matrix.

        Each factor may be off by two roundings of its own.
        """
        count, g, r, _ = self.mid.shape
        rows = factors.reshape(1, g, r, 1)
        scaled = self.mid * rows
        radius = self.radius * float(factors.abs().max()) + 4 * UNIT * frobenius(scaled)
        return Enclosure(scaled, _outward(radius.expand(count)))

    def scaled_columns(self, factors: Tensor) -> Enclosure:
        """Columns multiplied by real `factors` (c·g,), in the order of the whole matrix."""
        return self.adjoint.scaled_rows(factors).adjoint


def _outward(radius: Tensor) -> Tensor:
    # A radius is a sum of few non-negative products, each rounded to within a few units.
    return radius * (1 + gamma(24)) + _TINY
