"""What the training monitor costs, and what it gives for that: training with and without it, in turn.

    python benchmarks/monitor.py --seconds 40 --rounds 3

An MLP on 784 numbers and a residual convnet at CIFAR size, on random data, one thread. Each round trains the same
network for the same number of steps without and with a monitor; ratios are of processor time and of wall time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from shared import perceptron, row
from torch import Tensor, nn

import lipscope
from lipscope.certificates import moved_norm
from lipscope.graph import TracedModule
from lipscope.layers import LinearLayer
from lipscope.train import Monitor


class ResidualNet(nn.Module):
    """Three stages of two residual blocks with batch norm: (3, 32, 32) → 10, about 170,000 weights."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), nn.BatchNorm2d(widths[0]), nn.ReLU())
        before, stages = widths[0], []
        for number, width in enumerate(widths):
            stages += [Block(before, width, 1 if number == 0 else 2), Block(width, width, 1)]
            before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))


class Block(nn.Module):
    """x ↦ ReLU(shortcut(x) + body(x))."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if (before, stride) != (width, 1):
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 784-256-256-10, batch 128": (lambda: perceptron([784, 256, 256, 10]), (784,), 128),
    "residual convnet 3x32x32, batch 32": (ResidualNet, (3, 32, 32), 32),
}


def train(
    module: nn.Module, shape: Sequence[int], batch: int, count: int, monitor: Monitor | None
) -> list[float]:
    """Wall and processor seconds of so many steps of SGD with momentum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * batch, *shape, generator=generator)
    y = torch.randint(10, (8 * batch,), generator=generator)
    optimiser = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    module.train()
    started = time.perf_counter(), time.process_time()
    for step in range(count):
        some = slice(step % 8 * batch, (step % 8 + 1) * batch)
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x[some]), y[some]).backward()
        optimiser.step()
        if monitor is not None:
            monitor.step(x[some])
    return [time.perf_counter() - started[0], time.process_time() - started[1]]


def changes(
    module: nn.Module, shape: tuple[int, ...], batch: int, count: int
) -> list[tuple[float, float, float]]:
    """Over so many steps, of each layer: quick bound and operator's Frobenius norm of its change, by its norm; and
    the certified bound of the layer from before, by a proof.
    """
    traced = TracedModule(module, shape)
    before = traced.read()
    train(module, shape, batch, count, None)
    after = traced.read()
    found = []
    for index, (old, new) in enumerate(zip(before.nodes, after.nodes, strict=True)):
        kernels = [
            node.layer.kernel() if isinstance(node.layer, LinearLayer) else None for node in (old, new)
        ]
        if kernels[0] is None:
            continue
        shapes = after.shapes_into(index)
        change = replace(new.layer, weight=kernels[1].weight - kernels[0].weight)
        norm = change.norm(shapes)
        squares = change.magnitudes(shapes, 2).apply(torch.ones(1, *shapes[0], dtype=torch.float64))
        moved = moved_norm(kernels[1], kernels[0], old.layer.norm(shapes)) / new.layer.norm(shapes)
        found.append((change.kernel().quick_norm() / norm, float(squares.sum()) ** 0.5 / norm, moved))
    return found


def measure(name: str, seconds: float, rounds: int, budget: float) -> None:
    make, shape, batch = NETWORKS[name]
    torch.manual_seed(0)
    module = make()
    probe = copy.deepcopy(module)
    train(probe, shape, batch, 3, None)
    one = train(probe, shape, batch, 10, None)[0] / 10
    count = max(20, int(seconds / one))
    data = torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
    walls, cpus, monitors, drifts = [], [], [], []
    for _ in range(rounds):
        plain = train(copy.deepcopy(module), shape, batch, count, None)
        watched, found = copy.deepcopy(module), []
        monitor = Monitor(watched, data, budget=budget, logs=[found.append])
        with_monitor = train(watched, shape, batch, count, monitor)
        walls.append(with_monitor[0] / plain[0])
        cpus.append(with_monitor[1] / plain[1])
        monitors.append(monitor)
        drifts += [snapshot.drift for snapshot in found]
    print(f"\n{name}: {count} steps of {1e3 * one:.3g} ms, budget {100 * budget:g} %")
    widths = (58, 12, 26)
    median = statistics.median
    row(widths, "processor time with / without a monitor", median(cpus), _range(cpus))
    row(widths, "wall time with / without a monitor", median(walls), _range(walls))
    shares = [monitor.snapshot.share for monitor in monitors]
    row(widths, "share of the time that the monitor states", median(shares), _range(shares))
    taken = [monitor._snapshots for monitor in monitors]
    row(widths, "snapshots", median(taken), _range(taken))
    row(
        widths,
        "drift: certified bound by that of proofs at that step, median",
        median(drifts),
        _range(drifts),
    )
    monitor = monitors[-1]
    row(widths, "one snapshot without proofs, by a training step", monitor._expected / one)
    started = time.perf_counter()
    monitor.upper()
    row(widths, "one drift bound (upper()), by a training step", (time.perf_counter() - started) / one)
    layers = range(1, len(monitor.graph.nodes))
    row(widths, "all proofs, by a training step", sum(map(monitor._proofs.seconds, layers)) / one)
    row(widths, "set-up (tracing, proofs, one snapshot), seconds", monitor.setup_seconds)
    for steps in (1, count // 4):
        quick, frobenius = zip(*changes(copy.deepcopy(module), shape, batch, steps), strict=True)
        row(
            widths, f"bound of a layer's change over {steps} steps, by its norm", median(quick), _range(quick)
        )
        row(widths, "  the Frobenius norm of its operator, by its norm", median(frobenius), _range(frobenius))


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.4g} to {max(values):.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="of training a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--network", choices=["mlp", "convnet"], help="only one of them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"lipscope {lipscope.__version__}, torch {torch.__version__}, one thread")
    for key, name in zip(("mlp", "convnet"), NETWORKS, strict=True):
        if asked.network in (None, key):
            measure(name, asked.seconds, asked.rounds, asked.budget)


if __name__ == "__main__":
    main()
