"""A few numbers a vector that bound all distances: coordinates in a small subspace, and what is left.

For orthonormal Q (D, k) and a centre μ, each vector x is kept as c = Qᵀ(x − μ) and s = ‖(x − μ) − Qc‖.
Then for two vectors, with the triangle inequality on the part outside the subspace,

    ‖Δc‖² + (s₁ − s₂)²  ≤  ‖x₁ − x₂‖²  ≤  ‖Δc‖² + (s₁ + s₂)².

Both ends are squared distances of the points (c, ±s), so they come from small matrix products. The same holds
for the first few of the coordinates, with the norm of all the others in place of s.

Of images, Q are directions among images that are constant on squares of pixels: photographs are smooth, so
hardly less is caught, and coordinates cost few operations a pixel instead of one for each direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..rounding import gamma

DIRECTIONS = 256
"""Directions of a subspace, at most."""
WHOLE = 128
"""Vectors of up to so many numbers are kept whole."""
PILOT = 2
"""Vectors that directions are fitted to, for each direction."""
_FEWEST = 32
_SHARE = 1 / 40  # of the cost of plain products that features may cost
_AVERAGES = 4096  # averages of squares that an image has, at most
_PILOT_BYTES = 2**29  # of vectors that directions are fitted to
_FEW = 4
_EXPONENT = 1000


def direction_count(count: int, shape: Sequence[int], total: int) -> int:
    """How many directions pay for `count` vectors of some shape, where a sample has `total` numbers in all.

    Features of N vectors of D numbers take 4NkD operations, plain products of all pairs N² for each number.
    """
    size = math.prod(shape)
    averages = _square_count(shape, _square_side(shape))
    paid = _SHARE * count * total / (4 * max(1, averages))
    most = min(DIRECTIONS, count // 8, _PILOT_BYTES // (8 * PILOT * max(1, size)))
    return max(1, min(most, max(_FEWEST, int(paid))))


def bytes_of_features(shape: Sequence[int]) -> int:
    """The room that features of a vector take at most, with the averages of an image."""
    side = _square_side(shape)
    return 8 * (DIRECTIONS + 1) + (4 * (_square_count(shape, side) + 1) if side > 1 else 0)


def _square_side(shape: Sequence[int]) -> int:
    """The side of the squares of pixels that are averaged; 1 for what is no image."""
    side = 1
    while len(shape) == 3 and _square_count(shape, side) > _AVERAGES:
        side *= 2
    return side


def _square_count(shape: Sequence[int], side: int) -> int:
    return math.prod(shape) if side == 1 else shape[0] * (shape[1] // side) * (shape[2] // side)


@dataclass(frozen=True)
class Basis:
    """A subspace of directions about a centre.

    Attributes:
        centre: μ, shape (D,), float64.
        directions: shape (W, k), float64, orthonormal, among the W averages of an image of which `side` tells, or
            among the numbers of a vector (W = D); None if Q is the identity.
        exponent: features are those of 2^exponent·x, so that squares neither overflow nor vanish.
        error: features (ĉ, ŝ) as computed are within error·‖x − μ‖ of the features (c, s) of exactly
            orthonormal directions, those nearest to Q; and so are averages of exact ones.
        shape: of an image, (channels, height, width), if it is averaged over squares of pixels.
        side: of these squares.
    """

    centre: Tensor
    directions: Tensor | None
    exponent: int
    error: float
    shape: tuple[int, ...] = ()
    side: int = 1

    @property
    def width(self) -> int:
        """How many features a vector has: k + 1."""
        return (len(self.centre) if self.directions is None else self.directions.shape[1]) + 1

    @property
    def averaged(self) -> int:
        """How many averages an image has; 0 for vectors that are not averaged."""
        return _square_count(self.shape, self.side) if self.side > 1 else 0

    @property
    def whole(self) -> bool:
        """Whether features are the vectors themselves, so that both bounds are the distance."""
        return self.directions is None

    def centred(self, x: Tensor) -> Tensor:
        """2^exponent·(x − μ) in float64, shape (B, D), for x of shape (B, ...)."""
        z = x.flatten(1).to(torch.float64, copy=True)
        z -= self.centre.to(x.device)
        z *= math.ldexp(1.0, self.exponent)
        return z

    def features(self, x: Tensor) -> Tensor:
        """(c, s) of each vector, shape (B, k + 1), for x of shape (B, ...)."""
        return self.features_of(self.averages(x))

    def features_of(self, averages: Tensor) -> Tensor:
        """(c, s) from `averages`."""
        if self.directions is None:
            return averages
        w, left = averages[:, :-1], averages[:, -1:]
        c = w @ self.directions.to(w.device)
        square = left.square() + w.square().sum(1, keepdim=True) - c.square().sum(1, keepdim=True)
        return torch.cat([c, square.clamp_min_(0).sqrt_()], 1)

    def averages(self, x: Tensor) -> Tensor:
        """Coordinates of 2^exponent·(x − μ) along unit vectors constant on squares, and the norm of what is left.

        These bound distances as features do, more sharply. Shape (B, W + 1); vectors that are not averaged are all
        coordinates, and nothing is left.
        """
        if self.side == 1:
            z = self.centred(x)
            return torch.cat([z, z.new_zeros(len(z), 1)], 1)
        # A few images at once stay in the processor's cache.
        return torch.cat([self._averages_of_images(few) for few in x.split(_FEW)])

    def _averages_of_images(self, x: Tensor) -> Tensor:
        z = self.centred(x)
        _, height, width = self.shape
        side, rows, columns = self.side, height // self.side, width // self.side
        # What is beyond the last whole square is left.
        image = z.unflatten(1, self.shape)[:, :, : rows * side, : columns * side]
        sums = image.unflatten(2, (rows, side)).sum(3).unflatten(3, (columns, side)).sum(4)
        averages = (sums / side).flatten(1)
        left = torch.linalg.vector_norm(z, dim=1, keepdim=True).square() - averages.square().sum(
            1, keepdim=True
        )
        return torch.cat([averages, left.clamp_min_(0).sqrt_()], 1)

    @classmethod
    def fit(cls, x: Tensor, directions: int = DIRECTIONS) -> Basis:
        """The principal directions of some vectors or images, x of shape (n, ...), at most so many.

        Any orthonormal directions give valid bounds; these give sharp ones on data like x.
        """
        shape, x = tuple(x.shape[1:]), x.flatten(1).to("cpu")
        count, size = x.shape
        centre = x.new_zeros(size, dtype=torch.float64)
        for few in x.split(_FEW):
            centre += few.to(torch.float64).sum(0)
        centre /= count
        largest = float(torch.stack([torch.linalg.vector_norm(row - centre, math.inf) for row in x]).max())
        exponent = -math.frexp(largest)[1] if math.isfinite(largest) else 0
        exponent = max(-_EXPONENT, min(_EXPONENT, exponent))
        if size <= WHOLE:
            return cls(centre, None, exponent, gamma(8))
        side = _square_side(shape)
        plain = cls(centre, None, exponent, 0.0, shape if side > 1 else (), side)
        z = plain.averages(x)[:, :-1]
        width = min(directions, count - 1, z.shape[1] // 2) if math.isfinite(largest) else 0
        _, vectors = torch.linalg.eigh(z @ z.T) if width else (None, z.new_zeros(count, 0))
        # The largest first, so that the first coordinates are the best few.
        found, _ = torch.linalg.qr(z.T @ vectors[:, count - width :].flip(1))
        return replace(plain, directions=found, error=_feature_error(found, size, side))


def _feature_error(directions: Tensor, size: int, side: int) -> float:
    """`Basis.error` for directions (W, k) that are orthonormal up to rounding, among averages of vectors (D).

    With η ≥ ‖QᵀQ − I‖, the polar factor of Q, which is orthonormal, is within η of Q. The error of Qᵀw is at most
    γ_W |Q|ᵀ|w|, of norm ≤ √k γ_W ‖w‖; averages w of side² numbers have an error of norm ≤ γ_{side² + 2} ‖z‖; centring
    adds u‖z‖. So ĉ is within e = η + √k γ_{W + k + 16} + γ_{D + side² + 16} of its own, relative to ‖z‖, with room.
    What is left is a root of differences of squared norms, each with an error ≤ (2e + γ_{D + 8}) ‖z‖² ≤ 3e‖z‖², at
    most three of them; it moves by no more than the root of the sum of errors, 3 √e.
    """
    averages, width = directions.shape
    defect = directions.T @ directions - torch.eye(width, dtype=torch.float64)
    eta = float(defect.norm()) * (1 + gamma(width * width)) + 1.01 * width * gamma(averages)
    e = eta + math.sqrt(width) * gamma(averages + width + 16) + gamma(size + side**2 + 16)
    return 1.01 * e + 3.01 * math.sqrt(e)
