"""Linear and cubic interpolation to another size: a separable linear map, read off by probing torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Layer, TracedCall, torch_rule
from .separable import SeparableMap

_LINEAR = {f"upsample_{name}{d}d": d for d, name in enumerate(("linear", "bilinear", "trilinear"), 1)}
_PROBES = {
    **{name: (torch.ops.aten.upsample_bilinear2d.default, dims) for name, dims in _LINEAR.items()},
    "upsample_bicubic2d": (torch.ops.aten.upsample_bicubic2d.default, 2),
    "_upsample_bilinear2d_aa": (torch.ops.aten._upsample_bilinear2d_aa.default, 2),
    "_upsample_bicubic2d_aa": (torch.ops.aten._upsample_bicubic2d_aa.default, 2),
}
"""The operation on one dimension that gives the weights, and of how many dimensions the traced one is."""


@dataclass(eq=False)
class Interpolation(SeparableMap):
    """Linear or cubic interpolation of the last dimensions, with the weights that torch computes in float64."""

    kind = "interpolation"


@torch_rule(*(f"aten.{name}.{form}" for name in _PROBES for form in ("default", "vec")))
def _interpolation(call: TracedCall) -> Sequence[Layer]:
    _, name, form = call.op.split(".")
    probe, dims = _PROBES[name]
    sizes, align = zip(call.box(dims), call.out_shape[1:], strict=True), call.args[2]
    scales = call.arg(3, "scale_factors") if form == "vec" else [call.arg(3 + i, "") for i in range(dims)]

    def factor(size: int, out_size: int, scale: float | None) -> Tensor:
        # Along the last dimension: with one cell there, torch's antialiased form repeats its first row.
        units = torch.eye(size, dtype=torch.float64).reshape(size, 1, 1, size)
        responses: Tensor = probe(units, [1, out_size], align, None, scale)
        return responses[:, 0, 0].T.contiguous()

    pairs = zip(sizes, scales or [None] * dims, strict=True)
    return [Interpolation.of([factor(*size, scale) for size, scale in pairs])]
