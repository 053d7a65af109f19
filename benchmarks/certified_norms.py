"""How far certified norms of convolutions lie above the truth.

Usage: python benchmarks/certified_norms.py [--layers 200]

Small layers are compared with the dense singular value decomposition, the AlexNet trunk's at
full size with Lanczos (an estimate from below). The torus bound is forced in the first part,
although such small layers are certified through their dense matrix in practice.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict

import torch
from torch import nn

import lipscope
from lipscope.graph import Graph
from lipscope.layers.convolution import Convolution, TransposedConvolution
from lipscope.layers.dense import Dense


def random_convolution(rng: random.Random) -> tuple[str, nn.Module, tuple[int, ...]]:
    kernel, size = rng.choice([1, 3, 5]), rng.choice([8, 12, 16])
    stride, dilation, groups = rng.choice([(1, 1, 1), (2, 1, 1), (3, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)])
    channels_in, channels_out = groups * rng.choice([2, 4, 8]), groups * rng.choice([2, 4, 8])
    padding = rng.choice([0, dilation * (kernel // 2)])
    transposed = rng.random() < 0.2
    kind = "transposed " * transposed + f"stride {stride}, dilation {dilation}, groups {groups}"
    layer = nn.ConvTranspose2d if transposed else nn.Conv2d
    module = layer(
        channels_in, channels_out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )  # fmt: skip
    return kind, module, (channels_in, size // (2 if transposed else 1), size // (2 if transposed else 1))


def small(count: int) -> None:
    rng = random.Random(0)
    torch.manual_seed(0)
    ratios: dict[str, list[float]] = defaultdict(list)
    for _ in range(count):
        kind, module, shape = random_convolution(rng)
        try:
            graph = lipscope.from_torch(module, shape)
        except lipscope.ModelError:  # a kernel larger than its padded input
            continue
        layer = graph.nodes[1].layer
        if not isinstance(layer, (Convolution, TransposedConvolution)):
            continue
        matrix = layer.matrix(shape)
        if matrix is None:
            continue
        truth = float(torch.linalg.matrix_norm(matrix, 2))
        convolution = layer.adjoint if isinstance(layer, TransposedConvolution) else layer
        ratios[kind].append(convolution.torus_norm() / truth)
    print(
        f"torus bound / dense SVD, {sum(map(len, ratios.values()))} random convolutions on 4² to 16² images"
    )
    print(f"  {'kind':<42} {'layers':>6} {'least':>9} {'median':>8} {'most':>8}")
    for kind, found in sorted(ratios.items()):
        least, middle, most = min(found), statistics.median(found), max(found)
        print(f"  {kind:<42} {len(found):>6} {least:>9.6f} {middle:>8.4f} {most:>8.4f}")


def alexnet() -> None:
    model = lipscope.load_model("alexnet-trunk")
    graph = lipscope.from_torch(model.module, model.input_shape)
    print("\nAlexNet trunk at 224×224: certified norm / Lanczos (30 steps, from below)")
    for index, node in enumerate(graph.nodes):
        if not isinstance(node.layer, (Convolution, Dense)):
            continue
        shapes = graph.shapes_into(index)
        started = time.perf_counter()
        certified = node.layer.norm(shapes)
        seconds = time.perf_counter() - started
        alone = Graph.chain(shapes[0], [node.layer])
        below = float(
            lipscope.spectral_norm(lipscope.linearize(alone, {}), tolerance=1e-6, max_steps=60).value
        )
        print(
            f"  {node.place:<22} {certified:9.4f} / {below:9.4f} = {certified / below:.5f}   {seconds:5.1f} s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=200)
    options = parser.parse_args()
    small(options.layers)
    alexnet()
