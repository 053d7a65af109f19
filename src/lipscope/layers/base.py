"""What a layer is, and the register of rules that import one from a traced torch operation.

To add a layer type, write one file in this folder (or a class in the file of its kind):
subclass `LinearLayer` (apply, transpose, and a certified norm if it can be large) or
`NonlinearLayer` (forward, its slopes, its certified Lipschitz constant), and register how it
is recognised with `@torch_rule`. Nothing else needs to change.

Tensors are batched in dimension 0; shapes written `*s` leave the batch out. Norms are Euclidean.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..certified import quick_norm_upper, spectral_norm_upper
from ..errors import CertificateError, UnsupportedLayerError
from ..layout import PLAIN, Layout
from ..results import Norm
from ..rounding import (
    TINY,
    UNIT,
    gamma,
    middle_and_radius,
    up,
    up_product,
    up_sum,
    up_tensor,
    widen,
)
from ..slopes import AveragedSlope, Diagonal, Point, Slope
from ..windows import Windows

Shape = tuple[int, ...]
Range = tuple[float, float]
"""An interval that holds every entry of a tensor."""
UNBOUNDED: Range = (-math.inf, math.inf)


@dataclass(frozen=True)
class Filter:
    """A translation-invariant linear layer, y[o] = Σ_j W_j x[s·o + offset_j] channels first, or its adjoint.

    `taps` (n, c_out, c_in), `offsets` one integer vector a tap; on any torus of at least `period`
    cells of x (a multiple of the stride), zero padding and circular wrap agree inside the box.
    """

    taps: Tensor
    offsets: tuple[tuple[int, ...], ...]
    stride: tuple[int, ...]
    period: tuple[int, ...]
    relative_error: float = 0.0
    transposed: bool = False

    @property
    def pointwise(self) -> bool:
        """Whether every output cell reads the input cell at its own place alone."""
        return all(s == 1 for s in self.stride) and self.offsets == ((0,) * len(self.stride),)


@dataclass(frozen=True)
class Kernel:
    """The weights of a layer whose norm is that of a zero-padded convolution with them, or of a matrix.

    `weight` (c_out, c_in / groups, *kernel); a matrix has no windows. `entry_error` as for `LinearLayer`.
    """

    weight: Tensor
    windows: Windows | None = None
    groups: int = 1
    entry_error: float = 0.0

    def alike(self, other: Kernel) -> bool:
        """Whether the two differ in their numbers at most."""
        form, theirs = ((k.weight.shape, k.windows, k.groups) for k in (self, other))
        return form == theirs

    def quick_norm(self) -> float:
        """Certified upper bound of the norm, from few matrix products; see `quick_norm_upper`."""
        if self.windows is None:
            return quick_norm_upper(self.weight, relative_error=self.entry_error)
        return quick_norm_upper(
            self.weight,
            stride=self.windows.stride,
            dilation=self.windows.dilation,
            groups=self.groups,
            relative_error=self.entry_error,
        )


MATERIALISE_BELOW = 2048
"""A linear layer with at most this many inputs or outputs may be certified through its dense matrix."""
_MATRIX_ENTRIES = 2**25


class Layer(ABC):
    """One node's operation on batched tensors."""

    kind: ClassVar[str]
    """The word users know it by, as printed in tables."""
    why_unbounded: ClassVar[str] = ""
    """Where its constant may be infinite, the reason in words; the kind alone is named otherwise."""

    @abstractmethod
    def forward(self, *xs: Tensor) -> Tensor:
        """The value, batched."""

    @abstractmethod
    def lipschitz(self, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """Certified Lipschitz constant of the output, given certified ones of each input (all of the network's input)."""

    def alone(self, shapes: Sequence[Shape]) -> float:
        """Certified Lipschitz constant of the layer by itself: that of its output when each input has 1.

        Kept while the layer lives: parts of a graph share its layers.
        """
        known = _KNOWN_CONSTANTS.setdefault(self, {})
        key = tuple(shapes)
        if key not in known:
            known[key] = self.lipschitz([1.0] * len(shapes), shapes)
        return known[key]

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        """An interval proved to hold every entry of the output, given one for each input."""
        return UNBOUNDED

    def same_as(self, other: Layer | None) -> bool:
        """Whether the other layer is of the same type with equal fields, numbers and all."""
        if type(self) is not type(other):
            return False
        pairs = ((value, getattr(other, name)) for name, value in vars(self).items())
        return all(_equal(mine, theirs) for mine, theirs in pairs)

    @abstractmethod
    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """`lipschitz` in another norm: every constant is from the ℓ_q norm of the input to that of the output."""

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """A copy whose floating-point tensors have the dtype and device."""
        return self.mapped(lambda t: t.to(device, dtype if t.is_floating_point() else None))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with every tensor changed, in the order of `parameters`."""
        changes: dict[str, Any] = {}
        nested: dict[str, Layer] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = change(value)
            elif isinstance(value, Layer):
                nested[field.name] = value
        changes |= {name: layer.mapped(change) for name, layer in nested.items()}
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def parameters(self) -> list[Tensor]:
        """The tensors the layer holds (weights, offsets)."""
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        nested = [p for v in values if isinstance(v, Layer) for p in v.parameters()]
        return [v for v in values if isinstance(v, Tensor)] + nested


def _equal(first: object, second: object) -> bool:
    if isinstance(first, Layer):
        return isinstance(second, Layer) and first.same_as(second)
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, (tuple, list)) and type(first) is type(second):
        return len(first) == len(second) and all(map(_equal, first, second))
    return first is second or bool(first == second)


_KNOWN_CONSTANTS: WeakKeyDictionary[Layer, dict[tuple[Shape, ...], float]] = WeakKeyDictionary()


class LinearLayer(Layer):
    """An affine layer: forward(x) = apply(x) + offset, with `transpose` the adjoint of `apply`."""

    offset: Tensor | None = None
    entry_error: float = 0.0
    """Entrywise relative uncertainty of T, from the roundings that made its entries."""
    moves_only: ClassVar[bool] = False
    """Whether every output is a copy of one input, so that nothing is rounded."""

    @abstractmethod
    def apply(self, *vs: Tensor) -> Tensor:
        """The linear part T v, batched."""

    @abstractmethod
    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        """Tᵀ u, batched: one tensor for each input."""

    def forward(self, *xs: Tensor) -> Tensor:
        y = self.apply(*xs)
        return y if self.offset is None else y + self.offset

    def norm(self, shapes: Sequence[Shape]) -> float:
        """Certified upper bound of the spectral norm of T on an input of the given per-sample shape.

        The default writes T out as a dense matrix, which is tight and proves any layer that is small.

        Raises:
            NotImplementedError: the layer is too large for a dense matrix and has no norm of its own.
        """
        (shape,) = shapes
        matrix = self.matrix(shape)
        if matrix is None:
            raise NotImplementedError(f"{type(self).__name__} on {shape} is too large for a dense norm")
        return spectral_norm_upper(matrix, self.entry_error)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        """Symmetric: the largest absolute row sum times the largest absolute input, and the offset."""
        largest = max(abs(end) for values in inputs for end in values)
        if math.isinf(largest):
            return UNBOUNDED
        try:
            reach = up_product(self.to(torch.float64, "cpu").scaled_norm("inf", shapes), largest)
        except NotImplementedError:
            return UNBOUNDED
        offset = 0.0 if self.offset is None else float(self.offset.abs().max())
        reach = up_sum(reach, offset)
        return -reach, reach

    def kernel(self) -> Kernel | None:
        """The weights that alone decide the norm, by which changes of it are bounded; None for other layers."""
        return None

    def filter(self, shape: Shape) -> Filter | None:
        """The layer as a translation-invariant filter on inputs of the shape, or None if it is not one."""
        return None

    def matrix(self, shape: Shape) -> Tensor | None:
        """T as a dense float64 matrix (outputs, inputs), or None if it would be large.

        Products with unit vectors are exact, so only `entry_error` is uncertain.
        """
        exact = self.to(torch.float64, "cpu")
        columns = math.prod(shape)
        probe = exact.apply(torch.zeros(1, *shape, dtype=torch.float64))
        rows = math.prod(probe.shape[1:])
        if not can_be_written_out(rows, columns):
            return None
        if columns <= rows:
            eye = torch.eye(columns, dtype=torch.float64).reshape(columns, *shape)
            return exact.apply(eye).flatten(1).T
        eye = torch.eye(rows, dtype=torch.float64).reshape(rows, *probe.shape[1:])
        return exact.transpose(eye)[0].flatten(1)

    def lipschitz(self, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        (bound,) = bounds
        return 0.0 if bound == 0.0 else up_product(bound, self.norm(shapes))

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        if norm == "2":
            return self.lipschitz(bounds, shapes)
        (bound,) = bounds
        return 0.0 if bound == 0.0 else up_product(bound, self.scaled_norm(norm, shapes))

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> LinearLayer:
        """The linear layer with the entries |T_ij|^power, or larger ones (for power 2 rounded, and no offset).

        The default writes T out as a dense matrix.

        Raises:
            NotImplementedError: the layer is too large for a dense matrix and has no method of its own.
        """
        (shape,) = shapes
        matrix = self.matrix(shape)
        if matrix is None:
            raise NotImplementedError(f"{type(self).__name__} on {shape} is too large for a dense matrix")
        target = tuple(self.apply(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
        return _Matrix(matrix.abs() ** power, shape, target)

    def multiplications(self, shape: Shape) -> int:
        """About how many multiplications one product with T takes, given the output's shape."""
        return math.prod(shape)

    def rounding(self, shapes: Sequence[Shape], target: Shape) -> float:
        """The c for which products with T or Tᵀ of any x are computed within c·|T||x|, entry by entry."""
        if self.moves_only:
            return 0.0
        return gamma(sum(map(math.prod, (*shapes, target))) + 8) + self.entry_error

    def interval(self, lows: Sequence[Tensor], highs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Certified bounds of the layer's values over a box: tensors (1, *in) to (1, *out), float64."""
        if self.moves_only:
            return self.apply(*lows), self.apply(*highs)
        boxes = [middle_and_radius(low, high) for low, high in zip(lows, highs, strict=True)]
        middle = self.forward(*(m for m, _ in boxes))
        shapes = [tuple(m.shape[1:]) for m, _ in boxes]
        margin = self.rounding(shapes, tuple(middle.shape[1:]))
        radii = [radius + 2 * margin * m.abs() for m, radius in boxes]
        # Rounding and uncertainty of |T| are covered by the factor, those of T·middle by the margin.
        radius = up_tensor(self.magnitudes(shapes).apply(*radii) * (1 + 2 * margin), 4)
        return widen(middle, radius + 4 * UNIT * middle.abs())

    def row_norms(self, shape: Shape) -> Tensor:
        """Certified Euclidean norms of the rows of T, shape (1, *out), for an input of the given shape."""
        ones = torch.ones(1, *shape, dtype=torch.float64)
        if self.moves_only:
            return self.apply(ones)
        squares = self.magnitudes([shape], 2).apply(ones)
        return up_tensor((squares + TINY).sqrt() * (1 + 2 * self.rounding([shape], tuple(squares.shape[1:]))))

    def scaled_norm(
        self,
        norm: Norm,
        shapes: Sequence[Shape],
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        spectral: float | None = None,
    ) -> float:
        """Certified ℓ_q operator norm of diag(rows)·T·diag(columns), the scales non-negative, None for ones.

        For q = 1 and ∞ it is the largest sum of a column and of a row of absolute values, at the cost
        of one product with |T|. For q = 2 it is that of the dense matrix, if T is small, else that of
        T alone times the largest scales; and never above the geometric mean of the other two.

        Args:
            rows, columns: scales of the shapes (1, *out) and (1, *in), for a layer of one input.
            spectral: the certified spectral norm of T, if it is known.

        Raises:
            CertificateError: an entry is NaN or infinite.
        """
        inputs = [torch.ones(1, *s, dtype=torch.float64) for s in shapes] if columns is None else [columns]
        target = tuple(self.apply(*(torch.zeros_like(x) for x in inputs)).shape[1:])
        outputs = torch.ones(1, *target, dtype=torch.float64) if rows is None else rows
        factor = 1 + 2 * self.rounding(shapes, target)
        magnitudes = self if self.moves_only else self.magnitudes(shapes)

        def by_rows() -> float:
            return _largest(outputs * magnitudes.apply(*inputs)) * factor

        def by_columns() -> float:
            sums = zip(inputs, magnitudes.transpose(outputs), strict=True)
            return max(_largest(x * y) for x, y in sums) * factor

        if norm == "inf":
            return up(by_rows(), 4)
        if norm == "1":
            return up(by_columns(), 4)
        mean = up(math.sqrt(up_product(up(by_rows(), 4), up(by_columns(), 4))), 2)
        return min(mean, self._scaled_spectral_norm(shapes, rows, columns, spectral))

    def _scaled_spectral_norm(
        self, shapes: Sequence[Shape], rows: Tensor | None, columns: Tensor | None, spectral: float | None
    ) -> float:
        scales = [scale for scale in (rows, columns) if scale is not None]
        matrix = self.matrix(shapes[0]) if scales else None
        if matrix is None:
            spectral = self.norm(shapes) if spectral is None else spectral
            return up_product(*(_largest(scale) for scale in scales), spectral)
        left, right = (scale if scale is None else scale.flatten() for scale in (rows, columns))
        matrix = matrix if left is None else left.unsqueeze(1) * matrix
        matrix = matrix if right is None else matrix * right
        return spectral_norm_upper(matrix, self.entry_error + 4 * UNIT)


def _largest(x: Tensor) -> float:
    value = float(x.max()) if x.numel() else 0.0
    if math.isnan(value):
        raise CertificateError("a weight is NaN or infinite: no bound exists")
    return value


@dataclass(eq=False)
class _Matrix(LinearLayer):
    """A linear map between tensors of two shapes, written out. `weight` (out, in)."""

    kind = "matrix"
    weight: Tensor
    source: Shape
    target: Shape

    def apply(self, *vs: Tensor) -> Tensor:
        return (vs[0].flatten(1) @ self.weight.T).reshape(-1, *self.target)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return ((u.flatten(1) @ self.weight).reshape(-1, *self.source),)


def can_be_written_out(rows: int, columns: int) -> bool:
    """Whether `LinearLayer.matrix` gives a matrix of this size."""
    return min(rows, columns) <= MATERIALISE_BELOW and rows * columns <= _MATRIX_ENTRIES


class NonlinearLayer(Layer):
    """A one-input layer that acts on differences through slopes."""

    piecewise_linear: ClassVar[bool] = False
    """Whether its slopes at a point are those all around, but for a set of measure zero."""

    @abstractmethod
    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        """The value at x and the slopes there."""

    def at(self, x: Tensor) -> Point:
        """The layer at each input of a batch."""
        return Point(x, *self.linearize(x))

    @abstractmethod
    def between(self, first: Point, second: Point) -> Slope:
        """Secant slopes: D with D (x₁ − x₂) = forward(x₁) − forward(x₂), within the slopes the layer can take."""

    def secant(self, x1: Tensor, x2: Tensor) -> Slope:
        """`between` the inputs of two batches."""
        return self.between(self.at(x1), self.at(x2))

    def averaged(self, values: Tensor) -> AveragedSlope:
        """The layer's averaged slope with the given mean values (as `Slope.mean` makes them)."""
        return Diagonal(values)

    @abstractmethod
    def constant(self, shape: Shape) -> float:
        """Certified Lipschitz constant of the layer on an input of the given per-sample shape."""

    def lipschitz(self, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        (bound,), (shape,) = bounds, shapes
        return 0.0 if bound == 0.0 else up_product(bound, self.constant(shape))

    @abstractmethod
    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Certified bounds of the values over the box [low, high]: tensors (1, *in) to (1, *out), float64."""

    @abstractmethod
    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        """Slopes whose values bound, entry by entry, those of every pair of points in the box [low, high]."""

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Affine functions below and above the layer over the box [low, high].

        By default constants, the ends of the value's range.
        """
        flat = self.averaged(torch.zeros_like(low))
        least, most = self.value_range(low, high)
        return Lines(flat, least, flat, most)

    @abstractmethod
    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        """Certified ℓ_q Lipschitz constant of the layer on an input of the shape, its slopes in the hull."""


@dataclass(frozen=True)
class Lines:
    """below(x) + below_offset ≤ forward(x) ≤ above(x) + above_offset, offsets of shape (1, *out)."""

    below: AveragedSlope
    below_offset: Tensor
    above: AveragedSlope
    above_offset: Tensor


@dataclass(frozen=True)
class Reference:
    """In a traced call, an argument that depends on the network's input, and what is proved of its entries."""

    node: int
    shape: Shape
    values: Range = UNBOUNDED
    layout: Layout = PLAIN
    """Where the traced tensor keeps the batch; `shape` leaves it out in any case."""
    complex: bool = False
    """Whether the last axis of `shape`, of size two, holds real and imaginary parts."""

    @property
    def largest(self) -> float:
        """No entry has a larger modulus."""
        return max(abs(end) for end in self.values)


Append = Callable[[Layer, Sequence[Reference], Shape | None], Reference]
"""Appends a layer, on those values, to the graph that is being built; the output shape where it is known."""


@dataclass(frozen=True)
class TracedCall:
    """A traced torch operation as an import rule sees it.

    `args` holds `Reference`s, constant tensors (weights) and Python values; `out_shape` leaves
    the batch out. `place` is where it stands in the model, for error messages. Of an operation with
    several results, `result` says which is asked for; `batch` is the batch size it was traced with,
    `dtype` the type of its (first) result.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out_shape: Shape
    place: str
    result: int = 0
    batch: int = 2
    dtype: torch.dtype = torch.float32
    target: Callable[..., Any] | None = None
    append: Append | None = None
    layout: Layout = PLAIN
    """Where the traced result keeps the batch."""
    traced: TracedCall | None = None
    """The call as it was traced, if a batch is not first and alone there; this call is as if it were."""

    def apply(self, layer: Layer, *inputs: Reference) -> Reference:
        """Append a layer that reads those values (an argument, or what another `apply` gave)."""
        assert self.append is not None
        return self.append(layer, inputs, None)

    def evaluate(self, *values: Tensor) -> Tensor:
        """The operation itself on tensors (batch, *s) in the place of `references`; for rules that probe it."""
        assert self.target is not None
        if self.traced is not None:
            inputs = zip(self.traced.references, values, strict=True)
            result = self.traced.evaluate(*(reference.layout.enter(value) for reference, value in inputs))
            return self.layout.leave(result, self.batch)
        left = list(values)

        def resolve(value: Any) -> Any:
            if isinstance(value, Reference):
                return left.pop(0)
            if isinstance(value, (list, tuple)):
                return type(value)(resolve(v) for v in value)
            return value

        args = resolve(self.args)
        found = self.target(*args, **{k: resolve(v) for k, v in self.kwargs.items()})
        return found[self.result] if isinstance(found, (list, tuple)) else found  # type: ignore[no-any-return]

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """A positional or keyword argument."""
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(name, default)

    def axis(self, dim: int, why: str = "it acts along the batch") -> int:
        """The per-sample axis of the input that a dimension of the call is; refused for the batch, as `why` says."""
        axis = dim % (len(self.input_shape) + 1) - 1
        if axis < 0:
            raise self.unsupported(why)
        return axis

    def per_sample(self, constant: Tensor, rank: int | None = None) -> Tensor:
        """A constant as it meets one sample of `rank` dimensions, those of the output if not given."""
        if constant.ndim <= (len(self.out_shape) if rank is None else rank):
            return constant
        if not bool((constant == constant[:1]).all()):
            raise self.unsupported("the constant differs between samples of a batch")
        return constant[0]

    @property
    def references(self) -> list[Reference]:
        """The arguments that depend on the input, in order, lists flattened."""
        found: list[Reference] = []
        for value in (*self.args, *self.kwargs.values()):
            entries = value if isinstance(value, (list, tuple)) else [value]
            found += [entry for entry in entries if isinstance(entry, Reference)]
        return found

    @property
    def input_shape(self) -> Shape:
        """Per-sample shape of the only input-dependent argument."""
        if len(self.references) != 1:
            raise self.unsupported("it combines several tensors that depend on the input")
        return self.references[0].shape

    def box(self, dims: int) -> Shape:
        """The last `dims` dimensions of the input, behind the batch and one channel dimension."""
        if len(self.input_shape) != dims + 1:
            raise self.unsupported(f"its input must have {dims + 2} dimensions, the batch and channels first")
        return self.input_shape[1:]

    def weight(self, index: int, name: str) -> Tensor:
        """An argument that must be a constant tensor."""
        value = self.arg(index, name)
        if not isinstance(value, Tensor):
            raise self.unsupported(f"its {name} depends on the input")
        return value

    def unsupported(self, why: str) -> UnsupportedLayerError:
        """The error to raise for a form of the operation that no rule covers."""
        return UnsupportedLayerError(
            f"unsupported operation {self.op} at {self.place}: {why}. Replace it by a supported layer, "
            "or add a rule for it (see “Adding a layer” in the documentation)"
        )


Rule = Callable[[TracedCall], Sequence[Layer] | Reference]
"""Turns a call into the chain of layers that computes it (an empty chain means identity), or appends
layers of its own with `TracedCall.apply` and returns the value."""

TORCH_RULES: dict[str, Rule] = {}


_R = TypeVar("_R", bound=Rule)


def torch_rule(*ops: str, any_result: bool = False, complex_signals: bool = False) -> Callable[[_R], _R]:
    """Register a rule for the traced operations named, such as "aten.relu.default".

    Args:
        any_result: the rule heeds `TracedCall.result`; others give the first of several results only.
        complex_signals: the rule heeds `Reference.complex` and a complex `TracedCall.dtype`.
    """

    def register(rule: _R) -> _R:
        @functools.wraps(rule)
        def guarded(call: TracedCall) -> Sequence[Layer] | Reference:
            if call.result != 0 and not any_result:
                raise call.unsupported(f"its result number {call.result} (such as indices) is used")
            if not complex_signals and (call.dtype.is_complex or any(x.complex for x in call.references)):
                raise call.unsupported("it acts on a complex signal")
            return rule(call)

        for op in ops:
            if op in TORCH_RULES:
                raise ValueError(f"two import rules for {op}")
            TORCH_RULES[op] = guarded
        return rule

    return register
