"""A job for a Python that has auto_LiRPA: bounds of a dense ReLU network's Jacobian over an ℓ_∞ ball.

Usage: PYTHON benchmarks/auto_lirpa.py JOB.npz    (`tools.py` writes the job and reads the answer, a line of JSON)

The release 0.3 of auto_LiRPA (the last on PyPI) bounds computation graphs but has no Jacobian of its own, so the
Jacobian is written out as a graph here, row by row, with its Heaviside operation for the slopes. Its backward bounds
(CROWN) of every entry J_ij give Σ_j max|J_ij|, the largest of which bounds the ℓ_∞ → ℓ_∞ constant. It imports nothing of
lipscope: that release needs torch 1.13 or older.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import warnings

import numpy as np
import torch
from torch import Tensor, nn


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


class JacobianGraph(nn.Module):
    """x (1, n) ↦ the rows of J(x), one after the other, (1, m·n)."""

    def __init__(self, weights: list[Tensor], biases: list[Tensor]) -> None:
        super().__init__()
        self.forwards = nn.ModuleList([linear(w, b) for w, b in zip(weights[:-1], biases[:-1])])  # noqa: B905
        self.rows = nn.ModuleList([linear(torch.diag(row)) for row in weights[-1]])
        self.backwards = nn.ModuleList([linear(w.T) for w in weights[:-1]])

    def forward(self, x: Tensor) -> Tensor:
        slopes = []
        for layer in self.forwards:
            x = layer(x)
            slopes.append(torch.heaviside(x, torch.zeros(x.shape)))
            x = torch.relu(x)
        found = []
        for row in self.rows:
            v = row(slopes[-1])
            for k in range(len(slopes) - 1, 0, -1):
                v = self.backwards[k](v) * slopes[k - 1]
            found.append(self.backwards[0](v))
        return torch.cat(found, 1)


def bound(weights: list[Tensor], biases: list[Tensor], center: Tensor, radius: float) -> float:
    from auto_LiRPA import BoundedModule, BoundedTensor
    from auto_LiRPA.perturbations import PerturbationLpNorm

    graph = BoundedModule(JacobianGraph(weights, biases), center[None], device="cpu")
    ball = BoundedTensor(center[None], PerturbationLpNorm(norm=np.inf, eps=radius))
    low, high = graph.compute_bounds(x=(ball,), method="backward")
    entries = torch.maximum(low.abs(), high.abs()).reshape(len(weights[-1]), -1)
    return float(entries.sum(1).max())


def main(path: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with np.load(path) as job:
        count = int(job["layers"])
        weights = [torch.tensor(job[f"weight{k}"], dtype=torch.float32) for k in range(count)]
        biases = [torch.tensor(job[f"bias{k}"], dtype=torch.float32) for k in range(count)]
        center, radius = torch.tensor(job["center"], dtype=torch.float32), float(job["radius"])
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        value = bound(weights, biases, center, radius)
    print(json.dumps({"value": value, "seconds": time.process_time() - started}))


if __name__ == "__main__":
    main(sys.argv[1])
