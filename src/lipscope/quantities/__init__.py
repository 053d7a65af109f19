"""The quantities: one function each, from a graph and data to a typed result."""

from .analytical import analytical
from .ascent import ascent
from .effective import MeanSlopes, effective, mean_slopes, scalar_slopes
from .empirical import empirical
from .exact import exact
from .local import local
from .witness import Pair, evaluate_pair

__all__ = [
    "MeanSlopes",
    "Pair",
    "analytical",
    "ascent",
    "effective",
    "empirical",
    "evaluate_pair",
    "exact",
    "local",
    "mean_slopes",
    "scalar_slopes",
]
