"""A piecewise-linear network written out: affine steps and scalar units with finitely many linear pieces.

`Piecewise` is a graph as dense matrices, for networks small enough to be searched region by region.
Once some units are fixed to one piece each, everything behind them is an affine function of the
input x and of the outputs of the units left free; `forms` computes these functions in float64 with
an entrywise error bound, `ExactForms` computes them without any rounding, as integers.

The float64 weights of the graph are taken as exact. Where the importer rounded (a batch norm fused
into its neighbour, the taps of an average pool) the network meant is the rounded one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CertificateError, LipscopeError
from ..graph import Graph
from ..layers import Layer, LinearLayer
from ..layers.activation import Clamp, LeakyReLU, PiecewiseLinear, ReLU, SoftShrink
from ..layers.max_pool import MaxPool
from ..rounding import UNIT, gamma

Array = np.ndarray


@dataclass(frozen=True)
class Pieces:
    """A continuous piecewise-linear function: slopes[p]·u + offsets[p] between breaks[p − 1] and breaks[p]."""

    breaks: tuple[float, ...]
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]


_RELU = Pieces((0.0,), (0.0, 1.0), (0.0, 0.0))


@dataclass(frozen=True)
class Affine:
    """Values = Σ matrix · (values of an earlier step) + offset."""

    parts: tuple[tuple[int, Array], ...]
    offset: Array


@dataclass(frozen=True)
class Units:
    """Values = pieces(values of an earlier step), entrywise; the units are numbered from `first`."""

    source: int
    pieces: Pieces
    first: int


@dataclass(frozen=True)
class Form:
    """Values as functions of x and of all units' outputs z: centre · (x, z, 1), each entry within radius.

    Columns of units that are fixed, or lie ahead, are zero.
    """

    centre: Array
    radius: Array


class Piecewise:
    """A graph of linear layers, piecewise-linear activations and max pooling as a list of steps.

    Step 0 is the input; `sizes[s]` is the number of values of step s. Max pooling over a window
    becomes a chain max(a, b) = a + relu(b − a), so it adds one unit for every tap but the first.

    Raises:
        LipscopeError: a layer is not piecewise linear, or there are more than `max_units` units.
        CertificateError: a weight is NaN or infinite.
    """

    def __init__(self, graph: Graph, max_units: int) -> None:
        self.graph = graph.to(torch.float64, "cpu")
        self.steps: list[Affine | Units | None] = [None]
        self.sizes = [math.prod(graph.input_shape)]
        self.pieces: list[Pieces] = []
        self.max_units = max_units
        step_of = [0]
        for index, node in enumerate(self.graph.nodes):
            layer = node.layer
            sources = [step_of[i] for i in node.inputs]
            if isinstance(layer, LinearLayer):
                step_of.append(self._linear(layer, index, sources))
            elif isinstance(layer, MaxPool):
                step_of.append(self._max_pool(layer, index, sources[0]))
            elif layer is not None:
                step_of.append(self._units(sources[0], pieces_of(layer, node.place)))
        self.output = step_of[-1]

    @property
    def inputs(self) -> int:
        """The number n of inputs."""
        return self.sizes[0]

    @property
    def units(self) -> int:
        """The number of scalar units."""
        return len(self.pieces)

    def _add(self, step: Affine | Units, size: int) -> int:
        self.steps.append(step)
        self.sizes.append(size)
        return len(self.steps) - 1

    def _affine(self, parts: Sequence[tuple[int, Array]], offset: Array) -> int:
        if not all(np.isfinite(a).all() for a in (offset, *(m for _, m in parts))):
            raise CertificateError("a weight is NaN or infinite: no bound exists")
        return self._add(Affine(tuple(parts), offset), len(offset))

    def _units(self, source: int, pieces: Pieces) -> int:
        first = self.units
        self.pieces += [pieces] * self.sizes[source]
        if self.units > self.max_units:
            raise LipscopeError(
                f"the network has more than {self.max_units} nonlinear units; the exact search is for small "
                "networks (raise max_units to try anyway)"
            )
        return self._add(Units(source, pieces, first), self.sizes[source])

    def _linear(self, layer: LinearLayer, index: int, sources: list[int]) -> int:
        shapes = self.graph.shapes_into(index)
        parts = []
        for place, source in enumerate(sources):
            size = self.sizes[source]
            # Products with unit vectors are exact: every entry is a weight.
            probes = [torch.zeros(size, *shape, dtype=torch.float64) for shape in shapes]
            probes[place] = torch.eye(size, dtype=torch.float64).reshape(size, *shapes[place])
            parts.append((source, layer.apply(*probes).flatten(1).numpy().T))
        zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
        return self._affine(parts, layer.forward(*zeros).flatten().numpy())

    def _max_pool(self, layer: MaxPool, index: int, source: int) -> int:
        cells = _window_cells(layer, self.graph.shapes_into(index)[0])
        size = self.sizes[source]

        def pick(tap: int) -> Array:
            """The matrix that reads tap number `tap` of every window (of those that have so many)."""
            rows = np.zeros((len(cells), size))
            for row, window in enumerate(cells):
                rows[row, window[min(tap, len(window) - 1)]] = 1.0
            return rows

        best = self._affine([(source, pick(0))], np.zeros(len(cells)))
        for tap in range(1, max(map(len, cells), default=1)):
            longer = [row for row, window in enumerate(cells) if tap < len(window)]
            choose = np.eye(len(cells))[longer]
            gain = self._affine([(source, choose @ pick(tap)), (best, -choose)], np.zeros(len(longer)))
            won = self._units(gain, _RELU)
            best = self._affine([(best, np.eye(len(cells))), (won, choose.T)], np.zeros(len(cells)))
        return best

    def forms(self, low: Array, high: Array) -> list[Form]:
        """Every step's form when unit i is confined to the pieces low[i] … high[i]."""
        n = self.inputs
        width = n + self.units + 1
        start = np.zeros((n, width))
        start[:, :n] = np.eye(n)
        found = [Form(start, np.zeros((n, width)))]
        for step in self.steps[1:]:
            if isinstance(step, Affine):
                found.append(self._through(step, found))
            elif isinstance(step, Units):
                found.append(_apply_pieces(step, found[step.source], low, high, n))
        return found

    def _through(self, step: Affine, found: list[Form]) -> Form:
        rows, width = len(step.offset), self.inputs + self.units + 1
        centre, size = np.zeros((rows, width)), np.zeros((rows, width))
        radius = np.zeros((rows, width))
        terms = 2
        for source, matrix in step.parts:
            absolute = np.abs(matrix)
            centre += matrix @ found[source].centre
            size += absolute @ np.abs(found[source].centre)
            radius += absolute @ found[source].radius
            terms += matrix.shape[1] + 1
        centre[:, -1] += step.offset
        size[:, -1] += np.abs(step.offset)
        # Twice the bound: the sums `size` and `radius` are themselves rounded.
        return Form(centre, (1 + 2 * gamma(terms)) * radius + 2 * gamma(terms) * size)

    def evaluate(self, x: Array) -> Array:
        """The pre-activations of all units at the points x (batch, n): shape (batch, units)."""
        values: list[Array] = [x]
        found = np.zeros((len(x), self.units))
        for step in self.steps[1:]:
            if isinstance(step, Affine):
                values.append(sum((values[s] @ m.T for s, m in step.parts), step.offset[None, :]))
            elif isinstance(step, Units):
                u, p = values[step.source], step.pieces
                found[:, step.first : step.first + u.shape[1]] = u
                which = np.searchsorted(p.breaks, u)
                values.append(np.asarray(p.slopes)[which] * u + np.asarray(p.offsets)[which])
        return found

    def pattern(self, x: Array) -> Array:
        """The piece every unit is on at the point x (n,)."""
        u = self.evaluate(x[None])[0]
        return np.array(
            [np.searchsorted(p.breaks, value) for p, value in zip(self.pieces, u, strict=True)], int
        )


def _apply_pieces(step: Units, form: Form, low: Array, high: Array, n: int) -> Form:
    rows = len(form.centre)
    here = slice(step.first, step.first + rows)
    piece = low[here]
    slope = np.asarray(step.pieces.slopes)[piece][:, None]
    centre = slope * form.centre
    centre[:, -1] += np.asarray(step.pieces.offsets)[piece]
    rounding = (
        0.0 if set(step.pieces.slopes) <= {0.0, 1.0, -1.0} and not any(step.pieces.offsets) else 4 * UNIT
    )
    radius = (1 + 4 * UNIT) * np.abs(slope) * form.radius + rounding * (
        np.abs(centre) + np.abs(slope * form.centre)
    )
    free = np.flatnonzero(piece < high[here])
    centre[free], radius[free] = 0.0, 0.0
    centre[free, n + step.first + free] = 1.0
    return Form(centre, radius)


def pieces_of(layer: Layer, place: str = "") -> Pieces:
    """The linear pieces of an activation.

    Raises:
        LipscopeError: it is not piecewise linear, or not one of those known.
        CertificateError: a parameter is NaN or infinite.
    """
    if isinstance(layer, ReLU):
        return _RELU
    if isinstance(layer, LeakyReLU):
        if not math.isfinite(layer.slope):
            raise CertificateError("a weight is NaN or infinite: no bound exists")
        return (
            Pieces((0.0,), (layer.slope, 1.0), (0.0, 0.0))
            if layer.slope != 1.0
            else Pieces((), (1.0,), (0.0,))
        )
    if isinstance(layer, Clamp):
        if layer.low >= layer.high:
            return Pieces((), (0.0,), (layer.high,))
        return Pieces((layer.low, layer.high), (0.0, 1.0, 0.0), (layer.low, 0.0, layer.high))
    if isinstance(layer, SoftShrink):
        width = layer.width
        return Pieces((-width, width), (1.0, 0.0, 1.0), (width, 0.0, -width))
    word = "is not supported" if isinstance(layer, PiecewiseLinear) else "is not piecewise linear"
    raise LipscopeError(
        f"the exact constant needs a piecewise-linear network (ReLU, leaky ReLU, abs, clamp, max pooling): "
        f"{layer.kind} at {place} {word}"
    )


def _window_cells(layer: MaxPool, shape: tuple[int, ...]) -> list[list[int]]:
    """The flat input cells that each window reads, channels first, windows in row-major order."""
    w = layer.windows
    count = math.prod(shape)
    # Numbered from 1, so that padding reads as 0.
    numbers = torch.arange(1, count + 1, dtype=torch.float64).reshape(1, *shape)
    taps = torch.stack(list(w.tap_views(w.pad(numbers)))).reshape(w.taps, -1).T
    return [[int(cell) - 1 for cell in window if cell > 0] for window in taps.tolist()]


@dataclass(frozen=True)
class _IntegerForm:
    """Rows of integers over (x, 1); the true values are integers · 2^−shift."""

    rows: Array
    shift: int


class ExactForms:
    """Pre-activations as exact affine functions of x, once all units that they read are fixed."""

    def __init__(self, network: Piecewise) -> None:
        self.network = network
        self._matrices: dict[tuple[int, int], tuple[Array, int]] = {}
        self._cache: dict[tuple[int, bytes], _IntegerForm] = {}

    def row(self, step: int, index: int, pieces: Array) -> tuple[list[int], int]:
        """Coefficients of (x, 1) for one value of a step, as integers, and the shift: value·2^shift.

        Units with piece −1 count as absent: the value must not depend on them.
        """
        form = self._form(step, pieces)
        return [int(v) for v in form.rows[index]], form.shift

    def _form(self, step: int, pieces: Array) -> _IntegerForm:
        network = self.network
        if step == 0:
            n = network.inputs
            return _IntegerForm(np.eye(n, n + 1, dtype=int).astype(object), 0)
        what = network.steps[step]
        before = what.first + network.sizes[step] if isinstance(what, Units) else self._units_before(step)
        key = (step, pieces[:before].tobytes())
        if key not in self._cache:
            if len(self._cache) > 4096:
                self._cache.clear()
            self._cache[key] = self._compute(step, pieces)
        return self._cache[key]

    def _units_before(self, step: int) -> int:
        network = self.network
        sizes = [network.sizes[s] for s, w in enumerate(network.steps[:step]) if isinstance(w, Units)]
        return sum(sizes)

    def _compute(self, step: int, pieces: Array) -> _IntegerForm:
        network = self.network
        what = network.steps[step]
        if isinstance(what, Affine):
            offset, offset_shift = self._integers(step, -1, what.offset)
            terms = [_IntegerForm(offset[:, None] * _last_unit(network.inputs + 1), offset_shift)]
            for place, (source, matrix) in enumerate(what.parts):
                weights, shift = self._integers(step, place, matrix)
                form = self._form(source, pieces)
                terms.append(_IntegerForm(weights @ form.rows, shift + form.shift))
            return _aligned_sum(terms)
        assert isinstance(what, Units)
        form = self._form(what.source, pieces)
        piece = pieces[what.first : what.first + network.sizes[step]]
        slopes, slope_shift = to_integers(np.array([*what.pieces.slopes, 0.0]))
        offsets, offset_shift = to_integers(np.array([*what.pieces.offsets, 0.0]))
        # Piece −1 picks the zeros appended at the end.
        scaled = _IntegerForm(slopes[piece][:, None] * form.rows, form.shift + slope_shift)
        constant = _IntegerForm(offsets[piece][:, None] * _last_unit(network.inputs + 1), offset_shift)
        return _aligned_sum([scaled, constant])

    def _integers(self, step: int, place: int, matrix: Array) -> tuple[Array, int]:
        if (step, place) not in self._matrices:
            self._matrices[step, place] = to_integers(matrix)
        return self._matrices[step, place]


def _last_unit(width: int) -> Array:
    unit = np.zeros((1, width), dtype=int).astype(object)
    unit[0, -1] = 1
    return unit


def _aligned_sum(terms: list[_IntegerForm]) -> _IntegerForm:
    shift = max(term.shift for term in terms)
    total = np.zeros_like(terms[0].rows)
    for term in terms:
        total = total + term.rows * 2 ** (shift - term.shift)
    return _IntegerForm(total, shift)


def to_integers(values: Array) -> tuple[Array, int]:
    """Integers (dtype object) and a shift with integers·2^−shift equal to the float64 values exactly."""
    ratios = [float(v).as_integer_ratio() for v in values.ravel()]
    shift = max((denominator.bit_length() - 1 for _, denominator in ratios), default=0)
    whole = [numerator << (shift - denominator.bit_length() + 1) for numerator, denominator in ratios]
    integers = np.empty(len(whole), dtype=object)
    integers[:] = whole
    return integers.reshape(values.shape), shift
