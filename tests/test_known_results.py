"""Networks whose constant is known: both ends of the bracket must find it."""

from __future__ import annotations

from collections.abc import Callable

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


class Decoder(nn.Module):
    """The shape of a U-Net: down by pooling, up by nearest neighbours and a transposed convolution, skips cropped."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 2, 3, padding=1)
        self.middle = nn.Conv2d(2, 2, 3, padding=1)
        self.up = nn.ConvTranspose2d(2, 2, 2, 2)
        self.out = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x).relu()
        low = self.middle(functional.max_pool2d(skip, 2)).relu()
        nearest = functional.interpolate(low, scale_factor=2, mode="nearest")
        return self.out(torch.cat([skip, nearest, self.up(low)], 1)[..., 1:-1, 1:-1])


def test_a_decoder_with_skips() -> None:
    torch.manual_seed(0)
    found = lipscope.bracket(Decoder(), (1, 6, 6), effort="fast", seconds=2.0)
    assert 0 < found.lower <= found.upper < 100
