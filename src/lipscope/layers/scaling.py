"""Elementwise affine layers: batch norm in evaluation, and arithmetic with constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CertificateError
from ..rounding import gamma, up
from .base import UNBOUNDED, Filter, Layer, LinearLayer, Range, Shape, TracedCall, torch_rule


@dataclass(eq=False)
class Scaling(LinearLayer):
    """y = factor ⊙ x + offset; both broadcast against (batch, *s)."""

    kind = "scaling"
    factor: Tensor
    offset: Tensor | None = None
    operations: int = 0
    """How many float64 roundings made `factor` out of the model's numbers; the certified norm covers them."""

    @property
    def entry_error(self) -> float:  # type: ignore[override]
        return gamma(self.operations + 1) if self.operations else 0.0

    def apply(self, *vs: Tensor) -> Tensor:
        return vs[0] * self.factor

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return (u * self.factor,)

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> LinearLayer:
        return Scaling(self.factor.abs() ** power)

    def norm(self, shapes: Sequence[Shape]) -> float:
        """Certified norm max|factor| of a diagonal operator."""
        if not bool(torch.isfinite(self.factor).all()):
            raise CertificateError("a scale factor is NaN or infinite: no bound exists")
        largest = float(self.factor.abs().max()) if self.factor.numel() else 0.0
        return up(largest, self.operations) if self.operations else largest

    def filter(self, shape: Shape) -> Filter | None:
        dims = len(shape) - 1
        factor = self.factor.reshape((1,) * max(0, len(shape) - self.factor.ndim) + self.factor.shape)
        if dims < 1 or any(n != 1 for n in factor.shape[1:]):
            return None
        diagonal = torch.diag(factor.flatten().expand(shape[0]))
        return Filter(diagonal.unsqueeze(0), ((0,) * dims,), (1,) * dims, shape[1:], self.entry_error)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        low, high = inputs[0]
        if math.isinf(low) or math.isinf(high):
            return UNBOUNDED
        offset = torch.zeros((), dtype=torch.float64) if self.offset is None else self.offset
        ends = torch.stack([low * self.factor + offset, high * self.factor + offset])
        # Few roundings, relative to the terms and not to a sum in which they cancel.
        largest = max(abs(low), abs(high)) * float(self.factor.abs().max()) + float(offset.abs().max())
        margin = up(largest * gamma(self.operations + 8), 4)
        return float(ends.min()) - margin, float(ends.max()) + margin


@torch_rule("aten._native_batch_norm_legit_no_training.default", "aten.batch_norm.default")
def _batch_norm(call: TracedCall) -> Sequence[Layer]:
    dims = len(call.input_shape) - 1
    gain, bias, mean, variance = (call.arg(i, "") for i in range(1, 5))
    training_form = call.op == "aten.batch_norm.default"
    if training_form and call.arg(5, "training"):
        raise call.unsupported("batch norm is in training mode; call model.eval() first")
    if mean is None or variance is None:
        raise call.unsupported("batch norm without running statistics normalises by the batch itself")
    epsilon = call.arg(7 if training_form else 6, "eps")
    return [batch_norm_scaling(gain, bias, mean, variance, epsilon, dims)]


def batch_norm_scaling(
    gain: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, epsilon: float, dims: int
) -> Scaling:
    """Batch norm in evaluation, on samples of one channel dimension and `dims` behind it."""
    factor = torch.rsqrt(variance.to(torch.float64) + epsilon)
    factor = factor if gain is None else factor * gain
    offset = -mean * factor if bias is None else bias - mean * factor
    return Scaling(factor.reshape(-1, *[1] * dims), offset.reshape(-1, *[1] * dims), operations=5)
