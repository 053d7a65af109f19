"""Proofs of a Lipschitz constant over a ball, from certified intervals of the slopes.

A proof is a function from a `LocalProblem` to a certified upper bound, infinite where it is not
worth its cost. `ball.py` takes the least; another proof is one more function in `PROOFS`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..certificates import certify_slopes
from ..certified import spectral_norm_upper
from ..graph import INPUT, Graph
from ..layers import LinearLayer, NonlinearLayer
from ..layers.activation import Activation
from ..propagation import LocalSlopes
from ..propagation.linear import backward_cost
from ..results import Norm
from ..rounding import UNIT, gamma, middle_and_radius, up, up_product, up_sum, up_tensor, widen
from ..slopes import AveragedSlope

_CHUNK_ENTRIES = 2**22
_SPECTRAL_ROWS = 2048
_SPECTRAL_ENTRIES = 2**25


@dataclass(frozen=True)
class LocalProblem:
    """A network (float64), what its slopes can be, the norm ℓ_q asked for, and what a proof may cost.

    `slopes.intervals(graph)` gives (α, β) of every activation node, unit by unit. `constants` are
    the Euclidean Lipschitz constants of the layers alone; `budget` counts multiplications, `seconds`
    are for optimising the quadratic certificate.
    """

    graph: Graph
    slopes: LocalSlopes
    norm: Norm
    constants: Sequence[float]
    budget: float
    seconds: float = 0.0


Proof = Callable[[LocalProblem], float]


def local_product(problem: LocalProblem) -> float:
    """The product of operator norms with the steepest slopes that the ball allows, unit by unit.

    A diagonal D with |D| ≤ M is √M·T·√M with ‖T‖ ≤ 1. One factor √M scales the rows of the linear
    layer before the activation and the other the columns of the one after it, so units that are off
    in the whole ball drop out of both matrices.
    """
    graph, norm, constants = problem.graph, problem.norm, problem.constants
    uses = Counter(i for node in graph.nodes for i in node.inputs)
    steepest = {
        i: torch.maximum(*(slope.values.abs() for slope in problem.slopes.hull[i]))
        for i, layer in graph.nonlinear().items()
        if isinstance(layer, Activation)
    }
    # Slopes without a limit scale nothing; such a layer has an infinite constant as a whole.
    steepest = {i: m for i, m in steepest.items() if bool(m.isfinite().all())}
    rows = {
        graph.nodes[i].inputs[0]: _root(m) for i, m in steepest.items() if uses[graph.nodes[i].inputs[0]] == 1
    }
    # The difference at node i is diag(scales[i])·T·δ with ‖T‖ ≤ 1 and ‖δ‖ ≤ bounds[i] times that of the input.
    bounds: list[float] = [1.0]
    scales: list[Tensor | None] = [None]
    # Linear nodes whose bound is that of √M times their difference, M the slopes of the activation after.
    scaled: set[int] = set()

    def full(i: int) -> float:
        scale = scales[i]
        return bounds[i] if scale is None else up_product(bounds[i], float(scale.max()))

    for index, node in enumerate(graph.nodes):
        if node.layer is None:
            continue
        shapes = graph.shapes_into(index)
        before, scale = node.inputs[0], scales[node.inputs[0]]
        if index in steepest:
            bounds.append(bounds[before])
            if before in scaled:
                scales.append(rows[before])
            else:
                m = steepest[index]
                scales.append(m if scale is None else up_tensor(m * scale))
            continue
        if len(node.inputs) > 1:
            bounds.append(node.layer.lipschitz_in(norm, [full(i) for i in node.inputs], shapes))
            scales.append(None)
        elif isinstance(node.layer, NonlinearLayer):
            local = node.layer.local_lipschitz(norm, problem.slopes.hull[index], shapes[0])
            bounds.append(up_product(full(before), local))
            scales.append(None)
        else:
            assert isinstance(node.layer, LinearLayer)
            if node.layer.moves_only:
                bounds.append(bounds[before])
                scales.append(None if scale is None else node.layer.apply(scale))
                continue
            known = constants[index] if norm == "2" else None
            constant = node.layer.scaled_norm(norm, shapes, rows.get(index), scale, known)
            bounds.append(up_product(bounds[before], constant))
            scales.append(None)
            if index in rows:
                scaled.add(index)
    return full(len(graph.nodes) - 1)


def _root(m: Tensor) -> Tensor:
    """A number whose square is at least m ≥ 0, exact for 0 and 1."""
    return torch.where((m == 0) | (m == 1), m, up_tensor(m.sqrt(), 2))


def interval_jacobian(problem: LocalProblem) -> float:
    """The norm of a matrix interval that holds the Jacobian under all slopes of the ball.

    Rows of the Jacobian are carried backward from the outputs as a middle and a radius: through
    linear layers as Tᵀ·middle and |Tᵀ|·radius, through slopes by interval products. The norm for
    q = ∞ and 1 is the largest sum of a row and of a column of moduli; for q = 2 it is at most
    ‖middle‖₂ + ‖radius‖₂, and at most the geometric mean of the other two.

    Infinite if it costs more than the budget.
    """
    graph = problem.graph
    outputs, inputs = math.prod(graph.output_shape), math.prod(graph.input_shape)
    last = len(graph.nodes) - 1
    if 4 * outputs * backward_cost(graph, last) > problem.budget:
        return math.inf
    spectral = (
        problem.norm == "2"
        and min(outputs, inputs) <= _SPECTRAL_ROWS
        and outputs * inputs <= _SPECTRAL_ENTRIES
    )
    largest = max(math.prod(node.shape) for node in graph.nodes)
    column_sums = torch.zeros(inputs, dtype=torch.float64)
    row_sum = 0.0
    kept: list[tuple[Tensor, Tensor]] = []
    for some in torch.arange(outputs).split(max(1, _CHUNK_ENTRIES // largest)):
        units = torch.zeros(len(some), outputs, dtype=torch.float64)
        units[torch.arange(len(some)), some] = 1.0
        middle, radius = _rows_of_jacobian(problem, units.reshape(-1, *graph.output_shape))
        modulus = up_tensor(middle.abs() + radius)
        column_sums += modulus.sum(0)
        row_sum = max(row_sum, up(float(modulus.sum(1).max()), inputs))
        if spectral:
            kept.append((middle, radius))
    column_sum = up(float(column_sums.max()), 2 * outputs)
    if problem.norm == "inf":
        return row_sum
    if problem.norm == "1":
        return column_sum
    mean = up(math.sqrt(up_product(row_sum, column_sum)), 2)
    if not spectral or not math.isfinite(mean):
        return mean
    middle, radius = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return min(mean, up_sum(spectral_norm_upper(middle), spectral_norm_upper(radius)))


def _rows_of_jacobian(problem: LocalProblem, units: Tensor) -> tuple[Tensor, Tensor]:
    """A middle and a radius (rows, inputs) that hold uᵀJ for unit vectors u (rows, *out) of the output."""
    graph = problem.graph
    rows = len(units)
    adjoints = {len(graph.nodes) - 1: (units, torch.zeros_like(units))}
    for index in range(len(graph.nodes) - 1, INPUT, -1):
        node = graph.nodes[index]
        middle, radius = adjoints.pop(index)
        parts: Sequence[tuple[Tensor, Tensor]]
        if isinstance(node.layer, LinearLayer):
            parts = _through_linear(node.layer, graph, index, middle, radius)
        else:
            parts = [_through_slopes(problem.slopes.hull[index], middle, radius)]
        for i, part in zip(node.inputs, parts, strict=True):
            adjoints[i] = _add(adjoints[i], part) if i in adjoints else part
    zero = torch.zeros(rows, math.prod(graph.input_shape), dtype=torch.float64)
    middle, radius = adjoints.get(INPUT, (zero, zero))
    return middle.reshape(rows, -1), radius.reshape(rows, -1)


def _through_linear(
    layer: LinearLayer, graph: Graph, index: int, middle: Tensor, radius: Tensor
) -> list[tuple[Tensor, Tensor]]:
    middles = layer.transpose(middle)
    if layer.moves_only:
        return list(zip(middles, layer.transpose(radius), strict=True))
    shapes = graph.shapes_into(index)
    margin = layer.rounding(shapes, graph.nodes[index].shape)
    radii = layer.magnitudes(shapes).transpose(up_tensor(radius + 2 * margin * middle.abs()))
    return [(m, up_tensor(r * (1 + 2 * margin))) for m, r in zip(middles, radii, strict=True)]


def _through_slopes(
    hull: tuple[AveragedSlope, AveragedSlope], middle: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """The interval of Dᵀu over slopes in the hull and u in the interval; the parts of D by sign are kept apart."""
    low, high = (side.unsqueeze(1) for side in widen(middle, radius))
    least, most = torch.zeros(()), torch.zeros(())
    size = torch.zeros(())
    for sign in (1, -1):
        # D = D₊ − D₋, and D₋ ≥ 0 takes the other ends of u.
        ends = [(sign * slope.values).clamp(min=0) for slope in hull[::sign]]
        if not bool(ends[1].any()):
            continue
        below, above = (hull[0].with_values(values) for values in ends)
        if sign < 0:
            low, high = -high, -low
        least = least + below.transpose(low.clamp(min=0)) + above.transpose(low.clamp(max=0))
        most = most + above.transpose(high.clamp(min=0)) + below.transpose(high.clamp(max=0))
        size = size + above.transpose(torch.maximum(low.abs(), high.abs()))
    if not least.ndim:
        return _zeros_like_input(hull[0], middle)
    error = gamma(middle[0].numel() + 8) * size
    middle, radius = middle_and_radius(*(x.squeeze(1) for x in (least - error, most + error)))
    return middle, up_tensor(radius + 4 * UNIT * middle.abs())


def _zeros_like_input(slope: AveragedSlope, middle: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros_like(slope.transpose(middle.unsqueeze(1)).squeeze(1))
    return zero, zero


def _add(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    middle = first[0] + second[0]
    return middle, up_tensor(first[1] + second[1] + 2 * UNIT * middle.abs(), 3)


def quadratic_certificate(problem: LocalProblem) -> float:
    """The quadratic certificate of the dense structure with the slopes of every unit, for the Euclidean norm."""
    if problem.norm != "2":
        return math.inf
    slopes = problem.slopes.intervals(problem.graph)
    if not all(bool(end.isfinite().all()) for ends in slopes.values() for end in ends):
        return math.inf
    return certify_slopes(problem.graph, slopes, problem.budget, problem.seconds)


PROOFS: dict[str, Proof] = {
    "product of layer norms, scaled by the slopes": local_product,
    "interval Jacobian": interval_jacobian,
    "quadratic certificate": quadratic_certificate,
}
