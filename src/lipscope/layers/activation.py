"""Elementwise activations: the value, the derivative, and the certified range [α, β] of slopes.

By the mean value theorem every secant slope (φ(s) − φ(t))/(s − t) lies in the range of φ',
so one range serves points, pairs and bounds.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..slopes import Diagonal, Slope
from .base import UNBOUNDED, Layer, NonlinearLayer, Range, Shape, TracedCall, torch_rule


class Activation(NonlinearLayer):
    """A scalar function φ applied to every entry."""

    @property
    @abstractmethod
    def slope_range(self) -> tuple[float, float]:
        """Certified [α, β] ∋ φ'(t) for every real t."""

    image: ClassVar[Range] = UNBOUNDED
    """An interval proved to hold φ(t) for every real t."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """φ'(x), entrywise (at a kink, the slope on the left)."""

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        return self.forward(x), Diagonal(self.derivative(x))

    def secant(self, x1: Tensor, x2: Tensor) -> Diagonal:
        """Divided differences; the derivative at the midpoint where they would lose their digits."""
        alpha, beta = self.slope_range
        gap = x1 - x2
        closest = torch.finfo(x1.dtype).eps ** (1 / 3) * (1 + x1.abs())
        near = gap.abs() <= closest
        quotient = (self.forward(x1) - self.forward(x2)) / torch.where(near, 1, gap)
        slope = torch.where(near, self.derivative((x1 + x2) / 2), quotient)
        return Diagonal(slope.clamp(alpha, beta))

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        return self.image

    def constant(self, shape: Shape) -> float:
        """max(|α|, |β|), the Lipschitz constant of φ."""
        return max(abs(bound) for bound in self.slope_range)


class PiecewiseLinear(Activation):
    """An activation with kinks: secant slopes are exact wherever both points lie on one piece."""

    def piece(self, x: Tensor) -> Tensor:
        """Which linear piece each entry lies on."""
        return x > 0

    def secant(self, x1: Tensor, x2: Tensor) -> Diagonal:
        alpha, beta = self.slope_range
        same = self.piece(x1) == self.piece(x2)
        quotient = (self.forward(x1) - self.forward(x2)) / torch.where(same, 1, x1 - x2)
        return Diagonal(torch.where(same, self.derivative(x1), quotient.clamp(alpha, beta)))


@dataclass(eq=False)
class LeakyReLU(PiecewiseLinear):
    """max(x, 0) + slope·min(x, 0); slope 0 is ReLU, slope −1 the modulus."""

    kind = "leaky ReLU"
    slope: float = 0.0

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.leaky_relu(xs[0], self.slope)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), self.slope)

    @property
    def slope_range(self) -> tuple[float, float]:
        return min(1.0, self.slope), max(1.0, self.slope)


@dataclass(eq=False)
class ReLU(PiecewiseLinear):
    """max(x, 0)."""

    kind = "ReLU"
    slope_range = (0.0, 1.0)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        low, high = inputs[0]
        return max(low, 0.0), max(high, 0.0)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].relu()

    def derivative(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    def secant(self, x1: Tensor, x2: Tensor) -> Diagonal:
        # On one side of the kink the quotient is exactly 0 or 1 without asking which.
        gap = x1 - x2
        return Diagonal(torch.where(gap == 0, self.derivative(x1), (x1.relu() - x2.relu()).div_(gap)))


@dataclass(eq=False)
class Clamp(PiecewiseLinear):
    """min(max(x, low), high), the ends possibly infinite: clamp, hard tanh, ReLU6."""

    kind = "clamp"
    low: float
    high: float
    slope_range = (0.0, 1.0)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        low, high = (min(max(end, self.low), self.high) for end in inputs[0])
        return low, high

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].clamp(self.low, self.high)

    def piece(self, x: Tensor) -> Tensor:
        return (x > self.low).to(torch.int8) + (x > self.high)

    def derivative(self, x: Tensor) -> Tensor:
        return (self.piece(x) == 1).to(x.dtype)


@dataclass(eq=False)
class Sigmoid(Activation):
    """1 / (1 + e⁻ˣ)."""

    kind = "sigmoid"
    slope_range = (0.0, 0.25)
    image = (0.0, 1.0)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].sigmoid()

    def derivative(self, x: Tensor) -> Tensor:
        return x.sigmoid() * (-x).sigmoid()


@dataclass(eq=False)
class Tanh(Activation):
    """Hyperbolic tangent."""

    kind = "tanh"
    slope_range = (0.0, 1.0)
    image = (-1.0, 1.0)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].tanh()

    def derivative(self, x: Tensor) -> Tensor:
        return 1 - x.tanh().square()


@dataclass(eq=False)
class Softplus(Activation):
    """log(1 + e^{βx})/β; torch's switch to the identity above a threshold is taken as rounding."""

    kind = "softplus"
    sharpness: float = 1.0
    threshold: float = 20.0
    slope_range = (0.0, 1.0)

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.softplus(xs[0], self.sharpness, self.threshold)

    def derivative(self, x: Tensor) -> Tensor:
        return (self.sharpness * x).sigmoid()


@dataclass(eq=False)
class ELU(Activation):
    """scale·x for x > 0, scale·depth·(e^{rate·x} − 1) below: ELU, SELU and CELU."""

    kind = "ELU"
    depth: float = 1.0
    scale: float = 1.0
    rate: float = 1.0

    def forward(self, *xs: Tensor) -> Tensor:
        below = self.depth * torch.expm1(self.rate * xs[0].clamp(max=0))
        return self.scale * torch.where(xs[0] > 0, xs[0], below)

    def derivative(self, x: Tensor) -> Tensor:
        below = self.depth * self.rate * torch.exp(self.rate * x.clamp(max=0))
        return self.scale * torch.where(x > 0, 1.0, below)

    def secant(self, x1: Tensor, x2: Tensor) -> Diagonal:
        """Divided differences also between near points across the kink at 0, where no digits cancel."""
        alpha, beta = self.slope_range
        across = (x1 > 0) != (x2 > 0)
        quotient = (self.forward(x1) - self.forward(x2)) / torch.where(across, x1 - x2, 1)
        return Diagonal(torch.where(across, quotient.clamp(alpha, beta), super().secant(x1, x2).values))

    @property
    def slope_range(self) -> tuple[float, float]:
        steepest = math.nextafter(self.scale * self.depth * self.rate, math.copysign(math.inf, self.depth))
        return min(0.0, self.scale, steepest), max(0.0, self.scale, steepest)


# φ'(x) = Φ(x) + x·φ(x) of GELU is stationary at ±√2; outward by 1e-15 for the rounding of erf and exp.
_GELU_MAX = 0.5 * (1 + math.erf(1.0)) + math.exp(-1.0) / math.sqrt(math.pi) + 1e-15


@dataclass(eq=False)
class GELU(Activation):
    """x·Φ(x), Φ the Gaussian distribution function."""

    kind = "GELU"
    slope_range = (1 - _GELU_MAX, _GELU_MAX)

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.gelu(xs[0])

    def derivative(self, x: Tensor) -> Tensor:
        density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
        return 0.5 * torch.erfc(-x / math.sqrt(2)) + x * density


@dataclass(eq=False)
class TanhGELU(Activation):
    """The tanh approximation of GELU."""

    kind = "GELU (tanh)"
    # The extremes of the derivative, 1.1289930686… at x = 1.4185040… and by symmetry 1 − that, rounded outward.
    slope_range = (-0.1289930687, 1.1289930687)

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.gelu(xs[0], approximate="tanh")

    def derivative(self, x: Tensor) -> Tensor:
        root, cubic = math.sqrt(2 / math.pi), 0.044715
        t = torch.tanh(root * (x + cubic * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t.square()) * root * (1 + 3 * cubic * x.square())


@dataclass(eq=False)
class SiLU(Activation):
    """x·sigmoid(x)."""

    kind = "SiLU"
    # The extremes of the derivative, 1.0998393201… at x = 2.3993572805… and 1 − that, rounded outward.
    slope_range = (-0.09983932013, 1.09983932013)

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.silu(xs[0])

    def derivative(self, x: Tensor) -> Tensor:
        s = x.sigmoid()
        return s * (1 + x * (1 - s))


_SELU_DEPTH, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

_FACTORIES: dict[str, Callable[[TracedCall], Layer]] = {
    "aten.relu.default": lambda call: ReLU(),
    "aten.relu6.default": lambda call: Clamp(0.0, 6.0),
    "aten.hardtanh.default": lambda call: Clamp(call.arg(1, "min_val", -1.0), call.arg(2, "max_val", 1.0)),
    "aten.clamp.default": lambda call: _clamp(call),
    "aten.leaky_relu.default": lambda call: LeakyReLU(float(call.arg(1, "negative_slope", 0.01))),
    "aten.abs.default": lambda call: LeakyReLU(-1.0),
    "aten.sigmoid.default": lambda call: Sigmoid(),
    "aten.tanh.default": lambda call: Tanh(),
    "aten.softplus.default": lambda call: Softplus(
        float(call.arg(1, "beta", 1.0)), float(call.arg(2, "threshold", 20.0))
    ),
    "aten.elu.default": lambda call: ELU(
        *(float(call.arg(i, name, 1.0)) for i, name in ((1, "alpha"), (2, "scale"), (3, "input_scale")))
    ),
    "aten.celu.default": lambda call: _celu(call),
    "aten.selu.default": lambda call: ELU(_SELU_DEPTH, _SELU_SCALE),
    "aten.silu.default": lambda call: SiLU(),
    "aten.gelu.default": lambda call: TanhGELU() if call.arg(1, "approximate") == "tanh" else GELU(),
}


def _clamp(call: TracedCall) -> Clamp:
    low, high = call.arg(1, "min"), call.arg(2, "max")
    return Clamp(-math.inf if low is None else float(low), math.inf if high is None else float(high))


def _celu(call: TracedCall) -> ELU:
    depth = float(call.arg(1, "alpha", 1.0))
    if depth <= 0:
        raise call.unsupported("with a negative alpha its slope grows without bound")
    return ELU(depth=depth, rate=1 / depth)


@torch_rule(*_FACTORIES)
def _activation(call: TracedCall) -> Sequence[Layer]:
    call.input_shape  # noqa: B018  refuses parameters that depend on the input
    return [_FACTORIES[call.op](call)]
