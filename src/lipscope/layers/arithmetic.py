"""The rules of + − × ÷ between signals, and between signals and constants; shapes broadcast as in torch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

import torch

from .aggregation import Product
from .base import Layer, Reference, TracedCall, torch_rule
from .complex import complex_product
from .copies import expanded, without_infinity
from .merge import Stack, Sum
from .scaling import Scaling
from .unbounded import Reciprocal

_ARITHMETIC = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}


def _with_constant(call: TracedCall) -> Reference:
    """X + c, c + x, x − c, c − x, c·x or x/c as a `Scaling`; c a number or a constant tensor.

    An added −∞ (a mask before a softmax) becomes `MASKED`.
    """
    name = call.op.split(".")[1]
    left, right = call.args[:2]
    (signal,) = call.references
    alpha = call.arg(2, "alpha", 1)
    _check_rounding(call)
    if name == "div" and isinstance(right, Reference):
        signal, name = call.apply(Reciprocal.on(signal.values), signal), "mul"
    # A number in float64 at once: by default it would be rounded to float32.
    operand = torch.as_tensor(right if isinstance(left, Reference) else left, dtype=torch.float64)
    constant = call.per_sample(operand)
    one = torch.ones((), dtype=torch.float64)
    if name in ("mul", "div"):
        layer = Scaling(_ARITHMETIC[name](one, constant), None, operations=int(name == "div"))
    elif isinstance(left, Reference):
        layer = Scaling(one, without_infinity(_ARITHMETIC[name](0.0, constant) * alpha))
    else:
        sign = 1 if name == "add" else -1
        layer = Scaling(one * sign * alpha, without_infinity(constant), operations=1)
    return call.apply(layer, expanded(call, signal, call.out_shape))


def _check_rounding(call: TracedCall) -> None:
    if (rounding := call.kwargs.get("rounding_mode")) is not None:
        raise call.unsupported(f"division with rounding_mode={rounding!r} is not continuous")


@torch_rule("aten.neg.default")
def _negation(call: TracedCall) -> Sequence[Layer]:
    return [Scaling(-torch.ones((), dtype=torch.float64))]


@torch_rule(
    "aten.add.Tensor",
    "aten.sub.Tensor",
    "aten.add.Scalar",
    "aten.sub.Scalar",
    "aten.rsub.Scalar",
    complex_signals=True,
)
def _sum(call: TracedCall) -> Reference:
    references = call.references
    alike = {(reference.shape, reference.layout, reference.complex) for reference in references}
    if call.dtype.is_complex and not (len(references) == 2 and len(alike) == 1):
        raise call.unsupported("of complex signals only two of one shape can be added")
    if len(references) == 1:
        if call.op == "aten.rsub.Scalar":
            flipped = (call.args[1], call.args[0])
            settings = {"alpha": call.arg(2, "alpha", 1)}
            call = replace(call, op="aten.sub.Scalar", args=flipped, kwargs=settings)
        return _with_constant(call)
    sign = -1.0 if call.op == "aten.sub.Tensor" else 1.0
    layer = Sum((1.0, sign * float(call.kwargs.get("alpha", 1))))
    shape = references[0].shape if call.dtype.is_complex else call.out_shape
    return call.apply(layer, *(expanded(call, reference, shape) for reference in references))


@torch_rule(
    "aten.mul.Tensor",
    "aten.mul.Scalar",
    "aten.div.Tensor",
    "aten.div.Scalar",
    "aten.square.default",
    complex_signals=True,
)
def _product(call: TracedCall) -> Reference:
    if call.dtype.is_complex:
        return complex_product(call)
    references = call.references
    if call.op == "aten.square.default":
        references = references * 2
    if len(references) == 1:
        return _with_constant(call)
    first, second = references
    if call.op == "aten.div.Tensor":
        _check_rounding(call)
        second = call.apply(Reciprocal.on(second.values), second)
    return product(call, first, second)


def product(call: TracedCall, *factors: Reference) -> Reference:
    """The entrywise product of two signals, broadcast against each other."""
    first, second = (factor.largest for factor in factors)
    pair = call.apply(Stack(0), *(expanded(call, factor, call.out_shape) for factor in factors))
    return call.apply(Product((first, second)), pair)
