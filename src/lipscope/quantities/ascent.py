"""Attained lower bounds of the Lipschitz constant by ascent, from data and from random points.

The Jacobian norm of a piecewise-linear network is piecewise constant, so its gradient says nothing.
Three searches take turns, each from the best points of the one before:

* slopes: gradient ascent on ‖J_τ(x) v‖, where every activation's slope is its mean over a window of
  half-width τ around the pre-activation, so that x is drawn to where helpful units switch on; τ
  shrinks. v follows by power steps, since the gradient in v is Jᵀu;
* pairs: gradient ascent on the difference quotient ‖Φ(x₁) − Φ(x₂)‖/‖x₁ − x₂‖ itself, at all distances;
* kinks: steps across the nearest kink of single units, those first whose other slope would raise
  ‖Jv‖; steps to corners, where several units are at a kink and many regions meet; and random steps
  of all lengths; kept where Lip(x) grows.

Whatever was found, the result is a difference quotient evaluated again in float64.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..graph import Graph, Slopes
from ..jacobian import Jacobian, linearize
from ..layers.activation import Activation, PiecewiseLinear
from ..progress import Progress, silent
from ..regions import Ball
from ..results import Attained, Cost, Norm
from ..slopes import Diagonal
from ..spectral import spectral_norm
from .witness import Pair, evaluate_pair, pair_along, vector_norm

_WIDEST, _NARROWEST = 1.0, 0.02
_CHECKS = 10
_POWER_STEPS = 6
_CORNER_UNITS = 6
_SMALL = 20_000
_TINY = 1e-30


def ascent(
    graph: Graph,
    starts: Tensor | None = None,
    *,
    norm: Norm = "2",
    restarts: int | None = None,
    steps: int = 40,
    seconds: float | None = None,
    seed: int = 0,
    center: Tensor | None = None,
    radius: float | None = None,
    ball_norm: Norm = "2",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> tuple[Attained, Pair]:
    """A lower bound of the Lipschitz constant, globally or over a ball, with the pair that attains it.

    Args:
        graph: the network, of any size and with any activations.
        starts: inputs (N, *in) to start from beside random ones, for instance data; on large networks
            they matter.
        norm: q of the operator norm ℓ_q → ℓ_q.
        restarts: points that climb at once (a batch), also the number of random starts; None takes 64
            on small networks and 8 on large ones.
        steps: gradient steps of each of the three searches.
        seconds: if given, searches are repeated until this time is over, and cut short when it is.
        seed: of random starts and steps. Without `seconds` the result depends on nothing else.
        center, radius, ball_norm: keep both points in ‖x − center‖ ≤ radius; center (*in),
            `ball_norm` "2" or "inf".
        dtype, device: of the search; the pair is evaluated in float64 on the CPU.

    Raises:
        DataError: the starts or the ball do not fit the network, or are not finite.
        ValueError: restarts or steps is not positive.
    """
    started = time.perf_counter()
    if restarts is None:
        restarts = 64 if sum(math.prod(node.shape) for node in graph.nodes) <= _SMALL else 8
    if restarts < 1 or steps < 1:
        raise ValueError("restarts and steps must be positive")
    ball = Ball.around(graph.input_shape, center, radius, ball_norm)
    deadline = math.inf if seconds is None else started + seconds
    climb = _Climb(graph, norm, ball, restarts, deadline, seed, dtype, device)
    points = climb.starts(_checked(graph, starts))
    with torch.enable_grad():
        x, v = climb.take(points)
        rounds = 0
        while rounds == 0 or (seconds is not None and not climb.late):
            for done, search in enumerate((climb.slopes, climb.pairs, climb.kinks), 1):
                x, v = search(x, v, steps)
                progress("ascent", 3 * rounds + done, 3 * rounds + 3)
            rounds += 1
            if seconds is not None and not climb.late:
                x, v = climb.take(climb.again(x))
    return (
        Attained(
            name="ascent",
            value=climb.best.bound,
            method="ascent on the Jacobian norm under smoothed slopes and on difference quotients, random steps",
            source="a difference quotient never exceeds the Lipschitz constant",
            cost=Cost(seconds=time.perf_counter() - started),
            norm=norm,
            witness=climb.best.witness("ascent"),
            found_by=climb.found_by,
            starts=len(points),
        ),
        climb.best,
    )


def _checked(graph: Graph, starts: Tensor | None) -> Tensor:
    if starts is None:
        return torch.zeros(0, *graph.input_shape)
    if tuple(starts.shape[1:]) != graph.input_shape:
        raise DataError(
            f"the starts have shape {tuple(starts.shape)}; the network takes batches of {graph.input_shape}"
        )
    if not bool(torch.isfinite(starts).all()):
        raise DataError("the starts hold NaN or infinite values")
    return starts.detach()


class _Climb:
    """The searches, all on batches x (R, *in) with directions v (R, *in), and the best pair so far."""

    def __init__(
        self,
        graph: Graph,
        norm: Norm,
        ball: Ball | None,
        batch: int,
        deadline: float,
        seed: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.exact = graph.to(torch.float64, "cpu")
        self.kinked = {i: a.kinks for i, a in graph.nonlinear().items() if isinstance(a, PiecewiseLinear)}
        self.graph = graph.to(dtype, device)
        self.norm, self.ball, self.batch, self.deadline = norm, ball, batch, deadline
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator().manual_seed(seed)
        self.found_by = "start"
        self.scale = 1.0
        origin = torch.zeros(2, *graph.input_shape, dtype=torch.float64)
        if ball is not None:
            origin += torch.from_numpy(ball.centre).reshape(graph.input_shape)
        origin[1].view(-1)[:1] += 0.5 if ball is None else ball.radius / 2
        self.best = evaluate_pair(self.exact, origin[0], origin[1], (), norm)

    @property
    def late(self) -> bool:
        """Whether time is over."""
        return time.perf_counter() > self.deadline

    def project(self, x: Tensor) -> Tensor:
        """The points moved into the ball (a hair inside, for rounding)."""
        if self.ball is None:
            return x
        centre = torch.from_numpy(self.ball.centre).reshape(self.graph.input_shape).to(x)
        eps = torch.finfo(x.dtype).eps
        radius = max(0.0, self.ball.radius * (1 - 8 * eps) - 4 * eps * float(centre.norm()))
        away = x - centre
        if self.ball.norm == "inf":
            return centre + away.clamp(-radius, radius)
        length = away.flatten(1).norm(dim=1).clamp_min(_TINY)
        return centre + away * _per_sample((radius / length).clamp_max(1.0), away)

    def noise(self, *lead: int) -> Tensor:
        """Standard normal inputs (*lead, *in)."""
        drawn = torch.randn(*lead, *self.graph.input_shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device, self.dtype)

    # ---- starts ---------------------------------------------------------------------------------------

    def starts(self, given: Tensor) -> Tensor:
        """The given points and as many random ones as climb at once, of the given ones' size."""
        given = given.to(self.device, self.dtype)
        if len(given):
            middle = given.mean(0)
            self.scale = max(
                float((given - middle).pow(2).mean().sqrt()), float(middle.abs().mean()) / 10, 1e-6
            )
        else:
            middle = torch.zeros(self.graph.input_shape, dtype=self.dtype, device=self.device)
        if self.ball is not None:
            centre = torch.from_numpy(self.ball.centre).reshape(self.graph.input_shape)
            middle, size = centre.to(self.device, self.dtype), max(1, centre.numel())
            self.scale = self.ball.radius / (math.sqrt(size) if self.ball.norm == "2" else 1.0)
        spread = torch.logspace(-1, 0.7, self.batch, dtype=self.dtype, device=self.device)
        random = middle + self.scale * _per_sample(spread, middle[None]) * self.noise(self.batch)
        return self.project(torch.cat([given, random]))

    def take(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The steepest points and their directions."""
        return self.steepest(points, "start")

    def again(self, x: Tensor) -> Tensor:
        """Starts of another round: the best points moved, and new random ones."""
        moved = x + self.scale * self.noise(len(x)) * 0.3
        fresh = x.mean(0) + self.scale * 2 * self.noise(self.batch)
        return self.project(torch.cat([moved, fresh]))

    # ---- values ---------------------------------------------------------------------------------------

    def stretch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """‖J(x)‖ and a direction that (nearly) attains it, for a batch."""
        x = x.detach()
        with torch.no_grad():
            operator = linearize(self.graph, self.graph.linearize_at(x)[1], len(x))
            if self.norm == "2":
                found = spectral_norm(
                    operator, tolerance=1e-2, max_steps=12, dtype=self.dtype, device=self.device
                )
                return found.value, found.right
            return self._stretch_by_signs(operator)

    def _stretch_by_signs(self, operator: Jacobian) -> tuple[Tensor, Tensor]:
        """Alternating maximisation of uᵀJv over the two unit balls (W. Hager's norm estimator, 1984)."""
        dual: Norm = "1" if self.norm == "inf" else "inf"
        best, kept = None, None
        for v in (self.noise(1, 1), torch.ones_like(self.noise(1, 1))):
            v = aligned(v.expand(1, operator.batch, *self.graph.input_shape), self.norm)
            for _ in range(_POWER_STEPS):
                u = aligned(operator.matvec(v), dual)
                v = aligned(operator.rmatvec(u), self.norm)
            value = _norms(operator.matvec(v)[0], self.norm)
            better = value > best if best is not None else torch.ones_like(value, dtype=torch.bool)
            kept = v[0] if kept is None else torch.where(_per_sample(better, v[0]), v[0], kept)
            best = value if best is None else torch.maximum(best, value)
        assert best is not None
        assert kept is not None
        return best, kept

    def steepest(self, points: Tensor, search: str) -> tuple[Tensor, Tensor]:
        """The `batch` points of largest ‖J(x)‖ and their directions; the first is offered as a pair."""
        values: list[Tensor] = []
        directions: list[Tensor] = []
        for part in points.split(self.batch):
            if values and self.late:
                break
            value, v = self.stretch(part)
            values.append(value)
            directions.append(v)
        value = torch.cat(values)
        order = torch.argsort(torch.nan_to_num(value, nan=-1.0), descending=True, stable=True)
        # Points of one region share a value: one of each goes first, so that the climb stays spread out.
        near = torch.isclose(value[order][1:], value[order][:-1], rtol=1e-5, atol=0.0)
        again = torch.cat([torch.zeros_like(near[:1]), near]) if len(near) else torch.zeros_like(value).bool()
        order = torch.cat([order[~again], order[again]])[: self.batch]
        for i in order[:2].tolist():
            if float(value[i]) > self.best.bound:
                self._offer_point(points[i], torch.cat(directions)[i], search)
        return points[order], torch.cat(directions)[order]

    def _offer_point(self, x: Tensor, v: Tensor, search: str) -> None:
        x = self.project(x[None].to("cpu", torch.float64))[0]
        if self.norm == "2":
            operator = linearize(self.exact, self.exact.linearize_at(x[None])[1])
            start = v[None, None].to("cpu", torch.float64)
            v = spectral_norm(operator, tolerance=1e-6, max_steps=30, start=start, block=2).right[0]
        if bool(torch.isfinite(v).all()) and vector_norm(v, "2") > 0:
            # In a tiny ball all steps may end in one point: then there is nothing to offer.
            with contextlib.suppress(ValueError):
                self._keep(pair_along(self.exact, x, v, "", self.norm, self.project), search)

    def _keep(self, pair: Pair, search: str) -> None:
        if math.isfinite(pair.ratio) and pair.bound > self.best.bound:
            self.best = Pair(pair.x1, pair.x2, (), pair.distance, pair.ratio, pair.rounding)
            self.found_by = search

    # ---- searches -------------------------------------------------------------------------------------

    def slopes(self, x: Tensor, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Ascent on ‖J_τ(x) v‖ under slopes smoothed over shrinking windows."""
        adam = _Adam([x], 0.15 * self.scale)
        kept = x
        for step in self._ticks(steps):
            share = step / steps
            window = _WIDEST * (_NARROWEST / _WIDEST) ** share
            at, along = x.detach().requires_grad_(), v.detach().requires_grad_()
            smooth = linearize(self.graph, self._smoothed(at, window), len(x))
            image = smooth.matvec(along[None])[0]
            objective = _norms(image, self.norm).clamp_min(_TINY).log().sum()
            to_x, to_v = torch.autograd.grad(objective, (at, along), allow_unused=True)
            if to_x is not None:
                (x,) = adam.step([x], [_finite(to_x)], 1.0 - 0.9 * share)
                x = self.project(x)
            if to_v is not None:
                v = aligned(_finite(to_v), self.norm, v)
            if self._checkpoint(step, steps):
                kept = self.steepest(torch.cat([kept, x]), "slopes")[0]
        return self.steepest(torch.cat([kept, x]), "slopes")

    def _smoothed(self, x: Tensor, window: float) -> Slopes:
        """Slopes averaged over pre-activations within ±window·(their root mean square); selectors as they are."""
        slopes: Slopes = {}
        layers = self.graph.nonlinear()

        def visit(index: int, a: Tensor) -> Tensor:
            layer = layers[index]
            if isinstance(layer, Activation):
                reach = window * a.detach().pow(2).mean().sqrt().clamp_min(1e-6)
                slopes[index] = Diagonal((layer.forward(a + reach) - layer.forward(a - reach)) / (2 * reach))
                return layer.forward(a)
            value, slopes[index] = layer.linearize(a)
            return value

        self.graph.evaluate(x, visit)
        return slopes

    def pairs(self, x: Tensor, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Ascent on the logarithm of the difference quotient, at distances from far to near."""
        v = v / _per_sample(v.flatten(1).norm(dim=1).clamp_min(_TINY), v)
        size = self.scale * math.sqrt(max(1, v[0].numel()))
        reach = torch.logspace(0, -2, len(x), dtype=self.dtype, device=self.device)
        half = _per_sample(reach * size / 2, v) * v
        ends = [self.project(x + half), self.project(x - half)]
        adam = _Adam(ends, 0.05 * self.scale)
        kept = x
        for step in self._ticks(steps):
            first, second = (end.detach().requires_grad_() for end in ends)
            y1, y2 = self.graph.evaluate(torch.cat([first, second])).chunk(2)
            ratio = _norms(y1 - y2, self.norm).clamp_min(_TINY) / _norms(first - second, self.norm).clamp_min(
                _TINY
            )
            gradients = torch.autograd.grad(ratio.log().sum(), (first, second), allow_unused=True)
            if any(g is None for g in gradients):
                break
            # Steps no longer than the pair: near pairs climb in small steps.
            length = (first - second).detach().flatten(1).norm(dim=1) / size
            rate = length.clamp(1e-4, 1.0) * (1.0 - 0.9 * step / steps)
            ends = adam.step(ends, [_finite(g) for g in gradients], _per_sample(rate, x))
            ends = [self.project(end) for end in ends]
            if self._checkpoint(step, steps):
                ratio = ratio.detach()
                best = int(torch.nan_to_num(ratio, nan=-1.0).argmax())
                if float(ratio[best]) > self.best.bound:
                    self._offer_pair(first[best].detach(), second[best].detach())
                kept = self.steepest(torch.cat([kept, (ends[0] + ends[1]) / 2]), "pairs")[0]
        return self.steepest(torch.cat([kept, (ends[0] + ends[1]) / 2, *ends]), "pairs")

    def _offer_pair(self, x1: Tensor, x2: Tensor) -> None:
        points = self.project(torch.stack([x1, x2]).to("cpu", torch.float64))
        if not torch.equal(points[0], points[1]):
            self._keep(evaluate_pair(self.exact, points[0], points[1], (), self.norm), "pairs")

    def kinks(self, x: Tensor, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Steps across kinks, to corners and anywhere from the steepest points, kept where ‖J(x)‖ grows."""
        moves = (self._across, self._corners, self._nearby)
        for step in self._ticks(steps):
            x, v = self.steepest(torch.cat([x, moves[step % 3](x, v, step // 3)]), "kinks")
        return x, v

    def _parents(self, x: Tensor) -> Tensor:
        """The steepest few of the points, repeated to fill a batch."""
        return x[torch.arange(self.batch, device=x.device) % max(1, min(len(x), 1 + self.batch // 4))]

    def _nearby(self, x: Tensor, v: Tensor, turn: int) -> Tensor:
        """Random steps of all lengths."""
        parents = self._parents(x)
        lengths = torch.logspace(-3, 0.3, self.batch, dtype=self.dtype, device=self.device)
        return self.project(parents + _per_sample(lengths * self.scale, parents) * self.noise(self.batch))

    def _across(self, x: Tensor, v: Tensor, turn: int) -> Tensor:
        """Points just across the nearest kink of several units, from one of the steepest points."""
        place = turn % max(1, min(len(x), 1 + self.batch // 4))
        x, v = x[place : place + 1], v[place : place + 1]
        slopes, jumps = self.graph.linearize_at(x)[1], self._jumps(x)
        leaves = {i: jump.slope.requires_grad_() for i, jump in jumps.items()}
        operator = linearize(self.graph, {**slopes, **{i: Diagonal(leaf) for i, leaf in leaves.items()}})
        value = _norms(operator.matvec(v[None])[0], self.norm).sum()
        if not leaves or not value.requires_grad:
            return x
        raises = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        gains = torch.cat(
            [
                (jump.change * (torch.zeros_like(jump.gap) if raised is None else raised)).flatten()
                for raised, jump in zip(raises, jumps.values(), strict=True)
            ]
        )
        gaps = torch.cat([jump.gap.flatten() for jump in jumps.values()])
        # Useful and near first, with luck: a step that costs now may open the way to another.
        score = gains / gains.abs().max().clamp_min(_TINY) - 0.3 * _relative(gaps) + self._luck(gaps)
        chosen = score.topk(min(self.batch, len(score))).indices
        points = x.expand(len(chosen), *x.shape[1:])
        toward = self._gradient(points, chosen)
        overshoot = 1 + torch.logspace(-3, 0, len(chosen), dtype=self.dtype, device=self.device)
        away = gaps[chosen] * overshoot / toward.flatten(1).square().sum(1).clamp_min(_TINY)
        return self.project(_finite(points + _per_sample(away, toward) * toward))

    def _corners(self, x: Tensor, v: Tensor, turn: int) -> Tensor:
        """Points beside corners: one near unit after another is brought to its kink, the earlier ones kept there."""
        points = self._parents(x)
        known: list[Tensor] = []
        for _ in range(min(points[0].numel(), 2 + turn % _CORNER_UNITS)):
            jumps = self._jumps(points)
            if not jumps:
                break
            gaps = torch.cat([jump.gap.flatten(1) for jump in jumps.values()], 1)
            # Units at their kink already are passed over.
            score = self._luck(gaps) - _relative(gaps) - 9.0 * (_relative(gaps) < 1e-4)
            chosen = score.argmax(1)
            toward = self._gradient(points, chosen).flatten(1)
            slope = toward.square().sum(1)
            for direction in known:
                toward = toward - (toward * direction).sum(1, keepdim=True) * direction
            length = toward.square().sum(1)
            gap = gaps.gather(1, chosen[:, None])[:, 0]
            # A unit that cannot move without the earlier ones is left alone.
            along = torch.where(length > 1e-4 * slope, gap / length.clamp_min(_TINY), 0.0)
            points = points + (along[:, None] * toward).reshape(points.shape)
            known.append(toward / length.sqrt().clamp_min(_TINY)[:, None])
        beside = torch.logspace(-3.5, -1, self.batch, dtype=self.dtype, device=self.device)
        return self.project(_finite(points + _per_sample(beside * self.scale, x) * self.noise(self.batch)))

    def _luck(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator, dtype=torch.float64).to(like)

    def _gradient(self, points: Tensor, chosen: Tensor) -> Tensor:
        """The gradient in x of one pre-activation a sample, numbered through the layers with kinks."""
        points = points.detach().requires_grad_()
        inputs = self.graph.preactivations(points)[1]
        here = torch.cat([inputs[i].flatten(1) for i in self.kinked], 1)
        (gradient,) = torch.autograd.grad(here.gather(1, chosen[:, None]).sum(), points)
        return gradient

    def _jumps(self, x: Tensor) -> dict[int, _Jump]:
        """What every unit with kinks does across the nearest one."""
        jumps = {}
        inputs = self.graph.preactivations(x.detach())[1]
        for index, breaks in self.kinked.items():
            layer, u = self.graph.nonlinear()[index], inputs[index]
            assert isinstance(layer, PiecewiseLinear)
            gaps = torch.stack([at - u for at in breaks])
            gap = gaps.gather(0, gaps.abs().argmin(0, keepdim=True))[0]
            slope = layer.derivative(u)
            jumps[index] = _Jump(slope, layer.derivative(u + 1.001 * gap + 1e-6 * gap.sign()) - slope, gap)
        return jumps

    def _ticks(self, steps: int) -> Iterator[int]:
        for step in range(steps):
            if self.late:
                return
            yield step

    def _checkpoint(self, step: int, steps: int) -> bool:
        return (step + 1) % max(1, steps // _CHECKS) == 0


@dataclass(frozen=True)
class _Jump:
    """A layer's slopes (R, *s), how they change across each unit's nearest kink, and how far u is from it."""

    slope: Tensor
    change: Tensor
    gap: Tensor


class _Adam:
    """Adam with its moments per entry, normalised per sample so that flat samples move too."""

    def __init__(self, parameters: list[Tensor], rate: float) -> None:
        self.rate, self.count = rate, 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def step(self, parameters: list[Tensor], gradients: list[Tensor], factor: float | Tensor) -> list[Tensor]:
        """The parameters moved uphill by rate·factor."""
        self.count += 1
        moved = []
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            self.first[i] = 0.8 * self.first[i] + 0.2 * g
            self.second[i] = 0.95 * self.second[i] + 0.05 * g.square()
            mean = self.first[i] / (1 - 0.8**self.count)
            spread = (self.second[i] / (1 - 0.95**self.count)).sqrt()
            moved.append((p + self.rate * factor * mean / (spread + _TINY)).detach())
        return moved


def aligned(w: Tensor, norm: Norm, otherwise: Tensor | None = None) -> Tensor:
    """The unit vector (in ℓ_q) along which w·x is largest, for each sample behind the leading dimensions.

    `w` is (R, *s) or (P, R, *s) with R samples; where w is zero, `otherwise` (or zero) is kept.
    """
    lead = 1 if otherwise is not None else 2
    flat = w.flatten(lead)
    if norm == "inf":
        unit = flat.sign()
    elif norm == "1":
        index = flat.abs().argmax(-1, keepdim=True)
        unit = torch.zeros_like(flat).scatter_(-1, index, flat.gather(-1, index).sign())
    else:
        unit = flat / flat.norm(dim=-1, keepdim=True).clamp_min(_TINY)
    unit = unit.reshape(w.shape)
    if otherwise is None:
        return unit
    alive = flat.abs().amax(-1) > 0
    return torch.where(_per_sample(alive, w), unit, otherwise)


def _norms(x: Tensor, norm: Norm) -> Tensor:
    """‖x[b]‖_q for every sample."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), {"2": 2.0, "1": 1.0, "inf": np.inf}[norm], dim=1)
    return norms


def _relative(gaps: Tensor) -> Tensor:
    """Distances to kinks, in medians."""
    return gaps.abs() / gaps.abs().median(-1, keepdim=True).values.clamp_min(_TINY)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """One number a sample, shaped to broadcast against (B, *s)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
