"""What one Lanczos step costs on the AlexNet trunk, in forward passes, and against torch.func.

Usage: python benchmarks/lanczos_step.py [--batch 8] [--repeats 7]

All times are medians of runs taken in turn in one process, as ratios to the bare forward pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.func import jacrev, jvp, vjp, vmap

import lipscope


def in_turn(repeats: int, **jobs: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each job, the jobs taken in turn after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for round_number in range(repeats + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if round_number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def alexnet(batch: int, repeats: int) -> None:
    model = lipscope.load_model("alexnet-trunk")
    graph = lipscope.from_torch(model.module, model.input_shape).to(torch.float32)
    module = model.module.eval()
    samples = lipscope.load_samples("demo", preprocess=model.preprocessing)
    x = samples.batch(range(batch))
    _, slopes = graph.linearize_at(x)
    jacobian = lipscope.linearize(graph, slopes, batch)
    v = torch.randn(1, batch, *graph.input_shape)
    u = torch.randn(1, batch, *graph.output_shape)
    steps = 10

    def lanczos() -> object:
        return lipscope.spectral_norm(jacobian, tolerance=0.0, max_steps=steps, dtype=torch.float32)

    def through_torch_func() -> object:
        _, pullback = vjp(module, x)
        return jvp(module, (x,), (v[0],)), pullback(u[0])

    with torch.no_grad():
        found = in_turn(
            repeats,
            forward=lambda: module(x),
            linearize=lambda: graph.linearize_at(x),
            matvec=lambda: jacobian.matvec(v),
            rmatvec=lambda: jacobian.rmatvec(u),
            lanczos=lanczos,
            torch_func=through_torch_func,
        )
    forward = found["forward"]
    print(f"AlexNet trunk, 224×224, batch {batch}, {torch.get_num_threads()} threads, float32")
    print(f"  forward pass                  {forward * 1e3:8.1f} ms   1.00")
    rows = (
        ("slopes at the points", "linearize", 1),
        ("J·v", "matvec", 1),
        ("Jᵀ·u", "rmatvec", 1),
        ("one Lanczos step", "lanczos", steps),
        ("torch.func.jvp + vjp", "torch_func", 1),
    )
    for label, key, parts in rows:
        seconds = found[key] / parts
        print(f"  {label:<28}  {seconds * 1e3:8.1f} ms  {seconds / forward:5.2f} forward passes")
    products = found["matvec"] + found["rmatvec"]
    print(f"  torch.func / (J·v + Jᵀ·u)     {found['torch_func'] / products:8.1f} ×")


def small(repeats: int) -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 32))
    convolutions = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.Tanh(),
    ]
    cnn = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1152, 10))
    networks = {"MLP 64-256-256-32": (mlp, (64,)), "CNN 3×16×16": (cnn, (3, 16, 16))}
    print("\nLip(x) of 32 points against torch.func.jacrev + SVD, float64")
    for name, (module, shape) in networks.items():
        module = module.double().eval()
        graph = lipscope.from_torch(module, shape)
        x = torch.randn(32, *shape, dtype=torch.float64)

        def ours(graph: lipscope.Graph = graph, x: torch.Tensor = x) -> torch.Tensor:
            _, slopes = graph.linearize_at(x)
            return lipscope.spectral_norm(lipscope.linearize(graph, slopes, len(x)), tolerance=1e-7).value

        def dense(module: nn.Module = module, x: torch.Tensor = x) -> torch.Tensor:
            jacobians = vmap(jacrev(lambda z: module(z[None])[0]))(x).reshape(len(x), -1, x[0].numel())
            return torch.linalg.matrix_norm(jacobians, 2)

        with torch.no_grad():
            found = in_turn(repeats, ours=ours, dense=dense)
            error = float(((ours() - dense()).abs() / dense()).max())
        print(
            f"  {name:<20} ours {found['ours'] * 1e3:7.1f} ms, jacrev + SVD {found['dense'] * 1e3:7.1f} ms: "
            f"{found['dense'] / found['ours']:5.1f} × faster, largest relative difference {error:.1e}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    alexnet(options.batch, options.repeats)
    small(options.repeats)
