"""Separable linear maps: one small matrix for each of the last dimensions, a Kronecker product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..certified import spectral_norm_upper
from ..rounding import up_product
from .base import Layer, LinearLayer, Shape, TracedCall, torch_rule
from .reshape import Permute


@dataclass(eq=False)
class SeparableMap(LinearLayer):
    """y = (A_1 ⊗ … ⊗ A_d) x over the last d dimensions; `first` … are the A_i, each (out, in)."""

    kind = "separable map"
    first: Tensor
    second: Tensor | None = None
    third: Tensor | None = None
    entry_error: float = 12 * torch.finfo(torch.float64).eps

    @classmethod
    def of(cls, factors: Sequence[Tensor]) -> Self:
        """The map with one to three matrices."""
        first, second, third = (*factors, None, None)[:3]
        assert first is not None
        return cls(first, second, third)

    @property
    def factors(self) -> list[Tensor]:
        """The matrices A_1 … A_d."""
        return [a for a in (self.first, self.second, self.third) if a is not None]

    def apply(self, *vs: Tensor) -> Tensor:
        return _along_each(vs[0], self.factors)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return (_along_each(u, [a.T for a in self.factors]),)

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> LinearLayer:
        return SeparableMap.of([a.abs() ** power for a in self.factors])

    def norm(self, shapes: Sequence[Shape]) -> float:
        """Certified norm: the product of those of the factors (a Kronecker product), entries rounded twice."""
        return up_product(*(spectral_norm_upper(a, self.entry_error) for a in self.factors))


def _along_each(x: Tensor, factors: list[Tensor]) -> Tensor:
    dims = len(factors)
    for i, a in enumerate(factors):
        axis = x.ndim - dims + i
        x = torch.movedim(torch.tensordot(x, a, dims=([axis], [1])), -1, axis)
    return x


@dataclass(eq=False)
class CumulativeSum(SeparableMap):
    """Sums of the first entries along the last dimension: a triangle of ones."""

    kind = "cumulative sum"


@torch_rule("aten.cumsum.default")
def _cumulative_sum(call: TracedCall) -> Sequence[Layer]:
    shape = call.input_shape
    axis = call.axis(call.args[1], "it goes over the batch")
    triangle = torch.ones(shape[axis], shape[axis], dtype=torch.float64).tril()
    swapped = list(range(len(shape)))
    swapped[axis], swapped[-1] = swapped[-1], swapped[axis]
    turn: list[Layer] = [] if axis == len(shape) - 1 else [Permute(tuple(swapped))]
    return [*turn, CumulativeSum.of([triangle]), *turn]
