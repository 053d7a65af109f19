"""Where the largest singular value of J = D_L W_L ⋯ D_1 W_1 settles as random layers grow wide.

W_l is N_l×N_{l−1} with independent entries of variance σ_l²/N_{l−1}, D_l diagonal with the law of φ'(h_l); both are
asymptotically free of each other. With absolute masses y = (number of inputs)·z in the place of each matrix's own z,
S-transforms of products of rectangular matrices multiply to

    1/χ(y) = (N_0 + y)/y · ∏_l σ_l² (N_l/N_{l−1}) (1 + y/N_l) / S_{D_l²}(y/N_l),

χ the inverse of the moment series of JᵀJ times N_0, and the squared edge of its spectrum is the least value over y > 0.
For one square layer this is Marchenko and Pastur's 4σ², for L of them σ^{2L} (L+1)^{L+1}/L^L.

Sources: D. Voiculescu (1987), S-transform; J. Pennington, S. Schoenholz, S. Ganguli (2017, 2018), spectra of the
Jacobians of random networks; L. Pastur (2020), freeness of D_l and W_l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import Graph
from ..layers.activation import Activation
from ..layers.dense import Dense
from ..layers.reshape import Permute, Reshape
from .gaussian_laws import slope_squares
from .signal_moments import Recursion, WeightStatistics

_GRID = 200
_ROUNDS = 4
_HALVINGS = 100


@dataclass(frozen=True)
class Weights:
    """W: `outputs`×`inputs`, entries of variance gain/inputs."""

    outputs: int
    inputs: int
    gain: float

    def log_factor(self, y: Tensor) -> Tensor:
        """Log of what W contributes to 1/χ(y)."""
        return math.log(self.gain * self.outputs / self.inputs) + torch.log1p(y / self.outputs)


@dataclass(frozen=True)
class Diagonal:
    """D of size `units`: squared entries with their probabilities."""

    units: int
    squares: Tensor
    weights: Tensor

    def log_factor(self, y: Tensor) -> Tensor:
        """Log 1/S(z), z = y/units: S(z) = u (1 + z)/z where E[u d²/(1 − u d²)] = z, which bisection finds."""
        z = (y / self.units)[:, None]
        top = self.squares.max()
        d, w = self.squares / top, self.weights
        low, high = torch.zeros_like(z), torch.ones_like(z)
        for _ in range(_HALVINGS):
            u = (low + high) / 2
            below = (w * u * d / (1 - u * d).clamp(min=1e-300)).sum(1, keepdim=True) < z
            low, high = torch.where(below, u, low), torch.where(below, high, u)
        return (torch.log(z) - torch.log1p(z) - torch.log(high / top))[:, 0]


def squared_edge(inputs: int, factors: Sequence[Weights | Diagonal]) -> float:
    """The limit of σ_max(J)² for the product of the factors, the first applied first, on `inputs` numbers."""
    if any((f.gain if isinstance(f, Weights) else float(f.squares.max())) == 0 for f in factors):
        return 0.0
    low, high = math.log(inputs) - 20.0, math.log(inputs) + 20.0
    best = math.inf
    for _ in range(_ROUNDS):
        grid = torch.linspace(low, high, _GRID, dtype=torch.float64)
        y = grid.exp()
        logs = torch.log1p(inputs / y)
        for factor in factors:
            logs = logs + factor.log_factor(y)
        place = int(logs.argmin())
        best = float(logs[place])
        low, high = float(grid[max(place - 1, 0)]), float(grid[min(place + 1, _GRID - 1)])
    return math.exp(best)


def spectral_edge(graph: Graph, found: Recursion) -> float | None:
    """The limit of σ_max(J) for a chain of dense layers on vectors and activations; None for other graphs."""
    factors: list[Weights | Diagonal] = []
    for index, node in enumerate(graph.nodes[1:], start=1):
        if node.inputs != (index - 1,) or index not in found.signals:
            return None
        if isinstance(node.layer, Dense) and len(node.shape) == 1:
            statistics = WeightStatistics.of(node)
            assert statistics is not None
            factors.append(Weights(node.shape[0], node.layer.weight.shape[1], statistics.gain))
        elif isinstance(node.layer, Activation):
            law = found.signals[index].law
            if law is None or len(law.steps) != 1:
                return None
            factors.append(Diagonal(math.prod(node.shape), *slope_squares(law)))
        elif not isinstance(node.layer, (Reshape, Permute)):
            return None
    return math.sqrt(squared_edge(math.prod(graph.input_shape), factors))
