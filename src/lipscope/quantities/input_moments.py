"""The moments of inputs that the mean-field recursion starts from, measured on data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..graph import INPUT, Graph
from ..layers.activation import Activation
from ..layers.average_pool import AveragePool
from ..layers.convolution import Convolution
from ..layers.interpolation import Interpolation
from ..layers.max_pool import MaxPool
from ..layers.merge import Concatenation, Sum
from ..layers.scaling import Scaling
from .signal_moments import InputMoments, windowed

if TYPE_CHECKING:
    from ..data import Samples

_Displacement = tuple[int, ...]
_KEEP = (Activation, Scaling, Sum, Concatenation)
"""Layers whose outputs lie on the grid of their inputs."""


def input_moments(graph: Graph, samples: Samples, batch_size: int = 16) -> InputMoments:
    """Moments of the entries of the samples, and of cells as far apart as those of each pooling window.

    A window is carried back to the input by the strides between. Where it has no place there, or reaches beyond
    the input, its cells are taken for independent.

    Raises:
        DataError: a sample cannot be read.
    """
    wanted = window_displacements(graph)
    total = torch.zeros(samples.shape, dtype=torch.float64)
    square, count = 0.0, len(samples)
    space = samples.shape[1:]
    sums = torch.zeros([2 * n for n in space], dtype=torch.float64)
    batches = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    for x in samples.batches(batches):
        total += x.double().sum(0)
        square += float(x.double().square().sum())
        if wanted:
            sums += _shifted_products(x)
    entries = math.prod(samples.shape)
    mean = float(total.sum()) / (count * entries)
    other = mean * mean
    if count > 1:
        other = (float(total.square().sum()) - square) / (count * (count - 1) * entries)
    windows = {
        node: _mean_product(sums / (count * samples.shape[0]), space, displacements, mean * mean)
        for node, displacements in wanted.items()
    }
    return InputMoments(mean, square / (count * entries), other, windows, False)


def _shifted_products(x: Tensor) -> Tensor:
    """Σ x[a] x[a + d] over samples, channels and cells, for every displacement d (modulo twice the size)."""
    axes = tuple(range(2, x.ndim))
    size = [2 * n for n in x.shape[2:]]
    spectrum = torch.fft.rfftn(x, s=size, dim=axes).abs().square().sum((0, 1))
    products: Tensor = torch.fft.irfftn(spectrum, s=size)
    return products


def _mean_product(
    sums: Tensor, space: tuple[int, ...], displacements: Mapping[_Displacement, int], far: float
) -> float:
    """E x[a] x[a + d], averaged over the displacements; `far` for one that no two cells have."""
    total = 0.0
    for d, weight in displacements.items():
        overlap = math.prod(max(n - abs(step), 0) for n, step in zip(space, d, strict=True))
        total += weight * (float(sums[d]) / overlap if overlap else far)
    return total / sum(displacements.values())


def window_displacements(graph: Graph) -> dict[int, dict[_Displacement, int]]:
    """For each node that pools: how far apart, in cells of the input, two cells of a window lie, and how often.

    Nodes whose windows have no place on the grid of the input are left out.
    """
    steps = _steps(graph)
    found: dict[int, dict[_Displacement, int]] = {}
    for index in windowed(graph):
        (source,) = graph.nodes[index].inputs
        step, layer = steps.get(source), graph.nodes[index].layer
        if step is None:
            continue
        kernel, dilation = _extent(layer)
        if len(kernel) != len(step) or math.prod(kernel) == 1:
            continue
        ways = [
            {delta * d * s: k - abs(delta) for delta in range(1 - k, k)}
            for k, d, s in zip(kernel, dilation, step, strict=True)
        ]
        found[index] = {
            tuple(d for d, _ in choice): math.prod(n for _, n in choice)
            for choice in itertools.product(*(way.items() for way in ways))
            if any(d for d, _ in choice)
        }
    return found


def _extent(layer: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel and dilation of a layer's windows; of a separable map, the cells that its middle row reads."""
    if isinstance(layer, MaxPool):
        return layer.windows.kernel, layer.windows.dilation
    assert isinstance(layer, (AveragePool, Interpolation))
    kernel = tuple(int((a[len(a) // 2] != 0).sum()) for a in layer.factors)
    return kernel, (1,) * len(kernel)


def _steps(graph: Graph) -> dict[int, tuple[int, ...]]:
    """How many cells of the input one step on each node's grid is, where it has a grid, channels first."""
    steps: dict[int, tuple[int, ...]] = {}
    if len(graph.input_shape) > 1:
        steps[INPUT] = (1,) * (len(graph.input_shape) - 1)
    for index, node in enumerate(graph.nodes):
        if node.layer is None or not all(i in steps for i in node.inputs):
            continue
        step = steps[node.inputs[0]]
        if isinstance(node.layer, (Convolution, MaxPool)) or (
            isinstance(node.layer, AveragePool) and node.layer.windows is not None
        ):
            windows = node.layer.windows
            assert windows is not None
            if len(windows.stride) == len(step):
                steps[index] = tuple(a * b for a, b in zip(step, windows.stride, strict=True))
        elif isinstance(node.layer, _KEEP) and all(steps[i] == step for i in node.inputs):
            steps[index] = step
    return steps
