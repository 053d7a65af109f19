"""Bound propagation: what every node's value and slope can be while the input stays in a ball."""

from .interval import BallNorm, Box, InputBall, Region
from .slopes import (
    DEFAULT_BUDGET,
    LocalSlopes,
    layer_constants,
    local_slopes,
    propagate,
    slope_intervals,
)

__all__ = [
    "DEFAULT_BUDGET",
    "BallNorm",
    "Box",
    "InputBall",
    "LocalSlopes",
    "Region",
    "layer_constants",
    "local_slopes",
    "propagate",
    "slope_intervals",
]
