"""The bound by norms: certified constants of the layers, composed through the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..graph import Graph
from ..progress import Progress, silent
from ..results import NoBound
from ..rounding import up_product
from .program import EnergyProgram
from .stacks import joint_bounds
from .unbounded import no_bound, without_constant


@dataclass(frozen=True)
class NormBounds:
    """Certified Lipschitz constants, one a node: of its layer alone, and from the input to its value.

    `program` is the bound of the whole by the linear program over energies, None where that has
    nothing to add to the product rule.
    """

    constants: list[float]
    cumulative: list[float]
    program: float | None

    @property
    def product(self) -> float:
        """The bound of the whole by the product rule."""
        return self.cumulative[-1]

    @property
    def value(self) -> float:
        """The smaller of both bounds."""
        return min(self.product, math.inf if self.program is None else self.program)

    def no_bound(self, graph: Graph) -> NoBound | None:
        """Why `value` is infinite; None if it is finite."""
        if self.value < math.inf:
            return None
        return no_bound(graph, without_constant(self.constants, self.cumulative))


def norm_bounds(graph: Graph, progress: Progress = silent) -> NormBounds:
    """Certified upper bounds from the layers' norms, all slopes and selectors free; Euclidean.

    By the product rule the layers' constants multiply along a chain; where branches meet, bounds
    add (sums) or add in squares (concatenation). Where several linear layers read one signal, or a
    sum merges linear images, the linear program over energies uses their joint norms too. A layer
    without a constant makes the bound infinite, unless what it reads is proved constant.

    Raises:
        CertificateError: a layer's norm cannot be proved.

    Source: D. Zou, R. Balan, M. Singh (2020), section III.
    """
    constants = [1.0]
    for index, node in enumerate(graph.nodes):
        if node.layer is not None:
            constants.append(node.layer.alone(graph.shapes_into(index)))
            progress("analytical", index, len(graph.nodes) - 1)
    cumulative = product_rule(graph, constants)
    return NormBounds(constants, cumulative, _program(graph, constants, cumulative))


def product_rule(graph: Graph, constants: Sequence[float]) -> list[float]:
    """Certified constants from the input to every node, given those of the layers alone (or bounds of them).

    Monotone in the constants of layers with one input, roundings included; layers that merge several
    have constants of their own.
    """
    cumulative = [1.0]
    for index, node in enumerate(graph.nodes):
        if node.layer is None:
            continue
        before = [cumulative[i] for i in node.inputs]
        # With one input the constants multiply, and need not be computed twice.
        cumulative.append(
            up_product(before[0], constants[index])
            if len(before) == 1
            else node.layer.lipschitz(before, graph.shapes_into(index))
        )
    return cumulative


def _program(graph: Graph, constants: list[float], cumulative: list[float]) -> float | None:
    """The linear program's bound; None if no joint norm can make it smaller than the product rule's."""
    if cumulative[-1] == 0 or not all(map(math.isfinite, cumulative)):
        return None
    program = EnergyProgram(graph, constants, cumulative, joint_bounds(graph))
    return program.bound() if program.improvable else None
