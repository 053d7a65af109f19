"""Mean-field theory: what a wide random network of the same weight statistics would do, beside what this one does."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..graph import INPUT, Graph
from ..jacobian import linearize
from ..layers.activation import Activation
from ..layers.max_pool import MaxPool
from ..layers.reshape import Permute, Reshape
from ..progress import Progress, silent
from ..results import (
    Cost,
    DepthScale,
    FieldMeasurement,
    FieldPrediction,
    LayerField,
    LayerSlope,
    MeanField,
    Measured,
    NotCovered,
)
from ..slopes import Diagonal, Slope
from ..spectral import spectral_norm
from .gaussian_laws import Law, moments
from .input_moments import input_moments
from .signal_moments import (
    RANDOM,
    InputMoments,
    Recursion,
    WeightStatistics,
    recursion,
    same_for_all_units,
)
from .spectral_edge import spectral_edge

if TYPE_CHECKING:
    from ..data import Samples

_STEP = 1e-4
"""Relative change of q_0 behind the sensitivity of lengths, predicted."""
_STRETCH = 1.02
"""The factor of inputs behind the same, measured: large against the rounding of float32."""
_STREAM = 0x6D66 << 32
"""Added to seeds: numbers drawn here must not be those that the network's weights were drawn from."""


def mean_field_theory(
    graph: Graph, inputs: InputMoments | None = None, slopes: Sequence[LayerSlope] = ()
) -> MeanField:
    """What mean-field theory predicts, from the statistics of the weights alone; no pass over data.

    Every linear layer counts by σ_w² = fan-in · var(w) and σ_b² = var(b) alone: this is the network as it would be if
    training had set nothing but these two numbers a layer.

    Args:
        graph: the network.
        inputs: moments of the inputs, from `input_moments`; standard Gaussians if omitted.
        slopes: mean slopes over data (`MeanSlopes.table`), which become the measured `slope` of the layers.

    Source: Poole et al. (2016); Schoenholz et al. (2017).
    """
    started = time.perf_counter()
    inputs = InputMoments.white(1.0) if inputs is None else inputs
    found = recursion(graph, inputs)
    measured = {row.place: row.active for row in slopes}
    layers = [
        _row(graph, found, index, FieldMeasurement(slope=_known(measured.get(graph.nodes[index].place))))
        for index in graph.nonlinear()
    ]
    last, depth = _last_activation(graph)
    growth = found.signals[last].growth if last in found.signals else None
    log_growth = math.log(growth) if growth else None if growth is None else -math.inf
    output = found.signals.get(len(graph.nodes) - 1)
    return MeanField(
        inputs="Gaussian" if inputs.gaussian else "data",
        input_mean=inputs.mean,
        input_length=inputs.square,
        input_correlation=inputs.other / inputs.square if inputs.square > 0 else 1.0,
        layers=layers,
        depth=depth,
        log_growth=log_growth,
        phase=None if log_growth is None or depth == 0 else _phase(log_growth),
        correlation_scale=DepthScale(predicted=_scale(depth, growth)),
        length_scale=DepthScale(predicted=_scale(depth, _length_sensitivity(graph, inputs, found, last))),
        frobenius=None if output is None else output.growth * math.prod(graph.output_shape),
        spectral_edge=spectral_edge(graph, found),
        not_covered=[
            NotCovered(place=graph.nodes[i].place, layer=_kind(graph, i), reason=reason)
            for i, reason in found.stopped.items()
        ],
        cost=Cost(seconds=time.perf_counter() - started),
    )


def mean_field(
    graph: Graph,
    samples: Samples | None = None,
    *,
    length: float = 1.0,
    count: int = 64,
    probes: int = 4,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> MeanField:
    """Mean-field theory beside what the network does, layer by layer, each measured number with its standard error.

    E ‖J‖_F² is measured up to every layer by Hutchinson's estimator: ‖J_k v‖² for Gaussian v.

    Args:
        graph: the network.
        samples: inputs; if omitted, Gaussian ones with entries of mean square `length` (q_0).
        count: at most so many inputs, at random.
        probes: random directions v per input.
        batch_size: inputs treated at once.
        dtype, device: of the measurements; the theory is computed in float64 on the CPU.
        seed: of inputs and directions.
        progress: called with ("mean field", done, total).

    Raises:
        DataError: a sample cannot be read.
        ValueError: `count`, `probes`, `batch_size` or `length` is not positive.

    Source: M. Hutchinson (1990); Poole et al. (2016); Schoenholz et al. (2017).
    """
    if min(count, probes, batch_size) < 1 or not length > 0:
        raise ValueError("count, probes, batch_size and length must be positive")
    started = time.perf_counter()
    if samples is None:
        moments, inputs = InputMoments.white(length), None
    else:
        inputs = samples.take(count, seed)
        count = len(inputs)
        moments = input_moments(graph, inputs, batch_size)
    theory = mean_field_theory(graph, moments)
    generator = torch.Generator().manual_seed(_STREAM + seed)
    taken = _Measurements(graph.to(dtype, device), probes, theory.spectral_edge is not None, generator)
    # In random order: neighbours are compared, and data are often sorted by class.
    order = torch.randperm(count, generator=generator).tolist()
    for start in range(0, count, batch_size):
        some = order[start : start + batch_size]
        if inputs is None:
            x = math.sqrt(length) * torch.randn(len(some), *graph.input_shape, generator=generator)
        else:
            x = inputs.batch(some)
        taken.add(x.to(device, dtype))
        progress("mean field", start + len(some), count)
    last, depth = _last_activation(graph)
    layers = [
        row.model_copy(update={"measured": taken.at(row.node, _below(graph, row.node))})
        for row in theory.layers
    ]
    frobenius = taken.mean("growth", len(graph.nodes) - 1)
    units = math.prod(graph.output_shape)
    return theory.model_copy(
        update={
            "layers": layers,
            "correlation_scale": theory.correlation_scale.model_copy(
                update={"measured": _scale(depth, taken.mean("growth", last).value)}
            ),
            "length_scale": theory.length_scale.model_copy(
                update={"measured": _scale(depth, taken.length_sensitivity(last))}
            ),
            "measured_frobenius": Measured(
                value=units * frobenius.value,
                error=None if frobenius.error is None else units * frobenius.error,
            ),
            "measured_norm": taken.mean("norm", INPUT) if theory.spectral_edge is not None else None,
            "samples": count,
            "cost": Cost(seconds=time.perf_counter() - started, forward_passes=float(count * (3 + probes))),
        }
    )


def _row(graph: Graph, found: Recursion, index: int, measured: FieldMeasurement) -> LayerField:
    node, source = graph.nodes[index], _source(graph, index)
    weights = None if source is None else WeightStatistics.of(graph.nodes[source])
    return LayerField(
        node=index,
        place=node.place,
        layer=_kind(graph, index),
        units=math.prod(node.shape),
        weight_gain=None if weights is None else weights.gain,
        bias_variance=None if weights is None else weights.bias_variance,
        approximated=index in found.approximated,
        predicted=_prediction(graph, found, index),
        measured=measured,
    )


def _prediction(graph: Graph, found: Recursion, index: int) -> FieldPrediction | None:
    if index not in found.signals or index not in found.slopes:
        return None
    before, after = found.signals[graph.nodes[index].inputs[0]], found.signals[index]
    below = _below(graph, index)
    growth = 0.0 if below is None else found.signals[below].growth
    return FieldPrediction(
        mean=before.mean,
        length=before.square,
        correlation=before.correlation,
        slope=found.slopes[index].slope,
        square_slope=found.slopes[index].square_slope,
        chi=after.growth / growth if growth > 0 else None,
        growth=after.growth,
    )


def _source(graph: Graph, index: int) -> int | None:
    """The random layer whose outputs enter an activation, perhaps pooled or rearranged."""
    if not isinstance(graph.nodes[index].layer, Activation):
        return None
    (before,) = graph.nodes[index].inputs
    while isinstance(graph.nodes[before].layer, (MaxPool, Reshape, Permute)):
        (before,) = graph.nodes[before].inputs
    return before if isinstance(graph.nodes[before].layer, RANDOM) else None


def _below(graph: Graph, index: int) -> int | None:
    """The node from which χ of a layer counts: what its random layer reads, or what it pools."""
    node = graph.nodes[index]
    if isinstance(node.layer, MaxPool):
        return node.inputs[0]
    source = _source(graph, index)
    return None if source is None else graph.nodes[source].inputs[0]


def _last_activation(graph: Graph) -> tuple[int, int]:
    """The last activation (the output if there is none), and the most activations on a path to it, its own included."""
    depth = {INPUT: 0}
    last = len(graph.nodes) - 1
    for index, node in enumerate(graph.nodes):
        if node.layer is not None:
            active = isinstance(node.layer, Activation)
            depth[index] = max(depth[i] for i in node.inputs) + active
    activations = [i for i, node in enumerate(graph.nodes) if isinstance(node.layer, Activation)]
    last = activations[-1] if activations else len(graph.nodes) - 1
    return last, depth[last]


def _phase(log_growth: float) -> Literal["ordered", "critical", "chaotic"]:
    return "critical" if abs(log_growth) < 1 else "chaotic" if log_growth > 0 else "ordered"


def _scale(depth: int, factor: float | None) -> float | None:
    """ξ = depth / |log factor|; None where the factor is not known or there is no depth."""
    if factor is None or not factor > 0 or depth == 0:
        return None if factor is None or depth == 0 else 0.0
    return math.inf if factor == 1 else depth / abs(math.log(factor))


def _length_sensitivity(graph: Graph, inputs: InputMoments, found: Recursion, last: int) -> float | None:
    """Dq/dq_0, q the mean square behind the last activation."""
    if last not in found.signals or inputs.square == 0:
        return None
    moved = recursion(graph, inputs.scaled(1 + _STEP)).signals[last].square
    return (moved - found.signals[last].square) / (_STEP * inputs.square)


def _kind(graph: Graph, index: int) -> str:
    layer = graph.nodes[index].layer
    return "" if layer is None else layer.kind


def _known(value: float | None) -> Measured | None:
    return None if value is None else Measured(value=value)


class _Measurements:
    """What the network does, as one number an input for every quantity and node."""

    def __init__(self, graph: Graph, probes: int, norms: bool, generator: torch.Generator) -> None:
        self.graph, self.probes, self.norms, self.generator = graph, probes, norms, generator
        self.last, _ = _last_activation(graph)
        self.values: defaultdict[tuple[str, int], list[Tensor]] = defaultdict(list)

    def add(self, x: Tensor) -> None:
        """Evaluate a batch (B, *in)."""
        slopes: dict[int, Slope] = {}
        layers = self.graph.nonlinear()

        def visit(index: int, h: Tensor) -> Tensor:
            value, slopes[index] = layers[index].linearize(h)
            self._keep("mean", index, _per_input(h))
            self._keep("length", index, _per_input(h.square()))
            # Of disjoint pairs, so that they are independent.
            self._keep("product", index, _per_input(h[0:-1:2] * h[1::2]))
            self._keep("partners", index, _per_input((h[0:-1:2].square() + h[1::2].square()) / 2))
            slope = slopes[index]
            if isinstance(slope, Diagonal):
                self._keep("slope", index, _per_input(slope.values))
                self._keep("square_slope", index, _per_input(slope.values.square()))
            if index == self.last:
                self._keep("square", index, _per_input(value.square()))
            return value

        self.graph.evaluate(x, visit)
        self._keep("square", INPUT, _per_input(x.square()))
        self._stretched(x)
        jacobian = linearize(self.graph, slopes, len(x))
        v = torch.randn(self.probes, *x.shape, generator=self.generator, dtype=torch.float64)

        def watch(index: int, value: Tensor) -> None:
            squares = _per_input(value.square()).unflatten(0, (self.probes, len(x)))
            self._keep("growth", index, squares.mean(0))

        jacobian.matvec(v.to(x.device, x.dtype), watch)
        if self.norms:
            found = spectral_norm(jacobian, tolerance=1e-3, dtype=x.dtype, device=x.device)
            self._keep("norm", INPUT, found.value)

    def _stretched(self, x: Tensor) -> None:
        """The lengths of longer inputs at the last activation."""

        def visit(index: int, h: Tensor) -> Tensor:
            value = self.graph.nonlinear()[index].forward(h)
            if index == self.last:
                self._keep("moved", index, _per_input(value.square()))
            return value

        self.graph.evaluate(_STRETCH * x, visit)

    def _keep(self, name: str, node: int, values: Tensor) -> None:
        # To the CPU first: not every device has float64.
        self.values[name, node].append(values.detach().cpu().double())

    def _all(self, name: str, node: int) -> Tensor:
        return torch.cat(self.values[name, node])

    def mean(self, name: str, node: int) -> Measured:
        """The mean over inputs."""
        values = self._all(name, node)
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
        return Measured(value=float(values.mean()), error=error)

    def ratio(self, above: tuple[str, int], below: tuple[str, int]) -> Measured | None:
        """A ratio of means; its error to first order."""
        top, bottom = self._all(*above), self._all(*below)
        if len(top) == 0 or not float(bottom.mean()) > 0:
            return None
        value = float(top.mean() / bottom.mean())
        spread = (top - value * bottom) / bottom.mean()
        error = float(spread.std()) / math.sqrt(len(top)) if len(top) > 1 else None
        return Measured(value=value, error=error)

    def at(self, node: int, below: int | None) -> FieldMeasurement:
        """All numbers of one nonlinear node."""
        known = ("slope", node) in self.values
        mean, length = self.mean("mean", node), self.mean("length", node)
        return FieldMeasurement(
            mean=mean,
            length=length,
            gaussian_slope=self._gaussian_slope(node, mean.value, length.value),
            correlation=self.ratio(("product", node), ("partners", node)),
            slope=self.mean("slope", node) if known else None,
            square_slope=self.mean("square_slope", node) if known else None,
            chi=None if below is None else self.ratio(("growth", node), ("growth", below)),
            growth=self.mean("growth", node),
        )

    def _gaussian_slope(self, node: int, mean: float, length: float) -> float | None:
        layer = self.graph.nodes[node].layer
        if not isinstance(layer, Activation) or not same_for_all_units(layer):
            return None
        variance = max(length - mean * mean, 0.0)
        slope = moments(Law(mean, variance, torch.zeros(0, dtype=torch.float64), (layer,))).slope
        return slope if math.isfinite(slope) else None

    def length_sensitivity(self, node: int) -> float | None:
        """Dq/dq_0 by a difference quotient over the same inputs; None where there is no activation."""
        if ("moved", node) not in self.values:
            return None
        change = float((self._all("moved", node) - self._all("square", node)).mean())
        return change / ((_STRETCH**2 - 1) * float(self._all("square", INPUT).mean()))


def _per_input(x: Tensor) -> Tensor:
    """Means over the units of each input of a batch."""
    return x.unsqueeze(-1).flatten(1).mean(1)
