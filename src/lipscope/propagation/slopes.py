"""The slopes that every nonlinear layer can take while the input stays in a ball.

A ball is convex, so between two of its points the secant slope of an activation is a mean of
derivatives at values on the way, all within the bounds of the values: ranges of derivatives over
those bounds hold for pairs as well as for points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import INPUT, Graph
from ..layers.activation import Activation
from ..layers.base import Lines, NonlinearLayer
from ..slopes import AveragedSlope
from .interval import BallNorm, InputBall, Region, ball_region, through
from .linear import backward_cost, relaxed_box

DEFAULT_BUDGET = 1e10
"""Multiplications; about ten seconds on one core."""


@dataclass(frozen=True)
class LocalSlopes:
    """For every nonlinear node, slopes whose values bound entry by entry those of all pairs in the ball.

    `hull[i]` is a pair of `Diagonal`s for an activation and of `TapWeights` for max pooling.
    """

    hull: dict[int, tuple[AveragedSlope, AveragedSlope]]

    def intervals(self, graph: Graph) -> dict[int, tuple[Tensor, Tensor]]:
        """Of every activation node, the certified (α, β) of each unit, float64, the node's shape."""
        return {
            i: (alpha.values[0], beta.values[0])
            for i, (alpha, beta) in self.hull.items()
            if isinstance(graph.nodes[i].layer, Activation)
        }

    def open_units(self, graph: Graph, index: int) -> int:
        """How many outputs of a nonlinear node have a slope that is not one known number."""
        ones = torch.ones(1, 1, *graph.shapes_into(index)[0], dtype=torch.float64)
        return int((_spread(self.hull[index]).apply(ones) > 0).sum())


def _spread(hull: tuple[AveragedSlope, AveragedSlope]) -> AveragedSlope:
    low, high = hull
    return high.with_values(high.values - low.values)


def slope_intervals(
    graph: Graph,
    center: Tensor,
    radius: float,
    ball_norm: BallNorm = "2",
    budget: float = DEFAULT_BUDGET,
) -> dict[int, tuple[Tensor, Tensor]]:
    """Certified bounds of the slopes that every activation can take over the ball ‖x − center‖ ≤ radius.

    Args:
        graph: the network.
        center: shape *in or (1, *in).
        radius: ≥ 0; infinite gives the global ranges.
        ball_norm: "2" or "inf", the norm of the ball.
        budget: multiplications that linear relaxation may take in all; 0 leaves intervals alone.

    Returns:
        For every elementwise activation node the per-unit (α, β): float64 tensors of the node's
        shape that hold every secant slope between two points of the ball.

    Raises:
        ValueError: a wrong centre, radius or norm (see `InputBall.around`).
        CertificateError: a layer's norm cannot be proved.
    """
    exact = graph.to(torch.float64)
    ball = InputBall.around(center, graph.input_shape, radius, ball_norm)
    return local_slopes(exact, propagate(exact, ball, budget)).intervals(exact)


def local_slopes(graph: Graph, regions: Sequence[Region]) -> LocalSlopes:
    """The slopes of all nonlinear layers over the regions of their inputs."""
    hull = {}
    for i, layer in graph.nonlinear().items():
        box = regions[graph.nodes[i].inputs[0]].box
        hull[i] = layer.slope_hull(box.low, box.high)
    return LocalSlopes(hull)


def layer_constants(graph: Graph) -> list[float]:
    """Of every node, the certified Euclidean Lipschitz constant of its layer alone; 1 for the input."""
    return [
        1.0 if node.layer is None else node.layer.alone(graph.shapes_into(i))
        for i, node in enumerate(graph.nodes)
    ]


def propagate(
    graph: Graph, ball: InputBall, budget: float, constants: Sequence[float] | None = None
) -> list[Region]:
    """What every node's value can be over the ball.

    Intervals and distances go forward; inputs of nonlinear layers whose slopes they leave open are
    then bounded by linear relaxation, layer by layer, where what is left of the budget pays for
    all of them.

    Args:
        graph: the network in float64.
        budget: multiplications that linear relaxation may take in all.
        constants: of `layer_constants`, computed if not given.
    """
    constants = layer_constants(graph) if constants is None else constants
    left = 0.0 if math.isinf(ball.radius) else budget
    regions = [ball_region(ball)]
    lines: dict[int, Lines] = {}
    for index, node in enumerate(graph.nodes):
        if node.layer is None:
            continue
        if isinstance(node.layer, NonlinearLayer):
            source = node.inputs[0]
            box = regions[source].box
            ones = torch.ones(1, 1, *node.shape, dtype=torch.float64)
            open_entries = _spread(node.layer.slope_hull(box.low, box.high)).transpose(ones) > 0
            entries = open_entries.flatten().nonzero()[:, 0]
            cost = 2 * len(entries) * backward_cost(graph, source)
            # One linear layer on the input loses nothing by intervals and distances.
            if 0 < cost <= left and node.inputs != (INPUT,) and graph.nodes[source].inputs != (INPUT,):
                left -= cost
                relaxed = relaxed_box(graph, source, entries, regions, lines, ball)
                regions[source] = regions[source].within(relaxed)
            if left > 0:
                lines[index] = node.layer.lines(regions[source].box.low, regions[source].box.high)
        inputs = [regions[i] for i in node.inputs]
        regions.append(through(node.layer, inputs, graph.shapes_into(index), constants[index]))
    return regions
