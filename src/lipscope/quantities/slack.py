"""Where the product bound loses: its gap to what the network does, shared out among the layers.

The product rule composes certified constants, B_k = f_k(B_inputs) with B = 1 at the input, where f_k is
`Layer.lipschitz`: multiplication by the layer's constant, or for merges the sum or the root of squares. Beside it
stands what happens along one direction v: with J_k the Jacobian from the input to node k, slopes frozen at a point, the
growth G_k = ‖J_k v‖ obeys G_k = γ_k f_k(G_inputs), and γ_k ≤ 1 is the part of what it may that layer k attains.

The family B_k(s) = f_k(B_inputs(s)) γ_k^{1−s} joins both: at s = 1 it is the product rule, at s = 0 it is G (by
induction on k). So with U(s) the value at the output,

    log U(1) − log ‖J v‖ = Σ_k log(1/γ_k) ∫₀¹ ∂ log U(s) / ∂ log B_k(s) ds,

and the k-th term is the share of layer k: never negative, and 0 if it attains its constant. On a chain the derivative
is 1; on other graphs it is the weight of all paths through k. The integral is taken numerically and the sum is checked.

Source: R. Aumann, L. Shapley, Values of Non-Atomic Games (1974), for shares by an integral along a diagonal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..graph import INPUT, Graph
from ..jacobian import linearize
from ..layers.activation import Activation
from ..results import Analytical, Cost, LayerSlack, LayerSlope, Slack
from ..spectral import spectral_norm

_NOTHING = -100.0
"""log γ of a layer that lets nothing through while other paths do: e⁻¹⁰⁰ in the place of 0."""
_STEP = 1e-4
_CLOSES = 1e-7
_NODES = (1, 8, 16, 32, 64, 128, 256, 512)


def slack(
    graph: Graph,
    bounds: Analytical,
    x: Tensor,
    point: str,
    slopes: Sequence[LayerSlope] = (),
    *,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Slack:
    """Each layer's share of the gap between the product bound and the largest stretch at one point.

    The growth is that along the leading right singular vector of J(x), computed in float64 on the CPU. Where no
    layer's constant and no loss is infinite, the layers' factors multiply to product / growth. Where some are
    (a constant that is infinite, or a layer in which all that moves dies out), they share the whole in equal
    parts, and the factors of the others are what would be left if those were repaired: if each had as its constant
    what it does here (or, where everything dies out, attained its constant).

    Args:
        graph: the network.
        bounds: of `analytical`, for the same graph.
        x: the point, shape *in.
        point: what to call it.
        slopes: the table of `MeanSlopes`, to list the mean slopes with the layers; none without data.
        tolerance: relative accuracy of the singular vector's norm.
        seed: of the solver's start.

    Raises:
        ValueError: the point or the bounds do not fit the network.
    """
    started = time.perf_counter()
    if tuple(x.shape) != graph.input_shape or len(bounds.layers) != len(graph.nodes) - 1:
        raise ValueError(f"a point of shape {tuple(x.shape)} or bounds of another network")
    exact = graph.to(torch.float64, "cpu")
    _, at_point = exact.linearize_at(x[None].to("cpu", torch.float64))
    operator = linearize(exact, at_point)
    # A block finds the largest singular value where the second is near.
    found = spectral_norm(operator, tolerance=tolerance, block=2, max_steps=60, seed=seed)
    direction = found.right[None]
    if not bool(direction.any()):
        # A zero Jacobian prefers no direction: any shows where what moves dies out.
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(direction.shape, generator=generator, dtype=torch.float64)
    norms: list[float] = []
    operator.matvec(direction, lambda _, value: norms.append(_norm(value)))
    gap = _Gap(graph, bounds, [norm / norms[INPUT] for norm in norms])
    return gap.shared_out(
        point,
        dict(zip(graph.nonlinear(), (row.active for row in slopes), strict=True)) if slopes else {},
        Cost(seconds=time.perf_counter() - started, forward_passes=float(4 * found.steps + 2)),
    )


@dataclass(frozen=True)
class _Node:
    """One node in the family: `constant` is log c of a layer of one input, None for merges, composed by the layer."""

    constant: float | None
    attained: float
    """log γ, finite."""
    unbounded: bool
    """Whether its true loss is infinite and left out of the family."""


class _Gap:
    """The family B(s) in logarithms, so that bounds of deep networks do not overflow."""

    def __init__(self, graph: Graph, known: Analytical, growths: Sequence[float]) -> None:
        self.graph, self.known, self.growths = graph, known, growths
        self.logs = [_log(g) for g in growths]
        self.product = known.layers[-1].cumulative if known.layers else 1.0
        self.nodes = [_Node(0.0, 0.0, False), *(self._node(k) for k in range(1, len(graph.nodes)))]

    def _node(self, index: int) -> _Node:
        inputs = [self.logs[i] for i in self.graph.nodes[index].inputs]
        here, constant = self.logs[index], self.known.layers[index - 1].constant
        if math.isinf(constant):
            done = here - inputs[0] if here > -math.inf else 0.0
            return _Node(done, 0.0, math.isinf(self.product))
        log_constant = _log(constant) if len(inputs) == 1 else None
        allowed = self._composed(index, log_constant, inputs)
        if allowed == -math.inf:
            return _Node(log_constant, 0.0, False)
        if here == -math.inf and self.growths[-1] == 0 < self.product:
            return _Node(log_constant, 0.0, True)
        # Rounding of the growth may leave γ a hair above 1.
        return _Node(log_constant, min(0.0, max(here - allowed, _NOTHING)), False)

    def _composed(self, index: int, constant: float | None, inputs: Sequence[float]) -> float:
        """Log f_k of inputs given by their logarithms."""
        if constant is not None:
            return inputs[0] + constant
        highest = max(inputs)
        if highest == -math.inf:
            return highest
        layer = self.graph.nodes[index].layer
        assert layer is not None
        # Certified constants are homogeneous in those of the inputs.
        scaled = [math.exp(value - highest) for value in inputs]
        return highest + _log(layer.lipschitz(scaled, self.graph.shapes_into(index)))

    def _weights(self, index: int, inputs: Sequence[float]) -> list[float]:
        """∂ log f_k / ∂ log of each input: 1 in sum."""
        if len(inputs) == 1:
            return [1.0]
        found = []
        for number, value in enumerate(inputs):
            sides = [[*inputs[:number], value + step, *inputs[number + 1 :]] for step in (_STEP, -_STEP)]
            above, below = (self._composed(index, None, side) for side in sides)
            found.append((above - below) / (2 * _STEP) if above > -math.inf else 0.0)
        return found

    def bounds(self, s: float) -> list[float]:
        """Log B_k(s) of every node."""
        values = [0.0]
        for index, node in enumerate(self.nodes[1:], 1):
            inputs = [values[i] for i in self.graph.nodes[index].inputs]
            values.append(self._composed(index, node.constant, inputs) + (1 - s) * node.attained)
        return values

    def sensitivities(self, s: float) -> np.ndarray:
        """∂ log U / ∂ log B_k at s, by reverse accumulation."""
        values = self.bounds(s)
        found = np.zeros(len(values))
        found[-1] = 1.0
        for index in range(len(values) - 1, INPUT, -1):
            if found[index]:
                inputs = self.graph.nodes[index].inputs
                for i, weight in zip(inputs, self._weights(index, [values[i] for i in inputs]), strict=True):
                    found[i] += found[index] * weight
        return found

    def losses(self) -> tuple[np.ndarray, float]:
        """Each node's finite loss in logarithms, and by how much their sum misses the gap."""
        attained = -np.array([node.attained for node in self.nodes])
        whole = self.bounds(1.0)[-1]
        if whole == -math.inf:
            return np.zeros(len(self.nodes)), 0.0
        unbounded = any(node.unbounded for node in self.nodes)
        reached = self.bounds(0.0)[-1] if unbounded else self.logs[-1]
        best, residual = np.zeros(len(self.nodes)), math.inf
        for count in _NODES:
            places, weights = np.polynomial.legendre.leggauss(count)
            mean = sum(w / 2 * self.sensitivities((1 + p) / 2) for p, w in zip(places, weights, strict=True))
            best = attained * mean
            residual = abs(float(best.sum()) - (whole - reached))
            if residual <= _CLOSES * max(1.0, whole - reached):
                break
        return best, residual

    def shared_out(self, point: str, active: Mapping[int, float | None], cost: Cost) -> Slack:
        """The record."""
        losses, residual = self.losses()
        total, unbounded = float(losses.sum()), sum(node.unbounded for node in self.nodes)
        if unbounded:
            shares = [float(node.unbounded) / unbounded for node in self.nodes]
        else:
            shares = [float(loss) / total if total > 0 else 0.0 for loss in losses]
        return Slack(
            product=self.product,
            growth=self.growths[-1],
            factor=math.inf if unbounded else _exp(total),
            point=point,
            layers=[
                self._layer(index, float(losses[index]), shares[index], active.get(index))
                for index in range(1, len(self.nodes))
            ],
            residual=residual,
            cost=cost,
        )

    def _layer(self, index: int, loss: float, share: float, active: float | None) -> LayerSlack:
        node, known, own = self.graph.nodes[index], self.known.layers[index - 1], self.nodes[index]
        layer = node.layer
        assert layer is not None
        nothing = own.unbounded or own.attained == _NOTHING
        attained = 0.0 if nothing else math.exp(own.attained)
        before = [self.growths[i] for i in node.inputs]
        stretch: float | None = None
        if max(before) > 0:
            stretch = self.growths[index] / before[0] if len(before) == 1 else known.constant * attained
        low, high = layer.slope_range if isinstance(layer, Activation) else (None, None)
        return LayerSlack(
            node=index,
            inputs=list(node.inputs),
            place=known.place,
            layer=known.layer,
            shape=known.shape,
            parameters=sum(p.numel() for p in layer.parameters() if p.is_floating_point()),
            constant=known.constant,
            cumulative=known.cumulative,
            growth=self.growths[index],
            attained=attained,
            stretch=stretch,
            slope_low=low,
            slope_high=high,
            active=active,
            factor=math.inf if own.unbounded else _exp(loss),
            share=share,
        )


def _norm(x: Tensor) -> float:
    """‖x‖ over all entries, scaled so that no square overflows or vanishes."""
    largest = float(x.abs().max()) if x.numel() else 0.0
    return largest * float(torch.linalg.vector_norm(x / largest)) if largest > 0 else 0.0


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
