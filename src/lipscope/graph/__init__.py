"""The network as data, and how it is read from torch."""

from .graph import INPUT, Graph, GraphBuilder, Node, Slopes
from .live import LiveGraph
from .simplify import fuse_scalings
from .torch_import import from_torch
from .traced import TracedModule

__all__ = [
    "INPUT",
    "Graph",
    "GraphBuilder",
    "LiveGraph",
    "Node",
    "Slopes",
    "TracedModule",
    "from_torch",
    "fuse_scalings",
]
