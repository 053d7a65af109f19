"""The one rule for rounding in certified numbers.

Certified quantities are computed in IEEE float64 with round to nearest (unit roundoff
u = 2⁻⁵³), and then moved outward by a margin that covers every rounding error made:

* an inner product or matrix product of length n, in any order of summation and with or
  without fused multiply-add, has entrywise error ≤ gamma(n)·|A||B|; complex arithmetic is
  covered by `COMPLEX_FACTOR` (a complex product costs two real ones and √2 in modulus);
* a scalar computed with k elementary operations is within (1 + u)^k of the truth, so
  `up(x, k)` is above it.

Sources: N. Higham, Accuracy and Stability of Numerical Algorithms (2nd ed.), sections 3.1,
3.6 and 10.1; S. Rump, Verification of positive definiteness, BIT 46 (2006).
Underflow and overflow are excluded by scaling: matrices to unit size before they are squared
(`certified.py`), scalars by their exponents (`up_ldexp`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT = 2.0**-53
COMPLEX_FACTOR = 4.0
TINY = 2.0**-1000
"""Covers what underflow loses in an accumulation of up to 2³⁰ products of float64 numbers (2⁻¹⁰⁷⁵ each)."""
_INFINITY = torch.tensor(math.inf, dtype=torch.float64)


def gamma(n: int) -> float:
    """Upper bound of n·u / (1 − n·u), the error constant of n accumulated operations."""
    if n * UNIT >= 0.01:
        raise ValueError(f"gamma({n}): too many operations for a first-order bound")
    return 1.02 * n * UNIT


def up(x: float, operations: int = 1) -> float:
    """A float64 ≥ the exact value of which the non-negative `x` is a rounding after `operations` steps."""
    return x if x == 0 or math.isinf(x) else math.nextafter(x * (1.0 + gamma(operations + 2)), math.inf)


def up_ldexp(x: float, exponent: int) -> float:
    """An upper bound of x·2ᵉ for non-negative x: infinite on overflow, positive on underflow."""
    try:
        scaled = math.ldexp(x, exponent)
    except OverflowError:
        return math.inf
    return up(scaled, 0) if scaled > 0 or x == 0 else math.ulp(0.0)


def up_product(*factors: float) -> float:
    """An upper bound of the product of non-negative numbers; 0 if one of them is, even beside infinity."""
    if 0.0 in factors:
        return 0.0
    # Factors of one change nothing, so a single other factor needs no margin.
    factors = tuple(factor for factor in factors if factor != 1.0)
    if len(factors) <= 1:
        return factors[0] if factors else 1.0
    parts = [math.frexp(factor) for factor in factors]
    return up_ldexp(up(math.prod(m for m, _ in parts), len(parts)), sum(e for _, e in parts))


def up_sum(*terms: float) -> float:
    """An upper bound of the sum of non-negative numbers."""
    try:
        return up(math.fsum(terms), 1)
    except OverflowError:
        return math.inf


def up_tensor(x: Tensor, operations: int = 1) -> Tensor:
    """`up` for a tensor of non-negative numbers, infinite where an entry is NaN (0·∞ of an overflow)."""
    above = x * (1.0 + gamma(operations + 2)) + TINY
    return torch.where(above.isnan(), math.inf, above)


def widen(middle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 ends of an interval that holds [middle − radius, middle + radius]; the line where one is NaN."""
    low, high = (torch.nextafter(middle + side * radius, side * _INFINITY) for side in (-1, 1))
    return torch.where(low.isnan(), -math.inf, low), torch.where(high.isnan(), math.inf, high)


def middle_and_radius(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A middle and a radius that cover [low, high]; an unbounded interval has middle 0 and radius ∞."""
    middle = torch.where(low.isfinite() & high.isfinite(), low / 2 + high / 2, 0.0)
    return middle, up_tensor(torch.maximum(high - middle, middle - low), 1)


def up_hypot(*terms: float) -> float:
    """An upper bound of the root of the sum of squares of non-negative numbers."""
    return up(math.hypot(*terms), 4)


def up_root(count: int) -> float:
    """An upper bound of √count, exact for squares."""
    root = math.isqrt(count)
    return float(root) if root * root == count else up(math.sqrt(count))
