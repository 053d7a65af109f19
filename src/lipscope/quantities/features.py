"""A few numbers a vector that bound all distances: coordinates in a small subspace, and what is left.

For orthonormal Q (D, k) and a centre μ, each vector x is kept as c = Qᵀ(x − μ) and s = ‖(x − μ) − Qc‖.
Then for two vectors, with the triangle inequality on the part outside the subspace,

    ‖Δc‖² + (s₁ − s₂)²  ≤  ‖x₁ − x₂‖²  ≤  ‖Δc‖² + (s₁ + s₂)².

Both ends are squared distances of the points (c, ±s), so they come from small matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rounding import gamma

DIRECTIONS = 64
"""Directions of a subspace; vectors of up to twice as many numbers are kept whole."""
_EXPONENT = 1000


@dataclass(frozen=True)
class Basis:
    """A subspace of directions about a centre.

    Attributes:
        centre: μ, shape (D,), float64.
        directions: Q, shape (D, k), float64; None if Q is the identity.
        exponent: features are those of 2^exponent·x, so that squares neither overflow nor vanish.
        error: features (ĉ, ŝ) as computed are within error·‖x − μ‖ of the features (c, s) of exactly
            orthonormal directions, those nearest to Q.
    """

    centre: Tensor
    directions: Tensor | None
    exponent: int
    error: float

    @property
    def width(self) -> int:
        """How many features a vector has: k + 1."""
        return (len(self.centre) if self.directions is None else self.directions.shape[1]) + 1

    @property
    def whole(self) -> bool:
        """Whether features are the vectors themselves, so that both bounds are the distance."""
        return self.directions is None

    def centred(self, x: Tensor) -> Tensor:
        """2^exponent·(x − μ) in float64, shape (B, D), for x of shape (B, ...)."""
        return (x.flatten(1).to(torch.float64) - self.centre.to(x.device)) * math.ldexp(1.0, self.exponent)

    def features(self, x: Tensor) -> Tensor:
        """(c, s) of each vector, shape (B, k + 1), for x of shape (B, ...)."""
        z = self.centred(x)
        if self.directions is None:
            return torch.cat([z, z.new_zeros(len(z), 1)], 1)
        directions = self.directions.to(z.device)
        c = z @ directions
        rest = torch.linalg.vector_norm(z - c @ directions.T, dim=1, keepdim=True)
        return torch.cat([c, rest], 1)

    @classmethod
    def fit(cls, x: Tensor) -> Basis:
        """The principal directions of some vectors, x of shape (n, ...).

        Any orthonormal directions give valid bounds; these give sharp ones on data like x.
        """
        x = x.flatten(1).to("cpu", torch.float64)
        count, size = x.shape
        centre = x.mean(0)
        largest = float((x - centre).abs().max())
        exponent = -math.frexp(largest)[1] if math.isfinite(largest) else 0
        exponent = max(-_EXPONENT, min(_EXPONENT, exponent))
        if size <= 2 * DIRECTIONS:
            return cls(centre, None, exponent, gamma(8))
        z = (x - centre) * math.ldexp(1.0, exponent)
        width = min(DIRECTIONS, count - 1) if math.isfinite(largest) else 0
        _, vectors = torch.linalg.eigh(z @ z.T) if width else (None, z.new_zeros(count, 0))
        directions, _ = torch.linalg.qr(z.T @ vectors[:, count - width :])
        return cls(centre, directions, exponent, _feature_error(directions))


def _feature_error(directions: Tensor) -> float:
    """`Basis.error` for directions (D, k) that are orthonormal up to rounding.

    With η ≥ ‖QᵀQ − I‖, the polar factor of Q, which is orthonormal, is within η of Q. The error of Qᵀz is at most
    γ_D |Q|ᵀ|z|, of norm ≤ √k γ_D ‖z‖, and that of Qc at most √k γ_k ‖c‖; centring adds u‖z‖, the sum of squares
    γ_D s. So ĉ is within e = η + √k γ_{D+k+8} and ŝ within 3.1 e of theirs, relative to ‖z‖; 5 e leaves room.
    """
    size, width = directions.shape
    defect = directions.T @ directions - torch.eye(width, dtype=torch.float64)
    eta = float(defect.norm()) * (1 + gamma(width * width)) + 1.01 * width * gamma(size)
    return 5 * (eta + math.sqrt(max(width, 1)) * gamma(size + width + 8))
