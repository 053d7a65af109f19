"""Layer types, one file a kind; importing this package registers their import rules."""

from . import activation, aggregation, average_pool, convolution, dense, max_pool, merge, reshape, scaling
from .base import Layer, LinearLayer, NonlinearLayer

__all__ = [
    "Layer",
    "LinearLayer",
    "NonlinearLayer",
    "activation",
    "aggregation",
    "average_pool",
    "convolution",
    "dense",
    "max_pool",
    "merge",
    "reshape",
    "scaling",
]
