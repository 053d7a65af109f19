"""The analytical constant L_c: certified norms of the layers, composed through the graph."""

from __future__ import annotations

import math
import time

from ..graph import Graph
from ..progress import Progress, silent
from ..results import Analytical, Cost, LayerBound
from ..rounding import up_product
from .program import EnergyProgram
from .stacks import joint_bounds


def analytical(graph: Graph, progress: Progress = silent) -> Analytical:
    """Certified upper bound of the Lipschitz constant from the layers' certified norms.

    By the product rule the layers' constants multiply along a chain; where branches meet, bounds
    add (sums) or add in squares (concatenation). Where several linear layers read one signal, or a
    sum merges linear images, the linear program over energies uses their joint norms too, and the
    smaller bound is the value. All slopes and pooling selectors are free. Norm: Euclidean.

    Raises:
        CertificateError: a layer's norm cannot be proved.

    Source: D. Zou, R. Balan, M. Singh (2020), section III.
    """
    started = time.perf_counter()
    bounds, constants = [1.0], [1.0]
    for index, node in enumerate(graph.nodes):
        if node.layer is None:
            continue
        shapes = graph.shapes_into(index)
        constants.append(node.layer.alone(shapes))
        before = [bounds[i] for i in node.inputs]
        # With one input the constants multiply, and need not be computed twice.
        bounds.append(
            up_product(before[0], constants[-1]) if len(before) == 1 else node.layer.lipschitz(before, shapes)
        )
        progress("analytical", index, len(graph.nodes) - 1)
    program = _program(graph, constants, bounds)
    improved = program is not None and program < bounds[-1]
    return Analytical(
        name="analytical",
        value=min(bounds[-1], math.inf if program is None else program),
        method=_PROGRAM if improved else _PRODUCT,
        source="Zou, Balan, Singh 2020, section III",
        cost=Cost(seconds=time.perf_counter() - started),
        product=bounds[-1],
        program=program,
        layers=[
            LayerBound(
                place=node.place,
                layer=node.layer.kind,
                shape=list(node.shape),
                constant=constant,
                cumulative=bound,
            )
            for node, constant, bound in zip(graph.nodes, constants, bounds, strict=True)
            if node.layer is not None
        ],
    )


_PRODUCT = "product of certified layer norms (sums add, concatenations add in squares)"
_PROGRAM = "linear program over energies with joint norms of filter banks, proved from its dual"


def _program(graph: Graph, constants: list[float], bounds: list[float]) -> float | None:
    """The linear program's bound; None if no joint norm can make it smaller than the product rule's."""
    if bounds[-1] == 0 or not all(map(math.isfinite, bounds)):
        return None
    program = EnergyProgram(graph, constants, bounds, joint_bounds(graph))
    return program.bound() if program.improvable else None
