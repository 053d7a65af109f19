"""What the tests of several quantities share: data, a small network, a checkpoint that breaks off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import lipscope
from lipscope.graph import Graph
from lipscope.quantities.checkpoint import State

PRECISE = {"dtype": torch.float64}


def gaussian(count: int, shape: tuple[int, ...], seed: int = 0) -> lipscope.Samples:
    generator = torch.Generator().manual_seed(seed)
    return lipscope.load_samples(torch.randn(count, *shape, generator=generator, dtype=torch.float64))


def small_network() -> tuple[nn.Module, Graph]:
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten()
    ).double()  # fmt: skip
    return module, lipscope.from_torch(module, (2, 8, 8))


class Memory:
    """A checkpoint, with a folder or none, that can be cut off after some saves, as a kill would."""

    def __init__(self, saves: int = -1, folder: Path | None = None) -> None:
        self.left, self.place = saves, folder
        self.states: dict[str, dict[str, np.ndarray]] = {}

    def load(self, name: str) -> State | None:
        return self.states.get(name)

    def save(self, name: str, **state: np.ndarray) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.states[name] = {key: np.array(value) for key, value in state.items()}

    def folder(self) -> Path | None:
        return self.place
