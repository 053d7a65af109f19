"""The values and slopes of a network at a few fixed inputs, evaluated again only where something has changed."""

from __future__ import annotations

from torch import Tensor

from ..graph import INPUT, Graph, Slopes
from ..layers import NonlinearLayer
from ..slopes import Slope


class ProbeValues:
    """Values of every node at the probes x (B, *in), and slopes of every nonlinear node."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._graph: Graph | None = None
        self._values: dict[int, Tensor] = {}
        self._slopes: dict[int, Slope] = {}

    def evaluate(self, graph: Graph, working: Graph) -> tuple[Tensor, Slopes, list[int]]:
        """Φ(x), the slopes at x, and the nodes that were evaluated: a changed layer's and all behind it.

        Args:
            graph: the network as it is now.
            working: the same in the precision and on the device of the probes.
        """
        same = unchanged(self._graph, graph)
        values: dict[int, Tensor] = {INPUT: self.x}
        slopes: dict[int, Slope] = {}
        evaluated = []
        for index, node in enumerate(working.nodes):
            if node.layer is None:
                continue
            if index in same:
                values[index] = self._values[index]
                if index in self._slopes:
                    slopes[index] = self._slopes[index]
                continue
            evaluated.append(index)
            inputs = [values[i] for i in node.inputs]
            if isinstance(node.layer, NonlinearLayer):
                values[index], slopes[index] = node.layer.linearize(inputs[0])
            else:
                values[index] = node.layer.forward(*inputs)
        self._graph, self._values, self._slopes = graph, values, slopes
        return values[len(graph.nodes) - 1], slopes, evaluated


def unchanged(before: Graph | None, now: Graph) -> set[int]:
    """The nodes of `now` that compute the same from the input as the nodes of these numbers did before."""
    if before is None:
        return set()
    return _kept(before, now, numbers=True)


def same_form(before: Graph, now: Graph) -> set[int]:
    """As `unchanged`, of the same form from the input on: layers of the same types and shapes, whatever their weights."""
    return _kept(before, now, numbers=False)


def _kept(before: Graph, now: Graph, numbers: bool) -> set[int]:
    kept = {INPUT}
    for index, (old, new) in enumerate(zip(before.nodes, now.nodes, strict=False)):
        if new.layer is None or old.layer is None:
            continue
        alike = old.inputs == new.inputs and old.shape == new.shape and kept.issuperset(new.inputs)
        if alike and (new.layer.same_as(old.layer) if numbers else type(new.layer) is type(old.layer)):
            kept.add(index)
    return kept
