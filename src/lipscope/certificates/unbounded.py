"""Why a bound is infinite: the layers that have no constant, and what there is instead."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..graph import Graph
from ..results import NoBound, UnboundedLayer

OVER_A_BALL = "over a ball of inputs a bound can be proved: lipscope certify MODEL --ball CENTER RADIUS"
SMALLER_BALL = "a smaller RADIUS may do: lipscope certify MODEL --ball CENTER RADIUS"


def no_bound(graph: Graph, blamed: Iterable[int], remedy: str = OVER_A_BALL) -> NoBound:
    """Why a bound of the network is infinite: the nodes whose layers have no constant, and the remedy."""
    found = []
    for index in blamed:
        node = graph.nodes[index]
        assert node.layer is not None
        kind = node.layer.kind
        reason = node.layer.why_unbounded or f"{kind} without a constant that holds for all its inputs"
        found.append(UnboundedLayer(place=node.place, layer=kind, reason=reason))
    return NoBound(layers=found, remedy=remedy)


def without_constant(constants: Sequence[float], cumulative: Sequence[float]) -> list[int]:
    """The nodes whose layer's constant is infinite, but for those that read a constant signal.

    Args:
        constants: certified constant of every node's layer alone.
        cumulative: certified constant from the input to every node.
    """
    pairs = zip(constants, cumulative, strict=True)
    return [index for index, (constant, bound) in enumerate(pairs) if constant == bound == math.inf]
