"""Quantities against brute force: lower ≤ truth ≤ upper, and each number is what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import lipscope
from helpers import PRECISE, gaussian, small_network
from lipscope.graph import Graph
from lipscope.layers.activation import ReLU
from lipscope.layers.dense import Dense
from strategies import networks, seeds


def dense_jacobian_norms(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: module(z[None])[0]))(x)
    return torch.linalg.matrix_norm(jacobians.reshape(len(x), -1, x[0].numel()), 2).detach()


@given(networks(), seeds())
@settings(max_examples=40)
def test_lower_bounds_lie_below_the_certified_upper_bound(network, seed) -> None:
    graph = network.graph
    samples = gaussian(6, network.shape, seed)
    upper = lipscope.analytical(graph).value
    local, _ = lipscope.local(graph, samples, **PRECISE)
    found = lipscope.empirical(graph, samples)
    assert local.value <= upper
    assert max(local.estimates) <= upper * (1 + 1e-9)
    assert found is not None
    assert found[0].value <= upper


def test_local_is_the_norm_of_the_jacobian() -> None:
    module, graph = small_network()
    samples = gaussian(9, (2, 8, 8))
    result, pair = lipscope.local(graph, samples, tolerance=1e-8, batch_size=4, **PRECISE)
    expected = dense_jacobian_norms(module, samples.batch(range(9)))
    np.testing.assert_allclose(result.estimates, expected, rtol=1e-7)
    assert result.value == pytest.approx(float(expected.max()), rel=1e-6)
    assert result.value <= float(expected.max()) * (1 + 1e-12)
    # The witness is a pair whose difference quotient anyone can compute again.
    y1, y2 = module(torch.stack([pair.x1, pair.x2])).detach()
    assert float((y1 - y2).norm() / (pair.x1 - pair.x2).norm()) == pytest.approx(result.value, rel=1e-6)
    assert result.mean == pytest.approx(float(expected.mean()), rel=1e-6)
    assert result.std == pytest.approx(float(expected.std()), rel=1e-5)


def test_local_at_a_kink_reports_what_is_attained() -> None:
    """x − relu(x) + relu(−x) is 0 everywhere, but its formal Jacobian at 0 is 1: no witness has it."""

    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - torch.relu(x) + torch.relu(-x)

    graph = lipscope.from_torch(Zero(), (1,))
    result, _ = lipscope.local(
        graph, lipscope.load_samples(torch.zeros(1, 1, dtype=torch.float64)), **PRECISE
    )
    assert result.estimates == [1.0]
    assert result.value == 0.0


def test_a_constant_network_has_constant_zero() -> None:
    graph = Graph.chain((3,), [Dense(torch.zeros(2, 3, dtype=torch.float64)), ReLU()])
    samples = gaussian(4, (3,))
    assert lipscope.analytical(graph).value == 0.0
    assert lipscope.local(graph, samples, **PRECISE)[0].value == 0.0
    found = lipscope.empirical(graph, samples)
    assert found is not None
    assert found[0].value == 0.0
    assert lipscope.effective(lipscope.mean_slopes(graph, samples, **PRECISE))[0].value == 0.0


def test_an_empty_network_is_the_identity() -> None:
    graph = lipscope.from_torch(nn.Identity(), (3,))
    samples = gaussian(4, (3,))
    assert lipscope.analytical(graph).value == 1.0
    assert lipscope.local(graph, samples, **PRECISE)[0].value == pytest.approx(1.0, abs=1e-9)
