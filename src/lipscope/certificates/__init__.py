"""Quadratic certificates: certified upper bounds that are tighter than products of norms."""

from .certificate import Certificate
from .certify import BUDGETS, Effort, certify, certify_slopes, improve
from .check import verify
from .norms import NormBounds, norm_bounds

__all__ = [
    "BUDGETS",
    "Certificate",
    "Effort",
    "NormBounds",
    "certify",
    "certify_slopes",
    "improve",
    "norm_bounds",
    "verify",
]
