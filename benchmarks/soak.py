"""Many generated networks: every lower bound ≤ the exact constant ≤ every upper bound, with no exception.

Usage: python benchmarks/soak.py [--count 10000] [--seed 0] [--jobs 2] [--seconds 0.3]

Dense, residual and convolutional networks of a few units, each from a number of its own (so any can
be made again with `--seed NUMBER --count 1`). Lower: difference quotients of random pairs, ascent, the
lower end of the exact search. Upper: the product of norms, `certify` at its fastest, its certificate
verified again, the upper end of the exact search; and over a random ball, `ball` against pairs in it
and the exact search in it. Comparisons are strict in float64: no tolerance. Exit code 1 on a violation.
What this version of lipscope does not have is left out, and named.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import math
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import lipscope
from lipscope.certificates import certify, verify
from lipscope.quantities.witness import evaluate_pair


def optional(name: str) -> Callable[..., Any] | None:
    with contextlib.suppress(ImportError):
        return getattr(importlib.import_module(f"lipscope.quantities.{name}"), name)
    return None


exact, ascent, ball = optional("exact"), optional("ascent"), optional("ball")

Network = tuple[str, nn.Module, tuple[int, ...]]


class Residual(nn.Module):
    def __init__(self, width: int, inner: int, factor: float, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, inner), activation, nn.Linear(inner, width))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.body(x)


def activation(rng: random.Random) -> nn.Module:
    return rng.choice([nn.ReLU(), nn.ReLU(), nn.LeakyReLU(rng.choice([0.01, 0.3])), nn.Hardtanh(-0.5, 1.0)])


def dense(rng: random.Random) -> Network:
    sizes = [rng.randint(1, 5), *(rng.randint(1, 6) for _ in range(rng.randint(1, 3))), rng.randint(1, 4)]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after, bias=rng.random() < 0.8), activation(rng)]
    return "dense", nn.Sequential(*layers[: len(layers) - (rng.random() < 0.7)]), (sizes[0],)


def residual(rng: random.Random) -> Network:
    width = rng.randint(2, 4)
    blocks: list[nn.Module] = []
    for _ in range(rng.randint(1, 2)):
        blocks.append(Residual(width, rng.randint(1, 4), rng.choice([1.0, -1.0, 0.5]), activation(rng)))
        if rng.random() < 0.5:
            blocks.append(activation(rng))
    return "residual", nn.Sequential(*blocks, nn.Linear(width, rng.randint(1, 3))), (width,)


def convolutional(rng: random.Random) -> Network:
    size, before, after = rng.randint(3, 5), rng.randint(1, 2), rng.randint(1, 2)
    stride, padding = rng.choice([1, 2]), rng.choice([0, 1])
    layers: list[nn.Module] = [nn.Conv1d(before, after, 3, stride, padding), activation(rng)]
    length = (size + 2 * padding - 3) // stride + 1
    if length >= 2 and rng.random() < 0.5:
        layers.append(nn.MaxPool1d(2, rng.choice([1, 2])))
    if rng.random() < 0.5:
        layers += [nn.Conv1d(after, after, 1), activation(rng)]
    return "convolutional", nn.Sequential(*layers, nn.Flatten()), (before, size)


def network(number: int) -> Network:
    """The generated network of a number, float64."""
    rng = random.Random(number)
    torch.manual_seed(number)
    kind, module, shape = rng.choice([dense, residual, convolutional])(rng)
    spread = rng.choice([0.3, 1.0, 3.0])
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=spread / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.5)
            if rng.random() < 0.1:
                p.mul_(0.0)
    return kind, module.double().eval(), shape


@dataclass
class Outcome:
    """What one network showed."""

    number: int
    kind: str
    checks: int = 0
    closed: bool = False
    looseness: dict[str, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def check(self, lower: tuple[str, float], upper: tuple[str, float]) -> None:
        self.checks += 1
        if not lower[1] <= upper[1]:
            self.violations.append(f"{lower[0]} {lower[1]!r} > {upper[0]} {upper[1]!r}")


def pairs(graph: lipscope.Graph, around: Tensor, radius: float, generator: torch.Generator) -> float:
    """The largest difference quotient of random pairs in a Euclidean ball, near and far."""
    best = 0.0
    for gap in (2.0, 0.1, 1e-3):
        step = torch.randn(2, *around.shape, generator=generator, dtype=torch.float64)
        step = step / step.flatten(1).norm(dim=1).reshape(-1, *[1] * around.ndim)
        # A little inside, so that rounding does not leave the ball.
        first = around + 0.45 * radius * step[0]
        pair = evaluate_pair(graph, first, first + 0.25 * gap * radius * step[1], ("soak",))
        best = max(best, pair.bound)
    return best


def examine(job: tuple[int, float]) -> Outcome:
    number, seconds = job
    kind, module, shape = network(number)
    outcome = Outcome(number, kind)
    graph = lipscope.from_torch(module, shape)
    generator = torch.Generator().manual_seed(number)
    certificate = certify(graph, "fast", seconds)
    upper = {
        "product": lipscope.analytical(graph).value,
        "certificate": certificate.value,
        "certificate verified": verify(graph, certificate),
    }
    lower = {"pairs": pairs(graph, torch.zeros(shape, dtype=torch.float64), 4.0, generator)}
    if ascent is not None:
        lower["ascent"] = ascent(graph, restarts=8, steps=10, seed=number)[0].value
    if exact is not None:
        found = exact(graph, seconds=2.0, max_nodes=400, seed=number)[0]
        lower["exact, lower end"], upper["exact, upper end"] = found.lower, found.upper
        outcome.closed = found.closed
        if found.closed and found.lower > 0:
            outcome.looseness = {name: upper[name] / found.lower for name in ("product", "certificate")}
    for below in lower.items():
        for above in upper.items():
            outcome.check(below, above)
    outcome.check(("certificate", upper["certificate"]), ("product", upper["product"]))
    if ball is not None:
        centre = torch.randn(shape, generator=generator, dtype=torch.float64)
        radius = 10 ** random.Random(number).uniform(-2, 1)
        bound = ("ball", ball(graph, centre, radius).value)
        outcome.check(("pairs in the ball", pairs(graph, centre, radius, generator)), bound)
        outcome.check(bound, ("product", upper["product"]))
        if exact is not None:
            inside = exact(graph, seconds=1.0, max_nodes=200, seed=number, center=centre, radius=radius)[0]
            outcome.check(("exact in the ball, lower end", inside.lower), bound)
    return outcome


def main(options: argparse.Namespace) -> int:
    missing = [n for n, f in {"exact": exact, "ascent": ascent, "ball": ball}.items() if f is None]
    if missing:
        print(f"this version of lipscope has no {', '.join(missing)}: left out")
    started, kinds, closed, checks = time.perf_counter(), Counter[str](), 0, 0
    violations, looseness = 0, {"product": [], "certificate": []}
    jobs = [(number, options.seconds) for number in range(options.seed, options.seed + options.count)]
    with multiprocessing.get_context("spawn").Pool(options.jobs, torch.set_num_threads, (1,)) as pool:
        for done, outcome in enumerate(pool.imap_unordered(examine, jobs, chunksize=4), 1):
            kinds[outcome.kind] += 1
            closed += outcome.closed
            checks += outcome.checks
            for name, ratio in outcome.looseness.items():
                looseness[name].append(ratio)
            for violation in outcome.violations:
                violations += 1
                print(f"  VIOLATION, network {outcome.number} ({outcome.kind}): {violation}", flush=True)
            if done % max(1, options.count // 20) == 0:
                rate = done / (time.perf_counter() - started)
                print(f"  {done:>6} networks, {rate:6.1f} a second, {violations} violations", flush=True)
    print(f"  {'kind':<16} {'networks':>8}")
    for kind, count in sorted(kinds.items()):
        print(f"  {kind:<16} {count:>8}")
    print(f"  {'bound / exact':<16} {'median':>8} {'most':>10}")
    for name, ratios in looseness.items():
        if ratios:
            ordered = sorted(ratios)
            print(f"  {name:<16} {ordered[len(ordered) // 2]:>8.4f} {ordered[-1]:>10.4g}")
    passed = time.perf_counter() - started
    print(
        f"{options.count} networks, {checks} comparisons, {closed} exact constants closed, "
        f"{violations} violations, {options.count / passed:.1f} networks a second"
    )
    return 1 if violations else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first network")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.3, help="of optimisation for each certificate")
    sys.exit(main(parser.parse_args()))
