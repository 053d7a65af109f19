"""Certified constants of a network whose weights move: proved now and then, and valid at every step between.

For a linear layer whose constant c₀ was proved when its operator was T₀, ‖T‖ ≤ ‖S T₀‖ + ‖T − S T₀‖ ≤ max|s|·c₀ + d
for any diagonal S = diag(s), with d a certified bound that takes a few matrix products (`quick_norm_upper`).
Layers without weights of that kind (activations, pooling, scalings) have constants that cost next to nothing, and
those are proved each time. The product rule over the graph composes the constants, as for L_c.

Rounding is included. Computed differences are off by relative errors of their parts; and where the entries w of T
are uncertain by a relative e (products of roundings, as where batch norm joins a convolution), the exact operator
is off by one whose entries are within e·|w|. The norm of any operator with entries within |w| is at most
Σ_t ‖w_t‖_F over the taps (`magnitude_norm_upper`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from torch import Tensor

from ..certified import magnitude_norm_upper
from ..graph import Graph
from ..graph.graph import digest_layer
from ..layers import Layer, LinearLayer
from ..layers.base import Kernel, Shape
from ..rounding import UNIT, up_product, up_sum
from .norms import product_rule

_REMEMBERED = 4096
_WORTHWHILE = 0.8


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
        if proof is None or proof.shapes != shapes or type(layer) is not type(proof.layer):
            return None
        now, before = (
            part.kernel() if isinstance(part, LinearLayer) else None for part in (layer, proof.layer)
        )
        if now is None or before is None or not now.alike(before):
            return None
        return moved_norm(now, before, proof.constant)


def moved_norm(now: Kernel, before: Kernel, constant: float) -> float:
    """Certified norm of a layer with weights `now`, from the certified `constant` it had with weights `before`.

    The smaller of ‖T₀‖ + ‖T − T₀‖ and max|s|·‖T₀‖ + ‖T − S T₀‖, where S = diag(s) scales the output channels such
    that least is left of each; the latter if it leaves clearly less, as where batch norm has rescaled channels.

    Raises:
        ValueError: the kernels are not of one form.
        CertificateError: a weight is NaN or infinite.
    """
    if not now.alike(before):
        raise ValueError("kernels of two forms")
    weight, old = now.weight, before.weight
    difference = weight - old
    if not bool(difference.any()) and now.entry_error <= before.entry_error:
        return constant
    unsure = _entrywise(now, now.entry_error)

    def bound(scale: float, left: Tensor, rounding: float) -> float:
        """`left` stands for T − S T₀, where rounding made relative errors of S T₀ beside that of the subtraction."""
        rest = replace(now, weight=left, entry_error=2 * UNIT).quick_norm()
        old_unsure = up_product(scale, _entrywise(before, before.entry_error + rounding))
        return up_sum(up_product(scale, constant), rest, unsure, old_unsure)

    plain = bound(1.0, difference, 0.0)
    rows, old_rows = weight.flatten(1), old.flatten(1)
    scales = ((rows * old_rows).sum(1) / old_rows.square().sum(1)).nan_to_num(0.0, 0.0, 0.0)
    left = weight - scales.reshape(-1, *[1] * (weight.ndim - 1)) * old
    if float(left.norm()) > _WORTHWHILE * float(difference.norm()):
        return plain
    return min(plain, bound(float(scales.abs().max()), left, 2 * UNIT))


def _entrywise(kernel: Kernel, error: float) -> float:
    """Certified norm of whatever has entries within error·|w|."""
    return up_product(error, magnitude_norm_upper(kernel.weight, kernel.groups)) if error > 0 else 0.0


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
