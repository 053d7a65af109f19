"""GoogLeNet (Inception v1 with batch norm, the auxiliary heads left out), with seeded random weights.

    lipscope analyze examples/googlenet.py:build --data images/ --input-shape 3,224,224

The 1×1 convolutions of an inception block read one signal, so they are one filter bank with a joint
Bessel bound: the linear program is below the product rule.

Source: C. Szegedy et al., Going deeper with convolutions (2015), table 1; batch norm after every convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Convolution(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, eps=0.001),
            nn.ReLU(),
        )


class Inception(nn.Module):
    """Four branches side by side: 1×1, 3×3, 5×5 (as 3×3, the usual reimplementation) and pooling."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = widths
        self.branches = nn.ModuleList(
            [
                Convolution(inputs, one, 1),
                nn.Sequential(Convolution(inputs, three_in, 1), Convolution(three_in, three, 3)),
                nn.Sequential(Convolution(inputs, five_in, 1), Convolution(five_in, five, 3)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), Convolution(inputs, pooled, 1)),
            ]
        )
        self.width = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, width, h, w)."""
        return torch.cat([branch(x) for branch in self.branches], 1)


BLOCKS = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
"""Channels of the inception blocks 3a to 5b; None stands for a 3×3 max pooling with stride 2."""


def build(width: float = 1.0, classes: int = 1000, seed: int = 0) -> nn.Module:
    """The network for images (batch, 3, 224, 224), or of any size from 33 upwards; `width` scales all channels."""

    def scaled(channels: int) -> int:
        return max(1, round(channels * width))

    layers: list[nn.Module] = [
        Convolution(3, scaled(64), 7, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Convolution(scaled(64), scaled(64), 1),
        Convolution(scaled(64), scaled(192), 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ]
    channels = scaled(192)
    for number, widths in enumerate(BLOCKS):
        if widths is None:
            # The second one is 2×2 in the usual reimplementation.
            layers.append(nn.MaxPool2d(3 if number == 2 else 2, 2, ceil_mode=True))
            continue
        block = Inception(channels, tuple(map(scaled, widths)))
        layers.append(block)
        channels = block.width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes)]
    network = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            # He's scale keeps the size of signals from layer to layer.
            deviation = (2 / part.weight[0].numel()) ** 0.5
            nn.init.normal_(part.weight, std=deviation, generator=generator)
    return network.eval()
