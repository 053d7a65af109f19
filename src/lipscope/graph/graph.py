"""The network as data: a directed acyclic graph of layers, in topological order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..layers import Layer, NonlinearLayer
from ..layers.base import Shape
from ..slopes import Point, Slope

INPUT = 0
"""The index of the node that stands for the network's input."""

Slopes = dict[int, Slope]
"""A slope for every nonlinear node, by node index."""


@dataclass(frozen=True)
class Node:
    """One layer at its place: which nodes feed it, its per-sample output shape, its name in the model."""

    layer: Layer | None
    """None for the input node alone."""
    inputs: tuple[int, ...]
    shape: Shape
    place: str


class Graph:
    """A network y = Φ(x): nodes[0] is the input, nodes[-1] the output, inputs come before users.

    Weights are kept in float64 as made by the importer (exact for float32 models); `to` gives a
    working copy in another precision or on another device.
    """

    def __init__(self, nodes: Sequence[Node], output: int | None = None) -> None:
        last = len(nodes) - 1 if output is None else output
        self.nodes = _reachable(nodes, last)

    @classmethod
    def chain(cls, input_shape: Shape, layers: Sequence[Layer]) -> Graph:
        """A feed-forward graph of one-input layers."""
        builder = GraphBuilder(input_shape)
        for layer in layers:
            builder.add(layer, (builder.last,))
        return builder.build()

    @property
    def input_shape(self) -> Shape:
        """Per-sample shape of the input."""
        return self.nodes[INPUT].shape

    @property
    def output_shape(self) -> Shape:
        """Per-sample shape of the output."""
        return self.nodes[-1].shape

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights (float64 if there are none)."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float64)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def parameters(self) -> list[Tensor]:
        """All tensors the layers hold."""
        return [p for node in self.nodes if node.layer is not None for p in node.layer.parameters()]

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Graph:
        """A copy with floating-point tensors in `dtype` on `device`."""
        copies = [replace(n, layer=n.layer and n.layer.to(dtype, device)) for n in self.nodes]
        return Graph(copies)

    def nonlinear(self) -> dict[int, NonlinearLayer]:
        """The nodes that act through slopes."""
        return {i: n.layer for i, n in enumerate(self.nodes) if isinstance(n.layer, NonlinearLayer)}

    def shapes_into(self, index: int) -> list[Shape]:
        """Per-sample shapes of a node's inputs."""
        return [self.nodes[i].shape for i in self.nodes[index].inputs]

    def evaluate(
        self,
        x: Tensor,
        visit: Callable[[int, Tensor], Tensor] | None = None,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Φ(x) for a batch (B, *in).

        Args:
            visit: called as visit(index, input) in place of a nonlinear layer's forward.
            watch: called as watch(index, value) with the value (B, *s) at every node, the input's first.
        """
        last_use = self.last_uses()
        values: dict[int, Tensor] = {INPUT: x}
        if watch is not None:
            watch(INPUT, x)
        for index, node in enumerate(self.nodes):
            if node.layer is None:
                continue
            inputs = [values[i] for i in node.inputs]
            if visit is not None and isinstance(node.layer, NonlinearLayer):
                values[index] = visit(index, inputs[0])
            else:
                values[index] = node.layer.forward(*inputs)
            if watch is not None:
                watch(index, values[index])
            for i in set(node.inputs):
                if last_use[i] == index:
                    del values[i]
        return values[len(self.nodes) - 1]

    def linearize_at(self, x: Tensor) -> tuple[Tensor, Slopes]:
        """Φ(x) and the slopes at each point of a batch (B, *in)."""
        slopes: Slopes = {}
        layers = self.nonlinear()

        def visit(index: int, a: Tensor) -> Tensor:
            value, slopes[index] = layers[index].linearize(a)
            return value

        return self.evaluate(x, visit), slopes

    def preactivations(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Φ(x) and the input of every nonlinear node."""
        inputs: dict[int, Tensor] = {}
        layers = self.nonlinear()

        def visit(index: int, a: Tensor) -> Tensor:
            inputs[index] = a
            return layers[index].forward(a)

        return self.evaluate(x, visit), inputs

    def points(self, x: Tensor) -> tuple[Tensor, dict[int, Point]]:
        """Φ(x) and what every nonlinear node does at each point of a batch (B, *in)."""
        found: dict[int, Point] = {}
        layers = self.nonlinear()

        def visit(index: int, a: Tensor) -> Tensor:
            found[index] = layers[index].at(a)
            return found[index].value

        return self.evaluate(x, visit), found

    def secant_slopes(self, x1: Tensor, x2: Tensor) -> Slopes:
        """Secant slopes of each pair (x1[b], x2[b]): J(x₁ − x₂) = Φ(x₁) − Φ(x₂) under them."""
        slopes: Slopes = {}
        layers, count = self.nonlinear(), len(x1)

        def visit(index: int, a: Tensor) -> Tensor:
            point = layers[index].at(a)
            slopes[index] = layers[index].between(point.rows(0, count), point.rows(count, count))
            return point.value

        self.evaluate(torch.cat([x1, x2]), visit)
        return slopes

    def cuts(self) -> list[int]:
        """The nodes through which every path from input to output goes, in order, both ends included."""
        farthest, found = INPUT, [INPUT]
        last_use = self.last_uses()
        for index in range(1, len(self.nodes)):
            farthest = max(farthest, last_use[index - 1])
            if farthest <= index:
                found.append(index)
        return found

    def between(self, start: int, end: int) -> Graph:
        """The part from one cut to a later one, as a network whose input is the value of `start`.

        Raises:
            ValueError: some path passes `start` by.
        """
        nodes = [Node(None, (), self.nodes[start].shape, "input")]
        for node in self.nodes[start + 1 : end + 1]:
            if min(node.inputs) < start:
                raise ValueError(f"{node.place} reads what comes before {self.nodes[start].place}")
            nodes.append(replace(node, inputs=tuple(i - start for i in node.inputs)))
        return Graph(nodes)

    def alone(self, index: int) -> Graph:
        """One layer of one input, as a network.

        Raises:
            ValueError: the node is the input, or has several.
        """
        node = self.nodes[index]
        (source,) = node.inputs
        return Graph([Node(None, (), self.nodes[source].shape, "input"), replace(node, inputs=(INPUT,))])

    def with_layer(self, index: int, layer: Layer) -> Graph:
        """The same network with another layer, of the same shapes, at a node."""
        return Graph([replace(n, layer=layer) if i == index else n for i, n in enumerate(self.nodes)])

    def last_uses(self) -> dict[int, int]:
        """For each node, the last node that reads it (the output is never released)."""
        last = {i: index for index, node in enumerate(self.nodes) for i in node.inputs}
        last[len(self.nodes) - 1] = -1
        return last

    def fingerprint(self) -> str:
        """SHA-256 of the structure and weights: equal graphs compute equal functions."""
        digest = hashlib.sha256()
        for node in self.nodes:
            digest.update(repr((type(node.layer).__name__, node.inputs, node.shape)).encode())
            if node.layer is not None:
                digest_layer(digest, node.layer)
        return digest.hexdigest()


def digest_layer(digest: hashlib._Hash, layer: Layer) -> None:
    """Add all fields of a layer, its weights too, to a digest."""
    for name, value in sorted(vars(layer).items()):
        if isinstance(value, Layer):
            digest_layer(digest, value)
        elif isinstance(value, Tensor):
            digest.update(repr((name, tuple(value.shape), value.dtype)).encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(repr((name, value)).encode())


class GraphBuilder:
    """Grows a graph node by node; output shapes are found by running each layer on a batch of zeros."""

    def __init__(self, input_shape: Shape) -> None:
        self.nodes = [Node(None, (), tuple(input_shape), "input")]

    @property
    def last(self) -> int:
        """Index of the node added last."""
        return len(self.nodes) - 1

    def add(self, layer: Layer, inputs: Sequence[int], place: str = "") -> int:
        """Append a layer and return its node index."""
        return self.append(layer, inputs, self.shape_of(layer, inputs), place or f"layer {len(self.nodes)}")

    def shape_of(self, layer: Layer, inputs: Sequence[int]) -> Shape:
        """The per-sample shape of a layer's output on the values of some nodes."""
        zeros = [torch.zeros(1, *self.nodes[i].shape, dtype=torch.float64) for i in inputs]
        return tuple(layer.to(torch.float64, "cpu").forward(*zeros).shape[1:])

    def append(self, layer: Layer, inputs: Sequence[int], shape: Shape, place: str) -> int:
        """Append a layer whose output shape is known."""
        self.nodes.append(Node(layer.to(torch.float64, "cpu"), tuple(inputs), tuple(shape), place))
        return self.last

    def build(self, output: int | None = None) -> Graph:
        """The finished graph, without nodes that the output does not depend on."""
        return Graph(self.nodes, output)


def _reachable(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes the output depends on, and the input, renumbered in order; the output comes last."""
    needed = {INPUT, output}
    for index in range(output, -1, -1):
        if index in needed:
            needed.update(nodes[index].inputs)
    kept = sorted(needed)
    number = {old: new for new, old in enumerate(kept)}
    return tuple(replace(nodes[i], inputs=tuple(number[j] for j in nodes[i].inputs)) for i in kept)
