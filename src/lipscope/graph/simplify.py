"""Rewrites that keep the function and tighten bounds: an affine map per channel joins the layer before it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from ..layers import Layer
from ..layers.convolution import Convolution, scale_outputs
from ..layers.dense import Dense
from ..layers.scaling import Scaling
from .graph import Graph, Node


def fuse_scalings(graph: Graph) -> Graph:
    """Merge each `Scaling` (batch norm) into the convolution or dense layer that alone feeds it."""
    uses = Counter(i for node in graph.nodes for i in node.inputs)
    nodes: list[Node] = []
    number: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        inputs = tuple(number[i] for i in node.inputs)
        if isinstance(node.layer, Scaling) and uses[node.inputs[0]] == 1:
            before = nodes[inputs[0]]
            joined = fused(before.layer, node.layer)
            if joined is not None:
                place = f"{before.place} + {node.place}"
                nodes[inputs[0]] = replace(before, layer=joined, place=place)
                number[index] = inputs[0]
                continue
        number[index] = len(nodes)
        nodes.append(replace(node, inputs=inputs))
    return Graph(nodes, number[len(graph.nodes) - 1])


def fused(before: Layer | None, scaling: Scaling) -> Layer | None:
    """A convolution or dense layer followed by a scaling per channel, as one layer; None for others."""
    offset = torch.zeros((), dtype=torch.float64) if scaling.offset is None else scaling.offset
    error = (scaling.operations + 2) * torch.finfo(torch.float64).eps
    if isinstance(before, Convolution):
        dims, channels = len(before.windows.size), before.weight.shape[0]
        factor, shift = (_per_channel(t, channels, dims) for t in (scaling.factor, offset))
        if factor is None or shift is None:
            return None
        scaled = scale_outputs(before, factor, shift)
        return replace(scaled, entry_error=before.entry_error + error)
    if isinstance(before, Dense):
        features = before.weight.shape[0]
        factor, shift = (_per_channel(t, features, 0) for t in (scaling.factor, offset))
        if factor is None or shift is None:
            return None
        bias = shift if before.offset is None else before.offset * factor + shift
        return Dense(factor[:, None] * before.weight, bias, before.entry_error + error)
    return None


def _per_channel(t: Tensor, channels: int, dims: int) -> Tensor | None:
    """A broadcastable tensor as one number a channel, or None if it varies over space."""
    if t.numel() == 1:
        return t.reshape(1).expand(channels)
    return t.reshape(-1) if tuple(t.shape) == (channels, *[1] * dims) else None
