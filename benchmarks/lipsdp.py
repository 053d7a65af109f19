"""Certificates of dense networks against the semidefinite program LipSDP-Neuron, written out in cvxpy.

Usage: python benchmarks/lipsdp.py [--limit 300] [--seconds 20] [--solver CLARABEL] [--only NAME …]

Needs the optional dependencies `bench`. The program is that of M. Fazlyab et al. (2019) with one
multiplier a unit; its value is what the solver says, with no proof, while lipscope's comes with one,
and the seconds of lipscope include it. The program runs in a process of its own that is killed
after `--limit` seconds. One thread everywhere; `lower` is attained (ascent, or random points).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from shared import limited, lower, mlp, proofs, row, train_on_digits
from torch import Tensor, nn

import lipscope


@dataclass(frozen=True)
class Network:
    """A module, and what the program needs: u = A v, z = relu(u), y = C v for differences v = (x, z)."""

    module: nn.Module
    inputs: int
    maps: Tensor
    output: Tensor


def chain(module: nn.Sequential) -> Network:
    weights = [layer.weight.detach() for layer in module if isinstance(layer, nn.Linear)]
    sizes = [weights[0].shape[1], *(w.shape[0] for w in weights[:-1])]
    total, units = sum(sizes), sum(sizes[1:])
    maps, output = torch.zeros(units, total).double(), torch.zeros(len(weights[-1]), total).double()
    row_at = column = 0
    for w in weights[:-1]:
        maps[row_at : row_at + len(w), column : column + w.shape[1]] = w
        row_at, column = row_at + len(w), column + w.shape[1]
    output[:, column:] = weights[-1]
    return Network(module, sizes[0], maps, output)


class Residual(nn.Module):
    """y = W₃ (h₁ + h₂), h₁ = relu(W₁ x), h₂ = relu(W₂ h₁)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.first, _, self.second, _, self.third = mlp(widths)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.third(h + torch.relu(self.second(h)))


def residual(widths: Sequence[int]) -> Network:
    module = Residual(widths)
    inputs, n = widths[0], widths[1]
    maps = torch.zeros(2 * n, inputs + 2 * n).double()
    maps[:n, :inputs], maps[n:, inputs : inputs + n] = module.first.weight, module.second.weight
    w = module.third.weight.detach()
    return Network(module.eval(), inputs, maps.detach(), torch.cat([torch.zeros(len(w), inputs), w, w], 1))


def program(inputs: int, maps: Tensor, output: Tensor, solver: str) -> tuple[float, float]:
    """Minimise ρ over T ≥ 0 with ρ|x|² − |Cv|² + 2 zᵀT(z − u) ≽ 0; returns √ρ and the seconds."""
    import cvxpy as cp
    import numpy as np

    started = time.perf_counter()
    a, c = maps.numpy(), output.numpy()
    units, total = a.shape
    select = np.eye(total)[inputs:]
    first = np.diag((np.arange(total) < inputs).astype(float))
    rho, t = cp.Variable(nonneg=True), cp.Variable(units, nonneg=True)
    cross = a.T @ cp.diag(t) @ select
    form = rho * first - c.T @ c + 2 * (select.T @ cp.diag(t) @ select) - cross - cross.T
    problem = cp.Problem(cp.Minimize(rho), [(form + form.T) / 2 >> 0])
    problem.solve(solver=solver)
    return float(rho.value) ** 0.5, time.perf_counter() - started


def networks() -> dict[str, Network]:
    digits = mlp([64, 32, 32, 10], seed=1)
    accuracy = train_on_digits(digits, image=False)
    print(f"  digits [64,32,32,10] is trained to {accuracy:.1%} on held-out images")
    return {
        "[8,16,16,4] residual": residual([8, 16, 16, 4]),
        "[10,30,30,30,4]": chain(mlp([10, 30, 30, 30, 4])),
        "[64,32,32,10] digits": chain(digits),
        "[20,50,50,5]": chain(mlp([20, 50, 50, 5])),
        "[20,100,5]": chain(mlp([20, 100, 5])),
        "[20,100,100,5]": chain(mlp([20, 100, 100, 5])),
        "[784,256,256,10]": chain(mlp([784, 256, 256, 10])),
        "[100]+[200]*8+[10]": chain(mlp([100] + [200] * 8 + [10])),
    }


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    widths = (22, 7, 9, 9, 9, 8, 9, 8, 8, 9)
    print(f"lipscope, optimised for up to {options.seconds:g} s, against LipSDP-Neuron by {options.solver}")
    known = networks()
    row(widths, "network", "units", "lower", "product", "lipscope", "s", "LipSDP", "s", "ratio", "speed-up")
    ratios, gains = [], []
    for name, network in known.items():
        if options.only and not any(part in name for part in options.only):
            continue
        graph = lipscope.from_torch(network.module, (network.inputs,))
        found = proofs(graph, "balanced", options.seconds)
        seconds, best = found[-1]
        solved = limited(program, options.limit, network.inputs, network.maps, network.output, options.solver)
        value, taken = solved or (None, None)
        ratio = best.value / value if value else None
        gain = taken / seconds if taken else None
        if ratio and gain:
            ratios.append(ratio)
            gains.append((len(network.maps), gain))
        row(
            widths, name, len(network.maps), lower(graph), found[0][1].value, best.value, f"{seconds:.2f}",
            value if value else "", f"{taken:.2f}" if taken else f">{options.limit:g}",
            f"{ratio:.5f}" if ratio else "", f"{gain:.0f} ×" if gain else "",
        )  # fmt: skip
    if ratios:
        most, least = max(ratios), min(ratios)
        units, gain = max(gains)
        print(
            f"lipscope's proved bound is {least:.5f} to {most:.5f} of the program's value; "
            f"{min(g for _, g in gains):.0f} to {max(g for _, g in gains):.0f} times faster, "
            f"{gain:.0f} times at {units} units, where the program still finished"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds the program may take")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of optimisation for lipscope")
    parser.add_argument("--solver", default="CLARABEL", choices=["CLARABEL", "SCS"])
    parser.add_argument("--only", nargs="*", help="parts of the names of the networks to take")
    main(parser.parse_args())
