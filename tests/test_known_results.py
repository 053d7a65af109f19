"""Networks whose constant is known: both ends of the bracket must find it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lipscope
from lipscope.graph import from_torch
from lipscope.quantities.operator_product import product_bound
from strategies import Apply


def orthogonal(size: int, scale: float, seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(size, size).double()
    with torch.no_grad():
        nn.init.orthogonal_(layer.weight).mul_(scale)
    return layer


def test_scaled_orthogonal_layers_give_the_product_of_their_scales() -> None:
    scales = (2.0, 0.25, 3.0)
    model = nn.Sequential(*(orthogonal(5, scale, i) for i, scale in enumerate(scales)))
    found = lipscope.bracket(model, (5,), effort="fast")
    assert 1.5 * (1 - 1e-9) <= found.lower <= found.upper <= 1.5 * (1 + 1e-8)


@pytest.mark.parametrize("kind", ["orthogonal", "spectral"])
def test_parametrised_weights_in_float32(kind: str) -> None:
    torch.manual_seed(0)
    wrap = {
        "orthogonal": nn.utils.parametrizations.orthogonal,
        "spectral": lambda m: nn.utils.parametrizations.spectral_norm(m, n_power_iterations=200),
    }[kind]
    graph = from_torch(nn.Sequential(*(wrap(nn.Linear(6, 6)) for _ in range(2))), (6,))
    assert product_bound(graph, "2") <= 1 + 1e-5


ISOMETRIES: dict[str, Callable[[Tensor], Tensor]] = {
    "pixel unshuffle": lambda x: functional.pixel_unshuffle(x, 2),
    "channel shuffle": lambda x: functional.channel_shuffle(x, 2),
    "flip and roll": lambda x: torch.roll(x.flip(3), 1, 2),
}


@pytest.mark.parametrize("name", sorted(ISOMETRIES))
def test_rearrangements_have_constant_one(name: str) -> None:
    graph = from_torch(Apply(ISOMETRIES[name], name), (4, 4, 4))
    assert [product_bound(graph, norm) for norm in ("1", "2", "inf")] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("window", "known"), [(2, 0.5), (4, 0.25)])
def test_average_pooling_over_disjoint_windows(window: int, known: float) -> None:
    """Over tiles of k × k cells its spectral norm is 1/k."""
    graph = from_torch(nn.AvgPool2d(window), (2, 8, 8))
    assert known * (1 - 1e-14) <= product_bound(graph, "2") <= known * (1 + 1e-9)


@pytest.mark.parametrize(
    ("function", "known"),
    [
        (lambda x: x.mean(1), 3**-0.5),
        (lambda x: x.sum((1, 3), keepdim=True), 6**0.5),
        (lambda x: x.sum(-1), 2**0.5),
    ],
    ids=["mean over channels", "sum over two axes", "sum over the last"],
)
def test_means_and_sums_over_any_axes(function: Callable[[Tensor], Tensor], known: float) -> None:
    graph = from_torch(Apply(function, "reduction"), (3, 5, 2))
    assert known * (1 - 1e-14) <= product_bound(graph, "2") <= known * (1 + 1e-9)


INTERPOLATIONS = [
    ("linear", (2, 5), {"scale_factor": 1.7}),
    ("bilinear", (2, 3, 5), {"size": (7, 4)}),
    ("bilinear", (2, 5, 6), {"size": (3, 4), "antialias": True}),
    ("trilinear", (1, 2, 3, 4), {"scale_factor": 2}),
    ("bicubic", (2, 5, 4), {"scale_factor": 1.5}),
    ("bicubic", (1, 6, 5), {"scale_factor": 0.6, "antialias": True}),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("mode", "shape", "options"), INTERPOLATIONS, ids=lambda value: str(value))
def test_interpolation(
    mode: str, shape: tuple[int, ...], options: dict[str, Any], align_corners: bool
) -> None:
    def function(x: Tensor) -> Tensor:
        return functional.interpolate(x, mode=mode, align_corners=align_corners, **options)

    graph = from_torch(Apply(function, mode).double(), shape)
    size = math.prod(shape)
    matrix = function(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1).T
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(graph.evaluate(x), function(x), rtol=1e-13, atol=1e-13)
    for norm, order in (("1", 1), ("2", 2), ("inf", torch.inf)):
        exact = float(torch.linalg.matrix_norm(matrix, order))
        assert exact * (1 - 1e-14) <= product_bound(graph, norm) <= exact * (1 + 1e-9)


@pytest.mark.parametrize(("axis", "length"), [(1, 3), (-1, 5)])
def test_cumulative_sums(axis: int, length: int) -> None:
    """The norm of a triangle of ones, the inverse of differences with a fixed start, is 1/(2 sin(π/(4n + 2)))."""
    graph = from_torch(Apply(lambda x: x.cumsum(axis), "cumsum"), (3, 2, 5))
    x = torch.randn(2, 3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(graph.evaluate(x), x.cumsum(axis), rtol=1e-13, atol=1e-13)
    known = 1 / (2 * math.sin(math.pi / (4 * length + 2)))
    assert known * (1 - 1e-14) <= product_bound(graph, "2") <= known * (1 + 1e-9)


@pytest.mark.parametrize(
    ("module", "shape", "known"),
    [
        (nn.AdaptiveMaxPool1d(3), (2, 6), 1.0),
        (nn.AdaptiveMaxPool2d((2, 1)), (2, 4, 3), 1.0),
        (nn.AdaptiveMaxPool3d(1), (1, 2, 3, 2), 1.0),
        # The middle one of three cells is in both windows.
        (nn.AdaptiveMaxPool1d(2), (2, 3), 2**0.5),
    ],
    ids=["1", "2", "3", "overlapping"],
)
def test_adaptive_max_pooling(module: nn.Module, shape: tuple[int, ...], known: float) -> None:
    graph = from_torch(module, shape)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(graph.evaluate(x), module(x))
    assert product_bound(graph, "2") == pytest.approx(known, rel=1e-14)


def test_adaptive_max_pooling_over_windows_of_unequal_sizes() -> None:
    graph = from_torch(nn.AdaptiveMaxPool2d(3), (2, 5, 4))
    x = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(graph.evaluate(x), functional.adaptive_max_pool2d(x, 3))
    # A cell in up to two windows of each dimension; the bound counts repeated cells too.
    assert 2.0 <= product_bound(graph, "2") <= 6**0.5 * (1 + 1e-14)


def test_a_haar_transform_is_an_isometry() -> None:
    """Sums and differences of 2 × 2 cells over 2, as a strided convolution and back as its adjoint."""
    signs = torch.tensor([[1.0, 1], [1, -1]])
    filters = torch.einsum("ab,cd->acbd", signs, signs).reshape(4, 1, 2, 2) / 2
    forward, back = nn.Conv2d(1, 4, 2, 2, bias=False), nn.ConvTranspose2d(4, 1, 2, 2, bias=False)
    for layer in (forward, back):
        layer.weight.data = filters.clone()
    there = from_torch(forward, (1, 8, 6))
    assert 1.0 <= product_bound(there, "2") <= 1 + 1e-9
    found = lipscope.bracket(nn.Sequential(forward, back), (1, 8, 6), effort="fast", seconds=1.0)
    assert 1 - 1e-9 <= found.lower <= found.upper <= 1 + 1e-8


@pytest.mark.parametrize("dims", [1, 2])
def test_a_transposed_convolution_has_the_norm_of_the_convolution(dims: int) -> None:
    torch.manual_seed(dims)
    convolution = (nn.Conv1d, nn.Conv2d)[dims - 1](2, 3, 3, stride=2, padding=1, bias=False).double()
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1](3, 2, 3, stride=2, padding=1, bias=False)
    transposed = transposed.double()
    transposed.weight.data = convolution.weight.data
    # 7 cells become 4 and 4 cells become 7: the two are adjoint.
    shapes = (2, *[7] * dims), (3, *[4] * dims)
    units = torch.eye(math.prod(shapes[0]), dtype=torch.float64).reshape(-1, *shapes[0])
    exact = float(torch.linalg.matrix_norm(convolution(units).flatten(1).detach(), 2))
    for module, shape in zip((convolution, transposed), shapes, strict=True):
        assert exact * (1 - 1e-13) <= product_bound(from_torch(module, shape), "2") <= exact * (1 + 1e-6)


class Decoder(nn.Module):
    """The shape of a U-Net: down by pooling, up by interpolation and a transposed convolution, skips cropped."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.down = nn.Conv2d(1, 2, 3, padding=1)
        self.middle = nn.Conv2d(2, 2, 3, padding=1)
        self.up = nn.ConvTranspose2d(2, 2, 2, 2)
        self.out = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x).relu()
        low = self.middle(functional.max_pool2d(skip, 2)).relu()
        wide = functional.interpolate(low, scale_factor=2, mode=self.mode)
        return self.out(torch.cat([skip, wide, self.up(low)], 1)[..., 1:-1, 1:-1])


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_decoder_with_skips(mode: str) -> None:
    torch.manual_seed(0)
    found = lipscope.bracket(Decoder(mode), (1, 6, 6), effort="fast", seconds=2.0)
    assert 0 < found.lower <= found.upper < 100
