"""What penalties and constraints cost in training: steps of each beside plain ones, in one process.

Usage: python benchmarks/penalty.py [--networks mlp,convnet,resnet] [--variants effective,certified]
           [--batch N] [--rounds 7] [--device cpu] [--json FILE]

A step is forward, loss, backward and SGD with momentum on random data; each variant has a copy of the network.
Ratios are medians over rounds in which all variants take turns. On the CPU they are of processor time, which
other work on the machine changes little; on a GPU of time between synchronisations.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from shared import row
from torch import Tensor, nn

from lipscope import train

WIDTHS = (34, 10, 12)

Shape = tuple[int, ...]
Variant = Callable[[nn.Module, Shape], Callable[[Tensor], Tensor] | None]


class Residual(nn.Module):
    """Two convolutions with batch norm beside a path that skips them (ResNet's basic block)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.skip(x) + self.body(x))


def perceptron() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
    )  # fmt: skip


def convnet() -> nn.Sequential:
    """VGG-like, for 32×32 images: six convolutions with batch norm, three poolings, a dense layer."""
    parts: list[nn.Module] = []
    before = 3
    for after in (64, 128, 256):
        for _ in range(2):
            parts += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(256 * 16, 10))


def resnet() -> nn.Sequential:
    """ResNet-18 for 224×224 images."""
    parts: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    before = 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        parts += [Residual(before, after, stride), Residual(after, after, 1)]
        before = after
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], Shape, int]] = {
    "mlp": (perceptron, (784,), 256),
    "convnet": (convnet, (3, 32, 32), 32),
    "resnet": (resnet, (3, 224, 224), 8),
}


def variants(batch: int) -> dict[str, Variant]:
    """By name, what is added to a plain step; a constraint adds nothing to the loss."""
    quarter = batch // 4

    def constrained(module: nn.Module, shape: Shape) -> None:
        train.constrain(module, shape, 1e6, split="proportional")
        module.train()

    return {
        "plain": lambda m, s: None,
        "effective scalar": lambda m, s: train.EffectivePenalty(m, s),
        "effective channel": lambda m, s: train.EffectivePenalty(m, s, level="channel"),
        "effective unit": lambda m, s: train.EffectivePenalty(m, s, level="unit"),
        "effective scalar, ¼ batch": lambda m, s: train.EffectivePenalty(m, s, samples=quarter),
        "effective scalar secant": lambda m, s: train.EffectivePenalty(m, s, reading="secant"),
        "effective scalar secant, ¼ batch": lambda m, s: train.EffectivePenalty(
            m, s, reading="secant", samples=quarter
        ),
        "effective full, ¼ batch": lambda m, s: train.EffectivePenalty(m, s, level="full", samples=quarter),
        "local max": lambda m, s: train.LocalPenalty(m, s),
        "local max, ¼ batch": lambda m, s: train.LocalPenalty(m, s, samples=quarter),
        "local mean, ¼ batch": lambda m, s: train.LocalPenalty(m, s, reduce="mean", samples=quarter),
        "local mean, every 8 steps": lambda m, s: train.Every(train.LocalPenalty(m, s, reduce="mean"), 8),
        "certified": lambda m, s: train.CertifiedPenalty(m, s),
        "constraint": constrained,
    }


class Training:
    """One network in training with one variant."""

    def __init__(self, network: nn.Module, variant: Variant, shape: Shape) -> None:
        self.module = network
        self.penalty = variant(network, shape)
        self.module.train()
        self.optimiser = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimiser.zero_grad()
        loss = nn.functional.cross_entropy(self.module(x), y)
        if self.penalty is not None:
            loss = loss + 1e-4 * self.penalty(x)
        loss.backward()
        self.optimiser.step()


def measured(name: str, kinds: list[str], rounds: int, device: str, batch: int | None) -> dict[str, float]:
    """Time of a step with each variant (those whose names begin with one of `kinds`), in steps without."""
    make, shape, usual = NETWORKS[name]
    batch = batch or usual
    torch.manual_seed(0)
    network = make()
    runs = {
        label: Training(copy.deepcopy(network).to(device), variant, shape)
        for label, variant in variants(batch).items()
        if label == "plain" or label.startswith(tuple(kinds))
    }
    clock = time.process_time if device == "cpu" else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {label: [] for label in runs}
    for number in range(rounds + 1):
        x = torch.randn(batch, *shape, generator=generator).to(device)
        y = torch.randint(10, (batch,), generator=generator).to(device)
        for label, run in runs.items():
            # Eight steps where a variant has a rhythm; the mean is what a step costs.
            steps = 8 if isinstance(run.penalty, train.Every) else 1
            started = clock()
            for _ in range(steps):
                run.step(x, y)
                if device != "cpu":
                    torch.cuda.synchronize()
            # The first round finds start vectors.
            if number:
                times[label].append((clock() - started) / steps)
    plain = times["plain"]
    print(
        f"\n{name}: batch {batch}, {device}; a plain step takes {statistics.median(plain) * 1e3:.3g} ms",
        flush=True,
    )
    row(WIDTHS, "variant", "ratio", "min–max")
    ratios = {}
    for label, found in times.items():
        shares = [a / b for a, b in zip(found, plain, strict=True)]
        ratios[label] = statistics.median(shares)
        row(WIDTHS, label, f"{ratios[label]:.2f}", f"{min(shares):.2f}–{max(shares):.2f}")
    if "constraint" in runs:
        started = clock()
        runs["constraint"].module.eval()
        print(
            f"  certifying the constraint, once an evaluation: {(clock() - started) / statistics.median(plain):.3g} steps"
        )
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--variants", default="effective,local,certified,constraint")
    parser.add_argument("--batch", type=int, help="samples a step, instead of the network's own number")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = arguments.variants.split(",")
    found = {
        name: measured(name, kinds, arguments.rounds, arguments.device, arguments.batch)
        for name in arguments.networks.split(",")
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
