"""The product bound, propagated through generated graphs, against what the networks really do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from lipscope.graph import INPUT, Graph, from_torch
from lipscope.jacobian import linearize
from strategies import Affine, Branches, Network, Residual, networks, randomised

ROUNDING = 1 - 1e-12
"""Dense norms and secant ratios are themselves computed in float64."""


def product_bounds(graph: Graph) -> list[float]:
    """A certified Lipschitz constant of every node, from the input to it."""
    bounds = [1.0]
    for index, node in enumerate(graph.nodes):
        if index != INPUT:
            assert node.layer is not None
            bounds.append(node.layer.lipschitz([bounds[i] for i in node.inputs], graph.shapes_into(index)))
    return bounds


def local_norms(graph: Graph, x: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(linearize(graph, graph.linearize_at(x)[1], batch=len(x)).dense(), 2)


def secant_ratios(net: Network, x1: Tensor, x2: Tensor) -> Tensor:
    """‖Φ(x₁) − Φ(x₂)‖ / ‖x₁ − x₂‖, less what rounding may have added to the numerator."""
    y1, y2 = net(x1), net(x2)
    noise = 1e-13 * (y1.abs() + y2.abs() + 1).flatten(1).norm(dim=1)
    stretched = (y1 - y2).flatten(1).norm(dim=1) - noise
    return stretched / (x1 - x2).flatten(1).norm(dim=1)


@given(networks(most=7))
@settings(max_examples=50)
def test_nothing_exceeds_the_product_bound(net: Network) -> None:
    graph = net.graph
    bounds = product_bounds(graph)
    bound = bounds[-1]
    assert all(math.isfinite(b) and b >= 0 for b in bounds)
    x = torch.cat([net.points(8), 0.1 * net.points(4, stream=1), 20 * net.points(4, stream=2)])
    assert float(local_norms(graph, x).max()) * ROUNDING <= bound
    for scale in (1e-3, 0.1, 1.0, 10.0):
        other = x + scale * net.points(16, stream=3)
        assert float(secant_ratios(net, x, other).max()) <= bound
    # Secants between the samples, and the secant slopes' own operator.
    shifted = x.roll(1, 0)
    assert float(secant_ratios(net, x, shifted).max()) <= bound
    operator = linearize(graph, graph.secant_slopes(x, shifted), batch=len(x))
    assert float(torch.linalg.matrix_norm(operator.dense(), 2).max()) * ROUNDING <= bound


@given(networks(most=7))
@settings(max_examples=20)
def test_every_node_is_bounded(net: Network) -> None:
    """Not only the output: each node's own map from the input keeps its bound."""
    graph = net.graph
    x = net.points(6)
    for index, bound in enumerate(product_bounds(graph)):
        part = Graph(graph.nodes[: index + 1])
        if part.nodes[-1].place == graph.nodes[index].place:
            assert float(local_norms(part, x).max()) * ROUNDING <= bound


def test_the_bound_is_attained_by_linear_and_aligned_networks() -> None:
    """Tightness: a product bound that were always too large by much would pass the tests above."""
    weight = randomised(nn.Linear(6, 5), 0)
    cases: list[tuple[nn.Module, tuple[int, ...], float]] = [
        (weight, (6,), float(torch.linalg.matrix_norm(weight.weight, 2))),
        (nn.Sequential(nn.ReLU(), nn.LeakyReLU(-0.5)), (3,), 1.0),
        (nn.MaxPool2d(2), (1, 4, 4), 1.0),
        (nn.MaxPool2d(3, 2, 1), (1, 8, 8), 2.0),
        (nn.MaxPool1d(3, 1), (1, 9), math.sqrt(3)),
        (Residual(Affine("2*x", 0.0), 1.5, False), (3,), 4.0),
        (Residual(Affine("c*x", -3.0), 1.0, True), (3,), 4.0),
        (Branches(Affine("c*x", 3.0), Affine("c*x", -4.0)), (3,), 5.0),
        (nn.AvgPool2d(2), (1, 4, 4), 0.5),
    ]
    for module, shape, exact in cases:
        bound = product_bounds(from_torch(module.double(), shape))[-1]
        assert exact * (1 - 1e-13) <= bound <= exact * (1 + 1e-9)


def test_max_pooling_attains_its_constant() -> None:
    """One cell that wins in four windows at once stretches by two."""
    graph = from_torch(nn.MaxPool2d(3, 2, 1), (1, 8, 8))
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 3, 3] = 1.0
    assert float(local_norms(graph, x)[0]) == pytest.approx(2.0, rel=1e-12)


def test_a_layer_of_zeros_bounds_everything_by_zero() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with torch.no_grad():
        module[2].weight.zero_()
    assert product_bounds(from_torch(module, (3,)))[-1] == 0.0


def test_fusion_with_batch_norm_does_not_loosen_the_bound() -> None:
    module = randomised(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), 5)
    graph = from_torch(module, (2, 6, 6))
    assert len(graph.nodes) == 2
    net = Network(module, (2, 6, 6), 0)
    exact = float(local_norms(graph, net.points(1))[0])
    assert exact * ROUNDING <= product_bounds(graph)[-1] <= exact * (1 + 1e-9)
