"""Elementwise functions that are steep somewhere: powers, roots, reciprocals, exponentials, logarithms; sine and cosine.

Most have no global Lipschitz constant. They have one on an interval, and what is proved of a layer's
input (`Reference.values`) is one: each function keeps it as its domain. Their secant slopes are written
in closed form, without a difference of values in which digits cancel, and give the derivative as well.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..slopes import Diagonal, Point
from .activation import Activation
from .base import UNBOUNDED, Layer, Lines, Range, Reference, Shape, TracedCall, torch_rule

_ROUNDING = 2.0**-41
"""Covers the few units in the last place by which torch's elementary functions are off, and what rounding of
rate·x does to an exponential: up to 2·709 units, since beyond e^709 it overflows."""
_TINY = 1e-290
"""Covers underflow."""
_LARGEST = torch.finfo(torch.float64).max


def power_secant(first: Tensor, second: Tensor, exponent: float) -> Tensor:
    """(s^p − t^p)/(s − t) of non-negative s and t, the derivative where they are equal.

    With s = t(1 + q), t the smaller: t^{p−1}·((1 + q)^p − 1)/q.
    """
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    q = torch.where(high == low, 0.0, (high - low) / low)
    rise = torch.expm1(exponent * torch.log1p(q)) / torch.where(q == 0, 1, q)
    secant = low ** (exponent - 1) * torch.where(q == 0, exponent, rise)
    # From 0, and where the quotient of the two overflows, the plain quotient loses no digits.
    plain = (high**exponent - low**exponent) / torch.where(high == low, 1, high - low)
    return torch.where(q.isinf(), plain, secant)


@dataclass(eq=False)
class OnDomain(Activation):
    """A function φ of inputs that are proved to lie in [low, high], within the natural domain `defined`.

    φ' is monotone on the domain but for the extremes at `turns`, and φ is continuous but for the `pole`.
    """

    low: float = -math.inf
    high: float = math.inf
    defined: ClassVar[Range] = UNBOUNDED
    turns: ClassVar[tuple[float, ...]] = ()
    pole: ClassVar[float | None] = None
    """A place inside the natural domain where φ is infinite."""

    @classmethod
    def on(cls, values: Range, **settings: float) -> OnDomain:
        """The function on an interval, cut with the natural domain."""
        layer = cls(**settings)
        layer.low, layer.high = (min(max(end, layer.defined[0]), layer.defined[1]) for end in values)
        return layer

    @abstractmethod
    def quotient(self, first: Tensor, second: Tensor) -> Tensor:
        """(φ(s) − φ(t))/(s − t), entrywise; the derivative where s = t."""

    def derivative(self, x: Tensor) -> Tensor:
        return self.quotient(x, x)

    def between(self, first: Point, second: Point) -> Diagonal:
        return Diagonal(self.quotient(first.x, second.x).clamp(*self.slope_range))

    @property
    def slope_range(self) -> tuple[float, float]:
        ends = (torch.full((), end, dtype=torch.float64) for end in (self.low, self.high))
        least, most = self.slope_range_over(*ends)
        return float(least), float(most)

    def slope_range_over(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Between its turns φ' is monotone; beside a pole nothing is known."""
        low, high = self._inside(low, high)
        knots = [low, high, *(torch.clamp(low, min=turn).minimum(high) for turn in self.turns)]
        slopes = torch.stack([self.derivative(knot) for knot in knots])
        least, most = _widened(slopes.amin(0))[0], _widened(slopes.amax(0))[1]
        unknown = least.isnan() | most.isnan() | self._at_pole(low, high)
        return torch.where(unknown, -math.inf, least), torch.where(unknown, math.inf, most)

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._inside(low, high)
        least, most = super().value_range(low, high)
        unknown = self._at_pole(low, high)
        return (
            torch.where(unknown, -math.inf, least).clamp(min=self.minimum),
            torch.where(unknown, math.inf, most),
        )

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        least, most = self.value_range(*(torch.full((), end, dtype=torch.float64) for end in inputs[0]))
        return float(least), float(most)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """The activation's, or constants where it has none because slopes are infinite."""
        least, most = self.value_range(low, high)
        found = super().lines(*self._inside(low, high))
        below, above = found.below_offset.isfinite(), found.above_offset.isfinite()
        return Lines(
            Diagonal(torch.where(below, found.below.values, 0.0)),
            torch.where(below, found.below_offset, least),
            Diagonal(torch.where(above, found.above.values, 0.0)),
            torch.where(above, found.above_offset, most),
        )

    def _inside(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return low.clamp(self.low, self.high), high.clamp(self.low, self.high)

    def _at_pole(self, low: Tensor, high: Tensor) -> Tensor:
        if self.pole is None:
            return torch.zeros_like(low, dtype=torch.bool)
        return (low <= self.pole) & (high >= self.pole)

    def _value_rounding(self, y: Tensor) -> Tensor:
        return _ROUNDING * y.abs() + _TINY

    def _outward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _widened(self.forward(x))


def _widened(y: Tensor) -> tuple[Tensor, Tensor]:
    """Certified bounds of computed values; what overflowed is only known to be large."""
    margin = _ROUNDING * y.abs() + _TINY
    low, high = (
        torch.where(y == math.inf, _LARGEST, y - margin),
        torch.where(y == -math.inf, -_LARGEST, y + margin),
    )
    return torch.where(y == -math.inf, y, low), torch.where(y == math.inf, y, high)


@dataclass(eq=False)
class Exponential(OnDomain):
    """exp(rate·x) − shift: exponentials of any base, and expm1 (where the shift is 1 and the rate)."""

    kind = "exponential"
    rate: float = 1.0
    shift: float = 0.0

    @property
    def minimum(self) -> float:  # type: ignore[override]
        return -self.shift

    def forward(self, *xs: Tensor) -> Tensor:
        scaled = self.rate * xs[0]
        return torch.expm1(scaled) if self.shift == 1.0 else torch.exp(scaled)

    def quotient(self, first: Tensor, second: Tensor) -> Tensor:
        s, t = self.rate * first, self.rate * second
        gap = (s - t).abs()
        gap = torch.where(s == t, 0.0, gap)
        share = torch.where(gap == 0, 1.0, -torch.expm1(-gap) / torch.where(gap == 0, 1, gap))
        return self.rate * torch.exp(torch.maximum(s, t)) * share


@dataclass(eq=False)
class Logarithm(OnDomain):
    """log(x + shift): shift 0, or 1 as in log1p."""

    kind = "logarithm"
    shift: float = 0.0

    @property
    def defined(self) -> Range:  # type: ignore[override]
        return -self.shift, math.inf

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.log1p(xs[0]) if self.shift == 1.0 else torch.log(xs[0])

    def quotient(self, first: Tensor, second: Tensor) -> Tensor:
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        q = torch.where(high == low, 0.0, (high - low) / (low + self.shift))
        secant = torch.where(q == 0, 1.0, torch.log1p(q) / torch.where(q == 0, 1, q)) / (low + self.shift)
        # From the end of the domain the value is infinite.
        return torch.where(low + self.shift == 0, math.inf, secant)


@dataclass(eq=False)
class WholePower(OnDomain):
    """x^n for a whole n ≥ 2."""

    kind = "power"
    exponent: int = 2

    @property
    def turns(self) -> tuple[float, ...]:  # type: ignore[override]
        """The slope of an odd power is least at 0."""
        return (0.0,)

    @property
    def minimum(self) -> float:  # type: ignore[override]
        return 0.0 if self.exponent % 2 == 0 else -math.inf

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] ** self.exponent

    def quotient(self, first: Tensor, second: Tensor) -> Tensor:
        """Σ s^i t^{n−1−i}, by Horner's rule."""
        total, power = torch.ones_like(first), torch.ones_like(first)
        for _ in range(self.exponent - 1):
            power = power * second
            total = total * first + power
        return total


@dataclass(eq=False)
class Reciprocal(OnDomain):
    """1/x."""

    kind = "reciprocal"
    pole = 0.0

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].reciprocal()

    def quotient(self, first: Tensor, second: Tensor) -> Tensor:
        return -first.reciprocal() * second.reciprocal()


@dataclass(eq=False)
class RealPower(OnDomain):
    """x^p of x ≥ 0 for any p but 0 and 1: roots and their reciprocals."""

    kind = "power"
    exponent: float = 0.5
    defined = (0.0, math.inf)
    minimum = 0.0

    def forward(self, *xs: Tensor) -> Tensor:
        if self.exponent in (0.5, -0.5):
            return xs[0].sqrt() if self.exponent > 0 else xs[0].rsqrt()
        return xs[0] ** self.exponent

    def quotient(self, first: Tensor, second: Tensor) -> Tensor:
        return power_secant(first, second, self.exponent)


@dataclass(eq=False)
class Sine(Activation):
    """sin(x + phase): sine, and cosine for the phase π/2."""

    kind = "sine"
    cosine: bool = False
    slope_range = (-1.0, 1.0)
    image = (-1.0, 1.0)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].cos() if self.cosine else xs[0].sin()

    def derivative(self, x: Tensor) -> Tensor:
        return -x.sin() if self.cosine else x.cos()

    def between(self, first: Point, second: Point) -> Diagonal:
        """φ'((s + t)/2)·sin(h)/h, h = (s − t)/2."""
        half = (first.x - second.x) / 2
        shrink = torch.where(half == 0, 1.0, half.sin() / torch.where(half == 0, 1, half))
        return Diagonal((self.derivative((first.x + second.x) / 2) * shrink).clamp(-1, 1))


# ---- import rules -----------------------------------------------------------------------------------

_FACTORIES: dict[str, Callable[[Range], Layer]] = {
    "aten.exp.default": lambda values: Exponential.on(values),
    "aten.exp2.default": lambda values: Exponential.on(values, rate=math.log(2)),
    "aten.expm1.default": lambda values: Exponential.on(values, shift=1.0),
    "aten.log.default": lambda values: Logarithm.on(values),
    "aten.log1p.default": lambda values: Logarithm.on(values, shift=1.0),
    "aten.sqrt.default": lambda values: RealPower.on(values),
    "aten.rsqrt.default": lambda values: RealPower.on(values, exponent=-0.5),
    "aten.reciprocal.default": lambda values: Reciprocal.on(values),
    "aten.sin.default": lambda values: Sine(),
    "aten.cos.default": lambda values: Sine(cosine=True),
}


@torch_rule(*_FACTORIES)
def _function(call: TracedCall) -> Sequence[Layer]:
    return [_FACTORIES[call.op](call.references[0].values)]


@torch_rule("aten.pow.Tensor_Scalar")
def _power(call: TracedCall) -> Sequence[Layer] | Reference:
    signal, exponent = call.references[0], float(call.args[1])
    if exponent == 1:
        return []
    if exponent == 0:
        raise call.unsupported("a power 0 is constant")
    if not exponent.is_integer():
        return [RealPower.on(signal.values, exponent=exponent)]
    if exponent < 0:
        signal = call.apply(Reciprocal.on(signal.values), signal)
    if abs(exponent) > 1:
        signal = call.apply(WholePower.on(signal.values, exponent=int(abs(exponent))), signal)
    return signal


@torch_rule("aten.pow.Scalar")
def _exponential(call: TracedCall) -> Sequence[Layer]:
    base = float(call.args[0])
    if not base > 0:
        raise call.unsupported(f"powers of {base:g} are not real numbers")
    return [Exponential.on(call.references[0].values, rate=math.log(base))]
