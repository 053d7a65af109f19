"""Scaled dot-product attention, in terms of matrix products and a softmax."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .base import Reference, TracedCall, torch_rule
from .copies import MASKED, Copies
from .matrix_product import matrix_product
from .reshape import transposition
from .scaling import Scaling
from .softmax import Softmax


@torch_rule("aten.scaled_dot_product_attention.default")
def _attention(call: TracedCall) -> Reference:
    """softmax(Q Kᵀ·scale + mask) V."""
    query, key, value = call.args[:3]
    if not all(isinstance(x, Reference) for x in (query, key, value)):
        raise call.unsupported("its query, key and value must all depend on the input")
    if call.arg(4, "dropout_p", 0.0):
        raise call.unsupported("dropout is in training mode; call model.eval() first")
    if call.kwargs.get("enable_gqa"):
        key, value = (_repeated(call, x, query.shape[-3]) for x in (key, value))
    scale = call.kwargs.get("scale")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = matrix_product(call, query, call.apply(transposition(len(key.shape)), key))
    factor = torch.full((), float(scale), dtype=torch.float64)
    scores = call.apply(Scaling(factor, _mask(call, scores), operations=2), scores)
    weights = call.apply(Softmax(len(scores.shape) - 1), scores)
    return matrix_product(call, weights, value, stochastic=True)


def _mask(call: TracedCall, scores: Reference) -> Tensor | None:
    mask: Any = call.arg(3, "attn_mask")
    if isinstance(mask, Reference):
        raise call.unsupported("its mask depends on the input")
    if call.arg(5, "is_causal", False):
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        return torch.where(seen, 0.0, MASKED).to(torch.float64)
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, MASKED)
    return call.per_sample(mask.to(torch.float64).clamp(min=MASKED), len(scores.shape))


def _repeated(call: TracedCall, x: Reference, heads: int) -> Reference:
    """Keys or values shared by groups of queries: every head repeated for its group."""
    if x.shape[-3] == heads:
        return x
    cells = torch.arange(math.prod(x.shape)).reshape(x.shape).repeat_interleave(heads // x.shape[-3], -3)
    return call.apply(Copies(x.shape, cells), x)
