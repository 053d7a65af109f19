"""Finding good multipliers: closed-form starts, L-BFGS on dense pieces, stochastic Adam over frequencies.

The problem is convex in the multipliers, so any descent will do; log parameters keep them positive.
In a frequency problem the multipliers are shared by all blocks, and a fixed subset of blocks is
overfitted (its optimum is infeasible elsewhere): each step draws blocks at random, always with
those that were worst when last seen, and raises infeasible multipliers inside the objective.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Variable
from .pullback import Feasibility, InputForm, Prepared, PullBack, Raw, orthonormal, start_ellipsoids

_DENSE_SHARPNESS = (8.0, 32.0, 128.0, 512.0)
_STARTS = (0.7, 0.8, 0.6, 1.0)
_PROOF_ADDS = 1e-3
_EIGENVALUES_BELOW = 100
_SAMPLED = 26
_STEP_OPERATIONS = 1e8
_STAGE_STEPS = 25


@dataclass(frozen=True)
class Found:
    """Parameters and the value of ρ they seem to give; `raw` as in `pullback.py`."""

    raw: Raw
    rho: float


def largest_eigenvalue(x: Tensor) -> float:
    """The largest λ_max over Hermitian matrices (…, n, n), a little above it where it is estimated."""
    if x.shape[-1] <= _EIGENVALUES_BELOW:
        return float(torch.linalg.eigvalsh(x)[..., -1].max())
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(*x.shape[:-1], 8, generator=generator).to(x.dtype)
    for _ in range(24):
        v = orthonormal(x @ v)
    return 1.01 * float(torch.linalg.eigvalsh(v.mH @ (x @ v))[..., -1].max())


def starter(slope_scale: float = 0.8, window_scale: float = 1.3) -> Callable[[Variable, Tensor], Raw]:
    """T = s·λ_max(D^(−½)XD^(−½))·d with d the diagonal of X plus its mean: feasible, and good already."""

    def start(variable: Variable, x: Tensor) -> Raw:
        diagonal = x.diagonal(dim1=2, dim2=3).real
        d = diagonal.reshape(-1, variable.width).mean(0).clamp_min(0)
        d = d + d.mean()
        d = torch.where(d > 0, d, 1.0)
        root = d.rsqrt().repeat(variable.copies).reshape(1, x.shape[1], x.shape[2], 1)
        largest = max(largest_eigenvalue(root * x * root.mT), 1e-12)
        scale = window_scale if variable.taps else slope_scale
        raw = {f"{variable.name}.log_t": (d * (scale * largest)).log().to(torch.float64)}
        if variable.corners is not None:
            raw |= start_ellipsoids(variable.name, variable.width, variable.corners)
        return raw

    return start


def pack(raw: Raw, keys: Iterable[str]) -> Tensor:
    """The named parameters as one vector."""
    return torch.cat([raw[key].flatten() for key in keys]).to(torch.float64)


def unpack(theta: Tensor, like: Raw, keys: Iterable[str]) -> Raw:
    """The inverse of `pack`, with the shapes of `like`."""
    raw, at = {}, 0
    for key in keys:
        size = like[key].numel()
        raw[key] = theta[at : at + size].view(like[key].shape)
        at += size
    return raw


Objective = Callable[[Tensor], tuple[float, Tensor | None]]
"""Value and gradient at a parameter vector; (inf, None) where it is infeasible."""


def smoothed(eigenvalues: Tensor, sharpness: float) -> Tensor:
    """Log of the p-norm of non-negative eigenvalues, above the log of the largest."""
    largest = eigenvalues.detach().max()
    return largest.log() + (eigenvalues.clamp_min(0) / largest).pow(sharpness).sum().log() / sharpness


# ---- dense ------------------------------------------------------------------------------------------


def _spectrum(form: InputForm) -> Tensor:
    """All eigenvalues that can be the largest, of one block."""
    if all(sign > 0 for sign, _ in form.factors) and all(f.shape[1] == 1 for _, f in form.factors):
        stacked = torch.cat([f[0, 0] for _, f in form.factors])
        gram = stacked @ stacked.mH if stacked.shape[0] < stacked.shape[1] else stacked.mH @ stacked
    else:
        gram = form.dense()[0]
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues


def optimise_dense(pull: PullBack, deadline: float, only_start: bool = False, enough: float = 0.0) -> Found:
    """Multipliers of a dense piece: the best closed-form start, then L-BFGS with growing sharpness.

    The sharpness stops growing once ρ lies below `enough` by what a proof may add.
    """
    prepared = pull.prepare(torch.arange(1))
    best = Found({}, math.inf)
    for scale in _STARTS:
        raw: Raw = {}
        with torch.no_grad():
            form = pull.evaluate(prepared, raw, starter=starter(scale))
            if isinstance(form, InputForm):
                rho = float(_spectrum(form)[-1])
                best = min(best, Found(raw, rho), key=lambda found: found.rho)
        if time.monotonic() > deadline:
            break
    if only_start or not best.raw or best.rho <= 0 or not math.isfinite(best.rho):
        return best
    keys = sorted(best.raw)
    theta = pack(best.raw, keys)

    def at(sharpness: float) -> Objective:
        def objective(x: Tensor) -> tuple[float, Tensor | None]:
            x = x.detach().requires_grad_(True)
            form = pull.evaluate(prepared, unpack(x, best.raw, keys), sharpness=sharpness)
            if not isinstance(form, InputForm):
                return math.inf, None
            value = smoothed(_spectrum(form), sharpness)
            (gradient,) = torch.autograd.grad(value, x)
            finite = math.isfinite(float(value.detach())) and bool(gradient.isfinite().all())
            return (float(value.detach()), gradient) if finite else (math.inf, None)

        return objective

    for sharpness in _DENSE_SHARPNESS:
        if best.rho <= enough * (1 - _PROOF_ADDS):
            break
        theta = lbfgs(at(sharpness), theta, 80, deadline)
        raw = unpack(theta, best.raw, keys)
        with torch.no_grad():
            form = pull.evaluate(prepared, raw)
            if isinstance(form, InputForm):
                best = min(best, Found(raw, float(_spectrum(form)[-1])), key=lambda found: found.rho)
    return best


def lbfgs(objective: Objective, x: Tensor, steps: int, deadline: float, memory: int = 20) -> Tensor:
    """Armijo-backtracking L-BFGS; a step moves no parameter by more than 1 (a factor e in T)."""
    value, gradient = objective(x)
    if gradient is None:
        return x
    pairs: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        if time.monotonic() > deadline:
            break
        direction = -_two_loops(gradient, pairs)
        direction = direction / max(1.0, float(direction.abs().max()))
        slope = float(gradient @ direction)
        if slope >= 0:
            pairs = []
            direction = -0.1 * gradient / gradient.abs().max().clamp_min(1e-300)
            slope = float(gradient @ direction)
        length = 1.0
        while True:
            new_value, new_gradient = objective(x + length * direction)
            if new_gradient is not None and new_value <= value + 1e-4 * length * slope:
                break
            length *= 0.4
            if length < 1e-6:
                return x
        moved, turned = length * direction, new_gradient - gradient
        if float(moved @ turned) > 1e-12 * float(moved.norm() * turned.norm()):
            pairs = [*pairs, (moved, turned)][-memory:]
        settled = value - new_value < 1e-5 and step > 3
        x, value, gradient = x + moved, new_value, new_gradient
        if settled:
            break
    return x


def _two_loops(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian of L-BFGS applied to the gradient."""
    if not pairs:
        return 0.3 * gradient / gradient.abs().max().clamp_min(1e-300)
    q = gradient.clone()
    weights = []
    for s, y in reversed(pairs):
        weight = (s @ q) / (s @ y)
        weights.append(weight)
        q -= weight * y
    s, y = pairs[-1]
    q *= (s @ y) / (y @ y)
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        q += (weight - (y @ q) / (s @ y)) * s
    return q


# ---- by frequency -----------------------------------------------------------------------------------


class _Sampler:
    """Draws blocks: the worst seen for every variable and for the result, and others in random order."""

    def __init__(self, count: int, batch: int) -> None:
        self.count, self.batch = count, min(batch, count)
        self.generator = torch.Generator().manual_seed(0)
        self.waiting: list[int] = []
        self.values = torch.full((count,), -math.inf)

    def draw(self, feasibility: Feasibility) -> Tensor:
        if self.batch == self.count:
            return torch.arange(self.count)
        chosen = {0} | ({int(self.values.argmax())} if bool(self.values.isfinite().any()) else set())
        chosen |= feasibility.worst()
        free = max(1, self.batch - len(chosen))
        if len(self.waiting) < free:
            self.waiting += torch.randperm(self.count, generator=self.generator).tolist()
        chosen |= set(self.waiting[:free])
        self.waiting = self.waiting[free:]
        return torch.tensor(sorted(chosen))


def optimise_frequency(
    pull: PullBack,
    deadline: float,
    progress: Callable[[float], None] = lambda rho: None,
    start: Raw | None = None,
) -> Found:
    """Multipliers of a frequency piece: stochastic descent until the deadline, from `start` or a greedy pass."""
    count = pull.problem.count
    raw = _greedy_start(pull, deadline) if start is None else start
    if not raw:
        # A linear piece has nothing to optimise.
        return Found({}, math.nan)
    # All blocks at once where a step stays cheap.
    batch = max(8, min(count, int(_STEP_OPERATIONS / pull.problem.block_size**3)))
    feasibility, sampler = Feasibility(count), _Sampler(count, batch)
    keys = sorted(raw)
    vectors = _Vectors(count, pull.variables[0].size, pull.dtype)

    begun = time.monotonic()

    def objective(x: Tensor) -> tuple[float, Tensor | None]:
        blocks = sampler.draw(feasibility)
        # From a smooth objective, which settles fast, to one near the maximum.
        passed = min(1.0, (time.monotonic() - begun) / max(deadline - begun, 1e-9))
        sharpness = 8.0 * 8.0**passed
        x = x.detach().to(pull.real).requires_grad_(True)
        form = pull.evaluate(
            pull.prepare(blocks), unpack(x, raw, keys), sharpness=3 * sharpness, feasibility=feasibility
        )
        if not isinstance(form, InputForm):
            return math.inf, None
        eigenvalues = form.quadratic(vectors.refined(form, blocks))
        sampler.values[blocks] = eigenvalues.detach().amax(1).to(torch.float32)
        value = smoothed(eigenvalues.clamp_min(1e-30).flatten(), sharpness)
        (gradient,) = torch.autograd.grad(value, x)
        finite = math.isfinite(float(value.detach())) and bool(gradient.isfinite().all())
        if finite:
            progress(math.exp(float(value.detach())))
        return (float(value.detach()), gradient.to(torch.float64)) if finite else (math.inf, None)

    theta = adam(objective, pack(raw, keys), deadline, 0.08 if start is None else 0.03, 0.002)
    return Found({key: value.detach() for key, value in unpack(theta, raw, keys).items()}, math.nan)


class _Vectors:
    """Warm-started leading vectors of X for every block."""

    def __init__(self, count: int, size: int, dtype: torch.dtype, vectors: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (count, size, min(vectors, size))
        self.store = torch.randn(shape, generator=generator).to(dtype)
        self.seen = torch.zeros(count, dtype=torch.bool)

    @torch.no_grad()
    def refined(self, form: InputForm, blocks: Tensor, steps: int = 2) -> Tensor:
        v = self.store[blocks]
        for _ in range(steps if bool(self.seen[blocks].all()) else max(8, steps)):
            v = orthonormal(form.apply(v))
        _, turn = torch.linalg.eigh(v.mH @ form.apply(v))
        turned: Tensor = v @ turn
        self.store[blocks], self.seen[blocks] = turned, True
        return turned


def _greedy_start(pull: PullBack, deadline: float) -> Raw:
    """Parameters from closed forms, improved from the output back, on evenly chosen blocks."""
    count, now = pull.problem.count, time.monotonic()
    raw: Raw = {}
    prepared = pull.prepare(torch.arange(0, count, max(1, count // _SAMPLED)))
    with torch.no_grad():
        pull.evaluate(prepared, raw, starter=starter(), sharpness=20.0)
    if raw:
        _greedy(pull, prepared, raw, now + 0.3 * (deadline - now))
    return raw


def _greedy(pull: PullBack, prepared: Prepared, raw: Raw, deadline: float) -> None:
    """From the output back: each variable's parameters minimise λ_max of the form on the one before it."""
    stages = [v.name for v in reversed(pull.variables[1:])]
    feasibility = Feasibility(pull.problem.count)
    share = (deadline - time.monotonic()) / max(1, len(stages))
    # The last stage's objective is that of the whole piece, which the descent takes over.
    for name, stop in itertools.pairwise(stages):
        keys = [key for key in raw if key.rpartition(".")[0] == name]
        if name == stages[0]:
            keys += [key for key in raw if key.startswith("output.")]
        stage_deadline = time.monotonic() + share

        def objective(x: Tensor, keys: list[str] = keys, stop: str = stop) -> tuple[float, Tensor | None]:
            x = x.detach().to(pull.real).requires_grad_(True)
            trial = raw | unpack(x, raw, keys)
            form = pull.evaluate(prepared, trial, sharpness=20.0, feasibility=feasibility, stop=stop)
            if not isinstance(form, Tensor):
                return math.inf, None
            value = smoothed(torch.linalg.eigvalsh(form)[..., -24:].clamp_min(1e-30).flatten(), 8.0)
            if not value.requires_grad:
                return math.inf, None
            (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
            if gradient is None or not bool(gradient.isfinite().all()):
                return math.inf, None
            return float(value.detach()), gradient.to(torch.float64)

        theta = adam(objective, pack(raw, keys), stage_deadline, 0.12, 0.04, steps=_STAGE_STEPS)
        raw.update({key: value.detach() for key, value in unpack(theta, raw, keys).items()})
        _restart(pull, prepared, raw, feasibility, stop)


def _restart(
    pull: PullBack,
    prepared: Prepared,
    raw: Raw,
    feasibility: Feasibility,
    name: str,
) -> None:
    """Start the named variable again from the form it now sees."""
    variable = next(v for v in pull.variables if v.name == name)
    with torch.no_grad():
        form = pull.evaluate(prepared, raw, sharpness=20.0, feasibility=feasibility, stop=name)
        if isinstance(form, Tensor):
            fresh = starter()(variable, form)
            raw[f"{name}.log_t"] = fresh[f"{name}.log_t"]


def adam(
    objective: Objective,
    x: Tensor,
    deadline: float,
    rate: float,
    last_rate: float,
    steps: int | None = None,
) -> Tensor:
    """Adam with a rate that falls geometrically from the first to the last step (or second before the deadline)."""
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    started, taken, moved = time.monotonic(), 0, torch.zeros_like(x)
    for step in range(steps if steps is not None else 10**9):
        now = time.monotonic()
        if now >= deadline:
            break
        passed = (now - started) / max(deadline - started, 1e-9)
        if steps is not None:
            passed = max(passed, step / steps)
        _, gradient = objective(x)
        if gradient is None:
            # Back half a step, and shorter from here on.
            rate *= 0.9
            x = x - 0.5 * moved
            continue
        taken += 1
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.97 * square + 0.03 * gradient.square()
        floor = 1e-3 * float(gradient.abs().mean()) + 1e-12
        moved = -rate * (last_rate / rate) ** passed * (mean / (1 - 0.9**taken))
        moved = moved / ((square / (1 - 0.97**taken)).sqrt() + floor)
        x = x + moved
    return x


def finish_frequency(pull: PullBack, raw: Raw, margin: float = 0.985) -> Found:
    """Raise multipliers until they are feasible at every block, and estimate ρ over all of them.

    `pull` should be in double precision.
    """
    count = pull.problem.count
    fast = PullBack(pull.problem, torch.complex64)
    raw = {key: value.to(torch.float64).clone() for key, value in raw.items()}
    sizes = [v.size for v in pull.variables]
    batch = max(1, min(count, int(2**23 / max(sizes) ** 2)))
    chunks = torch.arange(count).split(batch)
    feasibility = Feasibility(count, margin, steps=12)
    with torch.no_grad():
        # Raising one variable's multipliers changes what the earlier ones see, hence the passes.
        for _ in sizes:
            for blocks in chunks:
                fast.evaluate(fast.prepare(blocks), raw, feasibility=feasibility)
            excess = {name: float(seen.max()) / margin for name, seen in feasibility.seen.items()}
            for name, factor in excess.items():
                if 1 < factor < math.inf:
                    raw[f"{name}.log_t"] += math.log(factor)
            if max(excess.values(), default=0.0) <= 1:
                break
        rho = 0.0
        vectors = _Vectors(count, sizes[0], pull.dtype)
        for blocks in chunks:
            form = pull.evaluate(pull.prepare(blocks), raw)
            if not isinstance(form, InputForm):
                return Found(raw, math.inf)
            if form.size <= _EIGENVALUES_BELOW:
                rho = max(rho, float(torch.linalg.eigvalsh(form.dense())[:, -1].max()))
            else:
                rho = max(rho, float(form.quadratic(vectors.refined(form, blocks, 30)).max()))
    return Found(raw, rho)
