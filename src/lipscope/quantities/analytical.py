"""The analytical constant L_c: certified norms of the layers, composed through the graph."""

from __future__ import annotations

import time

from ..certificates import norm_bounds
from ..graph import Graph
from ..progress import Progress, silent
from ..results import Analytical, Cost, LayerBound

_PRODUCT = "product of certified layer norms (sums add, concatenations add in squares)"
_PROGRAM = "linear program over energies with joint norms of filter banks, proved from its dual"


def analytical(graph: Graph, progress: Progress = silent) -> Analytical:
    """Certified upper bound of the Lipschitz constant from the layers' certified norms.

    The smaller of the product rule and the linear program over energies (`certificates.norms`). All
    slopes and pooling selectors are free. Norm: Euclidean. Infinite, with the reason, if a layer has no
    constant.

    Raises:
        CertificateError: a layer's norm cannot be proved.

    Source: D. Zou, R. Balan, M. Singh (2020), section III.
    """
    started = time.perf_counter()
    bounds = norm_bounds(graph, progress)
    return Analytical(
        name="analytical",
        value=bounds.value,
        method=_PRODUCT if bounds.value == bounds.product else _PROGRAM,
        source="Zou, Balan, Singh 2020, section III",
        cost=Cost(seconds=time.perf_counter() - started),
        no_bound=bounds.no_bound(graph),
        product=bounds.product,
        program=bounds.program,
        layers=[
            LayerBound(
                place=node.place,
                layer=node.layer.kind,
                shape=list(node.shape),
                constant=constant,
                cumulative=bound,
            )
            for node, constant, bound in zip(graph.nodes, bounds.constants, bounds.cumulative, strict=True)
            if node.layer is not None
        ],
    )
