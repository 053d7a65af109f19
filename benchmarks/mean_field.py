"""Mean-field theory, the trained AlexNet trunk, and the trunk with its weights drawn anew, on the same photographs.

    OMP_NUM_THREADS=1 python benchmarks/mean_field.py --data FOLDER [--state FILE]

The redrawn networks have independent Gaussian weights and biases with the layers' own mean squares: what the theory is
about. Where they agree with the theory and the trained one does not, training made the difference.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import lipscope
from lipscope.graph import Graph
from lipscope.layers.convolution import Convolution
from lipscope.results import MeanField

NAMES = ("slope", "chi", "length", "correlation")


def redraw(graph: Graph, scales: list[tuple[float, float]], seed: int) -> None:
    """Give every convolution new weights and biases with these root mean squares."""
    generator = torch.Generator().manual_seed(seed)
    for layer, (weight, bias) in zip(convolutions(graph), scales, strict=True):
        layer.weight.normal_(0, weight, generator=generator)
        layer.offset.normal_(0, bias, generator=generator)


def convolutions(graph: Graph) -> list[Convolution]:
    return [node.layer for node in graph.nodes if isinstance(node.layer, Convolution)]


def figures(field: MeanField, name: str) -> list[float]:
    found = [getattr(row.measured, name) for row in field.layers]
    return [np.nan if value is None else value.value for value in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--networks", type=int, default=4)
    arguments = parser.parse_args()
    loaded = lipscope.load_model("alexnet-trunk", arguments.state)
    samples = lipscope.load_samples(arguments.data, loaded.input_shape, loaded.preprocessing)
    graph = lipscope.from_torch(loaded.module, loaded.input_shape)
    settings = {"count": arguments.samples, "batch_size": 8}
    trained = lipscope.mean_field(graph, samples, **settings)
    scales = [
        tuple(float(t.square().mean().sqrt()) for t in (c.weight, c.offset)) for c in convolutions(graph)
    ]
    random = []
    for seed in range(arguments.networks):
        redraw(graph, scales, seed)
        random.append(lipscope.mean_field(graph, samples, **settings))
    for name in NAMES:
        print(f"{name:<24}{'theory':>9}{'redrawn, mean and range':>36}{'trained':>10}")
        redrawn = np.array([figures(field, name) for field in random])
        for place, row in enumerate(trained.layers):
            column = redrawn[:, place]
            if np.isnan(column).any():
                continue
            spread = f"{column.mean():.4g}  [{column.min():.4g}, {column.max():.4g}]"
            own = figures(trained, name)[place]
            print(f"  {row.place:<22}{getattr(row.predicted, name):>9.4g}{spread:>36}{own:>10.4g}")
    norms = np.array([field.measured_frobenius.value for field in random])
    spread = f"{norms.mean():.4g}  [{norms.min():.4g}, {norms.max():.4g}]"
    own = trained.measured_frobenius.value
    print(f"{'‖J‖_F²':<24}{trained.frobenius:>9.4g}{spread:>36}{own:>10.4g}")


if __name__ == "__main__":
    main()
