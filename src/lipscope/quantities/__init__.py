"""The quantities: one function each, from a graph and data to a typed result."""

from .analytical import analytical
from .ascent import ascent
from .ball import ball
from .effective import MeanSlopes, effective, mean_slopes, scalar_slopes
from .empirical import empirical
from .exact import exact
from .local import local
from .mid_range import mid_range
from .operator_product import operator_norm_upper, operator_product, product_bound
from .sensitive import sensitive
from .sketch import mean_jacobian_norm, second_moment
from .slack import slack
from .witness import Pair, evaluate_pair

__all__ = [
    "MeanSlopes",
    "Pair",
    "analytical",
    "ascent",
    "ball",
    "effective",
    "empirical",
    "evaluate_pair",
    "exact",
    "local",
    "mean_jacobian_norm",
    "mean_slopes",
    "mid_range",
    "operator_norm_upper",
    "operator_product",
    "product_bound",
    "scalar_slopes",
    "second_moment",
    "sensitive",
    "slack",
]
