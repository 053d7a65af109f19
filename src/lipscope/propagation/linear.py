"""Backward linear relaxation: bounds of a node's entries as affine functions of the input.

A functional a·v of a node's value is carried backward: through a linear layer exactly, through a
nonlinear one by the affine functions below and above it (`NonlinearLayer.lines`), chosen by the
sign of each coefficient. What arrives at the input is an affine function of x below a·v, and its
least value over the ball is c·a − r‖a‖_*. Relations between units survive the layers, which
intervals forget.

Rounding: coefficients are computed, not exact, and every step subtracts a bound of what that can
change. If coefficients A of a node are replaced by Â with |Â − A| ≤ ε|A||T|, the functional
changes by at most ε|A|·|T||v|, and |v| is bounded by the node's box.

Sources: H. Zhang et al. (2018), CROWN; G. Singh et al. (2019), DeepPoly; K. Xu et al. (2020) on
general graphs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import INPUT, Graph
from ..layers import LinearLayer
from ..layers.base import Lines
from ..rounding import TINY, UNIT, gamma
from .interval import Box, InputBall, Region

_CHUNK_ENTRIES = 2**22


def backward_cost(graph: Graph, index: int) -> float:
    """About how many multiplications carry one functional of a node back to the input."""
    ancestors = _ancestors(graph, index)
    total = 0
    for i in ancestors:
        layer, shape = graph.nodes[i].layer, graph.nodes[i].shape
        total += layer.multiplications(shape) if isinstance(layer, LinearLayer) else math.prod(shape)
    return float(total)


def relaxed_box(
    graph: Graph,
    index: int,
    entries: Tensor,
    regions: Sequence[Region],
    lines: Mapping[int, Lines],
    ball: InputBall,
) -> Box:
    """Certified bounds of some entries of a node's value over the ball; infinite for the others.

    Args:
        index: the node.
        entries: flat indices of the entries wanted.
        regions: of every node up to it.
        lines: of every nonlinear node before it.
    """
    shape = graph.nodes[index].shape
    low = torch.full((math.prod(shape),), -math.inf, dtype=torch.float64)
    high = -low
    ancestors = _ancestors(graph, index)
    largest = max(math.prod(graph.nodes[i].shape) for i in [INPUT, *ancestors])
    sizes = {i: _size(graph, i, regions, lines) for i in ancestors}
    for some in entries.split(max(1, _CHUNK_ENTRIES // (2 * largest))):
        rows = torch.zeros(len(some), math.prod(shape), dtype=torch.float64)
        rows[torch.arange(len(some)), some] = 1.0
        functionals = torch.cat([rows, -rows]).reshape(-1, *shape)
        least = _least(graph, index, functionals, lines, sizes, ball)
        low[some], high[some] = least[: len(some)], -least[len(some) :]
    return Box(low.reshape(1, *shape), high.reshape(1, *shape))


def _ancestors(graph: Graph, index: int) -> list[int]:
    """The nodes that the value of a node is computed by, itself included, without the input, last first."""
    needed = {index}
    for i in range(index, INPUT, -1):
        if i in needed:
            needed.update(graph.nodes[i].inputs)
    return sorted(needed - {INPUT}, reverse=True)


@dataclass(frozen=True)
class _Size:
    """What rounding changes in one step back: at most ⟨|coefficients|, error⟩ + lost for a functional."""

    error: Tensor
    lost: float


def _size(graph: Graph, index: int, regions: Sequence[Region], lines: Mapping[int, Lines]) -> _Size:
    """A multiple of |T||v| + |offset| for a node with inputs v, and what underflow may lose.

    The multiple also covers the roundings of the inner products with the coefficients, and of sums
    of coefficients where branches meet: a node's value is no larger than this.
    """
    node = graph.nodes[index]
    inputs = [regions[i].box.magnitude for i in node.inputs]
    margin = gamma(math.prod(node.shape) + len(graph.nodes) + 16)
    if isinstance(node.layer, LinearLayer):
        shapes = graph.shapes_into(index)
        layer = node.layer if node.layer.moves_only else node.layer.magnitudes(shapes)
        size = layer.apply(*inputs)
        size = size if node.layer.offset is None else size + node.layer.offset.abs()
        margin += node.layer.rounding(shapes, node.shape)
    else:
        relaxation = lines[index]
        size = relaxation.below_offset.abs() + relaxation.above_offset.abs()
        for slope in (relaxation.below, relaxation.above):
            size = size + slope.with_values(slope.values.abs()).apply(inputs[0].unsqueeze(0))[0]
    return _Size(4 * margin * size, TINY * (1 + sum(float(v.sum()) for v in inputs)))


def _least(
    graph: Graph,
    index: int,
    functionals: Tensor,
    lines: Mapping[int, Lines],
    sizes: Mapping[int, _Size],
    ball: InputBall,
) -> Tensor:
    """A certified lower bound of each functional (rows, *s) of a node's value over the ball, shape (rows,)."""
    coefficients = {index: functionals}
    constant = torch.zeros(len(functionals), dtype=torch.float64)
    error = torch.zeros_like(constant)
    for i in range(index, INPUT, -1):
        if i not in coefficients:
            continue
        a = coefficients.pop(i)
        layer = graph.nodes[i].layer
        error += _inner(a.abs(), sizes[i].error) + sizes[i].lost
        if isinstance(layer, LinearLayer):
            if layer.offset is not None:
                constant += _inner(a, layer.offset.expand(1, *graph.nodes[i].shape))
            parts = layer.transpose(a)
        else:
            relaxation, positive, negative = lines[i], a.clamp(min=0), a.clamp(max=0)
            constant += _inner(positive, relaxation.below_offset) + _inner(negative, relaxation.above_offset)
            below = relaxation.below.transpose(positive.unsqueeze(1))
            parts = ((below + relaxation.above.transpose(negative.unsqueeze(1)))[:, 0],)
        for j, part in zip(graph.nodes[i].inputs, parts, strict=True):
            coefficients[j] = coefficients[j] + part if j in coefficients else part
    slope = coefficients.get(INPUT)
    if slope is not None:
        dual = slope.flatten(1).norm(p=2 if ball.norm == "2" else 1, dim=1)
        margin = gamma(slope[0].numel() + len(graph.nodes) + 16)
        middle = _inner(slope, ball.center)
        constant += middle - ball.radius * dual
        error += 4 * margin * (_inner(slope.abs(), ball.center.abs()) + ball.radius * dual) + TINY
    least = constant - (1 + 64 * UNIT) * error
    least = torch.nextafter(least, torch.full_like(least, -math.inf))
    return torch.where(least.isnan(), -math.inf, least)


def _inner(rows: Tensor, vector: Tensor) -> Tensor:
    """Inner products of coefficients (rows, *s) with one tensor (1, *s)."""
    return rows.flatten(1) @ vector.flatten()
