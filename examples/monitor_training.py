"""A small convolutional network on scikit-learn's digits, watched while it is trained, pruned and quantised.

    python examples/monitor_training.py training.csv
    lipscope monitor training.csv --follow          # in another terminal, while it runs
    lipscope monitor training.csv --figure training.svg

It needs scikit-learn. The certified bound, the attained one and the effective constants appear in a live table.
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lipscope.report import LiveView
from lipscope.results import Snapshot
from lipscope.train import CsvLog, Monitor

STEPS, BATCH = 3000, 64


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1), torch.tensor(data.target)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.data for parameter in model.parameters() if parameter.ndim > 1]


def prune(model: nn.Module, share: float) -> None:
    """Set the smallest weights of each layer to zero."""
    for weight in weights(model):
        weight.mul_(weight.abs() >= weight.abs().flatten().quantile(share))


def quantise(model: nn.Module, bits: int) -> None:
    """Round the weights of each layer to the grid of its range."""
    for weight in weights(model):
        step = weight.abs().max() / (2 ** (bits - 1) - 1)
        weight.copy_((weight / step).round() * step)


def warn(name: str, snapshot: Snapshot) -> None:
    print(f"step {snapshot.step}: {name} has reached {snapshot.numbers[name]:.3g}")


def main(path: str) -> None:
    x, y = digits()
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    changes = {STEPS // 2: lambda: prune(model, 0.7), 3 * STEPS // 4: lambda: quantise(model, 4)}
    with LiveView("digits") as view:
        monitor = Monitor(
            model,
            x,
            budget=0.2,  # generous: a training step of so small a network takes a millisecond or two
            logs=[CsvLog(path), view],
            thresholds={"local_max": 30.0},
            on_exceed=warn,
        )
        monitor.update()  # the network before training
        generator = torch.Generator().manual_seed(0)
        for step in range(1, STEPS + 1):
            batch = torch.randint(len(x), (BATCH,), generator=generator)
            model.train()
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
            if step in changes:
                changes[step]()
                print(f"step {step}: computed again: {', '.join(monitor.update(x[batch]).proved)}")
            monitor.step(x[batch])
        monitor.update()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "training.csv")
