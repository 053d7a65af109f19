"""The product bound in the norms ℓ_1, ℓ_2 and ℓ_∞: operator norms of the layers, composed through the graph."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from ..certificates import no_bound, without_constant
from ..graph import Graph
from ..layers import LinearLayer, NonlinearLayer
from ..layers.base import Shape
from ..propagation import layer_constants
from ..results import Cost, Norm, OperatorProduct
from ..rounding import up_product


def operator_norm_upper(layer: LinearLayer, norm: Norm, shapes: Sequence[Shape]) -> float:
    """Certified operator norm of a linear layer from ℓ_q to ℓ_q, on the direct sum of its inputs.

    For q = ∞ and 1 it is the largest sum of a row and of a column of absolute values: exact but for
    a margin for rounding. For q = 2 it is `layer.norm`.

    Args:
        layer: in float64.
        norm: "1", "2" or "inf".
        shapes: per-sample shapes of its inputs.

    Raises:
        CertificateError: an entry is NaN or infinite, or the norm cannot be proved.
    """
    return layer.norm(shapes) if norm == "2" else layer.scaled_norm(norm, shapes)


def product_bound(graph: Graph, norm: Norm, constants: Sequence[float] | None = None) -> float:
    """Certified Lipschitz constant of the network from ℓ_q to ℓ_q, all slopes and selectors free.

    Layers in a chain multiply and sums add, in every norm. A concatenation takes the largest of
    its parts for q = ∞, their sum for q = 1 and the root of the sum of squares for q = 2. Max pooling
    has 1 for q = ∞, the largest number c of windows that read one cell for q = 1, and √c for q = 2.

    Infinite if a layer has no constant, unless what reads it is constant.

    Args:
        graph: the network in float64.
        norm: "1", "2" or "inf".
        constants: for norm "2", those of `propagation.layer_constants`, so as not to compute them again.

    Raises:
        CertificateError: a layer's norm cannot be proved.

    Source: D. Zou, R. Balan, M. Singh (2020), section III, for q = 2.
    """
    return _bounds(graph, norm, constants)[-1]


def _bounds(graph: Graph, norm: Norm, constants: Sequence[float] | None = None) -> list[float]:
    """The product bound of every node."""
    if norm == "2" and constants is None:
        constants = layer_constants(graph)
    bounds = [1.0]
    for index, node in enumerate(graph.nodes):
        if node.layer is None:
            continue
        before = [bounds[i] for i in node.inputs]
        if norm == "2" and constants is not None and len(before) == 1:
            bounds.append(up_product(before[0], constants[index]))
        else:
            bounds.append(node.layer.lipschitz_in(norm, before, graph.shapes_into(index)))
    return bounds


def operator_product(graph: Graph, norm: Norm) -> OperatorProduct:
    """The product bound as a quantity; see `product_bound`."""
    started = time.perf_counter()
    exact = graph.to(torch.float64)
    bounds = _bounds(exact, norm)
    return OperatorProduct(
        name="product",
        norm=norm,
        value=bounds[-1],
        method="product of certified operator norms of the layers (sums add)",
        source="Zou, Balan, Singh 2020, section III, in other norms",
        cost=Cost(seconds=time.perf_counter() - started),
        no_bound=no_bound(exact, without_constant(_alone(exact, norm), bounds))
        if math.isinf(bounds[-1])
        else None,
    )


def _alone(graph: Graph, norm: Norm) -> list[float]:
    """The constant of every node's layer alone in the norm; that of a linear layer is finite and not needed."""
    return [
        node.layer.lipschitz_in(norm, [1.0], graph.shapes_into(index))
        if isinstance(node.layer, NonlinearLayer)
        else 1.0
        for index, node in enumerate(graph.nodes)
    ]
