"""A small network for the handwritten digits of scikit-learn, and the digits it was not trained on.

lipscope discriminant examples/digits.py:build --data examples/digits.py:images --labels examples/digits.py:labels
lipscope fisher examples/digits.py:build --data examples/digits.py:images --likelihood softmax
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

TRAINED = 1000
STEPS = 200


def _digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32).reshape(-1, 1, 8, 8), y


def images() -> np.ndarray:
    return _digits()[0][TRAINED:]


def labels() -> np.ndarray:
    return _digits()[1][TRAINED:]


def build() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    x, y = (torch.from_numpy(values[:TRAINED]) for values in _digits())
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(STEPS):
        some = torch.randint(TRAINED, (128,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[some]), y[some]).backward()
        optimiser.step()
    return network
