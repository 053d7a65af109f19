"""Closed-form certificates of deep dense networks against the package eclipse-nn (ECLipsE, NeurIPS 2024).

Usage: python benchmarks/eclipse.py [--cases 10x100 50x200 …] [--limit 120] [--full]

Needs the optional dependencies `bench`. Networks as in that paper: 4 inputs, 1 output, normal weights
scaled to a spectral norm that is uniform in [0.4, 1.8], given as LAYERSxWIDTH. `lipscope` is its
closed-form start with its proof, rounding included, from the layers on; ECLipsE-Fast is a closed
form too (a scalar a layer, no proof of rounding), and ECLipsE, with `--full`, a semidefinite program a layer.
Each of theirs runs in a process of its own that is killed after `--limit` seconds. One thread everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time

import torch
from shared import limited, proofs, row
from torch import Tensor, nn

import lipscope
from lipscope.graph import Graph

CASES = ["2x100", "5x100", "10x100", "20x100", "50x100", "100x100", "50x200", "50x400", "20x1000"]


def weights_of(layers: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7 * width + 13 * layers)
    sizes = [4, *[width] * (layers - 1), 1]
    found = []
    for before, after in itertools.pairwise(sizes):
        norm = 0.4 + 1.4 * float(torch.rand((), generator=generator))
        w = torch.randn(after, before, generator=generator, dtype=torch.float64)
        found.append(norm * w / torch.linalg.matrix_norm(w, 2))
    return found


def graph_of(weights: list[Tensor]) -> Graph:
    # The layers are those of an imported network; importing takes seconds that have nothing to do with bounds.
    shape = (weights[0].shape[1],)
    relu = lipscope.from_torch(nn.Sequential(nn.ReLU()), shape).nodes[1].layer
    dense = lipscope.layers.dense.Dense
    assert relu is not None
    layers = [layer for w in weights for layer in (dense(w), relu)]
    return Graph.chain(shape, layers[:-1])


def theirs(layers: int, width: int, method: str) -> tuple[float, float]:
    from eclipse_nn import LipConstEstimator

    weights = weights_of(layers, width)
    started = time.perf_counter()
    value = float(LipConstEstimator(weights=weights).estimate(method))
    return value, time.perf_counter() - started


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    widths = (10, 10, 10, 8, 10, 8, 10, 8, 8, 8)
    print(
        "proved closed forms of lipscope against ECLipsE; how many times tighter and faster than ECLipsE-Fast"
    )
    row(widths, "network", "product", "lipscope", "s", "E.-Fast", "s", "ECLipsE", "s", "tighter", "faster")
    compared = []
    for case in options.cases:
        layers, width = (int(part) for part in case.split("x"))
        graph = graph_of(weights_of(layers, width))
        found = proofs(graph, "fast", 1e-6)
        seconds, best = found[-1]
        fast = limited(theirs, options.limit, layers, width, "ECLipsE_Fast")
        full = limited(theirs, options.limit, layers, width, "ECLipsE") if options.full else None
        value, taken = fast or (math.nan, math.nan)
        tighter, faster = value / best.value, taken / seconds
        if fast:
            compared.append((case, tighter, faster))
        row(
            widths, case, found[0][1].value, best.value, f"{seconds:.2f}", value, f"{taken:.2f}",
            full and full[0], full and f"{full[1]:.2f}", f"{tighter:.3g} ×", f"{faster:.2f} ×",
        )  # fmt: skip
    if compared:
        looser = [case for case, tighter, _ in compared if not tighter > 1]
        slower = [case for case, _, faster in compared if not faster > 1]
        print(
            f"against ECLipsE-Fast: {min(t for _, t, _ in compared):.3g} to {max(t for _, t, _ in compared):.3g} "
            f"times tighter (looser on: {', '.join(looser) or 'none'}), "
            f"{min(f for _, _, f in compared):.2f} to {max(f for _, _, f in compared):.2f} times the speed "
            f"(slower on: {', '.join(slower) or 'none'})"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=CASES, metavar="LAYERSxWIDTH")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds each of theirs may take")
    parser.add_argument(
        "--full", action="store_true", help="also ECLipsE with its semidefinite programs (SCS)"
    )
    main(parser.parse_args())
