"""Elementwise activations: the value, the derivative, and the certified range [α, β] of slopes.

By the mean value theorem every secant slope (φ(s) − φ(t))/(s − t) lies in the range of φ',
so one range serves points, pairs and bounds.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..results import Norm
from ..rounding import UNIT, widen
from ..slopes import AveragedSlope, Diagonal, Point, Slope
from .base import UNBOUNDED, Layer, Lines, NonlinearLayer, Range, Shape, TracedCall, torch_rule
from .scaling import Scaling

_ROUNDING = 2.0**-43
"""Covers the few units in the last place by which torch's elementary functions are off, with a large reserve."""
_CELLS = 16


class Bend(NamedTuple):
    """A place in [first, last] where φ' turns from rising to falling or jumps, and a certified extreme there."""

    first: float
    last: float
    slope: float


class Activation(NonlinearLayer):
    """A scalar function φ applied to every entry.

    Two optional facts sharpen what is known over intervals: `bends`, all places between which φ' is
    monotone, and `minimum`, a certified lower bound of φ.
    """

    minimum: float = -math.inf
    saturation: float = math.inf
    """Beyond ± this, `derivative` is not evaluated: it has reached its limit to the last digit."""

    @property
    @abstractmethod
    def slope_range(self) -> tuple[float, float]:
        """Certified [α, β] ∋ φ'(t) for every real t."""

    image: ClassVar[Range] = UNBOUNDED
    """An interval proved to hold φ(t) for every real t."""

    @property
    def bends(self) -> Sequence[Bend] | None:
        """Where φ' turns or jumps; None if that is not known."""
        return None

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """φ'(x), entrywise (at a kink, the slope on the left)."""

    def linearize(self, x: Tensor) -> tuple[Tensor, Slope]:
        return self.forward(x), Diagonal(self.derivative(x))

    def between(self, first: Point, second: Point) -> Diagonal:
        """Divided differences; the derivative at the midpoint where they would lose their digits."""
        alpha, beta = self.slope_range
        x1, x2 = first.x, second.x
        gap = x1 - x2
        closest = torch.finfo(x1.dtype).eps ** (1 / 3) * (1 + x1.abs())
        near = gap.abs() <= closest
        quotient = (first.value - second.value) / torch.where(near, 1, gap)
        slope = torch.where(near, self.derivative((x1 + x2) / 2), quotient)
        return Diagonal(slope.clamp(alpha, beta))

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        return self.image

    def constant(self, shape: Shape) -> float:
        """max(|α|, |β|), the Lipschitz constant of φ."""
        return max(abs(bound) for bound in self.slope_range)

    def lipschitz_in(self, norm: Norm, bounds: Sequence[float], shapes: Sequence[Shape]) -> float:
        """The same in every ℓ_q norm: a diagonal."""
        return self.lipschitz(bounds, shapes)

    def slope_range_over(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Certified [α, β] ∋ φ'(t), one-sided at kinks, for every t in [low, high], entry by entry, float64.

        Between bends φ' is monotone, so it is extreme at the ends and at the bends inside.
        """
        alpha, beta = self.slope_range
        if self.bends is None:
            return torch.full_like(low, alpha), torch.full_like(low, beta)
        ends = [self.derivative(x.clamp(-self.saturation, self.saturation)) for x in (low, high)]
        least, most = torch.minimum(*ends), torch.maximum(*ends)
        margin = self._slope_rounding()
        least, most = least - margin, most + margin
        for first, last, slope in self.bends:
            touched = (low <= last) & (high >= first)
            least = torch.where(touched & (least > slope), slope, least)
            most = torch.where(touched & (most < slope), slope, most)
        known = ~(least.isnan() | most.isnan())
        return (
            torch.where(known, least.clamp(alpha, beta), alpha),
            torch.where(known, most.clamp(alpha, beta), beta),
        )

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """At the ends where φ is monotone over the interval, else from slopes over a grid of cells."""
        alpha, beta = self.slope_range_over(low, high)
        ends = [self._outward(x) for x in (low, high)]
        least = torch.minimum(ends[0][0], ends[1][0])
        most = torch.maximum(ends[0][1], ends[1][1])
        turns = (alpha < 0) & (beta > 0)
        if bool(turns.any()):
            inner = self.offset_range(torch.zeros_like(low), low, high)
            least = torch.where(turns, torch.minimum(least, inner[0]), least)
            most = torch.where(turns, torch.maximum(most, inner[1]), most)
        return least.clamp(min=self.minimum), most

    def offset_range(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Certified bounds of φ(x) − slope·x over [low, high], entry by entry, from slopes over a grid of cells.

        On a cell of width w with slopes in [−A, B], A, B ≥ 0, a function is within w·AB/(A + B) of
        the interval between its values at the ends.
        """
        steps = torch.linspace(0, 1, _CELLS + 1, dtype=torch.float64).reshape(-1, *[1] * low.ndim)
        knots = torch.minimum(torch.maximum(low + steps * (high - low), low), high)
        knots[-1] = high
        least, most = self._tilted(knots, slope)
        alpha, beta = self.slope_range_over(knots[:-1], knots[1:])
        rise, fall = (beta - slope).clamp(min=0), (slope - alpha).clamp(min=0)
        width = knots[1:] - knots[:-1]
        beyond = width * rise * fall / (rise + fall).clamp(min=1e-300) * (1 + _ROUNDING)
        least = (torch.minimum(least[:-1], least[1:]) - beyond).amin(0)
        most = (torch.maximum(most[:-1], most[1:]) + beyond).amax(0)
        return torch.where(least.isnan(), -math.inf, least), torch.where(most.isnan(), math.inf, most)

    def slope_hull(self, low: Tensor, high: Tensor) -> tuple[AveragedSlope, AveragedSlope]:
        alpha, beta = self.slope_range_over(low, high)
        return Diagonal(alpha), Diagonal(beta)

    def local_lipschitz(self, norm: Norm, hull: tuple[AveragedSlope, AveragedSlope], shape: Shape) -> float:
        """The largest |slope|, in every norm."""
        return float(torch.maximum(*(slope.values.abs() for slope in hull)).max())

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Of several slopes (the chord's, the midpoint's, the extreme ones) the lines that leave the least area.

        For ReLU these are the lines of CROWN with its adaptive lower slope.

        Source: H. Zhang, T.-W. Weng, P.-Y. Chen, C.-J. Hsieh, L. Daniel (2018), CROWN, section 3.2.
        """
        width, middle = high - low, low / 2 + high / 2
        chord = (self.forward(high) - self.forward(low)) / width
        best: list[Tensor] | None = None
        for slope in (self.derivative(middle), chord, *self.slope_range_over(low, high)):
            slope = torch.where(slope.isfinite(), slope, 0.0)
            least, most = self.offset_range(slope, low, high)
            candidate = [slope, least, slope, most]
            if best is None:
                best = candidate
                continue
            higher = slope * middle + least > best[0] * middle + best[1]
            lower = slope * middle + most < best[2] * middle + best[3]
            pairs = zip((higher, higher, lower, lower), candidate, best, strict=True)
            best = [torch.where(better, new, old) for better, new, old in pairs]
        assert best is not None
        below, below_offset, above, above_offset = best
        return Lines(Diagonal(below), below_offset, Diagonal(above), above_offset)

    def _slope_rounding(self) -> float:
        return _ROUNDING * max(1.0, self.constant(()))

    def _value_rounding(self, y: Tensor) -> Tensor:
        return _ROUNDING * (y.abs() + max(1.0, self.constant(())))

    def _outward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Certified bounds of φ(x), entry by entry."""
        y = self.forward(x)
        return widen(y, self._value_rounding(y))

    def _tilted(self, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Certified bounds of φ(x) − slope·x, entry by entry."""
        y = self.forward(x)
        line = slope * x
        return widen(y - line, self._value_rounding(y) + 4 * UNIT * (y.abs() + line.abs()))


class PiecewiseLinear(Activation):
    """An activation with kinks: secant slopes are exact wherever both points lie on one piece."""

    piecewise_linear = True

    @property
    @abstractmethod
    def kinks(self) -> tuple[float, ...]:
        """Where the linear pieces meet."""

    @property
    def bends(self) -> Sequence[Bend] | None:
        """Both slopes at every kink."""
        at = torch.tensor(self.kinks, dtype=torch.float64)
        sides = [self.derivative(at), self.derivative(torch.nextafter(at, torch.full_like(at, math.inf)))]
        return [Bend(k, k, float(s)) for side in sides for k, s in zip(self.kinks, side, strict=True)]

    def offset_range(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Extreme at the ends and at the kinks between them."""
        knots = torch.stack([low, *(low.clamp(min=kink).minimum(high) for kink in self.kinks), high])
        least, most = self._tilted(knots, slope)
        return least.amin(0), most.amax(0)

    def _slope_rounding(self) -> float:
        return 0.0

    def _value_rounding(self, y: Tensor) -> Tensor:
        return 2 * UNIT * y.abs()

    def _outward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value itself: comparisons round nothing."""
        y = self.forward(x)
        return y, y

    def piece(self, x: Tensor) -> Tensor:
        """Which linear piece each entry lies on."""
        return x > 0

    def between(self, first: Point, second: Point) -> Diagonal:
        alpha, beta = self.slope_range
        same = self.piece(first.x) == self.piece(second.x)
        quotient = (first.value - second.value) / torch.where(same, 1, first.x - second.x)
        return Diagonal(torch.where(same, self.derivative(first.x), quotient.clamp(alpha, beta)))


@dataclass(eq=False)
class LeakyReLU(PiecewiseLinear):
    """max(x, 0) + slope·min(x, 0); slope 0 is ReLU, slope −1 the modulus."""

    kind = "leaky ReLU"
    slope: float = 0.0
    kinks = (0.0,)
    _outward = Activation._outward

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.leaky_relu(xs[0], self.slope)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), self.slope)

    @property
    def slope_range(self) -> tuple[float, float]:
        return min(1.0, self.slope), max(1.0, self.slope)


@dataclass(eq=False)
class PReLU(PiecewiseLinear):
    """max(x, 0) + slope ⊙ min(x, 0); `slope` broadcasts against the per-sample shape, one a channel."""

    kind = "PReLU"
    slope: Tensor
    kinks = (0.0,)
    _outward = Activation._outward

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.where(xs[0] > 0, xs[0], self.slope * xs[0])

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), self.slope)

    @property
    def slope_range(self) -> tuple[float, float]:
        return min(1.0, float(self.slope.min())), max(1.0, float(self.slope.max()))

    def slope_range_over(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Each channel's own two slopes."""
        # Exactly at the kink both slopes occur.
        left = torch.where(low <= 0, self.slope, 1.0)
        right = torch.where(high >= 0, 1.0, self.slope)
        return torch.minimum(left, right), torch.maximum(left, right)


@dataclass(eq=False)
class SoftShrink(PiecewiseLinear):
    """x − min(max(x, −width), width)."""

    kind = "soft shrinkage"
    width: float
    slope_range = (0.0, 1.0)
    _outward = Activation._outward

    @property
    def kinks(self) -> tuple[float, ...]:
        return -self.width, self.width

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.softshrink(xs[0], self.width)

    def piece(self, x: Tensor) -> Tensor:
        return (x > -self.width).to(torch.int8) + (x > self.width)

    def derivative(self, x: Tensor) -> Tensor:
        return (self.piece(x) != 1).to(x.dtype)


@dataclass(eq=False)
class ReLU(PiecewiseLinear):
    """max(x, 0)."""

    kind = "ReLU"
    slope_range = (0.0, 1.0)
    kinks = (0.0,)

    def output_range(self, inputs: Sequence[Range], shapes: Sequence[Shape]) -> Range:
        low, high = inputs[0]
        return max(low, 0.0), max(high, 0.0)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].relu()

    def derivative(self, x: Tensor) -> Tensor:
        # Written as numbers at once: turning truth values into numbers takes several times as long.
        return torch.gt(x.detach(), 0, out=torch.empty_like(x))

    def between(self, first: Point, second: Point) -> Diagonal:
        # On one side of the kink the quotient is exactly 0 or 1 without asking which.
        gap = first.x - second.x
        quotient = (first.value - second.value).div_(gap)
        if not quotient.sum().isfinite():  # 0/0 between equal inputs, whose gradients would be NaN too
            same = gap == 0
            quotient = (first.value - second.value) / torch.where(same, 1, gap)
            quotient = torch.where(same, self.derivative(first.x), quotient)
        return Diagonal(quotient)


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

    @property
    def kinks(self) -> tuple[float, ...]:
        return self.low, self.high

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
    bends = (Bend(0.0, 0.0, 0.25),)

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
    bends = (Bend(0.0, 0.0, 1.0),)

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
    bends = ()

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.softplus(xs[0], self.sharpness, self.threshold)

    def derivative(self, x: Tensor) -> Tensor:
        return (self.sharpness * x).sigmoid()

    def _value_rounding(self, y: Tensor) -> Tensor:
        """Also of torch's switch, which drops up to log1p(e^−threshold)/|β|."""
        return super()._value_rounding(y) + math.exp(-self.threshold) / abs(self.sharpness)


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

    def between(self, first: Point, second: Point) -> Diagonal:
        """Divided differences also between near points across the kink at 0, where no digits cancel."""
        alpha, beta = self.slope_range
        across = (first.x > 0) != (second.x > 0)
        quotient = (first.value - second.value) / torch.where(across, first.x - second.x, 1)
        elsewhere = super().between(first, second).values
        return Diagonal(torch.where(across, quotient.clamp(alpha, beta), elsewhere))

    @property
    def slope_range(self) -> tuple[float, float]:
        least, most = self._steepest()
        return min(0.0, self.scale, least), max(0.0, self.scale, most)

    @property
    def bends(self) -> Sequence[Bend]:
        """φ' jumps at 0 from scale·depth·rate to scale."""
        return [Bend(0.0, 0.0, self.scale), *(Bend(0.0, 0.0, slope) for slope in self._steepest())]

    def _steepest(self) -> tuple[float, float]:
        """Certified bounds of scale·depth·rate."""
        slope = self.scale * self.depth * self.rate
        return slope - 4 * UNIT * abs(slope), slope + 4 * UNIT * abs(slope)


def _extremes(at: float, least: float, most: float) -> tuple[Bend, ...]:
    """The bends of a φ' that is largest near `at` and smallest near −at."""
    return Bend(at - 1e-6, at + 1e-6, most), Bend(-at - 1e-6, -at + 1e-6, least)


# φ'(x) = Φ(x) + x·φ(x) of GELU is stationary at ±√2; outward by 1e-15 for the rounding of erf and exp.
_GELU_MAX = 0.5 * (1 + math.erf(1.0)) + math.exp(-1.0) / math.sqrt(math.pi) + 1e-15


@dataclass(eq=False)
class GELU(Activation):
    """x·Φ(x), Φ the Gaussian distribution function."""

    kind = "GELU"
    slope_range = (1 - _GELU_MAX, _GELU_MAX)
    bends = _extremes(math.sqrt(2), *slope_range)
    minimum = -0.16997120748  # at −0.7517915…
    saturation = 1e3

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
    bends = _extremes(1.4185040, *slope_range)
    minimum = -0.17004075058  # at −0.7524614…
    saturation = 1e3

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
    bends = _extremes(2.3993573, *slope_range)
    minimum = -0.27846454277  # at −1.2784645…
    saturation = 1e3

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.silu(xs[0])

    def derivative(self, x: Tensor) -> Tensor:
        s = x.sigmoid()
        return s * (1 + x * (1 - s))


@dataclass(eq=False)
class Mish(Activation):
    """x·tanh(log(1 + eˣ))."""

    kind = "Mish"
    # The extremes of the derivative, 1.0884981612… at x = 1.4905711… and −0.1125261223… at −2.2563763…, outward.
    slope_range = (-0.11252612239, 1.08849816126)
    bends = (
        Bend(1.4905712 - 1e-6, 1.4905712 + 1e-6, slope_range[1]),
        Bend(-2.2563764 - 1e-6, -2.2563764 + 1e-6, slope_range[0]),
    )
    minimum = -0.30884341303  # at −1.1924312…
    saturation = 1e3

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.mish(xs[0])

    def derivative(self, x: Tensor) -> Tensor:
        t = functional.softplus(x).tanh()
        return t + x * x.sigmoid() * (1 - t.square())


@dataclass(eq=False)
class TanhShrink(Activation):
    """x − tanh(x)."""

    kind = "tanh shrinkage"
    slope_range = (0.0, 1.0)
    bends = (Bend(0.0, 0.0, 0.0),)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] - xs[0].tanh()

    def derivative(self, x: Tensor) -> Tensor:
        return x.tanh().square()


@dataclass(eq=False)
class SoftSign(Activation):
    """x/(1 + |x|)."""

    kind = "softsign"
    slope_range = (0.0, 1.0)
    image = (-1.0, 1.0)
    bends = (Bend(0.0, 0.0, 1.0),)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] / (1 + xs[0].abs())

    def derivative(self, x: Tensor) -> Tensor:
        return (1 + x.abs()).square().reciprocal()

    def between(self, first: Point, second: Point) -> Diagonal:
        """1/((1 + |s|)(1 + |t|)) for points on one side of 0, else (1 + 2|s||t|/(|s| + |t|)) times that."""
        s, t = first.x, second.x
        across = (s > 0) != (t > 0)
        sizes = s.abs(), t.abs()
        gap = sizes[0] + sizes[1]
        extra = torch.where(across & (gap > 0), 2 * sizes[0] * (sizes[1] / torch.where(gap > 0, gap, 1)), 0)
        return Diagonal(((1 + extra) / (1 + sizes[0]) / (1 + sizes[1])).clamp(0, 1))


@dataclass(eq=False)
class Hardswish(Activation):
    """x·min(max(x + 3, 0), 6)/6: quadratic between −3 and 3."""

    kind = "hard swish"
    slope_range = (-0.5, 1.5)
    # φ' = (2x + 3)/6 between the kinks; it is −½ and 3/2 at their inner sides, 0 and 1 at the outer ones.
    bends = (Bend(-3.0, -3.0, -0.5), Bend(-3.0, -3.0, 0.0), Bend(3.0, 3.0, 1.5), Bend(3.0, 3.0, 1.0))
    minimum = -0.375 - 1e-15  # at −3/2

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.hardswish(xs[0])

    def derivative(self, x: Tensor) -> Tensor:
        inside = (x > -3) & (x <= 3)
        return torch.where(inside, x / 3 + 0.5, (x > 3).to(x.dtype))

    def between(self, first: Point, second: Point) -> Diagonal:
        """Also of near points across a kink the divided difference: there the slope jumps."""
        alpha, beta = self.slope_range
        across = ((first.x > -3) != (second.x > -3)) | ((first.x > 3) != (second.x > 3))
        quotient = (first.value - second.value) / torch.where(across, first.x - second.x, 1)
        elsewhere = super().between(first, second).values
        return Diagonal(torch.where(across, quotient.clamp(alpha, beta), elsewhere))


@dataclass(eq=False)
class LogSigmoid(Activation):
    """−log(1 + e⁻ˣ)."""

    kind = "log sigmoid"
    slope_range = (0.0, 1.0)
    image = (-math.inf, 0.0)
    bends = ()

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.logsigmoid(xs[0])

    def derivative(self, x: Tensor) -> Tensor:
        return (-x).sigmoid()


@dataclass(eq=False)
class Arctangent(Activation):
    """The arctangent."""

    kind = "arctangent"
    slope_range = (0.0, 1.0)
    image = (-1.5707963267948968, 1.5707963267948968)
    bends = (Bend(0.0, 0.0, 1.0),)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].atan()

    def derivative(self, x: Tensor) -> Tensor:
        return (1 + x.square()).reciprocal()


@dataclass(eq=False)
class ErrorFunction(Activation):
    """erf(x) = (2/√π) ∫₀ˣ e^{−t²} dt."""

    kind = "error function"
    slope_range = (0.0, 1.1283791670955127)  # 2/√π, rounded up
    image = (-1.0, 1.0)
    bends = (Bend(0.0, 0.0, 1.1283791670955127),)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].erf()

    def derivative(self, x: Tensor) -> Tensor:
        return 2 / math.sqrt(math.pi) * torch.exp(-x.square())


_SELU_DEPTH, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

_FACTORIES: dict[str, Callable[[TracedCall], Layer]] = {
    "aten.relu.default": lambda call: ReLU(),
    "aten.relu6.default": lambda call: Clamp(0.0, 6.0),
    "aten.hardtanh.default": lambda call: Clamp(call.arg(1, "min_val", -1.0), call.arg(2, "max_val", 1.0)),
    "aten.clamp.default": lambda call: _clamp(call),
    "aten.clamp_min.default": lambda call: Clamp(float(call.args[1]), math.inf),
    "aten.clamp_max.default": lambda call: Clamp(-math.inf, float(call.args[1])),
    "aten.hardswish.default": lambda call: Hardswish(),
    "aten.mish.default": lambda call: Mish(),
    "lipscope.softshrink.default": lambda call: SoftShrink(float(call.arg(1, "lambd", 0.5))),
    "aten.threshold.default": lambda call: _threshold(call),
    "lipscope.tanhshrink.default": lambda call: TanhShrink(),
    "lipscope.softsign.default": lambda call: SoftSign(),
    "aten.log_sigmoid.default": lambda call: LogSigmoid(),
    "aten.atan.default": lambda call: Arctangent(),
    "aten.erf.default": lambda call: ErrorFunction(),
    "aten.leaky_relu.default": lambda call: LeakyReLU(float(call.arg(1, "negative_slope", 0.01))),
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


def _threshold(call: TracedCall) -> Clamp:
    threshold, value = float(call.args[1]), float(call.args[2])
    if threshold != value:
        raise call.unsupported(f"it jumps from {value} to {threshold}, so no Lipschitz constant exists")
    return Clamp(threshold, math.inf)


@torch_rule(
    *(f"aten.{name}.{form}" for name in ("lt", "le", "gt", "ge", "eq", "ne") for form in ("Scalar", "Tensor"))
)
def _comparison(call: TracedCall) -> Sequence[Layer]:
    """Hard shrinkage arrives as one."""
    raise call.unsupported(
        "a comparison of values that depend on the input jumps, so it has no Lipschitz constant"
    )


@torch_rule("aten.prelu.default", "aten._prelu_kernel.default")
def _prelu(call: TracedCall) -> Sequence[Layer]:
    """One slope for all entries, or one for each channel, the first axis of a sample."""
    slope = call.weight(1, "slope").flatten()
    if len(slope) == 1:
        return [LeakyReLU(float(slope))]
    return [PReLU(slope.reshape(-1, *[1] * (len(call.input_shape) - 1)))]


@torch_rule("aten.hardsigmoid.default")
def _hardsigmoid(call: TracedCall) -> Sequence[Layer]:
    """min(max(x + 3, 0), 6)/6."""
    sixth = torch.tensor(6.0, dtype=torch.float64).reciprocal()
    shift = Scaling(torch.ones((), dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))
    return [shift, Clamp(0.0, 6.0), Scaling(sixth, operations=1)]


@torch_rule(*_FACTORIES)
def _activation(call: TracedCall) -> Sequence[Layer]:
    call.input_shape  # noqa: B018  refuses parameters that depend on the input
    return [_FACTORIES[call.op](call)]
