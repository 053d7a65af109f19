"""A scattering network of order two on periodic 1-D signals: wavelets, complex modulus, output at every layer.

    lipscope analyze examples/scattering.py:build --data signals.npy --input-shape 64

The low pass φ and the analytic wavelets ψ_j of a layer form a Parseval frame of real signals,
|φ̂(ω)|² + ½ Σ_j (|ψ̂_j(ω)|² + |ψ̂_j(−ω)|²) = 1, so that a layer splits the energy of its input into what
leaves and what is passed on: L_c = 1. The product rule counts every path as if it could carry all
of the energy, and gives the root of the number of paths.

Source: S. Mallat, Group invariant scattering (2012).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def filter_bank(length: int, bands: int) -> tuple[Tensor, list[Tensor]]:
    """Transfer functions φ̂ and ψ̂_1 … ψ̂_J, each (length,), float64, from the lowest band to the highest.

    The energy |ψ̂_j|² of the bands is a partition of unity over the octaves: each rises over one octave
    where its lower neighbour falls.
    """
    frequency = torch.fft.fftfreq(length, dtype=torch.float64)
    octave = bands + torch.log2((2 * frequency.abs()).clamp_min(1e-30))
    # What band j and all above it pass.
    above = [torch.ones_like(octave)]
    above += [torch.sin(torch.pi / 2 * (octave - j).clamp(0, 1)).square() for j in range(bands)]
    above.append(torch.zeros_like(octave))
    low, *high = ((a - b).clamp_min(0).sqrt() for a, b in itertools.pairwise(above))
    # Analytic: nothing at negative frequencies, doubled energy at positive ones; frequency −½ is its own mirror image.
    analytic = (2.0 * (frequency > 0) + 1.0 * (frequency == -0.5)).to(torch.float64).sqrt()
    return low, [response * analytic for response in high]


def circular_convolution(transfer: Tensor) -> Tensor:
    """The complex (length, length) matrix of the circular convolution with the given transfer function."""
    basis = torch.fft.fft(torch.eye(len(transfer), dtype=torch.float64), dim=0)
    return torch.fft.ifft(transfer[:, None] * basis, dim=0)


def linear(matrix: Tensor) -> nn.Linear:
    """A linear layer without bias."""
    layer = nn.Linear(*matrix.shape[::-1], bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(matrix.contiguous(), requires_grad=False)
    return layer


class Scattering(nn.Module):
    """x (batch, length) ↦ x∗φ, |x∗ψ_j|∗φ and ||x∗ψ_j|∗ψ_k|∗φ for k < j, side by side."""

    def __init__(self, length: int, bands: int) -> None:
        super().__init__()
        low, high = filter_bank(length, bands)
        self.low = linear(circular_convolution(low).real)
        wavelets = [circular_convolution(transfer) for transfer in high]
        # Real and imaginary part as a pair of channels.
        self.wavelets = nn.ModuleList(linear(torch.cat([w.real, w.imag])) for w in wavelets)

    def modulus(self, x: Tensor, band: int) -> Tensor:
        """|x∗ψ_band|, shape (batch, length)."""
        return torch.linalg.vector_norm(self.wavelets[band](x).unflatten(1, (2, -1)), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """The coefficients, shape (batch, paths·length)."""
        outputs = [self.low(x)]
        for j in range(len(self.wavelets)):
            first = self.modulus(x, j)
            outputs.append(self.low(first))
            outputs += [self.low(self.modulus(first, k)) for k in range(j)]
        return torch.cat(outputs, 1)


def build(length: int = 64, bands: int = 5) -> nn.Module:
    """The scattering network of signals (batch, length)."""
    return Scattering(length, bands)
