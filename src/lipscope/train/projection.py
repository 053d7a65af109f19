"""A trained network brought within a bound, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from ..graph import from_torch
from ..quantities import analytical
from ..results import BoundedWeight, Constrained
from .constraints import SpectralBound, bake, constrain


def project(
    module: nn.Module,
    input_shape: Sequence[int],
    bound: float,
    *,
    split: Literal["even", "proportional"] = "proportional",
    name: str = "model",
) -> Constrained:
    """Scale a module's weights down, in place, until its certified Lipschitz constant is at most `bound`.

    As `constrain`, and then `bake`: weights are multiplied by numbers ≤ 1, biases stay. A batch norm's gain
    stands for the weights before it. Weights within their share of the bound stay as they are.

    Args:
        module: takes one tensor (batch, *input_shape) and returns one tensor.
        input_shape: per-sample shape.
        bound: of the network's constant; Euclidean norms.
        split: how the bound is shared, see `constrain`.
        name: of the model, for the result.

    Raises:
        UnsupportedLayerError, LipscopeError, ModelError: see `constrain`.
    """
    shape = tuple(input_shape)
    before = analytical(from_torch(module, shape)).value
    budgets = constrain(module, shape, bound, split=split)
    weights = []
    for parameter, budget in budgets.items():
        path, _, attribute = parameter.rpartition(".")
        step = module.get_submodule(f"{path}.parametrizations.{attribute}.0".lstrip("."))
        assert isinstance(step, SpectralBound)
        weights.append(
            BoundedWeight(
                name=parameter, bound=budget, before=step.unscaled, after=step.norm, scale=float(step.scale)
            )
        )
    bake(module)
    graph = from_torch(module, shape)
    return Constrained(
        model=name,
        input_shape=list(shape),
        bound=bound,
        split=split,
        before=before,
        after=analytical(graph).value,
        weights=weights,
        fingerprint=graph.fingerprint(),
    )
