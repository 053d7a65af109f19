"""lipscope beside other tools that bound Lipschitz constants: value and time, one machine, one run.

Usage: python benchmarks/tools.py [--auto-lirpa PYTHON] [--limit 120] [--seconds 20] [--only global ball layers]

Needs the optional dependencies `bench` and `deel`; a tool that is missing leaves its columns empty. Three tables:

global  L over all inputs, Euclidean: LipSDP-Neuron (written out in cvxpy, solved by Clarabel) and ECLipsE (eclipse-nn).
ball    L over an ℓ_∞ ball, ℓ_∞ → ℓ_∞: lipscope's `ball` and `exact` (the upper end of the bracket, closed or not) and
        auto_LiRPA, in the other Python `PYTHON` (see auto_lirpa.py).
layers  classifiers of digits: one of 1-Lipschitz layers (deel-torchlip) and a plain one.

`lower` is attained by a pair of inputs, `lipscope` is proved with rounding included; the others' values are what they
say, in their own floating point. Each of theirs runs in a process of its own that is killed after `--limit` seconds.
One thread everywhere; s is processor time without imports, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from lipsdp import Network, chain, program
from shared import digits, limited, lower, mlp, mnist, proofs, row, train
from torch import Tensor, nn

import lipscope

Job = tuple[float, float]
"""A value and the processor time that it took, in seconds."""
T = TypeVar("T")


def timed(job: Callable[[], T]) -> tuple[T, float]:
    """What a job returns, and the processor time that it took."""
    started = time.process_time()
    return job(), time.process_time() - started


def lipsdp(network: Network) -> Job:
    import cvxpy  # noqa: F401

    return timed(lambda: program(network.inputs, network.maps, network.output, "CLARABEL")[0])


def eclipse(weights: list[Tensor], method: str) -> Job:
    from eclipse_nn import LipConstEstimator

    return timed(lambda: float(LipConstEstimator(weights=weights).estimate(method)))


def auto_lirpa(
    python: str | None, module: nn.Sequential, center: Tensor, radius: float, limit: float
) -> Job | None:
    if python is None:
        return None
    linears = [layer for layer in module if isinstance(layer, nn.Linear)]
    arrays = {f"weight{k}": layer.weight.detach().numpy() for k, layer in enumerate(linears)}
    arrays |= {f"bias{k}": layer.bias.detach().numpy() for k, layer in enumerate(linears)}
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.npz"
        np.savez(job, layers=len(linears), center=center.numpy(), radius=radius, **arrays)
        script = Path(__file__).with_name("auto_lirpa.py")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                [python, "-W", "ignore", str(script), str(job)],
                capture_output=True, text=True, timeout=limit, env=environment, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return None
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["value"], answer["seconds"]


def classifier(widths: Sequence[int], data: tuple[Tensor, Tensor]) -> nn.Sequential:
    module = mlp(widths, seed=1)
    accuracy = train(module, *data)
    print(f"  [{','.join(map(str, widths))}] is trained to {accuracy:.1%} on held-out images")
    return module


def compare_globally(options: argparse.Namespace, networks: dict[str, nn.Sequential]) -> None:
    print("\nglobal, Euclidean: value and processor time")
    widths = (20, 8, 8, 9, 7, 8, 7, 8, 7, 8, 7)
    row(widths, "network", "lower", "product", "lipscope", "s", "LipSDP", "s", "ECLipsE", "s", "E.-Fast", "s")
    for name, module in networks.items():
        network = chain(module)
        graph = lipscope.from_torch(module, (network.inputs,))
        found, seconds = timed(lambda graph=graph: proofs(graph, "balanced", options.seconds))
        weights = [layer.weight.detach() for layer in module if isinstance(layer, nn.Linear)]
        small = len(network.maps) <= options.units
        theirs = [
            limited(lipsdp, options.limit, network) if small else None,
            limited(eclipse, options.limit, weights, "ECLipsE"),
            limited(eclipse, options.limit, weights, "ECLipsE_Fast"),
        ]
        values = (lower(graph), found[0][1].value, found[-1][1].value)
        row(widths, name, *values, f"{seconds:.2f}", *_cells(theirs))


def compare_over_balls(
    options: argparse.Namespace, networks: dict[str, tuple[nn.Sequential, Tensor]]
) -> None:
    print("\nover ‖x − centre‖_∞ ≤ radius, ℓ_∞ → ℓ_∞: value and processor time")
    widths = (22, 7, 8, 8, 7, 8, 7, 10, 7, 9)
    row(widths, "network", "radius", "lower", "ball", "s", "exact", "s", "auto_LiRPA", "s", "to ball")
    for name, (module, center) in networks.items():
        graph = lipscope.from_torch(module, tuple(center.shape))
        for radius in options.radii:
            over = {"norm": "inf", "center": center, "radius": radius, "ball_norm": "inf"}
            attained, _ = lipscope.ascent(graph, seconds=4.0, **over)
            proved, seconds = timed(lambda graph=graph, over=over: lipscope.ball(graph, **over))
            (searched, _), spent = timed(
                lambda graph=graph, over=over: lipscope.exact(
                    graph, seconds=options.seconds, max_units=1000, **over
                )
            )
            theirs = auto_lirpa(options.auto_lirpa, module, center, radius, options.limit)
            row(
                widths, name, radius, max(attained.value, searched.lower), proved.value, f"{seconds:.2f}",
                searched.upper, f"{spent:.2f}", *_cells([theirs]),
                f"{theirs[0] / proved.value:.2f} ×" if theirs else "",
            )  # fmt: skip


def compare_layers(options: argparse.Namespace) -> None:
    """Classifiers of digits: what is claimed, proved and attained, and the radius that the proof certifies."""
    print(
        "\nclassifiers of 8×8 digits; radius: the median of margin/(√2 L) over held-out digits that are classified right"
    )
    widths = (26, 9, 8, 9, 9, 9, 10, 8)
    row(
        widths,
        "network [64,64,64,10]",
        "accuracy",
        "lower",
        "product",
        "lipscope",
        "claimed",
        "excess",
        "radius",
    )
    x, y = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held = order[: len(x) // 4]
    for name, module, claimed in _classifiers():
        accuracy = train(module, x, y)
        module = getattr(module, "vanilla_export", lambda module=module: module)()
        graph = lipscope.from_torch(module.eval(), (64,))
        found = proofs(graph, "balanced", options.seconds)
        with torch.no_grad():
            scores = module(x[held])
        right = scores.argmax(1) == y[held]
        margins = scores.topk(2).values[right] @ torch.tensor([1.0, -1.0], dtype=scores.dtype)
        bound = found[-1][1].value
        radius = float(margins.median()) / 2**0.5 / bound
        excess = f"{bound - claimed:.1e}" if claimed else None
        values = (lower(graph), found[0][1].value, bound)
        row(widths, name, f"{accuracy:.1%}", *values, claimed, excess, radius)


def _classifiers() -> list[tuple[str, nn.Module, float | None]]:
    known: list[tuple[str, nn.Module, float | None]] = [("plain, ReLU", mlp([64, 64, 64, 10], seed=1), None)]
    try:
        from deel import torchlip
    except ImportError:
        return known
    torch.manual_seed(1)
    layers = []
    for inputs, outputs in ((64, 64), (64, 64), (64, 10)):
        layers += [torchlip.SpectralLinear(inputs, outputs), torchlip.GroupSort2()]
    # Cross entropy sees scores times 20: with a constant of 1 they are small.
    model = torchlip.Sequential(*layers[:-1]).double()
    return [*known, ("deel-torchlip, GroupSort2", _Scaled(model, 20.0), 1.0)]


class _Scaled(nn.Module):
    """A model whose scores are scaled while it is trained, and not after."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.model(x)

    def vanilla_export(self) -> nn.Module:
        return self.model.vanilla_export()


def _cells(jobs: Sequence[Job | None]) -> list[object]:
    shown: list[object] = []
    for job in jobs:
        shown += [job[0], f"{job[1]:.2f}"] if job else ["–", "–"]
    return shown


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    small, middle = mlp([20, 50, 50, 5]), mlp([20, 100, 100, 5])
    on_digits, on_mnist = classifier([64, 32, 32, 10], digits()), classifier([784, 128, 128, 10], mnist())
    if "global" in options.only:
        compare_globally(
            options,
            {"[20,50,50,5]": small, "[20,100,100,5]": middle, "digits [64,32,32,10]": on_digits,
             "MNIST [784,128,128,10]": on_mnist, "[100]+[200]*8+[10]": mlp([100] + [200] * 8 + [10])},
        )  # fmt: skip
    if "ball" in options.only:
        compare_over_balls(
            options,
            {"[20,50,50,5]": (small, torch.zeros(20).double()), "digits [64,32,32,10]": (on_digits, digits()[0][0]),
             "MNIST [784,128,128,10]": (on_mnist, mnist()[0][0])},
        )  # fmt: skip
    if "layers" in options.only:
        compare_layers(options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--auto-lirpa", metavar="PYTHON", help="a Python that has auto_LiRPA 0.3 and torch 1.13"
    )
    parser.add_argument("--limit", type=float, default=120.0, help="seconds each of theirs may take")
    parser.add_argument("--units", type=int, default=120, help="LipSDP is tried on networks of so many units")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of optimisation for lipscope")
    parser.add_argument("--radii", type=float, nargs="*", default=[0.001, 0.01, 0.1])
    parser.add_argument("--only", nargs="*", default=["global", "ball", "layers"])
    main(parser.parse_args())
