"""Concentration: how far Φ(x + noise) strays from its mean, proved from a Lipschitz constant and measured.

For independent entries of mean 0 and variance σ², and f with Lipschitz constant L (Euclidean):

    Gaussian   P(|f − E f| > t) ≤ 2 exp(−t²/2V),   V = L²σ²
    uniform    the same with V = (6/π) L²σ²: the entries are 2√3σ(F(z) − ½) of Gaussian z, a map of constant √(6/π)σ
    signs ±σ   the same with V = S σ², S ≥ ΣL_i², L_i the constant of f in its i-th input (bounded differences)

For signs, as for sub-Gaussian entries in general, no V = const·L²σ² holds for all Lipschitz f: see docs/concentration.md.
‖Φ − E Φ‖ has the constants of Φ and a mean of at most m, m² ≥ E ‖Φ − E Φ‖²; so it exceeds m + t with
probability ≤ exp(−t²/2V). By Poincaré's inequality m² = σ² min(r L², S) (Gaussian), r a bound of the rank of
Jacobians; by Efron and Stein's m² = σ² S in all three cases.

A constant that holds only in a ball B serves too: f∘π_B, π_B the projection, has it everywhere, and differs from f only
where the noise leaves B. Deviations are then from the mean of f∘π_B.

Sources: B. Tsirelson, I. Ibragimov, V. Sudakov (1976); C. McDiarmid (1989); B. Efron, C. Stein (1981).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from ..errors import ModelError
from ..graph import INPUT, Graph
from ..jacobian import linearize
from ..layers import LinearLayer
from ..progress import Progress, silent
from ..results import Ball, Concentration, Cost, Tail, TailLevel, TailPoint, UpperBound
from ..results.concentration import Law, Statistic
from ..rounding import up, up_product, up_root, up_sum
from .analytical import analytical
from .ball import ball
from .local import norms_at

_POINTS = 48
_LEVELS = (0.5, 0.1, 0.01, 0.001, 1e-6)
"""Probabilities of which the deviation is given."""
_LEAST = 1e-6
"""Tails are shown down to this probability."""
_LEAVES = 1e-9
"""The probability to leave the ball that is aimed at."""
_CONFIDENCE = 0.99
_PROBES = 16
_FIRST = 4
"""One in so many draws more gives the mean that deviations are measured from."""
_STREAM = 0x636F << 32
"""Added to seeds: numbers drawn here must not be those that the network's weights were drawn from."""


def tail_bound(deviation: float, variance_proxy: float, sides: int = 2) -> float:
    """sides·exp(−t²/2V) for t > 0, at most 1, rounded up; 1 for t ≤ 0."""
    if deviation <= 0 or math.isinf(variance_proxy):
        return 1.0
    if variance_proxy == 0:
        return 0.0
    exponent = deviation * deviation / (2 * variance_proxy)
    if exponent > 700:
        return up(math.exp(-700.0), 4000) * sides
    return min(1.0, sides * up(math.exp(-exponent), 16 + 8 * math.ceil(exponent)))


def column_squares(graph: Graph, lipschitz: float) -> float:
    """A certified S ≥ ΣL_i², L_i the Lipschitz constant of the network in its i-th input alone.

    The inputs' number times L² always; where the input passes one linear layer T first, ‖T‖_F² times the square of the
    constant of the rest, which may be far less.
    """
    crude = up_product(float(math.prod(graph.input_shape)), lipschitz, lipschitz)
    layer = graph.nodes[1].layer if len(graph.nodes) > 1 else None
    if not isinstance(layer, LinearLayer) or graph.nodes[1].inputs != (INPUT,) or 1 not in graph.cuts():
        return crude
    try:
        rows = layer.to(torch.float64, "cpu").row_norms(graph.input_shape)
    except NotImplementedError:
        return crude
    frobenius = up_sum(*(up_product(row, row) for row in rows.flatten().tolist()))
    rest = graph.between(1, len(graph.nodes) - 1)
    constant = analytical(rest).value if len(rest.nodes) > 1 else 1.0
    return min(crude, up_product(frobenius, constant, constant))


@dataclass(frozen=True)
class TailBound:
    """P(deviation > offset + t) ≤ sides·exp(−t²/2V) + outside, V = `variance`."""

    sides: int
    offset: float
    variance: float
    outside: float = 0.0

    def probability(self, deviation: float) -> float:
        """Of a larger deviation, at most 1, rounded up."""
        # Rounded down: the distance from the offset must not come out too large.
        excess = (deviation - self.offset) * (1 - 1e-12) if deviation > self.offset else 0.0
        return min(1.0, up_sum(tail_bound(excess, self.variance, self.sides), self.outside))

    def deviation(self, probability: float) -> float:
        """The one that is exceeded with no more than a probability, rounded up."""
        return exceeded(probability - self.outside, self.variance, self.offset, self.sides)


@dataclass(frozen=True)
class NoiseBound:
    """A certified constant L, in a ball that the noise leaves with a probability of at most `outside`."""

    bound: UpperBound
    outside: float = 0.0

    @property
    def radius(self) -> float | None:
        """Of the ball; None: L holds everywhere."""
        return self.bound.radius if isinstance(self.bound, Ball) else None


def noise_ball(graph: Graph, center: Tensor, sigma: float, law: Law, seconds: float = 10.0) -> NoiseBound:
    """The certified constant in a ball that the noise hardly leaves, and a bound of the probability that it does.

    Gaussian noise: ‖z‖ exceeds √n + s with probability ≤ exp(−s²/2), a Euclidean ball. The others have
    bounded entries, a cube. `seconds` as for `ball`.
    """
    if law != "gaussian":
        half = up(math.sqrt(3) * sigma, 4) if law == "uniform" else sigma
        return NoiseBound(ball(graph, center, half, ball_norm="inf", seconds=seconds))
    root = up_root(math.prod(graph.input_shape))
    reach = math.sqrt(-2 * math.log(_LEAVES))
    # Enlarged by more than the roundings of the radius.
    found = ball(graph, center, sigma * (root + reach) * (1 + 1e-12), seconds=seconds)
    return NoiseBound(found, tail_bound(reach, 1.0, sides=1))


def concentration(
    graph: Graph,
    center: Tensor,
    sigma: float,
    *,
    law: Law = "gaussian",
    bound: NoiseBound | None = None,
    draws: int = 2000,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> Concentration:
    """Proved and measured tails of one output, and of all in norm, for noise about a centre.

    Args:
        graph: the network.
        center: x, shape *in.
        sigma: standard deviation of each entry of the noise, in units of the input.
        law: of the entries, see `results.concentration.Law`.
        bound: the certified constant to rest on; `analytical` if omitted.
        draws: of the noise, behind the measured tails; a quarter more gives their centre.
        batch_size: draws evaluated at once.
        dtype, device: of the evaluations.
        seed: of the draws.
        progress: called with ("draws", done, total).

    Raises:
        ValueError: `sigma` or a number of draws is not positive, or the centre's shape is not the input's.
        ModelError: the network overflows.
        CertificateError: a bound cannot be proved.
    """
    started = time.perf_counter()
    if not sigma > 0 or draws < 1 or batch_size < 1:
        raise ValueError("sigma, draws and batch_size must be positive")
    if tuple(center.shape) != graph.input_shape:
        raise ValueError(f"the centre has shape {tuple(center.shape)}, the input {graph.input_shape}")
    bound = NoiseBound(analytical(graph)) if bound is None else bound
    lipschitz = bound.bound.value
    squares = column_squares(graph, lipschitz)
    rank = narrowest(graph)
    working = graph.to(dtype, device)
    at = center.to(device, dtype)
    proved = proxies(law, sigma, lipschitz, squares, rank)
    drawn = _Draws(working, at, sigma, law, batch_size, seed)
    local, frobenius = _at_center(working, at, drawn.generator, seed)
    # As if the network were linear; entries of all three laws are sub-Gaussian with the parameter σ².
    likely = Proxies((local * sigma) ** 2, frobenius * sigma)
    first = max(2, draws // _FIRST)
    total = first + draws
    mean, variance = _moments(drawn.outputs(first), progress, total)
    index = int(variance.argmax())
    singles, norms = [], []
    done = first
    for y in drawn.outputs(draws):
        away = y - mean
        singles.append(away[:, index].abs())
        norms.append(away.norm(dim=1))
        done += len(y)
        progress("draws", done, total)
    tails = [
        _tail("output", torch.cat(singles), proved, likely, bound.outside, float(variance[index]) / first, index),
        _tail("norm", torch.cat(norms), proved, likely, bound.outside, float(variance.sum()) / first),
    ]  # fmt: skip
    return Concentration(
        law=law,
        sigma=sigma,
        lipschitz=lipschitz,
        rests_on=bound.bound.name,
        ball_radius=bound.radius,
        outside=bound.outside,
        rank=rank,
        column_squares=squares,
        variance_proxy=proved.variance,
        local=local,
        local_frobenius=frobenius,
        tails=tails,
        draws=draws,
        confidence=_CONFIDENCE,
        no_bound=bound.bound.no_bound,
        cost=Cost(seconds=time.perf_counter() - started, forward_passes=float(total)),
    )


def narrowest(graph: Graph) -> int:
    """The fewest numbers that any layer passes on: no Jacobian has a larger rank."""
    return min(math.prod(graph.nodes[cut].shape) for cut in graph.cuts())


@dataclass(frozen=True)
class Proxies:
    """V of the tails, and a bound m of the mean of ‖Φ − E Φ‖."""

    variance: float
    mean: float

    def tail(self, statistic: Statistic, outside: float = 0.0) -> TailBound:
        """The tail of one output or of the norm, for a constant in a ball that is left with a probability."""
        if statistic == "output":
            return TailBound(2, 0.0, self.variance, outside)
        return TailBound(1, self.mean, self.variance, outside)


def proxies(law: Law, sigma: float, lipschitz: float, squares: float, rank: int) -> Proxies:
    """V and m of the module's table, rounded up."""
    noise = up_product(sigma, sigma)
    smooth = up_product(lipschitz, lipschitz, noise)
    if law == "uniform":
        smooth = up_product(smooth, up(6 / math.pi, 4))
    spread = up_product(squares, noise)
    if law == "signs":
        return Proxies(spread, up(math.sqrt(spread), 2))
    return Proxies(smooth, up(math.sqrt(min(spread, up_product(smooth, float(rank)))), 2))


class _Draws:
    """Outputs for draws of the noise, flattened, float64, batch by batch."""

    def __init__(self, graph: Graph, center: Tensor, sigma: float, law: Law, batch: int, seed: int) -> None:
        self.graph, self.center, self.sigma, self.law, self.batch = graph, center, sigma, law, batch
        self.generator = torch.Generator().manual_seed(_STREAM + seed)

    def outputs(self, count: int) -> Iterator[Tensor]:
        for start in range(0, count, self.batch):
            size = (min(self.batch, count - start), *self.center.shape)
            noise = self.sigma * self._noise(size).to(self.center.device, self.center.dtype)
            # To the CPU first: not every device has float64.
            y = self.graph.evaluate(self.center + noise).unsqueeze(-1).flatten(1).cpu().double()
            if not bool(y.isfinite().all()):
                raise ModelError(f"the network overflows under noise of σ = {self.sigma:g}; take less")
            yield y

    def _noise(self, size: tuple[int, ...]) -> Tensor:
        """Entries of mean 0 and variance 1."""
        if self.law == "gaussian":
            return torch.randn(size, generator=self.generator)
        uniform = torch.rand(size, generator=self.generator)
        if self.law == "uniform":
            return math.sqrt(12) * (uniform - 0.5)
        return torch.where(uniform < 0.5, -1.0, 1.0)


def _at_center(graph: Graph, center: Tensor, generator: torch.Generator, seed: int) -> tuple[float, float]:
    """Lip(x) and ‖J(x)‖_F at the centre, the latter by Hutchinson's estimator."""
    _, found = norms_at(graph, center.unsqueeze(0), 1e-3, seed)
    jacobian = linearize(graph, graph.linearize_at(center.unsqueeze(0))[1])
    v = torch.randn(_PROBES, 1, *center.shape, generator=generator).to(center.device, center.dtype)
    squares = jacobian.matvec(v).flatten(1).square().sum(1)
    return float(found.value), math.sqrt(float(squares.mean()))


def _moments(batches: Iterator[Tensor], progress: Progress, total: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each output over all draws."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for y in batches:
        before, count = count, count + len(y)
        change = y.mean(0) - mean
        mean = mean + change * (len(y) / count)
        squares = squares + (y - y.mean(0)).square().sum(0) + change.square() * (before * len(y) / count)
        progress("draws", count, total)
    return mean, squares / max(count - 1, 1)


def _tail(
    statistic: Statistic,
    deviations: Tensor,
    proved: Proxies,
    local: Proxies,
    outside: float,
    center_variance: float,
    index: int | None = None,
) -> Tail:
    bound, likely = proved.tail(statistic, outside), local.tail(statistic)
    spread = float(deviations.square().mean().sqrt())
    ordered, count = deviations.sort(descending=True).values, len(deviations)
    points = []
    for t in _deviations(spread, bound.offset, bound.variance):
        above = int((deviations > t).sum())
        low, high = clopper_pearson(above, count)
        points.append(
            TailPoint(
                deviation=t,
                bound=bound.probability(t),
                local=likely.probability(t),
                measured=above / count,
                low=low,
                high=high,
            )
        )
    levels = [
        TailLevel(
            probability=level,
            proved=bound.deviation(level),
            local=likely.deviation(level),
            measured=float(ordered[int(level * count)]) if level * count >= 1 else None,
        )
        for level in _LEVELS
    ]
    return Tail(
        statistic=statistic,
        index=index,
        offset=bound.offset,
        spread=spread,
        center_error=math.sqrt(center_variance),
        points=points,
        levels=levels,
    )


def exceeded(probability: float, variance_proxy: float, offset: float, sides: int) -> float:
    """The deviation t, rounded up, at which sides·exp(−(t − offset)²/2V) is down to the probability."""
    if probability <= 0:
        return math.inf
    logarithm = math.log(sides / probability)
    return up_sum(offset, up(math.sqrt(up_product(2.0, variance_proxy, up(max(logarithm, 0.0), 16))), 4))


def clopper_pearson(above: int, count: int) -> tuple[float, float]:
    """The interval for a probability of which `above` of `count` independent draws were seen.

    Source: C. Clopper, E. Pearson (1934).
    """
    level = (1 - _CONFIDENCE) / 2
    low = float(betaincinv(above, count - above + 1, level)) if above else 0.0
    high = float(betaincinv(above + 1, count - above, 1 - level)) if above < count else 1.0
    return low, high


def _deviations(spread: float, offset: float, variance: float) -> list[float]:
    """From well inside what is measured to where the bound is small, evenly in the logarithm."""
    low = spread / 8
    high = offset + math.sqrt(2 * variance * math.log(2 / _LEAST))
    if not math.isfinite(high):
        high = 8 * spread
    if low <= 0:
        low = high / 1e3
    if high <= low:
        return [low] if low > 0 else []
    return [float(t) for t in np.geomspace(low, high, _POINTS)]
