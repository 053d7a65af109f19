"""1-Lipschitz networks of deel-torchlip: their certified bound shows that they are, up to their weights' inexactness.

M. Serrurier, F. Mamalet, A. González-Sanz, T. Boissin, J.-M. Loubes, E. del Barrio (2021), Achieving
robustness in classification using optimal transport with hinge regularization.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import lipscope
from lipscope.graph import from_torch
from lipscope.quantities.operator_product import product_bound

torchlip = pytest.importorskip("deel.torchlip")

Shape = tuple[int, ...]
INEXACT = 1e-6
"""What float32 weights and the iterations that normalise them leave."""
CHANNELS: Shape = (4, 8, 8)


def settled(module: nn.Module, shape: Shape) -> nn.Module:
    """In evaluation mode after a few passes in training mode, which bring the spectral normalisation to rest."""
    module.train()
    with torch.no_grad():
        for _ in range(10):
            module(torch.randn(2, *shape))
    return module.eval()


LAYERS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "spectral linear": (lambda: torchlip.SpectralLinear(6, 5), (6,)),
    "Frobenius linear": (lambda: torchlip.FrobeniusLinear(6, 1), (6,)),
    "spectral convolution": (lambda: torchlip.SpectralConv2d(4, 4, 3, padding=1), CHANNELS),
    "transposed convolution": (lambda: torchlip.SpectralConvTranspose2d(4, 4, 2, stride=2), CHANNELS),
    "full sort": (lambda: torchlip.FullSort(), (6,)),
    "group sort": (lambda: torchlip.GroupSort(4), CHANNELS),
    "group sort of pairs": (lambda: torchlip.GroupSort2(), CHANNELS),
    "leaky ReLU": (lambda: torchlip.LPReLU(4), CHANNELS),
    "average pooling": (lambda: torchlip.ScaledAvgPool2d(2), CHANNELS),
    "norm pooling": (lambda: torchlip.ScaledL2NormPool2d(2), CHANNELS),
    "adaptive norm pooling": (lambda: torchlip.ScaledAdaptativeL2NormPool2d((1, 1)), CHANNELS),
    "downsampling": (lambda: torchlip.InvertibleDownSampling(2), CHANNELS),
    "upsampling": (lambda: torchlip.InvertibleUpSampling(2), CHANNELS),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_a_layer_is_certified_to_be_lipschitz_with_constant_one(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    assert 0 < product_bound(from_torch(settled(make(), shape), shape), "2") <= 1 + INEXACT


def test_a_network_is_certified_to_be_lipschitz_with_constant_one() -> None:
    torch.manual_seed(0)
    model = torchlip.Sequential(
        torchlip.SpectralConv2d(1, 4, 3, padding=1),
        torchlip.GroupSort(4),
        torchlip.InvertibleDownSampling(2),
        torchlip.SpectralConv2d(16, 8, 3, padding=1),
        torchlip.FullSort(),
        torchlip.ScaledL2NormPool2d(2),
        nn.Flatten(),
        torchlip.SpectralLinear(32, 10),
        torchlip.FullSort(),
        torchlip.FrobeniusLinear(10, 1),
    )
    shape = (1, 8, 8)
    found = lipscope.bracket(settled(model, shape), shape, effort="fast", seconds=1.0)
    assert 0 < found.lower <= found.upper <= 1 + INEXACT
