"""Certified constants of a network whose weights move: proved now and then, and valid at every step between.

For a linear layer whose constant c₀ was proved when its operator was T₀, ‖T‖ ≤ ‖T₀‖ + ‖T − T₀‖ ≤ c₀ + d, with
d a certified bound of the change that takes a few passes over the weights (`LinearLayer.quick_norm`).
Layers without such a rule (activations, pooling, scalings) have constants that cost next to nothing, and those are
proved each time. The product rule over the graph composes the constants, as for L_c.

Where the entries w of T are uncertain by a relative e (products of roundings, as where batch norm joins a
convolution), the exact operators differ by at most the computed difference, e·|w| and e₀·|w₀|, each bounded
likewise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from ..graph import Graph
from ..graph.graph import digest_layer
from ..layers import Layer, LinearLayer
from ..layers.base import Shape
from ..rounding import up_product, up_sum
from .norms import product_rule

_REMEMBERED = 4096


@dataclass(frozen=True)
class Proof:
    """A certified constant, the layer and the input shapes it was proved for, and the seconds that took."""

    layer: Layer
    shapes: tuple[Shape, ...]
    constant: float
    seconds: float


@dataclass(frozen=True)
class DriftBounds:
    """Certified constants, one a node: of its layer, and from the input to its value.

    `drifts` holds, for the layers whose constant is that of an earlier operator and its change since, the
    factor between the two (1 if nothing has changed).
    """

    constants: list[float]
    cumulative: list[float]
    drifts: dict[int, float]

    @property
    def value(self) -> float:
        """The certified constant of the network, by the product rule."""
        return self.cumulative[-1]

    @property
    def drift(self) -> float:
        """The product of the layers' factors."""
        return math.prod(self.drifts.values())


class LayerProofs:
    """The constants proved so far of a network's layers, by node, and of all layers seen, by fingerprint."""

    def __init__(self) -> None:
        self._at: dict[int, Proof] = {}
        self._known: dict[str, tuple[float, float]] = {}

    def prove(self, graph: Graph, nodes: Sequence[int] | None = None) -> list[int]:
        """Prove the constants of layers (all, or those of the nodes) as they are now.

        What is known of an equal layer, wherever it stood, is taken over.

        Returns:
            The nodes whose constants had to be computed.

        Raises:
            CertificateError: a layer's norm cannot be proved.
        """
        computed = []
        for index in range(1, len(graph.nodes)) if nodes is None else nodes:
            layer, shapes = _layer(graph, index), tuple(graph.shapes_into(index))
            key = _fingerprint(layer, shapes)
            known = self._known.pop(key, None)
            if known is None:
                started = time.perf_counter()
                constant = layer.alone(shapes)
                known = constant, time.perf_counter() - started
                computed.append(index)
            self._known[key] = known  # at the end: the first is the one that was not seen for longest
            if len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._at[index] = Proof(layer, shapes, *known)
        return computed

    def keep(self, nodes: Set[int]) -> None:
        """Forget which layers stood at other nodes than these; what is known by fingerprint stays known."""
        self._at = {index: proof for index, proof in self._at.items() if index in nodes}

    def bounds(self, graph: Graph) -> tuple[DriftBounds, list[int]]:
        """Certified constants of the graph as it is now.

        Returns:
            The bounds, and the nodes whose constants had to be computed: those of layers that have no
            rule for a change, or that are of another form than before.

        Raises:
            CertificateError: a layer's norm cannot be proved, or a weight is NaN or infinite.
        """
        constants, drifts, computed = [1.0], {}, []
        for index in range(1, len(graph.nodes)):
            moved = self._moved(_layer(graph, index), tuple(graph.shapes_into(index)), self._at.get(index))
            if moved is None:
                computed += self.prove(graph, [index])
                moved = self._at[index].constant
            else:
                before = self._at[index].constant
                drifts[index] = 1.0 if moved == before else (moved / before if before > 0 else math.inf)
            constants.append(moved)
        return DriftBounds(constants, product_rule(graph, constants), drifts), computed

    def with_proofs(self, graph: Graph, bounds: DriftBounds, nodes: Sequence[int]) -> DriftBounds:
        """The bounds, once the constants of some layers have been proved."""
        constants = list(bounds.constants)
        for index in nodes:
            constants[index] = self._at[index].constant
        drifts = bounds.drifts | dict.fromkeys(nodes, 1.0)
        return DriftBounds(constants, product_rule(graph, constants), drifts)

    def seconds(self, node: int) -> float:
        """How long the last proof at the node took."""
        return self._at[node].seconds

    @staticmethod
    def _moved(layer: Layer, shapes: tuple[Shape, ...], proof: Proof | None) -> float | None:
        """The constant that follows from an earlier proof; None if none does."""
        if proof is None or not isinstance(layer, LinearLayer) or proof.shapes != shapes:
            return None
        return moved_norm(layer, proof.layer, proof.constant, shapes)


def moved_norm(layer: LinearLayer, before: Layer, constant: float, shapes: Sequence[Shape]) -> float | None:
    """Certified norm of a layer, from that of an earlier one of the same form.

    Args:
        layer: as it is now.
        before: as it was.
        constant: certified norm of `before`.
        shapes: per-sample shapes of the inputs, the same for both.

    Returns:
        The bound; None if the layer has no rule for differences, or the forms differ.
    """
    difference = layer.minus(before)
    if difference is None or not isinstance(before, LinearLayer):
        return None
    change = difference.quick_norm(shapes)
    if change == 0.0 and layer.entry_error <= before.entry_error:
        return constant
    uncertain = [
        up_product(part.entry_error, part.magnitudes(shapes).quick_norm(shapes))
        for part in (layer, before)
        if part.entry_error > 0
    ]
    return up_sum(constant, change, *uncertain)


def _layer(graph: Graph, index: int) -> Layer:
    layer = graph.nodes[index].layer
    assert layer is not None
    return layer


def _fingerprint(layer: Layer, shapes: tuple[Shape, ...]) -> str:
    """SHA-256 of all that decides the layer's constant: an offset does not."""
    digest = hashlib.sha256(repr((type(layer).__name__, shapes)).encode())
    if isinstance(layer, LinearLayer) and any(field.name == "offset" for field in dataclasses.fields(layer)):  # type: ignore[arg-type]
        layer = replace(layer, offset=None)  # type: ignore[type-var]
    digest_layer(digest, layer)
    return digest.hexdigest()
