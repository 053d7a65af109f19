"""Dense (fully connected) layers, also applied along the last dimension of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..certified import spectral_norm_upper
from .base import Kernel, Layer, LinearLayer, Reference, Shape, TracedCall, torch_rule
from .matrix_product import matrix_product
from .reshape import transposition


@dataclass(eq=False)
class Dense(LinearLayer):
    """y = W x + b on the last dimension. `weight` (out, in), `offset` (out,) or None."""

    kind = "dense"
    weight: Tensor
    offset: Tensor | None = None
    entry_error: float = 0.0

    def apply(self, *vs: Tensor) -> Tensor:
        return functional.linear(vs[0], self.weight)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return (u @ self.weight,)

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> LinearLayer:
        return Dense(self.weight.abs() ** power)

    def multiplications(self, shape: Shape) -> int:
        return math.prod(shape) * self.weight.shape[1]

    def matrix(self, shape: Shape) -> Tensor | None:
        """W itself where the input is one vector."""
        return self.weight.detach().to("cpu", torch.float64) if len(shape) == 1 else super().matrix(shape)

    def norm(self, shapes: Sequence[Shape]) -> float:
        """Certified spectral norm of W; tokens share it, since the operator is block diagonal."""
        return spectral_norm_upper(self.weight.detach().cpu(), self.entry_error)

    def kernel(self) -> Kernel:
        return Kernel(self.weight, entry_error=self.entry_error)


@torch_rule("aten.linear.default")
def _linear(call: TracedCall) -> Sequence[Layer]:
    call.input_shape  # noqa: B018  refuses a weight that depends on the input
    return [Dense(call.weight(1, "weight"), call.arg(2, "bias"))]


@torch_rule("aten.addmm.default")
def _addmm(call: TracedCall) -> Sequence[Layer]:
    call.input_shape  # noqa: B018
    if call.kwargs:
        raise call.unsupported("alpha and beta are not supported")
    return [Dense(call.weight(2, "right factor").T.contiguous(), call.weight(0, "bias"))]


@torch_rule("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
def _matmul(call: TracedCall) -> Reference:
    left, right = call.args[:2]
    if isinstance(left, Reference) and isinstance(right, Reference):
        if min(len(left.shape), len(right.shape)) < 2:
            raise call.unsupported("a product of two signals takes matrices, not vectors")
        return matrix_product(call, left, right)
    (signal,) = call.references
    if isinstance(left, Reference):
        weight = _shared_matrix(call, call.weight(1, "right factor"))
        return call.apply(Dense(weight.T.contiguous()), signal)
    weight = _shared_matrix(call, call.weight(0, "left factor"))
    rank = len(signal.shape)
    if rank < 2:
        raise call.unsupported("a constant times a vector of each sample is written as a linear layer")
    # W x is (xᵀWᵀ)ᵀ.
    product = call.apply(Dense(weight), call.apply(transposition(rank), signal))
    return call.apply(transposition(rank), product)


def _shared_matrix(call: TracedCall, constant: Tensor) -> Tensor:
    """The one matrix that a constant factor holds; one that differs between leading indices is refused."""
    if constant.ndim < 2:
        raise call.unsupported("only products with a constant matrix are supported, not with a vector")
    matrices = constant.flatten(0, -3) if constant.ndim > 2 else constant.unsqueeze(0)
    if not bool((matrices == matrices[:1]).all()):
        raise call.unsupported("the constant matrix differs along the leading dimensions")
    return matrices[0]
