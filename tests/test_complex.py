"""Networks with complex signals inside: Fourier transforms, filters in frequency, the modulus."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lipscope.certificates import norm_bounds
from lipscope.errors import ModelError, UnsupportedLayerError
from lipscope.graph import Graph, from_torch
from lipscope.jacobian import linearize
from lipscope.layers import LinearLayer
from lipscope.layers.base import MATERIALISE_BELOW
from lipscope.layers.complex import Fourier
from lipscope.quantities import ball, operator_product

FILTER = torch.complex(torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8)).to(torch.complex128)


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("like", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def imported(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Graph:
    return from_torch(Apply(function), shape)


TRANSFORMS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "modulus of rfft": (lambda x: torch.fft.rfft(x).abs(), (8,)),
    "parts of fft": (lambda x: torch.view_as_real(torch.fft.fft(x, norm="ortho")), (8,)),
    "2-D": (lambda x: torch.fft.rfft2(x, norm="forward").abs(), (3, 4, 6)),
    "there and back": (lambda x: torch.fft.irfft(torch.fft.rfft(x), n=7), (7,)),
    "a filter": (lambda x: torch.view_as_real(torch.fft.ifft(torch.fft.fft(x) * FILTER)), (8,)),
    "wavelet modulus": (lambda x: torch.fft.ifft(torch.fft.fft(x) * FILTER).abs(), (2, 8)),
    "a sum": (lambda x: (torch.fft.fft(x) - torch.fft.fft(x.flip(1)) * FILTER).abs(), (8,)),
    "a sum of other ranges": (lambda x: (torch.fft.fft(x) + torch.fft.fft(x.tanh()) * FILTER).abs(), (8,)),
    "complex input": (lambda x: torch.view_as_complex(x).abs(), (5, 2)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_jacobians_are_those_of_autograd_and_lie_below_the_bound(name: str) -> None:
    function, shape = TRANSFORMS[name]
    graph = imported(function, shape)  # compares the values with the module's
    x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense = linearize(graph, graph.linearize_at(x)[1]).dense()[0]
    expected = torch.func.jacrev(lambda v: function(v[None])[0])(x[0]).reshape(dense.shape)
    torch.testing.assert_close(dense, expected, rtol=1e-9, atol=1e-11)
    # The decomposition behind the dense norm rounds.
    assert float(torch.linalg.matrix_norm(dense, 2)) <= norm_bounds(graph).value * (1 + 1e-13)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_norms_of_linear_layers_cover_the_dense_ones_and_transposes_are_adjoint(name: str) -> None:
    graph = imported(*TRANSFORMS[name])
    for index, node in enumerate(graph.nodes):
        shapes = graph.shapes_into(index)
        if not isinstance(node.layer, LinearLayer) or len(shapes) != 1:
            continue
        matrix = node.layer.matrix(shapes[0])
        assert matrix is not None
        truth, bound = float(torch.linalg.matrix_norm(matrix, 2)), node.layer.norm(shapes)
        assert truth * (1 - 1e-13) <= bound <= 2**0.5 * truth * (1 + 1e-9)
        u = torch.randn(3, *node.shape, dtype=torch.float64)
        (adjoint,) = node.layer.transpose(u)
        torch.testing.assert_close(adjoint.flatten(1), u.flatten(1) @ matrix)


def test_a_unitary_transform_has_the_constant_1() -> None:
    graph = imported(TRANSFORMS["parts of fft"][0], (8,))
    assert norm_bounds(graph).value == 1.0


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (lambda x: torch.fft.fft(x), ModelError, "complex"),
        (lambda x: torch.fft.fft(x, n=16).abs(), UnsupportedLayerError, "pads or trims"),
        (lambda x: (torch.fft.fft(x) * torch.fft.fft(x)).abs(), UnsupportedLayerError, "by a constant only"),
        (lambda x: torch.fft.fft(x).reshape(-1, 2, 4).abs(), UnsupportedLayerError, "complex signal"),
        (lambda x: torch.fft.fft(x, dim=0).abs(), UnsupportedLayerError, "the batch"),
    ],
)
def test_what_is_not_covered_is_refused(
    function: Callable[[Tensor], Tensor], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        imported(function, (8,))


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if "filter" not in n and "wavelet" not in n])
def test_magnitudes_of_large_transforms_cover_the_entries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for node in imported(*TRANSFORMS[name]).nodes:
        if isinstance(node.layer, Fourier):
            shape = node.layer.source
            matrix = node.layer.matrix(shape)
            assert matrix is not None
            with monkeypatch.context() as small:
                small.setattr(Fourier, "matrix", lambda *_: None)
                large = node.layer.magnitudes([shape])
                squares = node.layer.magnitudes([shape], 2)
            covering = (
                large.apply(torch.eye(matrix.shape[1], dtype=torch.float64).reshape(-1, *shape)).flatten(1).T
            )
            assert bool((covering >= matrix.abs() * (1 - 1e-15)).all())
            u = torch.randn(1, *node.shape, dtype=torch.float64)
            torch.testing.assert_close(large.transpose(u)[0].flatten(), covering.T @ u.flatten())
            ones = torch.ones(1, *shape, dtype=torch.float64)
            assert bool((squares.apply(ones).flatten() >= matrix.square().sum(1) * (1 - 1e-14)).all())


def test_a_large_transform_has_bounds_in_every_norm_and_over_balls() -> None:
    # Larger than what is written out as a matrix.
    side = 46
    assert (n := side * side) > MATERIALISE_BELOW
    graph = imported(lambda x: torch.fft.fft2(x).abs(), (1, side, side))
    for norm in ("1", "inf"):
        # A row of the transform sums n cosines and n sines.
        assert n <= operator_product(graph, norm).value < 2.1 * n * 2**0.5
    found = ball(graph, torch.zeros(1, side, side), 0.1, ball_norm="inf", norm="inf", seconds=1)
    assert n <= found.value < 2.1 * n * 2**0.5
