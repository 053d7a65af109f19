"""Interval bounds of every node's value over a ball of inputs, sharpened by Euclidean distances.

A region says three things about a node's value v(x) for all x of the ball: v(x) lies in a box,
v(c) lies in a (tiny) box, and ‖v(x) − v(c)‖₂ ≤ distance. Boxes alone grow by the ∞-norm of every
layer; the distance grows by its spectral norm, and gives back a box through the norms of the
rows, |v_i(x) − v_i(c)| ≤ distance·‖T_i‖₂. Whichever is tighter is kept, entry by entry.

Sources: S. Gowal et al. (2018), interval bound propagation; the distances are the product bound
of `operator_product.py` started at the radius.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..layers import LinearLayer, NonlinearLayer
from ..layers.base import Layer, Shape
from ..rounding import up, up_product, up_tensor, widen

BallNorm = Literal["2", "inf"]


@dataclass(frozen=True)
class InputBall:
    """All inputs x with ‖x − center‖ ≤ radius; `center` is a float64 tensor (1, *in)."""

    center: Tensor
    radius: float
    norm: BallNorm

    @classmethod
    def around(cls, center: Tensor, shape: Shape, radius: float, norm: BallNorm) -> InputBall:
        """The ball, after checks.

        Args:
            center: shape *in or (1, *in), finite.

        Raises:
            ValueError: a wrong shape, a centre that is not finite, a radius that is negative or
                NaN, or an unknown norm.
        """
        if tuple(center.shape) not in (shape, (1, *shape)):
            raise ValueError(f"the centre has the shape {tuple(center.shape)}, the network's input {shape}")
        if not bool(center.isfinite().all()):
            raise ValueError("the centre of the ball is not finite")
        if not radius >= 0:
            raise ValueError(f"the radius of a ball is a number ≥ 0, not {radius}")
        if norm not in ("2", "inf"):
            raise ValueError(f"the norm of a ball is '2' or 'inf', not {norm!r}")
        exact = center.detach().to("cpu", torch.float64).reshape(1, *shape)
        return cls(exact, float(radius), norm)


@dataclass(frozen=True)
class Box:
    """Entrywise bounds of a value, tensors (1, *s) in float64; infinite where nothing is known."""

    low: Tensor
    high: Tensor

    def __and__(self, other: Box) -> Box:
        return Box(torch.maximum(self.low, other.low), torch.minimum(self.high, other.high))

    @property
    def magnitude(self) -> Tensor:
        """The largest modulus of every entry."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def wider_by(self, radius: Tensor) -> Box:
        """Every entry's bounds moved outward by at least `radius`."""
        return Box(widen(self.low, radius)[0], widen(self.high, radius)[1])


@dataclass(frozen=True)
class Region:
    """What is known of one node's value over the ball; see the module."""

    box: Box
    at_center: Box
    distance: float

    def within(self, box: Box) -> Region:
        """The region cut with another certified box, and its distance with the box's farthest corner."""
        box = self.box & box
        reach = torch.maximum(box.high - self.at_center.low, self.at_center.high - box.low).clamp(min=0)
        corner = _norm_upper(reach)
        return replace(self, box=box, distance=min(self.distance, corner))


def _norm_upper(x: Tensor) -> float:
    """An upper bound of the Euclidean norm of a non-negative tensor whose entries may be rounded once."""
    scale = float(x.max()) if x.numel() else 0.0
    if scale == 0.0 or not math.isfinite(scale):
        return scale if scale == scale else math.inf
    return up_product(up(scale, 2), up(float((x / scale).norm()), x.numel() + 4))


def ball_region(ball: InputBall) -> Region:
    """The region of the input itself."""
    at_center = Box(ball.center, ball.center)
    everywhere = at_center.wider_by(torch.full_like(ball.center, ball.radius))
    distance = ball.radius
    if ball.norm == "inf":
        distance = up_product(ball.radius, up(math.sqrt(ball.center.numel()), 1))
    return Region(everywhere, at_center, distance)


def through(layer: Layer, regions: Sequence[Region], shapes: Sequence[Shape], constant: float) -> Region:
    """The region of a layer's output, from those of its inputs.

    Args:
        constant: the layer's certified Euclidean Lipschitz constant by itself (used with one input).
    """
    if isinstance(layer, NonlinearLayer):
        (region,) = regions
        local = layer.local_lipschitz("2", layer.slope_hull(region.box.low, region.box.high), shapes[0])
        box = Box(*layer.value_range(region.box.low, region.box.high))
        at_center = Box(*layer.value_range(region.at_center.low, region.at_center.high))
        return Region(box, at_center, up_product(region.distance, min(constant, local))).within(box)
    assert isinstance(layer, LinearLayer)
    box = Box(*layer.interval([r.box.low for r in regions], [r.box.high for r in regions]))
    at_center = Box(*layer.interval([r.at_center.low for r in regions], [r.at_center.high for r in regions]))
    if len(regions) == 1:
        distance = up_product(regions[0].distance, constant)
        reach = up_tensor(layer.row_norms(shapes[0]) * regions[0].distance)
    else:
        distance = layer.lipschitz([r.distance for r in regions], shapes)
        reach = torch.full_like(box.low, distance)
    return Region(box, at_center, distance).within(at_center.wider_by(reach))
