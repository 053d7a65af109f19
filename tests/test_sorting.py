"""Sorting networks, maxima and minima: values, slopes, and the constant 1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipscope
from lipscope.graph import from_torch
from lipscope.jacobian import linearize
from lipscope.layers.sorting import Comparators
from lipscope.quantities.operator_product import product_bound
from strategies import Apply, seeds

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "full sort": lambda x: x.flatten(1).sort(1)[0],
    "descending": lambda x: x.sort(2, descending=True)[0],
    "stable, first axis": lambda x: torch.sort(x, dim=1, stable=True)[0],
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "minimum": lambda x: torch.min(x[:, :1], x),
    "amax": lambda x: x.view(-1, 2, 2, 3).amax((1, 3)),
    "amin kept": lambda x: x.amin(1, keepdim=True),
    "max over an axis": lambda x: x.max(2)[0],
}


def points(count: int, seed: int) -> Tensor:
    """Rounded, so that ties occur."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(count, 3, 4, generator=generator, dtype=torch.float64)).round(decimals=1)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_values_slopes_and_jacobians(name: str) -> None:
    function = OPERATIONS[name]
    graph = from_torch(Apply(function, name), (3, 4))
    x1, x2 = points(40, 0), points(40, 1)
    x2[::5] = x1[::5]
    y1, slopes = graph.linearize_at(x1)
    torch.testing.assert_close(y1, function(x1), rtol=0, atol=0)
    secant = linearize(graph, graph.secant_slopes(x1, x2), len(x1))
    change = secant.matvec((x1 - x2)[None])[0]
    torch.testing.assert_close(change, function(x1) - function(x2), rtol=1e-13, atol=1e-13)
    smooth = x1 + 1e-3 * torch.randn(x1.shape, generator=torch.Generator().manual_seed(2)).double()
    _, slopes = graph.linearize_at(smooth)
    found = linearize(graph, slopes, len(smooth)).dense()
    for sample, matrix in zip(smooth, found, strict=True):
        exact = torch.autograd.functional.jacobian(lambda x: function(x[None])[0], sample)
        torch.testing.assert_close(matrix, exact.reshape(matrix.shape), rtol=0, atol=0)


@pytest.mark.parametrize(("wires", "descending"), [(1, False), (3, True), (6, False), (13, True)])
def test_any_number_of_wires(wires: int, descending: bool) -> None:
    graph = from_torch(Apply(lambda x: x.sort(1, descending=descending)[0], "sort"), (wires,))
    x = torch.randint(-4, 5, (500, wires), generator=torch.Generator().manual_seed(wires)).double()
    assert torch.equal(graph.evaluate(x), x.sort(1, descending=descending)[0])
    for norm in ("1", "2", "inf"):
        assert product_bound(graph, norm) == 1.0


@given(seeds(), st.sampled_from([0.0, 0.1, 2.0]))
@settings(max_examples=30)
def test_comparators_over_boxes(seed: int, width: float) -> None:
    layer = Comparators(torch.tensor([2, 1, 0]), torch.tensor([False, False, True]))
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
    high = low + width * torch.rand(low.shape, generator=generator, dtype=torch.float64)
    x1, x2 = (
        low + torch.rand(30, 3, 4, generator=generator, dtype=torch.float64) * (high - low) for _ in "12"
    )
    least, most = layer.value_range(low, high)
    assert bool(((layer.forward(x1) >= least) & (layer.forward(x1) <= most)).all())
    alpha, beta = (slope.values for slope in layer.slope_hull(low, high))
    for slope in (layer.secant(x1, x2), layer.linearize(x1)[1]):
        assert bool(((slope.values >= alpha) & (slope.values <= beta)).all())
        torch.testing.assert_close(slope.values.sum(1), torch.ones(30, 3, 4).double(), rtol=1e-15, atol=0)


def test_an_orthogonal_network_that_sorts_has_constant_one() -> None:
    """GroupSort between orthogonal matrices: both ends of the bracket are 1 but for rounding of the matrices."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(3):
        parts += [
            nn.utils.parametrizations.orthogonal(nn.Linear(6, 6).double()),
            Apply(lambda x: x.view(-1, 3, 2).sort(2)[0].flatten(1), "GroupSort2"),
        ]
    graph = from_torch(nn.Sequential(*parts), (6,))
    bracket = lipscope.bracket(graph)
    assert 1 - 1e-9 <= bracket.lower <= bracket.upper <= 1 + 1e-8


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_the_larger_of_a_signal_and_a_constant(name: str) -> None:
    bound = torch.tensor([[-0.5], [0.0], [0.75]], dtype=torch.float64)
    function = getattr(torch, name)
    graph = from_torch(Apply(lambda x: function(bound, x), name).double(), (3, 4))
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(graph.evaluate(x), function(x, bound), rtol=0, atol=1e-15)
    assert all(1.0 <= product_bound(graph, norm) <= 1 + 1e-12 for norm in ("1", "2", "inf"))
