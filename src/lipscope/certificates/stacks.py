"""Certified norms of linear layers taken together: a filter bank, and a sum of linear images.

Layers that read one signal are one operator, their stack, whose squared norm (the Bessel bound of
the joint filter bank) may lie far below the sum of theirs: it is 1 for a tight frame however many
filters there are. A sum of linear images is one operator too, whose parts may cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from ..certified import spectral_norm_upper
from ..graph import Graph
from ..layers import Layer, LinearLayer
from ..layers.base import Shape
from ..layers.convolution import Convolution, TransposedConvolution
from ..layers.dense import Dense
from ..layers.merge import Concatenation, Stack, Sum
from ..layers.reshape import Permute, Reshape
from ..layers.scaling import Scaling
from ..rounding import gamma, up_product, up_sum

_MATRIX_ENTRIES = 2**22
_MOVERS = (Reshape, Permute, Concatenation, Stack)


@dataclass(frozen=True)
class JointBound:
    """A certified inequality √Σ‖Δ_v‖² ≤ norm·√Σ‖Δ_u‖² from the differences at `sources` to those at `members`."""

    members: tuple[int, ...]
    sources: tuple[int, ...]
    norm: float


def joint_bounds(graph: Graph) -> list[JointBound]:
    """Every joint bound the graph's linear layers offer beyond those of single layers.

    For each node read by several dense, convolution or scaling layers: the bound of their stack,
    and those of the part that is passed on and of the part that leaves as output (it reaches the
    output through reshapes and concatenations alone), where the stack's norm can be certified. For
    each sum of linear images: its bound as one operator, where it is small.

    Source: Zou, Balan, Singh (2020), the Bessel bounds B⁽¹⁾, B⁽²⁾, B⁽³⁾ of a layer.
    """
    found = []
    leaving = _leaving(graph)
    for source, readers in _filter_banks(graph).items():
        for bank in _banks(graph, readers):
            passed_on = [v for v in bank if v not in leaving]
            parts = [bank, passed_on, [v for v in bank if v in leaving]]
            for members in {tuple(part) for part in parts if len(part) > 1}:
                norm = _known_norm([graph.nodes[v].layer for v in members], graph.nodes[source].shape)
                found.append(JointBound(members, (source,), norm))
    for index, node in enumerate(graph.nodes):
        if isinstance(node.layer, Sum) and (merged := _merged_sum(graph, index)) is not None:
            found.append(merged)
    return found


def _filter_banks(graph: Graph) -> dict[int, list[int]]:
    """For each node, the one-input linear layers with weights that read it, if there are several."""
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node.layer, (Dense, Convolution, TransposedConvolution, Scaling)):
            readers.setdefault(node.inputs[0], []).append(index)
    return {source: found for source, found in readers.items() if len(found) > 1}


def _banks(graph: Graph, readers: list[int]) -> Iterator[list[int]]:
    """The sets of readers whose stack has a certified norm: all of them if they are small, else those of a kind."""
    if all(_is_small(graph, v) for v in readers):
        yield readers
        return
    remaining = list(readers)
    while remaining:
        first = graph.nodes[remaining[0]].layer
        alike = [v for v in remaining if _stackable(first, graph.nodes[v].layer)]
        if len(alike) > 1:
            yield alike
        remaining = [v for v in remaining if v != remaining[0] and v not in alike]


def _stackable(first: Layer | None, second: Layer | None) -> bool:
    """Whether the weights of two layers can be stacked to one layer's."""
    if isinstance(first, Convolution) and isinstance(second, Convolution):
        a, b = first.windows, second.windows
        plain = all(d == 1 for d in (*a.dilation, *b.dilation))
        same = (a.size, a.out_size, a.stride) == (b.size, b.out_size, b.stride)
        return first.groups == second.groups and (a == b or (plain and same))
    return isinstance(first, Dense) and isinstance(second, Dense)


def _leaving(graph: Graph) -> set[int]:
    """The nodes that reach the output only through layers that move numbers."""
    last = len(graph.nodes) - 1
    users: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for i in node.inputs:
            users.setdefault(i, []).append(index)
    found = {last}
    for index in range(last - 1, -1, -1):
        if all(v in found and isinstance(graph.nodes[v].layer, _MOVERS) for v in users[index]):
            found.add(index)
    return found


_KNOWN: WeakKeyDictionary[Layer, dict[tuple[object, ...], float]] = WeakKeyDictionary()


def _known_norm(layers: Sequence[Layer | None], shape: Shape) -> float:
    """`_stacked_norm`, kept while the first layer lives: pieces of a graph share its layers."""
    assert layers[0] is not None
    known = _KNOWN.setdefault(layers[0], {})
    key = (shape, *layers[1:])
    if key not in known:
        known[key] = _stacked_norm(layers, shape)
    return known[key]


def _stacked_norm(layers: Sequence[Layer | None], shape: Shape) -> float:
    """Certified norm of the operator x ↦ (T_1 x, …, T_n x)."""
    dense = [layer for layer in layers if isinstance(layer, Dense)]
    if len(dense) == len(layers):
        # Tokens share the weights, so that the stack is block diagonal.
        weight = torch.cat([layer.weight for layer in dense])
        return Dense(weight, None, max(layer.entry_error for layer in dense)).norm([shape])
    convolutions = [layer for layer in layers if isinstance(layer, Convolution)]
    if len(convolutions) == len(layers) and all(_stackable(convolutions[0], c) for c in convolutions):
        return stacked_convolution(convolutions).norm([shape])
    linear = [layer for layer in layers if isinstance(layer, LinearLayer)]
    matrix = torch.cat([_matrix(layer, shape) for layer in linear])
    return spectral_norm_upper(matrix, max(layer.entry_error for layer in linear))


def stacked_convolution(layers: Sequence[Convolution]) -> Convolution:
    """One convolution with the output channels of all, their kernels brought to one size by zero taps."""
    dims = len(layers[0].windows.size)
    windows, groups = layers[0].windows, layers[0].groups
    if any(layer.windows != windows for layer in layers):
        before = [max(layer.windows.padding[d] for layer in layers) for d in range(dims)]
        kernels = [layer.windows.kernel for layer in layers]
        paddings = [layer.windows.padding for layer in layers]
        after = [max(k[d] - p[d] for k, p in zip(kernels, paddings, strict=True)) for d in range(dims)]
        kernel = tuple(b + a for b, a in zip(before, after, strict=True))
        windows = replace(windows, kernel=kernel, padding=tuple(before))
    weights = []
    for layer in layers:
        w = layer.windows
        extra = [(windows.padding[d] - w.padding[d]) for d in range(dims)]
        widths = [
            n for d in reversed(range(dims)) for n in (extra[d], windows.kernel[d] - w.kernel[d] - extra[d])
        ]
        weights.append(functional.pad(layer.weight, widths).unflatten(0, (groups, -1)))
    weight = torch.cat(weights, 1).flatten(0, 1)
    return Convolution(weight, windows, groups, None, max(layer.entry_error for layer in layers))


def _merged_sum(graph: Graph, index: int) -> JointBound | None:
    """The bound of y = Σ cᵢ Tᵢ sᵢ as one operator on the direct sum of the sources, if that says anything new."""
    node = graph.nodes[index]
    assert isinstance(node.layer, Sum)
    rows = math.prod(node.shape)
    blocks: dict[int, Tensor] = {}
    linear, error = False, 0.0
    for coefficient, i in zip(node.layer.coefficients, node.inputs, strict=True):
        before = graph.nodes[i]
        image = isinstance(before.layer, (Dense, Convolution, TransposedConvolution, Scaling))
        source = before.inputs[0] if image else i
        columns = math.prod(graph.nodes[source].shape)
        if rows * columns > _MATRIX_ENTRIES:
            return None
        linear = linear or image or source in blocks
        if image:
            assert isinstance(before.layer, LinearLayer)
            block = coefficient * _matrix(before.layer, graph.nodes[source].shape)
            uncertain = before.layer.entry_error + gamma(len(node.inputs) + 2)
        else:
            block = coefficient * torch.eye(rows, dtype=torch.float64)
            uncertain = gamma(len(node.inputs) + 2)
        frobenius = float(block.norm())
        error = up_sum(error, up_product(uncertain, frobenius, 1 + gamma(rows * columns + 4)))
        blocks[source] = blocks[source] + block if source in blocks else block
    if not linear:
        return None
    norm = spectral_norm_upper(torch.cat(list(blocks.values()), 1))
    return JointBound((index,), tuple(blocks), up_sum(norm, error))


def _is_small(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    return math.prod(node.shape) * math.prod(graph.nodes[node.inputs[0]].shape) <= _MATRIX_ENTRIES // 4


def _matrix(layer: LinearLayer, shape: Shape) -> Tensor:
    """T of a one-input layer as a dense matrix (out, in); products with unit vectors are exact."""
    columns = math.prod(shape)
    eye = torch.eye(columns, dtype=torch.float64).reshape(columns, *shape)
    return layer.to(torch.float64, "cpu").apply(eye).flatten(1).T
