"""Means of slopes that forget: of a network whose weights and data move."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from ..graph import Graph
from ..quantities.slope_sums import Kind
from ..slopes import AveragedSlope


class RunningSlopes:
    """Exponentially weighted means of every unit's slopes, at points and over pairs.

    Each addition multiplies what came before by `forgetting` = γ, so the mean is
    Σ_a γ^a S_a / Σ_a γ^a n_a over additions of age a with sums S_a over n_a points or pairs. With γ = 1 it
    is the mean over all, with γ = 0 that of the last addition.

    Memory: one number a unit and kind.
    """

    def __init__(self, forgetting: float) -> None:
        if not 0.0 <= forgetting <= 1.0:
            raise ValueError("forgetting is a factor from 0 to 1")
        self.forgetting = forgetting
        self._sums: dict[tuple[Kind, int], AveragedSlope] = {}
        self._weights: dict[tuple[Kind, int], float] = {}

    def add(self, kind: Kind, totals: Mapping[int, AveragedSlope], count: int) -> None:
        """Add sums by node, over `count` points or pairs; they are kept, not copied."""
        for node, total in totals.items():
            key = kind, node
            known = self._sums.get(key)
            if known is not None:
                total = total.with_values(self.forgetting * known.values + total.values)
            self._sums[key] = total
            self._weights[key] = self.forgetting * self._weights.get(key, 0.0) + count

    def mean(self, kind: Kind) -> dict[int, AveragedSlope]:
        """Mean slopes by node, in float64 on the CPU."""
        return {
            node: slope.with_values(slope.values.cpu().to(torch.float64) / self._weights[which, node])
            for (which, node), slope in self._sums.items()
            if which == kind
        }

    def keep(self, nodes: Set[int]) -> None:
        """Forget all that is known of other nodes than these."""
        self._sums = {key: slope for key, slope in self._sums.items() if key[1] in nodes}
        self._weights = {key: weight for key, weight in self._weights.items() if key[1] in nodes}

    def state(self) -> dict[str, Tensor]:
        """As named tensors."""
        sums = {f"sum.{kind}.{node}": slope.values.cpu() for (kind, node), slope in self._sums.items()}
        weights = {
            f"weight.{kind}.{node}": torch.tensor(weight, dtype=torch.float64)
            for (kind, node), weight in self._weights.items()
        }
        return sums | weights

    def restore(self, graph: Graph, state: Mapping[str, Tensor], device: torch.device | str) -> None:
        """Take over what `state` gave for a graph of the same form."""
        layers = graph.nonlinear()
        self._sums, self._weights = {}, {}
        for name, values in state.items():
            what, kind, node = name.split(".")
            key: tuple[Kind, int] = ("active" if kind == "active" else "secant", int(node))
            if what == "sum":
                self._sums[key] = layers[int(node)].averaged(values.to(device))
            else:
                self._weights[key] = float(values)
