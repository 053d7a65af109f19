"""Does it help? Regularisers by accuracy: clean, under attack, under noise, and certified.

Every method trains the same network with the same steps from the same start, at each strength of its grid (four
values, the same number for all), with several seeds; a seed decides the split, the start and the order of the batches.
A strength is picked on the validation samples, anew for each table: by the accuracy under attack, or by the certified
accuracy, at one radius. What is reported is that of the picked strength on the test samples: mean and standard error
over the seeds.

    python benchmarks/regularisation.py --data digits --runs runs/digits.jsonl --figure digits.svg

Finished trainings are kept in the file of `--runs`, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from shared import digits, mnist, perceptron
from torch import Tensor, nn

import lipscope
from lipscope.figures import blank, save
from lipscope.figures.canvas import ESTIMATE, LOWER, MUTED, UPPER
from lipscope.train import CertifiedPenalty, EffectivePenalty, LocalPenalty, bake, constrain

EPSILONS = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Radii, Euclidean, of pixels in 0..1: of attacks, and at which accuracy is certified."""
SIGMAS = (0.1, 0.2, 0.4)
"""Standard deviations of Gaussian noise on every pixel."""
_STEPS, _BATCH = 400, 128
_CERTIFICATE_SECONDS = 60.0
"""Far more than the search takes on these networks: it settles, so that the clock decides nothing."""


# ---- methods ----------------------------------------------------------------------------------------

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """How a module is trained: `prepare` may change it, and returns its loss; `decay` is that of AdamW."""

    strengths: tuple[float, ...]
    prepare: Callable[[nn.Sequential, float], Loss]
    decay: bool = False
    finish: Callable[[nn.Sequential], None] = lambda module: None


def _plain(module: nn.Sequential, strength: float) -> Loss:
    return lambda x, y: nn.functional.cross_entropy(module(x), y)


def _penalised(penalty: Callable[[nn.Sequential, tuple[int, ...]], Callable[[Tensor], Tensor]]):
    def prepare(module: nn.Sequential, strength: float) -> Loss:
        constant = penalty(module, (module[0].in_features,))
        return lambda x, y: nn.functional.cross_entropy(module(x), y) + strength * constant(x)

    return prepare


def _frobenius(module: nn.Sequential, strength: float) -> Loss:
    """Half the mean of ‖J‖_F², from one random projection a sample (J. Hoffman, D. Roberts, S. Yaida, 2019)."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        x = x.requires_grad_()
        outputs = module(x)
        direction = nn.functional.normalize(torch.randn_like(outputs), dim=1)
        (pulled,) = torch.autograd.grad(outputs, x, direction, create_graph=True)
        squared = outputs.shape[1] * pulled.square().sum(1).mean()
        return nn.functional.cross_entropy(outputs, y) + strength / 2 * squared

    return loss


def _spectral(module: nn.Sequential, strength: float) -> Loss:
    """Every weight of norm 1 by torch's power method, and outputs times the strength."""
    for part in module:
        if isinstance(part, nn.Linear):
            nn.utils.parametrizations.spectral_norm(part)
    module.scale = strength
    return lambda x, y: nn.functional.cross_entropy(strength * module(x), y)


def _unwrapped(module: nn.Sequential) -> None:
    module.eval()
    for part in module:
        if isinstance(part, nn.Linear):
            nn.utils.parametrize.remove_parametrizations(part, "weight")
    with torch.no_grad():
        for parameter in module[-1].parameters():
            parameter.mul_(module.scale)


def _noise(module: nn.Sequential, strength: float) -> Loss:
    return lambda x, y: nn.functional.cross_entropy(module(x + strength * torch.randn_like(x)), y)


def _adversarial(module: nn.Sequential, strength: float) -> Loss:
    return lambda x, y: nn.functional.cross_entropy(module(attacked(module, x, y, strength, steps=5)), y)


def _constrained(module: nn.Sequential, strength: float) -> Loss:
    constrain(module, (module[0].in_features,), bound=strength)
    return _plain(module, strength)


def _baked(module: nn.Sequential) -> None:
    module.eval()
    bake(module)


_PENALTIES = (0.03, 0.1, 0.3, 1.0)
METHODS = {
    "none": Method((0.0,), _plain),
    "weight decay": Method((0.3, 1.0, 3.0, 10.0), _plain, decay=True),
    "noise": Method((0.2, 0.3, 0.5, 0.8), _noise),
    "adversarial training": Method((0.25, 0.5, 0.75, 1.0), _adversarial),
    "spectral normalisation": Method((1.0, 3.0, 10.0, 30.0), _spectral, finish=_unwrapped),
    "Jacobian, Frobenius": Method((0.003, 0.01, 0.03, 0.1), _frobenius),
    "local, mean": Method(_PENALTIES, _penalised(lambda m, s: LocalPenalty(m, s, reduce="mean"))),
    "local, max": Method(_PENALTIES, _penalised(lambda m, s: LocalPenalty(m, s))),
    "effective, scalar": Method(_PENALTIES, _penalised(lambda m, s: EffectivePenalty(m, s, level="scalar"))),
    "effective, unit": Method(_PENALTIES, _penalised(lambda m, s: EffectivePenalty(m, s, level="unit"))),
    "effective, full": Method(_PENALTIES, _penalised(lambda m, s: EffectivePenalty(m, s, level="full"))),
    "certified": Method(_PENALTIES, _penalised(CertifiedPenalty)),
    "constraint": Method((1.0, 3.0, 10.0, 30.0), _constrained, finish=_baked),
}
OURS = (
    "local, mean",
    "local, max",
    "effective, scalar",
    "effective, unit",
    "effective, full",
    "certified",
    "constraint",
)


# ---- one training -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Samples and labels, and the sizes of the network that classifies them.

    `held` samples each are for validation and test. `picked` are the rules that pick a strength: an accuracy,
    and the radius at which it should be highest on the validation samples.
    """

    x: Tensor
    y: Tensor
    widths: tuple[int, ...]
    held: int
    picked: tuple[tuple[str, float], ...]

    def split(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices for training, validation and test."""
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(1000 + seed))
        return order[2 * self.held :], order[: self.held], order[self.held : 2 * self.held]


def load(name: str) -> Data:
    if name == "digits":
        x, y = digits()
        return Data(
            x.float(), y, (64, 64, 64, 10), 359, (("attack", 0.5), ("certified", 0.25), ("certified", 0.5))
        )
    x, y = mnist()
    return Data(x.float(), y, (784, 100, 100, 10), 500, (("attack", 1.0), ("certified", 0.5)))


@dataclass
class Run:
    """One training, and what came of it on validation and test samples."""

    method: str
    strength: float
    seed: int
    seconds: float
    upper: float = math.nan
    lip: float = math.nan
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def trained(data: Data, method: Method, strength: float, seed: int) -> tuple[nn.Sequential, float]:
    """The network after training, and the seconds that took."""
    torch.manual_seed(seed)
    module = perceptron(data.widths)
    started = time.process_time()
    module.train()
    loss = method.prepare(module, strength)
    optimiser = torch.optim.AdamW(module.parameters(), 3e-3, weight_decay=strength if method.decay else 0.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    indices, generator = data.split(seed)[0], torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(_STEPS):
        if len(order) < _BATCH:
            order = indices[torch.randperm(len(indices), generator=generator)]
        chosen, order = order[:_BATCH], order[_BATCH:]
        optimiser.zero_grad()
        loss(data.x[chosen], data.y[chosen]).backward()
        optimiser.step()
        falling.step()
    method.finish(module)
    return module.eval(), time.process_time() - started


# ---- what came of it --------------------------------------------------------------------------------


def margins(outputs: Tensor, y: Tensor) -> Tensor:
    """The output of the right class less the largest other one: positive where the class is right."""
    right = outputs.gather(1, y[:, None])
    others = outputs.scatter(1, y[:, None], -math.inf)
    return (right - others.amax(1, keepdim=True))[:, 0]


def attacked(module: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """Projected gradient descent on the margin within a Euclidean ball about each sample, from a random point."""
    off = torch.randn_like(x)
    off = off * (epsilon * torch.rand(len(x), 1) / off.norm(dim=1, keepdim=True))
    for _ in range(steps):
        off.requires_grad_()
        (gradient,) = torch.autograd.grad(margins(module(x.detach() + off), y).sum(), off)
        with torch.no_grad():
            step = 2.5 * epsilon / steps * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
            off = off - step
            off = off * (epsilon / off.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return (x + off).detach()


def evaluated(module: nn.Module, x: Tensor, y: Tensor, upper: float) -> dict[str, float]:
    """Accuracies, clean and otherwise, and the median certified radius (0 for a sample that is not right)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        margin = margins(module(x).double(), y)
        found = {"clean": float((margin > 0).double().mean())}
        for sigma in SIGMAS:
            noisy = (x + sigma * torch.randn(10, *x.shape, generator=generator)).flatten(0, 1)
            found[f"noise {sigma}"] = float((margins(module(noisy), y.repeat(10)) > 0).double().mean())
    # Two outputs differ by a map of Lipschitz constant √2·L.
    radius = (margin / (math.sqrt(2) * upper)).clamp_min(0)
    found["radius"] = float(radius.median())
    for epsilon in EPSILONS:
        moved = attacked(module, x, y, epsilon, steps=40)
        with torch.no_grad():
            kept = (margins(module(moved), y) > 0) & (margin > 0)
        certified = radius > epsilon
        if bool((certified & ~kept).any()):
            raise AssertionError("an attack succeeded within a certified radius")
        found[f"attack {epsilon}"] = float(kept.double().mean())
        found[f"certified {epsilon}"] = float(certified.double().mean())
    return found


def run(data: Data, name: str, strength: float, seed: int) -> Run:
    """One training and its evaluation on validation and test samples."""
    module, seconds = trained(data, METHODS[name], strength, seed)
    _, validation, test = data.split(seed)
    graph = lipscope.from_torch(module.double(), (data.widths[0],))
    upper = lipscope.certify(graph, "fast", _CERTIFICATE_SECONDS).value
    found = Run(name, strength, seed, seconds, upper)
    _, slopes = graph.linearize_at(data.x[test].double())
    norms = lipscope.spectral_norm(lipscope.linearize(graph, slopes, len(test)), tolerance=1e-3).value
    found.lip = float(norms.mean())
    module.float()
    for part, indices in (("validation", validation), ("test", test)):
        torch.manual_seed(seed)
        found.scores[part] = evaluated(module, data.x[indices], data.y[indices], upper)
    return found


# ---- tables and figures -----------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error."""
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(x.std() / math.sqrt(len(x))) if len(x) > 1 else math.nan


def picked(runs: Sequence[Run], name: str, key: str) -> list[Run]:
    """A method's runs at the strength that is best on the validation samples by a score."""

    strengths = sorted({each.strength for each in runs if each.method == name})
    if not strengths:
        return []

    def quality(strength: float) -> float:
        return mean_and_error([r.scores["validation"][key] for r in runs_at(runs, name, strength)])[0]

    return runs_at(runs, name, max(strengths, key=quality))


def runs_at(runs: Sequence[Run], name: str, strength: float) -> list[Run]:
    return [each for each in runs if (each.method, each.strength) == (name, strength)]


def percent(values: Sequence[float]) -> str:
    mean, error = mean_and_error(values)
    return f"{100 * mean:.1f} ± {100 * error:.1f}"


def number(values: Sequence[float]) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.3g} ± {error:.1g}"


def print_table(runs: Sequence[Run], rule: str, radius: float) -> None:
    """A table in Markdown: the picked strength of every method on the test samples."""
    accuracies = [f"{rule} {e}" for e in EPSILONS]
    accuracies += [f"noise {sigma}" for sigma in SIGMAS] if rule == "attack" else []
    columns: list[tuple[str, Callable[[list[Run]], str]]] = [
        ("strength", lambda some: f"{some[0].strength:g}"),
        *(
            (f"{key} %", lambda some, key=key: percent([r.scores["test"][key] for r in some]))
            for key in ("clean", *accuracies)
        ),
    ]
    if rule == "attack":
        columns += [("mean Lip(x)", lambda some: number([r.lip for r in some]))]
    else:
        columns += [
            ("median radius", lambda some: number([r.scores["test"]["radius"] for r in some])),
            ("L ≤", lambda some: number([r.upper for r in some])),
        ]
    print(f"\nPicked by {rule} accuracy at {radius} on the validation samples\n")
    print(f"| method | {' | '.join(title for title, _ in columns)} |")
    print(f"|---|{'---:|' * len(columns)}")
    for name in METHODS:
        if some := picked(runs, name, f"{rule} {radius}"):
            print(f"| {name} | {' | '.join(cell(some) for _, cell in columns)} |")


_COLOURS = {"certified": UPPER, "constraint": "#d98b3a", "local": LOWER, "effective": ESTIMATE}
_MARKS = {"mean": "-", "max": "--", "scalar": ":", "unit": "--", "full": "-"}


def drawn(runs: Sequence[Run], rules: Sequence[tuple[str, float]], path: Path) -> None:
    """Accuracy against the radius: under attack, and certified, each at the strengths picked by it."""
    figure, axes = blank(len(rules), width=4.6 * len(rules), height=4.2)
    others = ["#222222", "#888888", "#b8a200", "#7a4fa3", "#4fb3bf", "#c779a6"]
    for axis, (rule, radius) in zip(axes, rules, strict=True):
        for name in METHODS:
            if not (some := picked(runs, name, f"{rule} {radius}")):
                continue
            family, _, kind = name.partition(", ")
            ours = name in OURS
            colour = _COLOURS[family] if ours else others[[n for n in METHODS if n not in OURS].index(name)]
            curve = [mean_and_error([r.scores["test"]["clean"] for r in some])]
            curve += [mean_and_error([r.scores["test"][f"{rule} {e}"] for r in some]) for e in EPSILONS]
            radii = [0.0, *EPSILONS]
            means = [100 * mean for mean, _ in curve]
            errors = [100 * error for _, error in curve]
            style = _MARKS.get(kind, "-") if ours else "-"
            axis.plot(radii, means, style, color=colour, label=name, linewidth=1.6 if ours else 1.1)
            low, high = ([m + s * e for m, e in zip(means, errors, strict=True)] for s in (-1, 1))
            axis.fill_between(radii, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set_xlabel("radius (Euclidean, pixels in 0..1)")
        axis.set_ylabel(f"test accuracy, {'under attack' if rule == 'attack' else 'certified'} (%)")
        axis.axvline(radius, color=MUTED, linewidth=0.8, linestyle=":")
        axis.set_ylim(0, 100)
    axes[-1].legend(fontsize=6.5, loc="upper right")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/regularisation.jsonl"))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load(options.data)
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    lines = options.runs.read_text().splitlines() if options.runs.exists() else []
    runs = [Run(**json.loads(line)) for line in lines]
    done = {(each.method, each.strength, each.seed) for each in runs}
    # Seed by seed, so that a run that is cut short has compared all methods.
    wanted = [
        (name, strength, seed)
        for seed in range(options.seeds)
        for name in options.methods
        for strength in METHODS[name].strengths
    ]
    for name, strength, seed in wanted:
        if (name, strength, seed) in done:
            continue
        runs.append(run(data, name, strength, seed))
        with options.runs.open("a") as file:
            file.write(json.dumps(asdict(runs[-1])) + "\n")
    for rule, radius in data.picked:
        print_table(runs, rule, radius)
    if options.figure is not None:
        drawn(runs, data.picked, options.figure)


if __name__ == "__main__":
    main()
