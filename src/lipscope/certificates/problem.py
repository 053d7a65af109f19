"""A piece of a network as a quadratic problem: free variables, and the linear maps between them.

The variables are the piece's input difference x and the output difference z_k of every nonlinear
layer (and of every truncation to the box, see below). All else is linear in them: what layer k
reads, u_k = Σ_j V_kj z_j, and the output y = Σ_j C_j z_j. What is known of z_k is

* elementwise slopes in [α, β]: (z − αu)(z − βu) ≤ 0 for every unit;
* max pooling, with the activation before it: z = yᵀu over the taps u of each window, y in the
  convex hull of the `corners` (unit vectors times α or β; 0 where a window may see nothing).

Two structures give the maps as matrices. `DenseProblem` writes them out: any small graph.
`FourierProblem` splits them by frequency on a hierarchy of tori (`lattice.py`): convolutional
pieces of any size, with one parameter a channel. There, what a layer computes outside its box must
not reach the next one; the truncation is a slope of 0, so it costs nothing where an activation or
a pooling follows, and is a variable with slopes in [0, 1] elsewhere.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from ..graph import INPUT, Graph
from ..layers import LinearLayer
from ..layers.activation import Activation
from ..layers.base import Filter, Shape
from ..layers.max_pool import MaxPool
from ..layers.merge import Concatenation, Stack, Sum
from ..layers.reshape import Permute, Reshape
from ..windows import Windows
from .enclosure import Enclosure, frobenius, regroup
from .lattice import Lattice, Level

X = "x"
"""The name of the input variable."""


MOVES = (Sum, Concatenation, Stack, Reshape, Permute)
"""Linear layers that are never written out as matrices."""


class NoProblemError(Exception):
    """The piece does not fit the structure; the reason is for developers, the caller has others."""


@dataclass(frozen=True)
class Variable:
    """A free variable: `width` parameters, each shared by `copies` rows (aliases), row = copy·width + i."""

    name: str
    width: int
    copies: int
    alpha: Tensor
    beta: Tensor
    taps: int = 0
    """Taps of a window, 0 for an elementwise variable."""
    corners: Tensor | None = None
    """Of a window: the points (n, taps) whose convex hull holds every selector."""

    @property
    def size(self) -> int:
        """Rows of the variable in one block."""
        return self.width * self.copies


@dataclass(frozen=True)
class Form:
    """A tensor as a linear form of the variables; a part of None is the identity of that variable."""

    parts: Mapping[str, Enclosure | None]
    boxed: bool = True
    """Whether it is zero outside its box on the torus."""


class WindowReader(ABC):
    """The taps of every window of a tensor: turns maps onto the tensor into maps onto the taps."""

    @abstractmethod
    def read(self, u: Tensor) -> Tensor:
        """(F, g, rows, c) → (F, g', taps, rows', c), rows' of the windows behind their taps."""

    def mean(self, h: Tensor, u: Tensor) -> Tensor:
        """The maps onto hᵀ(taps) of every window: h (width, taps), result (F, g', rows', c)."""
        taps = self.read(u)
        return torch.einsum("ct,fgtcn->fgcn", h.repeat(taps.shape[3] // len(h), 1).to(u.dtype), taps)

    def spread(self, r: Tensor, u: Tensor) -> Tensor:
        """Maps (F, g', n·rows', c) whose rows have the energy |R(taps)|² in all; r (width, taps, taps)."""
        taps = self.read(u)
        r = r.repeat(taps.shape[3] // len(r), 1, 1).to(u.dtype)
        return torch.einsum("cst,fgtcn->fgscn", r, taps).flatten(2, 3)

    @property
    @abstractmethod
    def terms(self) -> int:
        """How many products one entry of `read` sums up."""

    @abstractmethod
    def relative_error(self) -> float:
        """Bound of the spectral norm of the reader's error."""


@dataclass(frozen=True)
class Reading:
    """What a variable reads."""

    variable: Variable
    form: Form
    reader: WindowReader | None = None


@dataclass
class Maps:
    """The maps of a batch of F blocks: what each variable reads, in topological order, and the output.

    If the output is pooled with overlap on the torus, `form` is what the pooling reads and `pooled`
    holds the window taps' phases; see `FourierProblem`.
    """

    readings: list[Reading]
    output: Form
    blocks: int
    dtype: torch.dtype
    pooled: PooledOutput | None = None


@dataclass(frozen=True)
class PooledOutput:
    """The last pooling of a piece, whose output energy is at most Σ_windows uᵀBu, B ≽ eᵢeᵢᵀ for every tap.

    That form repeats with the stride, so it couples each frequency with its aliases on the coarser
    torus, all of which are on the lattice of its input: `phases` (F, g, s^d, taps), the frequency
    itself first, and `places` (F, g, s^d) their row-major numbers on that torus (of f or −f).
    """

    width: int
    taps: int
    phases: Tensor
    places: Tensor
    cells: int


class Problem(ABC):
    """The maps of a piece in one structure."""

    structure: str

    def __init__(self, graph: Graph, slopes: Mapping[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.graph = graph
        self.slopes = dict(slopes or {})
        self.last = len(graph.nodes) - 1

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of blocks."""

    @abstractmethod
    def maps(self, blocks: Tensor) -> Maps:
        """The maps of the blocks numbered (int64)."""

    @property
    @abstractmethod
    def input(self) -> Variable:
        """The variable x."""

    @property
    def variables(self) -> list[Variable]:
        """X and the others, in topological order."""
        return [self.input, *(reading.variable for reading in self.maps(torch.arange(0)).readings)]

    @property
    def block_size(self) -> int:
        """Rows of one block over all variables."""
        return sum(variable.size for variable in self.variables)

    def _walk(self) -> tuple[dict[int, Form], list[Reading]]:
        """Run through the piece once, with the structure's rules; forms of all nodes, readings of variables."""
        forms: dict[int, Form] = {INPUT: Form({X: None})}
        readings: list[Reading] = []
        merged: dict[int, int] = {}
        for k, node in enumerate(self.graph.nodes):
            if k == INPUT:
                continue
            layer = node.layer
            inputs = [forms[i] for i in node.inputs]
            if isinstance(layer, Activation):
                if self._followed_by_pooling(k):
                    merged[k] = node.inputs[0]
                    forms[k] = inputs[0]
                    continue
                forms[k] = self._slope(k, inputs[0], readings)
            elif isinstance(layer, MaxPool):
                before = node.inputs[0]
                slopes = self._range(before) if before in merged else None
                forms[k] = self._window(k, layer, slopes, inputs[0], readings)
            elif isinstance(layer, Sum):
                forms[k] = self._sum(layer.coefficients, inputs)
            elif isinstance(layer, LinearLayer):
                if not isinstance(layer, MOVES) and len(inputs) != 1:
                    raise NoProblemError(f"{node.place}: {layer.kind} has several inputs")
                forms[k] = self._linear(k, layer, inputs, readings)
            else:
                kind = "input" if layer is None else layer.kind
                raise NoProblemError(f"{node.place}: {kind} has no quadratic constraint")
        return forms, readings

    def _followed_by_pooling(self, k: int) -> bool:
        """Whether a max pooling is the only reader of the activation k."""
        readers = [node.layer for node in self.graph.nodes if k in node.inputs]
        return len(readers) == 1 and isinstance(readers[0], MaxPool)

    def _range(self, k: int) -> tuple[Tensor, Tensor]:
        """The slopes [α, β] of the activation k: of the unit, where given, else of the function."""
        if k in self.slopes:
            return self.slopes[k]
        layer = self.graph.nodes[k].layer
        assert isinstance(layer, Activation)
        alpha, beta = layer.slope_range
        if not (math.isfinite(alpha) and math.isfinite(beta)):
            raise NoProblemError(f"{self.graph.nodes[k].place}: the slopes of {layer.kind} are unbounded")
        return torch.tensor(alpha, dtype=torch.float64), torch.tensor(beta, dtype=torch.float64)

    @abstractmethod
    def _slope(self, k: int, u: Form, readings: list[Reading]) -> Form: ...

    @abstractmethod
    def _window(
        self,
        k: int,
        layer: MaxPool,
        slopes: tuple[Tensor, Tensor] | None,
        u: Form,
        readings: list[Reading],
    ) -> Form: ...

    @abstractmethod
    def _linear(
        self, k: int, layer: LinearLayer, inputs: Sequence[Form], readings: list[Reading]
    ) -> Form: ...

    @abstractmethod
    def _identity(self, name: str) -> Enclosure: ...

    def _sum(self, coefficients: Sequence[float], inputs: Sequence[Form]) -> Form:
        parts: dict[str, Enclosure | None] = {}
        for c, form in zip(coefficients, inputs, strict=True):
            for name, part in form.parts.items():
                term = self._identity(name) if part is None else part
                term = term if c == 1 else term.scaled(c)
                known = parts.get(name)
                parts[name] = term if known is None else known + term
        return Form(parts, all(form.boxed for form in inputs))


def _corners(taps: int, alpha: float, beta: float, zero: bool) -> Tensor:
    """Unit vectors times α and β, and 0 if asked (or if α = 0), as rows."""
    eye = torch.eye(taps, dtype=torch.float64)
    rows = [beta * eye] + ([alpha * eye] if alpha not in (0.0, beta) else [])
    if zero or alpha == 0.0:
        rows.append(torch.zeros(1, taps, dtype=torch.float64))
    return torch.cat(rows)


# ---- dense ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gather(WindowReader):
    """Dense windows: `cells` (taps, windows) rows of the tensor, `present` where the tap lies in the box."""

    cells: Tensor
    present: Tensor

    def read(self, u: Tensor) -> Tensor:
        taken = regroup(u, 1)[:, 0][:, self.cells] * self.present.to(u.dtype).unsqueeze(-1)
        return taken.unsqueeze(1)

    @property
    def terms(self) -> int:
        return 1

    def relative_error(self) -> float:
        return 0.0


class DenseProblem(Problem):
    """All maps as dense real matrices, one block, one parameter a unit.

    Raises:
        NoProblemError: a layer is too large to be written out.
    """

    structure = "dense"
    _maps: Maps | None = None

    @property
    def count(self) -> int:
        return 1

    @property
    def input(self) -> Variable:
        size = math.prod(self._shape(INPUT))
        nothing = torch.zeros(0, dtype=torch.float64)
        return Variable(X, size, 1, nothing, nothing)

    def _shape(self, k: int) -> Shape:
        return self.graph.nodes[k].shape

    def maps(self, blocks: Tensor) -> Maps:
        self._sizes = {X: math.prod(self._shape(INPUT))}
        if self._maps is None:
            forms, readings = self._walk()
            self._maps = Maps(readings, forms[self.last], 1, torch.float64)
        return self._maps

    def _identity(self, name: str) -> Enclosure:
        return Enclosure.exact(torch.eye(self._sizes[name], dtype=torch.float64)[None, None])

    def _new(self, k: int, readings: list[Reading], reading: Reading) -> Form:
        self._sizes[reading.variable.name] = reading.variable.size
        readings.append(reading)
        return Form({reading.variable.name: None})

    def _slope(self, k: int, u: Form, readings: list[Reading]) -> Form:
        size = math.prod(self._shape(k))
        alpha, beta = (t.expand(self._shape(k)).reshape(-1) for t in self._range(k))
        free = alpha < beta
        if bool(free.all()):
            return self._new(k, readings, Reading(Variable(str(k), size, 1, alpha, beta), u))
        # Units whose slope is known are linear; only the others are variables.
        known = {name: part or self._identity(name) for name, part in u.parts.items()}
        parts = {name: part.scaled_rows(torch.where(free, 0.0, alpha)) for name, part in known.items()}
        if not bool(free.any()):
            return Form(parts)
        read = Form({name: replace(part, mid=part.mid[:, :, free]) for name, part in known.items()})
        variable = Variable(str(k), int(free.sum()), 1, alpha[free], beta[free])
        self._new(k, readings, Reading(variable, read))
        spread = torch.eye(size, dtype=torch.float64)[:, free]
        return Form(parts | {variable.name: Enclosure.exact(spread[None, None])})

    def _window(
        self,
        k: int,
        layer: MaxPool,
        slopes: tuple[Tensor, Tensor] | None,
        u: Form,
        readings: list[Reading],
    ) -> Form:
        shape, source = self._shape(k), self._shape(self.graph.nodes[k].inputs[0])
        alpha, beta = (1.0, 1.0) if slopes is None else (float(slopes[0].min()), float(slopes[1].max()))
        corners = _corners(layer.windows.taps, alpha, beta, zero=False)
        dims = len(layer.windows.size)
        channels = math.prod(source[:-dims])
        numbers = torch.arange(1, 1 + math.prod(layer.windows.size), dtype=torch.float64)
        padded = layer.windows.pad(numbers.reshape(1, *layer.windows.size))
        views = torch.stack([v.reshape(-1) for v in layer.windows.tap_views(padded)]).to(torch.int64)
        cells = (views - 1).clamp_min(0).unsqueeze(1)
        cells = cells + (torch.arange(channels) * math.prod(layer.windows.size)).reshape(1, -1, 1)
        present = (views > 0).unsqueeze(1).expand_as(cells)
        reader = _Gather(cells.flatten(1), present.flatten(1))
        ends = torch.tensor([alpha]), torch.tensor([beta])
        variable = Variable(str(k), math.prod(shape), 1, *ends, layer.windows.taps, corners)
        return self._new(k, readings, Reading(variable, u, reader))

    def _linear(self, k: int, layer: LinearLayer, inputs: Sequence[Form], readings: list[Reading]) -> Form:
        shapes = self.graph.shapes_into(k)
        if isinstance(layer, MOVES):
            # They only move numbers, so applying them to the rows makes no error.
            names = {name: None for form in inputs for name in form.parts}
            return Form({name: self._moved(layer, inputs, shapes, name) for name in names})
        matrix = layer.matrix(shapes[0])
        if matrix is None:
            raise NoProblemError(f"{self.graph.nodes[k].place} is too large to be written out")
        known = Enclosure.exact(matrix[None, None])
        if layer.entry_error:
            radius = 2 * layer.entry_error * frobenius(matrix[None]) * (1 + 1e-9)
            known = replace(known, radius=radius)
        parts = {name: known if part is None else known @ part for name, part in inputs[0].parts.items()}
        return Form(parts)

    def _moved(
        self, layer: LinearLayer, inputs: Sequence[Form], shapes: Sequence[Shape], name: str
    ) -> Enclosure:
        columns = self._sizes[name]
        blocks, radius = [], torch.zeros(1, dtype=torch.float64)
        for form, shape in zip(inputs, shapes, strict=True):
            if name not in form.parts:
                blocks.append(torch.zeros(columns, *shape, dtype=torch.float64))
                continue
            part = form.parts[name] or self._identity(name)
            blocks.append(part.mid[0, 0].T.reshape(columns, *shape))
            radius = radius + part.radius
        moved = layer.apply(*blocks).flatten(1).T
        return Enclosure(moved[None, None], radius * (1 + 1e-9))


# ---- by frequency -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folded(WindowReader):
    """Windows on the torus: phases (F, g, s^d, taps) of the aliases that each window's frequency folds."""

    phases: Tensor
    width: int

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Phases (F, g', a, s^d, taps) and the tensor (F, g', a, s^d, width, c), a copies in a block."""
        groups, fold = self.phases.shape[1:3]
        u = regroup(u, min(groups, u.shape[1]))
        inner = groups // u.shape[1]
        return self.phases.unflatten(1, (-1, inner)).to(u.dtype), u.unflatten(2, (inner, fold, self.width))

    def read(self, u: Tensor) -> Tensor:
        phases, split = self._split(u)
        return torch.einsum("fgait,fgaicn->fgtacn", phases, split).flatten(3, 4)

    def mean(self, h: Tensor, u: Tensor) -> Tensor:
        phases, split = self._split(u)
        weights = torch.einsum("ct,fgait->fgaic", h.to(u.dtype), phases)
        return (weights.unsqueeze(-1) * split).sum(3).flatten(2, 3)

    def spread(self, r: Tensor, u: Tensor) -> Tensor:
        phases, split = self._split(u)
        mixed = torch.einsum("cst,fgait->fgacsi", r.to(u.dtype), phases)
        if mixed.shape[-1] < mixed.shape[-2]:
            # The energy is that of the s^d × s^d Gram matrix, so as many rows are enough.
            mixed = torch.linalg.cholesky_ex(mixed.mH @ mixed).L.mH
        rows = mixed @ split.permute(0, 1, 2, 4, 3, 5)
        return rows.permute(0, 1, 4, 2, 3, 5).flatten(2, 4)

    @property
    def terms(self) -> int:
        return self.phases.shape[2]

    def relative_error(self) -> float:
        # Each of the s^d·taps phases is within 64u after division by √s^d; the error's norm is below their sum.
        return 64 * 2.0**-53 * self.phases.shape[2] * self.phases.shape[3]


class FourierProblem(Problem):
    """Maps by base frequency, one parameter a channel: convolutional pieces of any size.

    Raises:
        NoProblemError: a layer is not translation-invariant, or the strides of branches do not nest.
    """

    structure = "frequency"

    def __init__(self, graph: Graph, twist: tuple[int, ...] | None = None) -> None:
        super().__init__(graph)
        dims = max(0, len(graph.input_shape) - 1)
        self.twist = (0,) * dims if twist is None else twist
        if len(self.twist) != dims or not set(self.twist) <= {0, 1}:
            raise NoProblemError(f"a twist of {list(self.twist)} for {dims} dimensions")
        self.lattice: Lattice
        self.filters: dict[int, Filter] = {}
        self.levels = self._levels()
        self._frequencies = self.lattice.frequencies()

    @property
    def count(self) -> int:
        return len(self._frequencies)

    def maps(self, blocks: Tensor) -> Maps:
        self._doubled = self._frequencies[blocks]
        self._pooled: dict[int, tuple[Form, PooledOutput]] = {}
        self._tensors: dict[str, tuple[int, Level]] = {X: (self._channels(INPUT), self.levels[INPUT])}
        forms, readings = self._walk()
        if self.last in self._pooled:
            form, pooled = self._pooled[self.last]
            return Maps(readings, form, len(blocks), torch.complex128, pooled)
        return Maps(readings, forms[self.last], len(blocks), torch.complex128)

    @property
    def input(self) -> Variable:
        level = self.levels[INPUT]
        nothing = torch.zeros(0, dtype=torch.float64)
        return Variable(X, self._channels(INPUT), self.lattice.aliases(level), nothing, nothing)

    def _channels(self, k: int) -> int:
        return self.graph.nodes[k].shape[0]

    def _levels(self) -> dict[int, Level]:
        """Each tensor's level, and the smallest base torus that holds every layer."""
        graph = self.graph
        dims = len(graph.input_shape) - 1
        if dims < 1:
            raise NoProblemError("the piece's input has no space")
        # Spacing of cells in units of the input's: coarser by each stride, finer by each transposed one.
        spacing: dict[int, tuple[Fraction, ...]] = {INPUT: (Fraction(1),) * dims}
        needs: list[tuple[int, tuple[int, ...]]] = [(INPUT, graph.input_shape[1:])]
        pooled = self._output_pooling()
        for k, node in enumerate(graph.nodes):
            if k == INPUT:
                continue
            if len(node.shape) != dims + 1:
                raise NoProblemError(f"{node.place}: its output is not channels and {dims} dimensions")
            before = {spacing[i] for i in node.inputs}
            if len(before) != 1:
                raise NoProblemError(f"{node.place}: it joins tensors of different strides")
            (here,) = before
            layer = node.layer
            if isinstance(layer, MaxPool):
                w = layer.windows
                if len(w.size) != dims:
                    raise NoProblemError(f"{node.place}: it pools some dimensions only")
                period = tuple(max(n, o * s) for n, o, s in zip(w.size, w.out_size, w.stride, strict=True))
                needs.append((node.inputs[0], period))
                if k == pooled:
                    # Its own level is not needed: the energy is bounded on the lattice of its input.
                    spacing[k] = here
                    continue
                spacing[k] = tuple(h * s for h, s in zip(here, w.stride, strict=True))
            elif isinstance(layer, (Activation, Sum)):
                spacing[k] = here
            elif isinstance(layer, Concatenation):
                if layer.axis != 0:
                    raise NoProblemError(f"{node.place}: it concatenates in space")
                spacing[k] = here
            elif isinstance(layer, LinearLayer):
                filter = layer.filter(graph.shapes_into(k)[0])
                if filter is None or len(filter.stride) != dims:
                    raise NoProblemError(f"{node.place}: {layer.kind} is not translation-invariant")
                self.filters[k] = filter
                if filter.transposed:
                    spacing[k] = tuple(h / s for h, s in zip(here, filter.stride, strict=True))
                    needs.append((k, filter.period))
                else:
                    spacing[k] = tuple(h * s for h, s in zip(here, filter.stride, strict=True))
                    needs.append((node.inputs[0], filter.period))
            else:
                raise NoProblemError(f"{node.place} is not translation-invariant")
            needs.append((k, node.shape[1:]))
        coarsest = tuple(max(s[d] for s in spacing.values()) for d in range(dims))
        finer = {k: tuple(c / h for c, h in zip(coarsest, here, strict=True)) for k, here in spacing.items()}
        if any(ratio.denominator != 1 for ratios in finer.values() for ratio in ratios):
            raise NoProblemError("the strides of the branches do not nest")
        levels = {k: tuple(int(ratio) for ratio in ratios) for k, ratios in finer.items()}
        ordered = sorted(set(levels.values()), key=math.prod)
        for coarse, fine in itertools.pairwise(ordered):
            if any(b % a for a, b in zip(coarse, fine, strict=True)):
                raise NoProblemError("the strides of the branches do not nest")
        if ordered[0] != (1,) * dims:
            raise NoProblemError("no tensor is the coarsest in every dimension")
        base = tuple(max(-(-period[d] // levels[k][d]) for k, period in needs) for d in range(dims))
        if pooled is not None:
            layer = graph.nodes[pooled].layer
            assert isinstance(layer, MaxPool)
            base = tuple(-(-n // s) * s for n, s in zip(base, layer.windows.stride, strict=True))
        self.lattice = Lattice(base, tuple(ordered), self.twist)
        return levels

    def _output_pooling(self) -> int | None:
        """The piece's last node, if it is a max pooling with a stride, and no steep activation is part of it."""
        node = self.graph.nodes[self.last]
        if not (isinstance(node.layer, MaxPool) and any(s > 1 for s in node.layer.windows.stride)):
            return None
        (before,) = node.inputs
        steep = isinstance(self.graph.nodes[before].layer, Activation) and any(
            float(end.abs().max()) > 1 for end in self._range(before)
        )
        return None if steep and self._followed_by_pooling(before) else self.last

    def _identity(self, name: str) -> Enclosure:
        channels, level = self._tensors[name]
        eye = torch.eye(channels, dtype=torch.complex128)
        return Enclosure.exact(
            eye.expand(len(self._doubled), self.lattice.aliases(level), channels, channels)
        )

    def _new(self, level: Level, readings: list[Reading], reading: Reading) -> Form:
        self._tensors[reading.variable.name] = (reading.variable.width, level)
        readings.append(reading)
        return Form({reading.variable.name: None})

    def _slope(self, k: int, u: Form, readings: list[Reading]) -> Form:
        alpha, beta = self._range(k)
        if not u.boxed:
            # Truncation to the box is a slope of 0.
            alpha, beta = alpha.clamp(max=0.0), beta.clamp(min=0.0)
        return self._bounded(str(k), k, alpha, beta, u, readings)

    def _bounded(
        self, name: str, k: int, alpha: Tensor, beta: Tensor, u: Form, readings: list[Reading]
    ) -> Form:
        width, level = self._channels(k), self.levels[k]
        ends = alpha.expand(width), beta.expand(width)
        variable = Variable(name, width, self.lattice.aliases(level), *ends)
        return self._new(level, readings, Reading(variable, u))

    def _window(
        self,
        k: int,
        layer: MaxPool,
        slopes: tuple[Tensor, Tensor] | None,
        u: Form,
        readings: list[Reading],
    ) -> Form:
        w = layer.windows
        alpha, beta = (1.0, 1.0) if slopes is None else (float(slopes[0].min()), float(slopes[1].max()))
        width, before = self._channels(k), self.levels[self.graph.nodes[k].inputs[0]]
        offsets = _window_offsets(w)
        if k == self._output_pooling():
            self._pooled[k] = u, self._pooled_output(w, width, offsets, before)
            return u
        level = self.levels[k]
        folded = math.prod(w.stride)
        frequencies = self.lattice.at_level(self._doubled, before)
        phases = self.lattice.phases(frequencies, before, offsets) / math.sqrt(folded)
        phases = phases.reshape(len(phases), self.lattice.aliases(level), folded, len(offsets))
        corners = _corners(w.taps, alpha, beta, zero=True)
        ends = torch.tensor([alpha]), torch.tensor([beta])
        variable = Variable(str(k), width, self.lattice.aliases(level), *ends, w.taps, corners)
        return self._new(level, readings, Reading(variable, u, _Folded(phases, width)))

    def _pooled_output(
        self, w: Windows, width: int, offsets: Sequence[tuple[int, ...]], level: Level
    ) -> PooledOutput:
        cells = [n * m for n, m in zip(self.lattice.base, level, strict=True)]
        own = self.lattice.at_level(self._doubled, level)
        steps = torch.cartesian_prod(
            *(torch.arange(s) * (2 * n // s) for n, s in zip(cells, w.stride, strict=True))
        ).reshape(-1, len(cells))
        aliases = own.unsqueeze(2) + steps
        phases = self.lattice.phases(aliases, level, offsets) / math.sqrt(math.prod(w.stride))
        # f and −f share a place, so that the form of −f is the conjugate of that of f.
        places = torch.minimum(_places(aliases, cells), _places(-aliases, cells))
        return PooledOutput(width, w.taps, phases, places, math.prod(cells))

    def _linear(self, k: int, layer: LinearLayer, inputs: Sequence[Form], readings: list[Reading]) -> Form:
        if isinstance(layer, Concatenation):
            return self._concatenated(k, layer, inputs)
        filter, (u,) = self.filters[k], inputs
        before = self.graph.nodes[k].inputs[0]
        if not u.boxed and not filter.pointwise:
            zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
            name = f"{before}.box"
            u = Form({name: None})
            if name not in self._tensors:
                u = self._bounded(name, before, zero, one, inputs[0], readings)
        fine, coarse = self.levels[before], self.levels[k]
        if filter.transposed:
            fine, coarse = coarse, fine
        symbol = self.lattice.symbol(filter, self._doubled, fine, coarse)
        parts = {name: symbol if part is None else symbol @ part for name, part in u.parts.items()}
        return Form(parts, boxed=u.boxed and filter.pointwise)

    def _concatenated(self, k: int, layer: Concatenation, inputs: Sequence[Form]) -> Form:
        aliases = self.lattice.aliases(self.levels[k])
        names = {name: None for form in inputs for name in form.parts}
        parts: dict[str, Enclosure | None] = {}
        for name in names:
            known = [
                None if name not in form.parts else form.parts[name] or self._identity(name)
                for form in inputs
            ]
            groups = min(part.mid.shape[1] for part in known if part is not None)
            groups = min(groups, aliases)
            channels, level = self._tensors[name]
            columns = channels * self.lattice.aliases(level) // groups
            blocks, radius = [], torch.zeros(len(self._doubled), dtype=torch.float64)
            for width, part in zip(layer.widths, known, strict=True):
                shape = (len(self._doubled), groups, aliases // groups, width, columns)
                if part is None:
                    blocks.append(torch.zeros(shape, dtype=torch.complex128))
                else:
                    blocks.append(regroup(part.mid, groups).reshape(shape))
                    radius = radius + part.radius
            joined = torch.cat(blocks, 3).flatten(2, 3)
            parts[name] = Enclosure(joined, radius * (1 + 1e-9))
        return Form(parts, all(form.boxed for form in inputs))


def _places(doubled: Tensor, cells: Sequence[int]) -> Tensor:
    """Row-major numbers of doubled frequencies (…, d) on a torus."""
    places = torch.zeros(doubled.shape[:-1], dtype=torch.int64)
    for d, n in enumerate(cells):
        places = places * n + doubled[..., d].remainder(2 * n) // 2
    return places


def _window_offsets(w: Windows) -> list[tuple[int, ...]]:
    offsets = [torch.arange(k) * d - p for k, d, p in zip(w.kernel, w.dilation, w.padding, strict=True)]
    grid = torch.cartesian_prod(*offsets).reshape(-1, len(offsets))
    return [tuple(int(n) for n in row) for row in grid]
