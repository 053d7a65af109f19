"""The analytical constant L_c: certified norms of the layers, composed through the graph."""

from __future__ import annotations

import time

from ..graph import Graph
from ..progress import Progress, silent
from ..results import Analytical, Cost, LayerBound
from ..rounding import up_product


def analytical(graph: Graph, progress: Progress = silent) -> Analytical:
    """Certified upper bound of the Lipschitz constant from the layers' certified norms.

    On a chain this is the product of the layers' constants; where branches meet, bounds add (sums)
    or add in squares (concatenation). All slopes and pooling selectors are free. Norm: Euclidean.

    Raises:
        CertificateError: a layer's norm cannot be proved.

    Source: D. Zou, R. Balan, M. Singh (2020), section III, for networks with one output.
    """
    started = time.perf_counter()
    bounds = [1.0]
    layers: list[LayerBound] = []
    for index, node in enumerate(graph.nodes):
        if node.layer is None:
            continue
        shapes = graph.shapes_into(index)
        constant = node.layer.alone(shapes)
        before = [bounds[i] for i in node.inputs]
        # With one input the constants multiply, and need not be computed twice.
        bounds.append(
            up_product(before[0], constant) if len(before) == 1 else node.layer.lipschitz(before, shapes)
        )
        layers.append(
            LayerBound(
                place=node.place,
                layer=node.layer.kind,
                shape=list(node.shape),
                constant=constant,
                cumulative=bounds[-1],
            )
        )
        progress("analytical", index, len(graph.nodes) - 1)
    return Analytical(
        name="analytical",
        value=bounds[-1],
        method="product of certified layer norms (sums add, concatenations add in squares)",
        source="Zou, Balan, Singh 2020, section III",
        cost=Cost(seconds=time.perf_counter() - started),
        layers=layers,
    )
