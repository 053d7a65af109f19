"""The certified constants of `lipscope discriminant`, one a layer."""

from __future__ import annotations

from collections.abc import Iterator

from ...certificates import norm_bounds
from ...graph import Graph
from ...results import Check, DiscriminantReport, LayerSeparation
from .run import Run


def discriminant_checks(run: Run, record: DiscriminantReport) -> Iterator[Check]:
    """The certified constant from the input to each layer, as it is found now."""
    proved = norm_bounds(run.graph, run.progress).cumulative
    for layer in record.discriminant.layers:
        known = _describes(layer, run.graph)
        yield Check(
            name=layer.place,
            kind="upper",
            claimed=layer.certified,
            found=proved[layer.node] if known else None,
            reason="" if known else f"node {layer.node} of the network is another layer",
        )


def _describes(layer: LayerSeparation, graph: Graph) -> bool:
    """Whether what the record says of a layer is so in the network; else its constant would pass for another's."""
    if not 0 <= layer.node < len(graph.nodes):
        return False
    node = graph.nodes[layer.node]
    kind = "input" if node.layer is None else node.layer.kind
    return (layer.place, layer.layer, tuple(layer.shape)) == (node.place, kind, node.shape)
