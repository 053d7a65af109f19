"""Training with penalties and under a constraint: a small convolutional network on scikit-learn's 8×8 digits.

    python examples/train_penalty.py [--epochs 12] [--seed 0] [--figure training.svg]

Needs scikit-learn, and matplotlib for the figure. Every row is one network, trained from the same weights on the
same batches; weights of the penalties are chosen so that all of them bite.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import lipscope
from lipscope import train

SHAPE = (1, 8, 8)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32).reshape(-1, *SHAPE) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(data.target)[order]


def variants() -> dict[str, Callable[[nn.Module], tuple[train.Penalty | train.Every | None, float]]]:
    """By name, the penalty of a network and its weight in the loss."""

    def constrained(net: nn.Module) -> tuple[None, float]:
        train.constrain(net, SHAPE, bound=8.0)
        return None, 0.0

    return {
        "plain": lambda net: (None, 0.0),
        "local max": lambda net: (train.LocalPenalty(net, SHAPE, samples=32), 0.05),
        "effective, channel": lambda net: (train.EffectivePenalty(net, SHAPE, level="channel"), 0.2),
        "certified": lambda net: (train.Every(train.CertifiedPenalty(net, SHAPE), 2), 0.005),
        "constraint, L ≤ 8": constrained,
    }


def measured(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The certified bound, the largest Lip(x) and the accuracy on held-out digits."""
    net.eval()
    with torch.no_grad():
        accuracy = float((net(x).argmax(1) == y).float().mean())
    graph = lipscope.from_torch(net, SHAPE)
    _, pair = lipscope.local(graph, lipscope.load_samples(x), limit=64)
    return {"certified": lipscope.analytical(graph).value, "local": pair.bound, "accuracy": accuracy}


def trained(
    setup: Callable[[nn.Module], tuple[train.Penalty | train.Every | None, float]], epochs: int, seed: int
) -> list[dict[str, float]]:
    """What is measured before training and after every epoch."""
    torch.manual_seed(seed)
    net = network()
    penalty, weight = setup(net)
    x, y = digits()
    held, used = slice(0, 450), slice(450, None)
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[used], y[used]), batch_size=64, shuffle=True, drop_last=True
    )
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    curve = [measured(net, x[held], y[held])]
    for _ in range(epochs):
        net.train()
        for inputs, labels in batches:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs), labels)
            if penalty is not None:
                loss = loss + weight * penalty(inputs)
            loss.backward()
            optimiser.step()
        curve.append(measured(net, x[held], y[held]))
    return curve


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    from lipscope.figures.canvas import blank, save

    titles = {
        "certified": "certified L ≤",
        "local": "largest Lip(x) of 64 ≥",
        "accuracy": "accuracy, held out",
    }
    figure, axes = blank(3, width=9.6, height=3.2)
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for label, curve in curves.items():
            axis.plot([point[name] for point in curve], label=label, linewidth=1.4)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("epoch")
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    axes[2].set_ylim(0.8, 1.0)
    axes[2].legend(fontsize=7)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    curves = {}
    print(f"{'training':<20}{'certified L ≤':>15}{'Lip(x) ≥':>10}{'accuracy':>10}")
    for label, setup in variants().items():
        curves[label] = trained(setup, arguments.epochs, arguments.seed)
        last = curves[label][-1]
        print(
            f"{label:<20}{last['certified']:>15.2f}{last['local']:>10.2f}{last['accuracy']:>10.1%}",
            flush=True,
        )
    if arguments.figure is not None:
        draw(curves, arguments.figure)


if __name__ == "__main__":
    main()
