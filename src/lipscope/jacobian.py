"""The Jacobian operator of a graph under frozen slopes: J = P_M D_M T_M ⋯ P_1 D_1 T_1 on a DAG.

With slopes stored once, J·v is a forward pass of the linear layers alone and Jᵀ·u its transpose;
nothing is traced, no tape is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import INPUT, Graph, Slopes
from .layers import LinearLayer
from .layers.base import Shape


@dataclass(frozen=True)
class Jacobian:
    """B Jacobians at once, one for each sample the slopes were taken at (B = 1 for averaged slopes).

    `matvec` and `rmatvec` act on blocks of P vectors for each of the B operators: shapes
    (P, B, *in) → (P, B, *out) and back. Vectors must have the graph's dtype and device.
    """

    graph: Graph
    slopes: Slopes
    batch: int

    @property
    def input_shape(self) -> Shape:
        """Per-sample shape *in."""
        return self.graph.input_shape

    @property
    def output_shape(self) -> Shape:
        """Per-sample shape *out."""
        return self.graph.output_shape

    def matvec(self, v: Tensor, watch: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """J v for a block (P, B, *in); returns (P, B, *out).

        Args:
            watch: called as watch(index, value) with the value (P·B, *s) at every node, the input's first.
        """
        lead = v.shape[:2]
        last_use = self.graph.last_uses()
        values = {INPUT: v.flatten(0, 1)}
        for index, node in enumerate(self.graph.nodes):
            if node.layer is None:
                if watch is not None:
                    watch(index, values[index])
                continue
            inputs = [values[i] for i in node.inputs]
            if isinstance(node.layer, LinearLayer):
                values[index] = node.layer.apply(*inputs)
            else:
                block = inputs[0].unflatten(0, lead)
                values[index] = self.slopes[index].apply(block).flatten(0, 1)
            if watch is not None:
                watch(index, values[index])
            for i in set(node.inputs):
                if last_use[i] == index:
                    del values[i]
        return values[len(self.graph.nodes) - 1].reshape(*lead, *self.output_shape)

    def rmatvec(self, u: Tensor) -> Tensor:
        """Jᵀ u for a block (P, B, *out); returns (P, B, *in)."""
        lead = u.shape[:2]
        adjoints: dict[int, Tensor] = {len(self.graph.nodes) - 1: u.flatten(0, 1)}
        for index in range(len(self.graph.nodes) - 1, INPUT, -1):
            node = self.graph.nodes[index]
            adjoint = adjoints.pop(index)
            if isinstance(node.layer, LinearLayer):
                parts = node.layer.transpose(adjoint)
            else:
                parts = (self.slopes[index].transpose(adjoint.unflatten(0, lead)).flatten(0, 1),)
            for i, part in zip(node.inputs, parts, strict=True):
                adjoints[i] = adjoints[i] + part if i in adjoints else part
        if INPUT not in adjoints:
            return u.new_zeros(*lead, *self.input_shape)
        return adjoints[INPUT].reshape(*lead, *self.input_shape)

    def dense(self) -> Tensor:
        """The matrices themselves, shape (B, out, in); for small networks."""
        size = math.prod(self.input_shape)
        eye = torch.eye(size, dtype=self.graph.dtype, device=self.graph.device)
        block = eye.reshape(size, 1, *self.input_shape).expand(-1, self.batch, *self.input_shape)
        return self.matvec(block).reshape(size, self.batch, -1).permute(1, 2, 0)


def linearize(graph: Graph, slopes: Slopes, batch: int = 1) -> Jacobian:
    """The Jacobian operator of `graph` with the given slopes frozen.

    Args:
        graph: the network; its dtype and device are the operator's.
        slopes: one slope per nonlinear node, from `graph.linearize_at`, `graph.secant_slopes` or
            `MeanSlopes.at`.
        batch: the number B of operators the slopes describe.

    Raises:
        ValueError: a nonlinear node has no slope.
    """
    missing = [graph.nodes[i].place for i in graph.nonlinear() if i not in slopes]
    if missing:
        raise ValueError(f"no slope for {', '.join(missing)}")
    return Jacobian(graph, slopes, batch)
