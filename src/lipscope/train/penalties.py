"""Differentiable Lipschitz constants of a module: local, effective, certified.

All are those of the module in evaluation mode (dropout off, batch norm with its running statistics), as
functions of its live parameters. A value lies below the constant it stands for while its singular vectors
lag behind, and reaches it as they settle.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..graph import Graph, LiveGraph, Slopes
from ..jacobian import Jacobian, linearize
from ..layers import LinearLayer
from ..layers.base import Shape
from ..layers.merge import SideBySide
from ..slopes import Level
from .following import Followed, layer_norm


class Penalty(ABC):
    """A Lipschitz constant of a module that can be added to a loss.

    Attributes:
        last: the value of the last call, for logs; NaN before the first.
    """

    def __init__(self, module: nn.Module, input_shape: Sequence[int]) -> None:
        self.live = LiveGraph(module, tuple(input_shape))
        self.last = torch.tensor(torch.nan)

    def __call__(self, x: Tensor) -> Tensor:
        """The constant at a batch (B, *input_shape) of the module's inputs: a tensor without dimensions."""
        parameter = next(self.live.module.parameters(), x)
        # Singular vectors would be followed badly in half precision.
        with torch.autocast(parameter.device.type, enabled=False):
            value = self.value(x)
        self.last = value.detach()
        return value

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """What a call returns."""

    @abstractmethod
    def settle(self, x: Tensor, tolerance: float = 1e-4) -> float:
        """The constant to a relative tolerance, by Lanczos; the vectors found are where the next call starts."""


class Every:
    """A penalty that is computed every `steps`-th call, times `steps`; zero in between.

    So its gradients have the same mean at a fraction of the cost (lazy regularisation).

    Source: T. Karras et al., Analyzing and improving the image quality of StyleGAN (2020), section 3.1.
    """

    def __init__(self, penalty: Penalty, steps: int) -> None:
        if steps < 1:
            raise ValueError("steps must be positive")
        self.penalty, self.steps, self._calls = penalty, steps, 0

    @property
    def live(self) -> LiveGraph:
        """The penalised graph."""
        return self.penalty.live

    @property
    def last(self) -> Tensor:
        """The constant when it was last computed."""
        return self.penalty.last

    def __call__(self, x: Tensor) -> Tensor:
        """`steps` times the constant, or zero."""
        self._calls += 1
        return x.new_zeros(()) if self._calls % self.steps else self.steps * self.penalty(x)


class LocalPenalty(Penalty):
    """Lip(x) = σ_max(J(x)) over a batch: its largest or its mean.

    Args:
        module: takes one tensor (batch, *input_shape) and returns one tensor.
        input_shape: per-sample shape.
        reduce: "max" or "mean" over the samples. The maximum is differentiated at its sample alone, which is
            cheaper.
        samples: how many of a batch are looked at, the first ones; None for all.
        steps: power steps a call, for the maximum two at least. The vectors start from those of the sample at the
            same place in the batch before.

    Raises:
        ModelError, UnsupportedLayerError: the module cannot be imported, see `LiveGraph`.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        *,
        reduce: Literal["max", "mean"] = "max",
        samples: int | None = None,
        steps: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(module, input_shape)
        self.reduce, self.samples = reduce, samples
        # The last step for the maximum is at its sample alone, so one step would leave the others' vectors.
        self._followed = Followed(max(2, steps) if reduce == "max" else steps, seed)

    def value(self, x: Tensor) -> Tensor:
        """The largest or the mean of ‖J(x) v‖ over the samples, v near the leading right singular vectors."""
        operator, like = self._operator(x)
        right, norms = self._followed.right(operator, like)
        if self.reduce == "mean":
            return self._followed.norm(operator, right).mean()
        worst = int(norms.argmax())
        slopes = {i: slope.rows(worst, 1) for i, slope in operator.slopes.items()}
        alone = linearize(operator.graph, slopes)
        norm: Tensor = alone.matvec(right[:, worst : worst + 1]).norm()
        return norm

    def settle(self, x: Tensor, tolerance: float = 1e-4) -> float:
        """Also finds the vectors of the samples of x, which are followed if the next call has the same ones."""
        operator, like = self._operator(x)
        norms = self._followed.settle(operator, like, tolerance)
        return float(norms.max() if self.reduce == "max" else norms.mean())

    def _operator(self, x: Tensor) -> tuple[Jacobian, Tensor]:
        graph = self.live.graph()
        x = x[: self.samples].detach().to(graph.dtype)
        return linearize(graph, _slopes_at(graph, x), len(x)), x


class EffectivePenalty(Penalty):
    """L_eff: the norm of the Jacobian with slopes averaged over the batch (active) or over pairs of it (secant).

    Args:
        module: takes one tensor (batch, *input_shape) and returns one tensor.
        input_shape: per-sample shape.
        level: one mean slope a layer ("scalar"), a channel or a unit; "full": the norm of the mean Jacobian
            itself, which costs as much as a local penalty; the others cost a forward pass over the samples.
        reading: "active", slopes at the samples; "secant", over pairs of the first with the second half.
        samples: how many of a batch are averaged over, the first ones; None for all.
        steps: power steps a call.

    Raises:
        ModelError, UnsupportedLayerError: the module cannot be imported, see `LiveGraph`.

    Source: W. Czaja, R. Balan, P.-E. Jabin (2020), effective Lipschitz constant.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        *,
        level: Level | Literal["full"] = "scalar",
        reading: Literal["active", "secant"] = "active",
        samples: int | None = None,
        steps: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(module, input_shape)
        self.level, self.reading, self.samples = level, reading, samples
        self._followed = Followed(steps, seed)

    def value(self, x: Tensor) -> Tensor:
        """‖J_eff v‖ for v near the leading right singular vector."""
        operator, like = self._operator(x)
        right, _ = self._followed.right(operator, like)
        return self._followed.norm(operator, right).squeeze(0)

    def settle(self, x: Tensor, tolerance: float = 1e-4) -> float:
        """L_eff over the samples of x."""
        operator, like = self._operator(x)
        return float(self._followed.settle(operator, like, tolerance))

    def _operator(self, x: Tensor) -> tuple[Jacobian | _Mean, Tensor]:
        graph = self.live.graph()
        x = x[: self.samples].detach().to(graph.dtype)
        if self.reading == "secant":
            if len(x) < 2:
                raise ValueError("the secant reading takes pairs: two samples or more")
            half = len(x) // 2
            slopes, count = graph.secant_slopes(x[:half], x[half : 2 * half]), half
        else:
            slopes, count = _slopes_at(graph, x), len(x)
        if self.level == "full":
            return _Mean(linearize(graph, slopes, count)), x
        means: Slopes = {}
        for i, slope in slopes.items():
            mean = slope.mean(self.level)
            means[i] = mean.with_values(mean.values.to(x))
        return linearize(graph, means), x


@dataclass(frozen=True)
class _Mean:
    """E[J]: the mean of a batch of Jacobians as one operator."""

    jacobians: Jacobian

    batch = 1

    @property
    def input_shape(self) -> Shape:
        return self.jacobians.input_shape

    @property
    def output_shape(self) -> Shape:
        return self.jacobians.output_shape

    def matvec(self, v: Tensor) -> Tensor:
        return self.jacobians.matvec(self._shared(v)).mean(1, keepdim=True)

    def rmatvec(self, u: Tensor) -> Tensor:
        return self.jacobians.rmatvec(self._shared(u)).mean(1, keepdim=True)

    def _shared(self, v: Tensor) -> Tensor:
        return v.expand(-1, self.jacobians.batch, *v.shape[2:])


class CertifiedPenalty(Penalty):
    """The product bound: norms of the layers multiplied through the graph, each norm differentiable.

    Norms are those of the layers at their real sizes (with stride, padding, dilation, groups), followed by
    the power method, so the value is an estimate of the certified bound, from below; `lipscope.analytical`
    gives the bound itself. For convolutions too large to be written out that is the norm on a torus, a few
    percent above; and where branches meet, it may be smaller by its linear program.

    Args:
        module: takes one tensor (batch, *input_shape) and returns one tensor.
        input_shape: per-sample shape.
        steps: power steps a call, on one vector a layer.

    Raises:
        ModelError: a layer has no global constant, or one that is proved at import from parameters and
            cannot follow them; it is named.
        UnsupportedLayerError: see `LiveGraph`.
    """

    def __init__(
        self, module: nn.Module, input_shape: Sequence[int], *, steps: int = 1, seed: int = 0
    ) -> None:
        super().__init__(module, input_shape)
        if self.live.frozen:
            raise ModelError(
                f"{', '.join(self.live.frozen)}: its constant is proved from the weights at import and cannot "
                "follow them in training; penalise the local or the effective constant instead"
            )
        self._gains = _gains(self.live)
        self._followed = {i: Followed(steps, seed) for i, gain in enumerate(self._gains) if gain is None}

    def __call__(self, x: Tensor | None = None) -> Tensor:
        """The product bound; it needs no inputs."""
        return super().__call__(torch.empty(0) if x is None else x)

    def value(self, x: Tensor | None = None) -> Tensor:
        """The product of ‖T v‖ over the layers, v near each one's leading right singular vector."""
        graph = self.live.graph()
        norms = {i: layer_norm(graph.alone(i), followed) for i, followed in self._followed.items()}
        return self._composed(graph, norms)

    def settle(self, x: Tensor | None = None, tolerance: float = 1e-4) -> float:
        """The product bound, each norm to the relative tolerance."""
        with torch.no_grad():
            graph = self.live.graph()
            norms = {
                i: layer_norm(graph.alone(i), followed, tolerance) for i, followed in self._followed.items()
            }
            return float(self._composed(graph, norms))

    def _composed(self, graph: Graph, norms: dict[int, Tensor]) -> Tensor:
        """The rule of `certificates.norm_bounds`, without its rounding."""
        one = torch.ones((), dtype=graph.dtype, device=graph.device)
        bounds = [one]
        for index, node in enumerate(graph.nodes):
            if node.layer is None:
                continue
            before = [bounds[i] for i in node.inputs]
            gains = self._gains[index]
            if gains is None:
                bounds.append(norms[index] * before[0])
            elif isinstance(node.layer, SideBySide):
                bounds.append(torch.stack(before).norm())
            else:
                bounds.append(sum((g * b for g, b in zip(gains, before, strict=True)), 0 * one))
        return bounds[-1]


def _gains(live: LiveGraph) -> list[tuple[float, ...] | None]:
    """For every node the constant in each of its inputs; None where it is a norm to be followed.

    Raises:
        ModelError: a layer has no global constant.
    """
    graph = live.snapshot
    found: list[tuple[float, ...] | None] = []
    for index, node in enumerate(graph.nodes):
        layer, shapes = node.layer, graph.shapes_into(index)
        if layer is None:
            found.append(())
        elif isinstance(layer, LinearLayer) and len(shapes) == 1 and live.follows(layer):
            found.append(None)
        else:
            units = [[float(i == j) for j in range(len(shapes))] for i in range(len(shapes))]
            gains = tuple(layer.lipschitz(unit, shapes) for unit in units)
            if math.inf in gains:
                raise ModelError(f"{node.place}: {layer.why_unbounded or layer.kind} has no global constant")
            found.append(gains)
    return found


def _slopes_at(graph: Graph, x: Tensor) -> Slopes:
    """The slopes at each input; without a tape where they are constant around it."""
    held = all(layer.piecewise_linear and not layer.parameters() for layer in graph.nonlinear().values())
    with torch.set_grad_enabled(torch.is_grad_enabled() and not held):
        return graph.linearize_at(x)[1]
