"""Quadratic certificates: certified upper bounds that are tighter than products of norms."""

from .certificate import Certificate
from .certify import BUDGETS, Effort, certify, improve
from .check import verify

__all__ = ["BUDGETS", "Certificate", "Effort", "certify", "improve", "verify"]
