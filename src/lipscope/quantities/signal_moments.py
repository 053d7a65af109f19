"""The mean-field recursion: moments of every signal in a wide network with random weights, node by node.

A linear layer with weights is random: its weights and biases count only by their variances, and its outputs are
Gaussian. Beside the square of a unit the recursion follows its product with units beside it: the same unit on
another input, and another cell of each window that is pooled. Whatever the theory does not cover ends it there.

Sources: B. Poole, S. Lahiri, M. Raghu, J. Sohl-Dickstein, S. Ganguli (2016), length and correlation maps; S. Schoenholz,
J. Gilmer, S. Ganguli, J. Sohl-Dickstein (2017), χ and depth scales; L. Xiao et al. (2018), convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..graph import INPUT, Graph
from ..graph.graph import Node
from ..layers.activation import Activation
from ..layers.average_pool import AveragePool
from ..layers.convolution import Convolution, TransposedConvolution
from ..layers.copies import Copies
from ..layers.dense import Dense
from ..layers.interpolation import Interpolation
from ..layers.max_pool import MaxPool
from ..layers.merge import SideBySide, Sum
from ..layers.reshape import Permute, Reshape
from ..layers.scaling import Scaling
from .gaussian_laws import Law, Maximum, Step, moments

RANDOM = (Dense, Convolution, TransposedConvolution)
"""Layers whose weights count by their statistics alone."""
_RESAMPLED = (AveragePool, Interpolation)


@dataclass(frozen=True)
class InputMoments:
    """What the recursion starts from: of the entries x of an input, over entries and inputs.

    `mean` E x, `square` E x², `other` E x x' for the same entry of two inputs, `windows` E x x' for two cells
    under one window, by the pooling node. `gaussian` says that entries are independent Gaussians.
    """

    mean: float
    square: float
    other: float
    windows: Mapping[int, float]
    gaussian: bool

    @classmethod
    def white(cls, square: float) -> InputMoments:
        """Independent Gaussian entries of variance `square`."""
        return cls(0.0, square, 0.0, {}, True)

    def scaled(self, factor: float) -> InputMoments:
        """Those of the inputs times √factor."""
        windows = {node: factor * value for node, value in self.windows.items()}
        return InputMoments(
            math.sqrt(factor) * self.mean, factor * self.square, factor * self.other, windows, self.gaussian
        )


@dataclass(frozen=True)
class Signal:
    """What is known of one node: moments of its units x, and how much they stretch.

    `pairs` (K,) are products E x x' with units beside it, the one on another input first; `growth` is E ‖∂x/∂input‖², the
    mean square of a row of the Jacobian up to here. `law` (None: only moments are known) has the growth
    `base_growth` before its steps. `roots` are the random layers whose weights the signal holds at first hand.
    """

    mean: float
    square: float
    pairs: Tensor
    growth: float
    roots: frozenset[int]
    law: Law | None = None
    base_growth: float = 0.0

    @property
    def correlation(self) -> float:
        """Of the unit on two inputs, E x x' / E x²."""
        return float(self.pairs[0]) / self.square if self.square > 0 else 1.0

    def as_law(self) -> Law:
        """Its law, or the Gaussian with its moments."""
        if self.law is not None:
            return self.law
        centred = self.mean * self.mean
        return Law(self.mean, max(self.square - centred, 0.0), self.pairs - centred)


@dataclass(frozen=True)
class Slopes:
    """What the theory predicts of a nonlinear node: E φ', E φ'²; for max pooling those of one tap, 1/τ."""

    slope: float
    square_slope: float


@dataclass(frozen=True)
class Recursion:
    """By node: what is known of signals and slopes; where a law was taken for Gaussian; where it ends, and why."""

    signals: dict[int, Signal]
    slopes: dict[int, Slopes]
    approximated: list[int]
    stopped: dict[int, str]


def recursion(graph: Graph, inputs: InputMoments) -> Recursion:
    """Follow the moments from the input to the output."""
    return _Recursion(graph, inputs).run()


@dataclass(frozen=True)
class WeightStatistics:
    """The weights of a random layer.

    `fan_in` is the mean number of inputs that a unit reads, padding not counted. Weights and biases have mean 0 in the
    theory, so their variances are their mean squares.
    """

    fan_in: float
    variance: float
    bias_variance: float

    @classmethod
    def of(cls, node: Node) -> WeightStatistics | None:
        """Those of a node's layer; None if it holds no weights to take as random."""
        layer = node.layer
        if isinstance(layer, Dense):
            weight, fan_in = layer.weight, float(layer.weight.shape[1])
        elif isinstance(layer, (Convolution, TransposedConvolution)):
            convolution = layer if isinstance(layer, Convolution) else layer.adjoint
            weight = convolution.weight
            # Every weight is used once for each tap that reads a cell.
            entries = weight.numel() // convolution.windows.taps * convolution.windows.reads()
            fan_in = entries / math.prod(node.shape)
        else:
            return None
        bias = 0.0 if layer.offset is None else float(layer.offset.double().square().mean())
        return cls(fan_in, float(weight.double().square().mean()), bias)

    @property
    def gain(self) -> float:
        """σ_w² = fan-in · variance."""
        return self.fan_in * self.variance


class _Recursion:
    def __init__(self, graph: Graph, inputs: InputMoments) -> None:
        self.graph, self.inputs = graph, inputs
        self.windows = {node: number for number, node in enumerate(windowed(graph), start=1)}
        self.found = Recursion({}, {}, [], {})

    def run(self) -> Recursion:
        signals = self.found.signals
        for index, node in enumerate(self.graph.nodes):
            if node.layer is None:
                signals[index] = self._input()
            elif all(i in signals for i in node.inputs):
                try:
                    signals[index] = self._next(index, node, [signals[i] for i in node.inputs])
                except _NotCoveredError as reason:
                    self.found.stopped[index] = str(reason)
        return self.found

    def _input(self) -> Signal:
        given = self.inputs
        other = [given.windows.get(node, given.mean**2) for node in self.windows]
        pairs = torch.tensor([given.other, *other], dtype=torch.float64)
        signal = Signal(given.mean, given.square, pairs, 1.0, frozenset([INPUT]))
        if not given.gaussian:
            return signal
        return replace(signal, law=signal.as_law(), base_growth=1.0)

    def _next(self, index: int, node: Node, inputs: list[Signal]) -> Signal:
        layer, signal = node.layer, inputs[0]
        if isinstance(layer, RANDOM):
            return self._random(index, node, signal)
        if isinstance(layer, Activation):
            return self._activation(index, layer, signal)
        if isinstance(layer, MaxPool):
            return self._max_pool(index, layer, signal)
        if isinstance(layer, _RESAMPLED):
            return self._resampled(index, layer, signal)
        if isinstance(layer, (Reshape, Permute)):
            return signal
        if isinstance(layer, Copies):
            return _copies(layer, signal)
        if isinstance(layer, Scaling):
            return _scaling(layer, signal)
        if isinstance(layer, Sum):
            return _sum(layer, inputs)
        if isinstance(layer, SideBySide):
            return _side_by_side(inputs, [math.prod(s) for s in self.graph.shapes_into(index)])
        assert layer is not None
        raise _NotCoveredError(f"mean-field theory does not cover {layer.kind}")

    def _random(self, index: int, node: Node, x: Signal) -> Signal:
        weights = WeightStatistics.of(node)
        assert weights is not None
        law = Law(
            0.0,
            weights.gain * x.square + weights.bias_variance,
            weights.gain * x.pairs + weights.bias_variance,
        )
        return _of_law(law, weights.gain * x.growth, frozenset([index]))

    def _law(self, index: int, x: Signal, known: bool = True) -> tuple[Law, float]:
        """The law of the input of a nonlinear node, and its growth; noted where it is taken for Gaussian."""
        if x.law is None or not known:
            self.found.approximated.append(index)
            return replace(x, law=None).as_law(), x.growth
        return x.law, x.base_growth

    def _activation(self, index: int, layer: Activation, x: Signal) -> Signal:
        if not same_for_all_units(layer):
            raise _NotCoveredError(f"{layer.kind} differs between units")
        law, growth = self._law(index, x)
        return self._after(index, x, law.then(layer), growth)

    def _max_pool(self, index: int, layer: MaxPool, x: Signal) -> Signal:
        steps = () if x.law is None else x.law.steps
        law, growth = self._law(index, x, known=all(map(_is_monotone, steps)))
        taps = layer.windows.taps
        found = self._after(index, x, law.then(Maximum(taps, self.windows[index])), growth)
        self.found.slopes[index] = Slopes(1 / taps, 1 / taps)
        return found

    def _after(self, index: int, x: Signal, law: Law, growth: float) -> Signal:
        # The units beside this one under windows that are still to come.
        ahead = [number for node, number in self.windows.items() if node > index]
        m = moments(law, [0, *ahead])
        if not all(math.isfinite(value) for value in (m.square, m.square_slope, m.gain)):
            raise _NotCoveredError("its moments under a Gaussian do not exist")
        self.found.slopes[index] = Slopes(m.slope, m.square_slope)
        return Signal(m.mean, m.square, m.pairs, growth * m.gain, x.roots, law, growth)

    def _resampled(self, index: int, layer: AveragePool | Interpolation, x: Signal) -> Signal:
        """Sums over the cells of a window, any two of which have one covariance."""
        rows = [a.sum(1) for a in layer.factors]
        total = math.prod(float(r.mean()) for r in rows)
        squared_total = math.prod(float(r.square().mean()) for r in rows)
        squares = math.prod(float(a.square().sum(1).mean()) for a in layer.factors)
        beside = squared_total - squares
        pair = self.windows[index]
        signal = replace(
            x,
            mean=total * x.mean,
            square=squares * x.square + beside * float(x.pairs[pair]),
            pairs=squared_total * x.pairs,
            # Rows of the Jacobian at two places are orthogonal on average.
            growth=squares * x.growth,
        )
        if x.law is None or x.law.steps:
            return replace(signal, law=None)
        law = Law(
            total * x.law.mean,
            squares * x.law.variance + beside * float(x.law.pairs[pair]),
            squared_total * x.law.pairs,
        )
        return replace(signal, law=law, base_growth=signal.growth)


class _NotCoveredError(Exception):
    """Why the theory ends at a node."""


def same_for_all_units(layer: Activation) -> bool:
    """Whether an activation is one function; PReLU has one a channel."""
    return all(parameter.numel() == 1 for parameter in layer.parameters())


def _is_monotone(step: Step) -> bool:
    """Whether the largest of some units is that of their Gaussians; of maxima over windows that overlap it is not."""
    return isinstance(step, Activation) and step.slope_range[0] >= 0


def _of_law(law: Law, growth: float, roots: frozenset[int]) -> Signal:
    """The signal with a Gaussian law."""
    centred = law.mean**2
    return Signal(law.mean, law.variance + centred, law.pairs + centred, growth, roots, law, growth)


def _copies(layer: Copies, x: Signal) -> Signal:
    kept = 1 - float((layer.cells == math.prod(layer.source)).double().mean())
    if kept == 1:
        return x
    return replace(
        x, mean=kept * x.mean, square=kept * x.square, pairs=kept * x.pairs, growth=kept * x.growth, law=None
    )


def _scaling(layer: Scaling, x: Signal) -> Signal:
    """One number for all units keeps a Gaussian one; factors that differ leave the moments."""
    factor = layer.factor.double()
    offset = torch.zeros_like(factor) if layer.offset is None else layer.offset.double()
    mean, square = float(factor.mean()), float(factor.square().mean())
    shift, shift_square = float(offset.mean()), float(offset.square().mean())
    if factor.numel() == offset.numel() == 1 and x.law is not None and not x.law.steps:
        law = Law(mean * x.law.mean + shift, square * x.law.variance, square * x.law.pairs)
        return _of_law(law, square * x.growth, x.roots)
    cross = 2 * float((factor * offset).mean()) * x.mean
    return replace(
        x,
        mean=mean * x.mean + shift,
        square=square * x.square + cross + shift_square,
        pairs=square * x.pairs + cross + shift_square,
        growth=square * x.growth,
        law=None,
    )


def _sum(layer: Sum, inputs: list[Signal]) -> Signal:
    """Signals of different random layers are independent: their variances add."""
    roots = [root for x in inputs for root in x.roots]
    if len(set(roots)) < len(roots):
        raise _NotCoveredError("it adds signals that depend on each other")
    terms = list(zip(layer.coefficients, inputs, strict=True))
    mean = sum(c * x.mean for c, x in terms)
    variance = sum(c * c * (x.square - x.mean**2) for c, x in terms)
    covariances = sum((c * c * (x.pairs - x.mean**2) for c, x in terms), torch.zeros_like(inputs[0].pairs))
    growth = sum(c * c * x.growth for c, x in terms)
    law = Law(mean, variance, covariances)
    found = _of_law(law, growth, frozenset(roots))
    gaussian = all(x.law is not None and not x.law.steps for x in inputs)
    return found if gaussian else replace(found, law=None)


def _side_by_side(inputs: list[Signal], sizes: list[int]) -> Signal:
    """A mixture of the parts, by their sizes."""
    shares = [size / sum(sizes) for size in sizes]
    parts = list(zip(shares, inputs, strict=True))
    return Signal(
        mean=sum(s * x.mean for s, x in parts),
        square=sum(s * x.square for s, x in parts),
        pairs=sum((s * x.pairs for s, x in parts), torch.zeros_like(inputs[0].pairs)),
        growth=sum(s * x.growth for s, x in parts),
        roots=frozenset(root for x in inputs for root in x.roots),
    )


def windowed(graph: Graph) -> list[int]:
    """The nodes that pool or sum over windows."""
    kinds = (MaxPool, *_RESAMPLED)
    return [i for i, node in enumerate(graph.nodes) if isinstance(node.layer, kinds)]
