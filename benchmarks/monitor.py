"""What the training monitor costs, and what it gives for that: training with and without it, in turn.

    python benchmarks/monitor.py --seconds 60

An MLP on 784 numbers and a residual convnet at CIFAR size, on random data, one thread. Two copies of a network are
trained by turns, in blocks of about a second, one with a monitor and one without; its clock stands still during
the blocks without.
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
from lipscope.certificates import LayerProofs, moved_norm
from lipscope.graph import TracedModule
from lipscope.layers import LinearLayer
from lipscope.results import Snapshot
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


class Training:
    """SGD with momentum on random data, a block of steps at a time."""

    def __init__(self, module: nn.Module, shape: Sequence[int], batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.module = module.train()
        self.x = torch.randn(8, batch, *shape, generator=generator)
        self.y = torch.randint(10, (8, batch), generator=generator)
        self.optimiser = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        self.done = 0

    def run(self, count: int, monitor: Monitor | None = None) -> tuple[float, float, float]:
        """So many steps: wall seconds, processor seconds, and processor seconds inside the monitor."""
        wall, cpu, inside = time.perf_counter(), time.process_time(), 0.0
        for _ in range(count):
            x, y = self.x[self.done % 8], self.y[self.done % 8]
            self.optimiser.zero_grad()
            nn.functional.cross_entropy(self.module(x), y).backward()
            self.optimiser.step()
            self.done += 1
            if monitor is not None:
                before = time.process_time()
                monitor.step(x)
                inside += time.process_time() - before
        return time.perf_counter() - wall, time.process_time() - cpu, inside


def changes(
    module: nn.Module, shape: tuple[int, ...], batch: int, count: int
) -> list[tuple[float, float, float]]:
    """Over so many steps, of each layer: quick bound and operator's Frobenius norm of its change, by its norm; and
    the certified bound of the layer from before, by a proof.
    """
    traced = TracedModule(module, shape)
    before = traced.read()
    Training(module, shape, batch).run(count)
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


def measure(name: str, seconds: float, budget: float) -> None:
    make, shape, batch = NETWORKS[name]
    torch.manual_seed(0)
    module = make()
    plain, watched = (Training(copy.deepcopy(module), shape, batch) for _ in range(2))
    data = torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
    found: list[Snapshot] = []
    monitor = Monitor(watched.module, data, budget=budget, logs=[found.append])
    Training(copy.deepcopy(module), shape, batch).run(3)
    block = max(1, round(10 / Training(copy.deepcopy(module), shape, batch).run(10)[0]))
    started, blocks = time.perf_counter(), []
    while time.perf_counter() - started < seconds or not found:
        without = plain.run(block)
        monitor._last = time.perf_counter()
        blocks.append((without, watched.run(block, monitor)))
    wall, cpu = (sum(one[0][i] for one in blocks) for i in (0, 1))
    wall_with, cpu_with, inside = (sum(one[1][i] for one in blocks) for i in (0, 1, 2))
    step = cpu / (block * len(blocks))
    title = f"{1e3 * step:.3g} ms of processor time each, budget {100 * budget:g} %"
    print(f"\n{name}: {block * len(blocks)} steps of {title}")
    widths = (58, 12, 26)
    median = statistics.median
    row(widths, "processor time with / without a monitor", cpu_with / cpu)
    row(widths, "wall time with / without a monitor", wall_with / wall)
    row(widths, "processor time inside the monitor, share", inside / cpu_with)
    row(widths, "  share of the wall time that the monitor states", found[-1].share)
    row(widths, "snapshots", len(found))
    drifts = [snapshot.drift for snapshot in found]
    row(widths, "drift since the proofs, median", median(drifts), _range(drifts))

    def steps(work: Callable[[], object]) -> float:
        before = time.process_time()
        work()
        return (time.process_time() - before) / step

    row(
        widths,
        "one snapshot without proofs, in training steps",
        steps(lambda: monitor._snapshot(None, "affordable")),
    )
    row(widths, "one drift bound, upper(), in training steps", steps(monitor.upper))
    proofs = LayerProofs()
    row(widths, "all proofs, in training steps", steps(lambda: proofs.prove(monitor.graph)))
    row(widths, "set-up (tracing, proofs, one snapshot), wall seconds", monitor.setup_seconds)
    for count in (1, 10, 100):
        quick, frobenius, moved = zip(*changes(copy.deepcopy(plain.module), shape, batch, count), strict=True)
        row(
            widths,
            f"over {count} steps: bound of a layer's change, by its norm",
            median(quick),
            _range(quick),
        )
        row(
            widths,
            "  Frobenius norm of the changed operator, by its norm",
            median(frobenius),
            _range(frobenius),
        )
        row(widths, "  drift bound of a layer, by its proof at the end", median(moved), _range(moved))


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.4g} to {max(values):.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, a network")
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--network", choices=["mlp", "convnet"], help="only one of them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"lipscope {lipscope.__version__}, torch {torch.__version__}, one thread")
    for key, name in zip(("mlp", "convnet"), NETWORKS, strict=True):
        if asked.network in (None, key):
            measure(name, asked.seconds, asked.budget)


if __name__ == "__main__":
    main()
