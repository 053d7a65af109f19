"""Spectral norms that are differentiable, their singular vectors followed from step to step.

With unit vectors u, v the derivative of σ_max(J) is uᵀ(dJ)v. While weights change slowly the vectors
change slowly, so one step of the power method on JJᵀ a training step follows them: v ← Jᵀu, u ← Jv.
The norm is ‖Jv‖ with v held, whose derivative is uᵀ(dJ)v for u = Jv/‖Jv‖.

What is stored are left vectors: of the local Jacobians of a classifier they live in the space of its few
outputs, where those of one sample are a good start for another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph
from ..jacobian import linearize
from ..layers.scaling import Scaling
from ..spectral import LinearOperator, spectral_norm

_FIRST_STEPS = 10


class Followed:
    """σ_max of an operator that changes slowly (or of a batch of them), from below.

    Args:
        steps: power steps a call; each is a product with J and one with Jᵀ. Ten more come at the first call.
        seed: of the random start.
    """

    def __init__(self, steps: int = 1, seed: int = 0) -> None:
        if steps < 1:
            raise ValueError("steps must be positive")
        self.steps, self.seed = steps, seed
        self._left: Tensor | None = None
        """Unit vectors (1, B, *out), as many as were ever asked for."""

    def right(self, operator: LinearOperator, like: Tensor) -> tuple[Tensor, Tensor]:
        """Near the leading right singular vectors, (1, B, *in), and the norms as they appear there, (B,).

        Args:
            like: a tensor of the operator's dtype and device.
        """
        with torch.no_grad():
            first = self._left is None
            left = self._start(operator, like)
            right = operator.rmatvec(left)
            for _ in range(self.steps - 1 + _FIRST_STEPS * first):
                left = _unit(operator.matvec(_unit(right)))
                right = operator.rmatvec(left)
            self.keep(left)
            return _unit(right), right.flatten(2)[0].norm(dim=1)

    def norm(self, operator: LinearOperator, right: Tensor) -> Tensor:
        """‖J v‖ (B,) for the held vectors v, differentiable in what J is made of; J v is kept as the next start."""
        image = operator.matvec(right)
        self.keep(image.detach())
        norms: Tensor = image.flatten(2)[0].norm(dim=1)
        return norms

    def keep(self, left: Tensor) -> None:
        """Take the vectors (1, B, *out), of any length, as the next start; those of further operators stay."""
        left = _unit(left)
        if self._left is not None and self._left.shape[1] > left.shape[1]:
            rest = self._left[:, left.shape[1] :].to(left)
            left = torch.cat([left, rest], 1)
        self._left = left

    def settle(self, operator: LinearOperator, like: Tensor, tolerance: float) -> Tensor:
        """The norms (B,) to the relative tolerance, by Lanczos; their vectors are followed from here on."""
        with torch.no_grad():
            found = spectral_norm(
                operator, tolerance=tolerance, block=2, dtype=like.dtype, device=like.device, max_steps=300
            )
            self.keep(found.left[None].to(like))
        return found.value

    def _start(self, operator: LinearOperator, like: Tensor) -> Tensor:
        """Kept vectors, and random ones where there are none or where they died (a zero Jacobian)."""
        shape = (1, operator.batch, *operator.output_shape)
        random = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed)).to(like)
        if self._left is None:
            return random
        kept = self._left[:, : operator.batch].to(like)
        alive = kept.flatten(2).norm(dim=2).reshape(1, -1, *[1] * len(operator.output_shape)) > 0
        start = random
        start[:, : kept.shape[1]] = torch.where(alive, kept, random[:, : kept.shape[1]])
        return start


def _unit(x: Tensor) -> Tensor:
    """Each of the vectors (1, B, *s) divided by its length; zero stays zero."""
    length: Tensor = x.flatten(2).norm(dim=2).reshape(1, -1, *[1] * (x.ndim - 2))
    return x / length.clamp_min(torch.finfo(x.dtype).tiny)


def layer_norm(network: Graph, followed: Followed, settle: float | None = None) -> Tensor:
    """The spectral norm of a network of one linear layer (`Graph.alone`), differentiable in its tensors.

    Args:
        settle: a relative tolerance to settle at, in place of a step of the power method; not differentiable.
    """
    layer = network.nodes[-1].layer
    if isinstance(layer, Scaling):
        return layer.factor.abs().max()
    operator = linearize(network, {})
    like = next(p for p in network.parameters() if p.is_floating_point())
    if settle is not None:
        return followed.settle(operator, like, settle).squeeze(0).to(like)
    right, _ = followed.right(operator, like)
    return followed.norm(operator, right).squeeze(0)
