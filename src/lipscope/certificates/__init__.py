"""Quadratic certificates: certified upper bounds that are tighter than products of norms."""

from .certificate import Certificate
from .certify import BUDGETS, Effort, certify, certify_slopes, improve
from .check import verify
from .drift import DriftBounds, LayerProofs, moved_norm
from .norms import NormBounds, norm_bounds, product_rule
from .unbounded import SMALLER_BALL, no_bound, without_constant

__all__ = [
    "BUDGETS",
    "SMALLER_BALL",
    "Certificate",
    "DriftBounds",
    "Effort",
    "LayerProofs",
    "NormBounds",
    "certify",
    "certify_slopes",
    "improve",
    "moved_norm",
    "no_bound",
    "norm_bounds",
    "product_rule",
    "verify",
    "without_constant",
]
