"""The quantities: one function each, from a graph and data to a typed result."""

from .analytical import analytical
from .ascent import ascent
from .ball import ball
from .concentration import concentration, noise_ball
from .discriminant import discriminant
from .effective import MeanSlopes, effective, mean_slopes, scalar_slopes
from .empirical import empirical
from .exact import exact
from .fisher import fisher_bound, fisher_embedding, input_fisher, parameter_fisher
from .input_moments import input_moments
from .local import local
from .mean_field import mean_field, mean_field_theory
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
    "concentration",
    "discriminant",
    "effective",
    "empirical",
    "evaluate_pair",
    "exact",
    "fisher_bound",
    "fisher_embedding",
    "input_fisher",
    "input_moments",
    "local",
    "mean_field",
    "mean_field_theory",
    "mean_jacobian_norm",
    "mean_slopes",
    "mid_range",
    "noise_ball",
    "operator_norm_upper",
    "operator_product",
    "parameter_fisher",
    "product_bound",
    "scalar_slopes",
    "second_moment",
    "sensitive",
    "slack",
]
