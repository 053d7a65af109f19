"""Layers with several inputs: signed sums, concatenation and stacking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..results import Norm
from ..rounding import up_hypot, up_product, up_sum
from .base import Layer, LinearLayer, Range, Reference, Shape, TracedCall, torch_rule


@dataclass(eq=False)
class Sum(LinearLayer):
    """y = Σ coefficients[i]·x_i over inputs of one shape."""

    kind = "sum"
    coefficients: tuple[float, ...]

    def apply(self, *vs: Tensor) -> Tensor:
        total = vs[0] if self.coefficients[0] == 1 else self.coefficients[0] * vs[0]
        for c, v in zip(self.coefficients[1:], vs[1:], strict=True):
            total = torch.add(total, v, alpha=c)
        return total

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return tuple(u if c == 1 else c * u for c in self.coefficients)

    def norm(self, shapes: Sequence[Shape]) -> float:
        """Certified norm √Σcᵢ² on the direct sum of the inputs."""
        return up_hypot(*self.coefficients)

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> LinearLayer:
        return Sum(tuple(abs(c) ** power for c in self.coefficients))

    def lipschitz(self, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """Σ|cᵢ|·Lᵢ: the triangle inequality."""
        return up_sum(*(up_product(abs(c), b) for c, b in zip(self.coefficients, bounds, strict=True)))

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        """Symmetric: up to Σ|cᵢ| times the largest absolute value of input i."""
        largest = self.lipschitz([max(abs(bound) for bound in values) for values in inputs], shapes)
        return -largest, largest

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        return self.lipschitz(bounds, shapes)


class SideBySide(LinearLayer):
    """The inputs as orthogonal parts of one tensor."""

    moves_only = True

    def norm(self, shapes: Sequence[Shape]) -> float:
        return 1.0

    def lipschitz(self, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """√ΣLᵢ²: the parts are orthogonal."""
        return up_hypot(*bounds)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        return min(low for low, _ in inputs), max(high for _, high in inputs)

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """(ΣLᵢ^q)^{1/q}: their sum for q = 1, the largest for q = ∞."""
        if norm == "2":
            return self.lipschitz(bounds, shapes)
        return up_sum(*bounds) if norm == "1" else max(bounds)


@dataclass(eq=False)
class Concatenation(SideBySide):
    """The inputs side by side along the per-sample `axis`; `widths` are their sizes there."""

    kind = "concatenation"
    axis: int
    widths: tuple[int, ...]

    def apply(self, *vs: Tensor) -> Tensor:
        return torch.cat(vs, self.axis + 1)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return torch.split(u, list(self.widths), self.axis + 1)


@dataclass(eq=False)
class Stack(SideBySide):
    """The inputs, of one shape, side by side along a new per-sample `axis`."""

    kind = "stack"
    axis: int = 0

    def apply(self, *vs: Tensor) -> Tensor:
        return torch.stack(vs, self.axis + 1)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return u.unbind(self.axis + 1)


@dataclass(eq=False)
class Join(SideBySide):
    """The inputs, of any `shapes`, flattened and side by side: so a function of several becomes one of one."""

    kind = "join"
    shapes: tuple[Shape, ...]

    def apply(self, *vs: Tensor) -> Tensor:
        return torch.cat([v.flatten(1) for v in vs], 1)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return self.parts(u)

    def parts(self, joined: Tensor) -> tuple[Tensor, ...]:
        """The inputs (batch, *shape) that were joined, as views."""
        widths = [math.prod(shape) for shape in self.shapes]
        pieces = torch.split(joined, widths, -1)
        return tuple(p.reshape(*p.shape[:-1], *s) for p, s in zip(pieces, self.shapes, strict=True))


@torch_rule("aten.stack.default")
def _stacking(call: TracedCall) -> Sequence[Layer]:
    parts = call.args[0]
    if not all(isinstance(part, Reference) for part in parts):
        raise call.unsupported("one of the parts is a constant")
    axis = call.arg(1, "dim", 0) % (len(call.out_shape) + 1) - 1
    if axis < 0:
        raise call.unsupported("it stacks along the batch")
    return [Stack(axis)]
