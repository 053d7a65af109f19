"""Certificates of convolutional networks: structures compared, ResNet-18, and the AlexNet trunk.

Usage: python benchmarks/convolutional.py [--only small resnet32 resnet224 alexnet] [--seconds 20]
                                          [--efforts fast balanced] [--limit 300]

small: the same small trunks by the dense structure (one multiplier a unit), by frequency (one a
channel) and, in a process that is killed after `--limit` seconds, by the dense semidefinite program of
`lipsdp.py` (needs the optional dependencies `bench`). The others: the product of layer norms against
`certify`, with what each piece contributes. Seconds include the proofs; `lower` is attained. ResNet-18
has seeded random weights, and batch-norm statistics of one pass in training mode over random images.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from lipsdp import program
from shared import limited, lower, matrix_of, proofs, row, train_on_digits
from torch import Tensor, nn

import lipscope
from lipscope.certificates import Certificate
from lipscope.certificates.certify import Plan, _by_multipliers, _by_norms
from lipscope.progress import silent


def trunk(channels: Sequence[int], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers).double().eval()


def with_structure(graph: lipscope.Graph, structure: Literal["dense", "frequency"], seconds: float) -> float:
    """The bound of a whole network as one piece of a structure, better than that of the norms or not."""
    plan = Plan(0, len(graph.nodes) - 1, structure, 0.0)
    norms = _by_norms(graph, plan)
    found = [record.bound for record, _ in _by_multipliers(graph, plan, norms, seconds, silent)]
    return min(found, default=norms.bound)


def dense_program(module: nn.Sequential, shape: tuple[int, ...], solver: str) -> tuple[float, float]:
    """The semidefinite program of a trunk conv, ReLU, conv, ReLU, …, written out."""
    matrices, sizes = [], [math.prod(shape)]
    for layer in module:
        if isinstance(layer, nn.Conv2d):
            matrices.append(matrix_of(layer, shape))
            shape = tuple(layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
            sizes.append(math.prod(shape))
    total, units = sum(sizes), sum(sizes[1:])
    maps, at, column = torch.zeros(units, total, dtype=torch.float64), 0, 0
    for w in matrices:
        maps[at : at + w.shape[0], column : column + w.shape[1]] = w
        at, column = at + w.shape[0], column + w.shape[1]
    output = torch.eye(total, dtype=torch.float64)[total - sizes[-1] :]
    return program(sizes[0], maps, output, solver)


def small(options: argparse.Namespace) -> None:
    widths = (26, 6, 8, 8, 8, 7, 9, 7, 8, 8)
    print("convolutions with stride 2 and ReLU, one piece, dense and by frequency; sdp: the dense program")
    row(widths, "trunk", "rows", "lower", "product", "dense", "s", "frequency", "s", "sdp", "s")
    digits = nn.Sequential(*trunk([1, 4, 8]), nn.Flatten(), nn.Linear(32, 10)).double()
    accuracy = train_on_digits(digits, image=True)
    cases = {
        "1→4→8 on 8×8": (trunk([1, 4, 8]), (1, 8, 8)),
        f"1→4→8 digits ({accuracy:.0%})": (digits[:4], (1, 8, 8)),
        "3→8→16 on 16×16": (trunk([3, 8, 16]), (3, 16, 16)),
        "3→8→16→16 on 16×16": (trunk([3, 8, 16, 16]), (3, 16, 16)),
        "3→8→16→32 on 32×32": (trunk([3, 8, 16, 32]), (3, 32, 32)),
    }
    looser, to_program = [], []
    for name, (module, shape) in cases.items():
        graph = lipscope.from_torch(module, shape)
        found: dict[str, tuple[float, float]] = {}
        for structure in ("dense", "frequency"):
            started = time.perf_counter()
            value = with_structure(graph, structure, options.seconds)
            found[structure] = value, time.perf_counter() - started
        rows = math.prod(shape) + sum(math.prod(graph.nodes[k].shape) for k in graph.nonlinear())
        solved = limited(dense_program, options.limit, module, shape, "CLARABEL") if rows <= 250 else None
        value, taken = solved or (None, None)
        (dense, dense_s), (frequency, frequency_s) = found["dense"], found["frequency"]
        looser.append(frequency / dense)
        if value:
            to_program.append(dense / value)
        row(
            widths, name, rows, lower(graph), lipscope.analytical(graph).value,
            dense, f"{dense_s:.1f}", frequency, f"{frequency_s:.1f}", value, taken and f"{taken:.1f}",
        )  # fmt: skip
    ends = f"the frequency structure is {min(looser):.3f} to {max(looser):.3f} of the dense one"
    if to_program:
        ends += f"; the dense one is {min(to_program):.5f} to {max(to_program):.5f} of the program's value"
    print(ends)


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.short = nn.Identity()
        if stride > 1 or before != after:
            self.short = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.short(x))


def resnet18(size: int) -> nn.Module:
    """ResNet-18; on small images, as usual, with a 3×3 stem and no pooling."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    if size > 64:
        stem = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        stem.append(nn.MaxPool2d(3, 2, 1))
    blocks = []
    for before, after, stride in [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]:
        blocks += [Block(before, after, stride), Block(after, after, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000 if size > 64 else 10)]
    module = nn.Sequential(*stem, *blocks, *head)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(layer, nn.BatchNorm2d):
            # The plain mean over what is seen.
            layer.momentum = None
    with torch.no_grad():
        module.train()(torch.randn(8, 3, size, size))
    return module.eval()


def pieces(certificate: Certificate) -> None:
    widths = (44, 10, 11, 11, 7, 7)
    row(widths, "  piece", "structure", "product", "bound", "blocks", "rows")
    for piece in certificate.pieces:
        name = f"  {piece.first} … {piece.last}"
        row(widths, name, piece.structure, piece.product, piece.bound, piece.blocks, piece.size or None)


def whole(name: str, module: nn.Module, shape: tuple[int, ...], options: argparse.Namespace) -> None:
    graph = lipscope.from_torch(module, shape)
    started = time.perf_counter()
    product = lipscope.analytical(graph).value
    print(f"{name}: product {product:.4g} in {time.perf_counter() - started:.1f} s")
    found = []
    for effort in options.efforts:
        seconds, best = proofs(graph, effort, options.seconds)[-1]
        print(
            f"  {effort}: {best.value:.4g} in {seconds:.1f} s, {product / best.value:.3g} × below the product"
        )
        pieces(best)
        found.append((best.value, effort))
    value, effort = min(found)
    print(f"{name}: certified {value:.4g} by {effort}, {product / value:.3g} × below the product of norms")


def alexnet(options: argparse.Namespace) -> None:
    model = lipscope.load_model("alexnet-trunk")
    whole("AlexNet trunk 224×224", model.module, model.input_shape, options)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "small": small,
    "resnet32": lambda options: whole("ResNet-18 32×32", resnet18(32), (3, 32, 32), options),
    "resnet224": lambda options: whole("ResNet-18 224×224", resnet18(224), (3, 224, 224), options),
    "alexnet": alexnet,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seconds", type=float, help="of optimisation; else what the effort allows")
    parser.add_argument("--efforts", nargs="*", default=["fast", "balanced"])
    parser.add_argument("--limit", type=float, default=300.0, help="seconds the dense program may take")
    chosen = parser.parse_args()
    for part in chosen.only:
        if part == "small" and chosen.seconds is None:
            small(argparse.Namespace(**vars(chosen) | {"seconds": 20.0}))
        else:
            PARTS[part](chosen)
        print()
