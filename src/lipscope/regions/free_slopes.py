"""Certified bounds of a small network's Jacobian when slopes are free in intervals.

The network is given by its differences: w = (x, z) with z_i = d_i·u_i, u = A w the pre-activations
(A strictly lower triangular in z: unit i reads x and earlier units), y = C w the outputs and
d_i ∈ [α_i, β_i] anything at all. `free_slope_bound` is above ‖J(d)‖ for every such d, rounding
included; A, C, α, β are taken as exact.
"""

# ruff: noqa: N803, N806  (matrices have the names of the papers)
from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from ..certified import batched_spectral_norm_upper
from ..results import Norm
from ..rounding import gamma, up, up_sum

Array = np.ndarray

_ENUMERATED_UNITS = 5
_ENUMERATED_SIGNS = 12
_STARTS = (0.65, 0.8, 1.0)
_DESCENT_STEPS = 12


def free_slope_bound(A: Array, C: Array, alpha: Array, beta: Array, norm: Norm) -> float:
    """Certified upper bound of the operator norm ℓ_q → ℓ_q of J over all slopes in [alpha, beta].

    Args:
        A: pre-activations (k, n + k), strictly lower triangular in its last k columns.
        C: outputs (m, n + k).
        alpha, beta: slope intervals (k,).
        norm: q.
    """
    system = _System(A, C, alpha, beta).trimmed()
    absolute = system.absolute()
    if not absolute.any():
        return 0.0
    if norm == "1":
        return _row_sum_bound(system.transposed())
    if norm == "inf":
        return _row_sum_bound(system)
    if system.units == 0:
        return _centre_radius_bound(system, absolute)
    if system.units <= _ENUMERATED_UNITS:
        return _enumerated_bound(system, absolute)
    bound = _quadratic_bound(system)
    return bound if math.isfinite(bound) else _centre_radius_bound(system, absolute)


def uncertainty_bound(
    A: Array,
    C: Array,
    largest: Array,
    A_radius: Array,
    C_radius: Array,
    norm: Norm,
) -> float:
    """Certified bound of ‖J − J'‖ over all slopes |d_i| ≤ largest[i], when A, C are within radii of A', C'.

    J is a sum over paths of products of entries and slopes, so |J − J'| ≤ J(|A| + R) − J(|A|) entrywise.
    """
    n, k = A.shape[1] - len(A), len(A)
    if not (A_radius.any() or C_radius.any()):
        return 0.0
    size, change = np.zeros((n + k, n)), np.zeros((n + k, n))
    size[:n] = np.eye(n)
    margin = 1 + 4 * gamma(2 * (n + k) + 8)
    for i in range(k):
        change[n + i] = largest[i] * margin * (np.abs(A[i]) @ change + A_radius[i] @ (size + change))
        size[n + i] = largest[i] * margin * (np.abs(A[i]) @ size)
    total = margin * (np.abs(C) @ change + C_radius @ (size + change))
    return _norm_of_nonnegative(total, norm)


def _norm_of_nonnegative(matrix: Array, norm: Norm) -> float:
    """An upper bound of the norm of a matrix with entries ≥ 0."""
    if norm == "2":
        return up(float(np.sqrt((matrix * matrix).sum())), matrix.size + 4)
    return up(float(matrix.sum(0 if norm == "1" else 1).max(initial=0.0)), sum(matrix.shape) + 2)


@dataclass(frozen=True)
class _System:
    A: Array
    C: Array
    alpha: Array
    beta: Array

    @property
    def units(self) -> int:
        return len(self.A)

    @property
    def inputs(self) -> int:
        return int(self.A.shape[1]) - self.units

    @property
    def largest(self) -> Array:
        largest: Array = np.maximum(np.abs(self.alpha), np.abs(self.beta))
        return largest

    @property
    def rounding(self) -> float:
        """Entrywise relative error, against `absolute`, of a product computed unit by unit."""
        return gamma((self.units + 1) * (self.inputs + self.units + 4))

    def trimmed(self) -> _System:
        """Without units that read nothing or that nothing reads: they carry no part of J."""
        system = self
        while True:
            reads = np.abs(system.A).sum(1) > 0
            read = (np.abs(system.A).sum(0) + np.abs(system.C).sum(0))[system.inputs :] > 0
            kept = np.flatnonzero(reads & read)
            if len(kept) == system.units:
                return system
            columns = np.r_[: system.inputs, system.inputs + kept]
            system = _System(
                system.A[np.ix_(kept, columns)], system.C[:, columns], system.alpha[kept], system.beta[kept]
            )

    def transposed(self) -> _System:
        """The system of Jᵀ: outputs become inputs and units come in reverse order."""
        n = self.inputs
        back = slice(None, None, -1)
        A = np.concatenate([self.C[:, n:].T, self.A[:, n:].T[:, back]], 1)[back]
        C = np.concatenate([self.C[:, :n].T, self.A[:, :n].T[:, back]], 1)
        return _System(A, C, self.alpha[back], self.beta[back])

    def values(self, slopes: Array) -> tuple[Array, Array]:
        """U (…, k, n) and J (…, m, n) for slopes (…, k), up to rounding."""
        n, k = self.inputs, self.units
        w = np.zeros((*slopes.shape[:-1], n + k, n))
        w[..., :n, :] = np.eye(n)
        u = np.zeros((*slopes.shape[:-1], k, n))
        for i in range(k):
            u[..., i, :] = self.A[i, : n + i] @ w[..., : n + i, :]
            w[..., n + i, :] = slopes[..., i, None] * u[..., i, :]
        return u, self.C @ w

    def absolute(self) -> Array:
        """J of the absolute values: every |J_ab| and every rounding error is relative to it."""
        positive = _System(np.abs(self.A), np.abs(self.C), self.alpha, self.beta)
        return positive.values(self.largest)[1]

    def interval(self, v: Array) -> tuple[Array, Array]:
        """Bounds low ≤ J(d) v ≤ high for all d, for input vectors v (n, q): each (m, q)."""
        n, k = self.inputs, self.units
        low, high = np.zeros((n + k, v.shape[1])), np.zeros((n + k, v.shape[1]))
        low[:n] = high[:n] = v
        error = 2 * gamma(n + k + 4)
        for i in range(k):
            a, b = _interval_product(self.A[i : i + 1, : n + i], low[: n + i], high[: n + i], error)
            ends = np.concatenate([self.alpha[i] * a, self.alpha[i] * b, self.beta[i] * a, self.beta[i] * b])
            slack = error * np.abs(ends).max(0)
            low[n + i], high[n + i] = ends.min(0) - slack, ends.max(0) + slack
        return _interval_product(self.C, low, high, error)


def _interval_product(matrix: Array, low: Array, high: Array, error: float) -> tuple[Array, Array]:
    plus, minus = np.maximum(matrix, 0), np.minimum(matrix, 0)
    slack = error * (np.abs(matrix) @ np.maximum(np.abs(low), np.abs(high)))
    return plus @ low + minus @ high - slack, plus @ high + minus @ low + slack


def _row_sum_bound(system: _System) -> float:
    """Bound of the largest row sum of |J|: the smallest of three.

    Entrywise intervals of J, of Jᵀ (another order of association), and, with few inputs, the bounds
    of J s over all sign vectors s, which are exact in the slopes of the last free units.
    """
    n = system.inputs
    forward = system.interval(np.eye(n))
    backward = system.transposed().interval(np.eye(len(system.C)))
    entries = np.minimum(np.maximum(*map(np.abs, forward)), np.maximum(*map(np.abs, backward)).T)
    best = _norm_of_nonnegative(entries, "inf")
    if n <= _ENUMERATED_SIGNS and system.units:
        signs = np.array([(1.0, *rest) for rest in itertools.product((-1.0, 1.0), repeat=n - 1)]).T
        best = min(best, float(np.maximum(*map(np.abs, system.interval(signs))).max()))
    return best


def _centre_radius_bound(system: _System, absolute: Array) -> float:
    """‖J(centre)‖ + ‖radius‖_F of an entrywise enclosure of J."""
    low, high = system.interval(np.eye(system.inputs))
    middle = (low + high) / 2
    radius = np.maximum(high - middle, middle - low)
    return up_sum(
        batched_spectral_norm_upper(torch.from_numpy(middle[None])),
        _norm_of_nonnegative(radius + 4 * gamma(1) * absolute, "2"),
    )


def _enumerated_bound(system: _System, absolute: Array) -> float:
    """Exact maximum over free slopes: ‖J‖ is convex in each slope, so it is attained at the ends."""
    ends = zip(system.alpha, system.beta, strict=True)
    corners = np.array(list(itertools.product(*ends)))
    matrices = system.values(corners)[1]
    return up_sum(
        batched_spectral_norm_upper(torch.from_numpy(matrices)),
        _norm_of_nonnegative(2 * system.rounding * absolute, "2"),
    )


# ---- the quadratic certificate ------------------------------------------------------------------------


def _quadratic_bound(system: _System) -> float:
    """√ρ for the smallest ρ found such that M(ρ, t) ≽ 0 is proved; see `_proved`."""
    scale = float(np.abs(system.absolute()).max())
    # One power of two on C keeps every number in range; it is exact and is undone at the end.
    exponent = math.frexp(scale)[1]
    scaled = _System(system.A, np.ldexp(system.C, -exponent), system.alpha, system.beta)
    groups = _independent_groups(scaled)
    rho, t = min((_closed_form(scaled, groups, s) for s in _STARTS), key=lambda found: found[0])
    if not math.isfinite(rho):
        return math.inf
    rho, t = _descend(scaled, groups, rho, t)
    for slack in (1e-11, 1e-9, 1e-7, 1e-5, 1e-3):
        if _proved(scaled, rho * (1 + slack), t):
            return up(math.ldexp(up(math.sqrt(rho * (1 + slack)), 3), exponent), 1)
    return math.inf


def _independent_groups(system: _System) -> list[slice]:
    """Runs of consecutive units that do not read each other, first to last."""
    n, groups, start = system.inputs, [], 0
    for i in range(1, system.units + 1):
        if i == system.units or system.A[i, n + start : n + i].any():
            groups.append(slice(start, i))
            start = i
    return groups


def _eliminate(system: _System, group: slice, X: Array, t: Array) -> tuple[Array, Array] | None:
    """The form on (x, earlier z) after the worst z of a group, and its gain z = gain·(x, earlier z).

    Maximises wᵀXw − 2 Σ tᵢ(zᵢ − αᵢuᵢ)(zᵢ − βᵢuᵢ) over the group's z; None if that is unbounded.
    """
    n = system.inputs
    here = slice(n + group.start, n + group.stop)
    rows = system.A[group, : n + group.start]
    a, b, t = system.alpha[group], system.beta[group], t[group]
    coupling = (t * (a + b))[:, None] * rows + X[here, : n + group.start]
    try:
        factor = np.linalg.cholesky(np.diag(2 * t) - X[here, here])
    except np.linalg.LinAlgError:
        return None
    half = np.linalg.solve(factor, coupling)
    gain = np.linalg.solve(factor.T, half)
    rest = X[: n + group.start, : n + group.start] + half.T @ half
    if (a * b).any():
        rest = rest - 2 * rows.T @ ((t * a * b)[:, None] * rows)
    return rest, gain


def _closed_form(system: _System, groups: list[slice], s: float) -> tuple[float, Array]:
    """ρ and t with t = s·λ_max(D^−½ X D^−½)·d, d = diag X + its mean, group by group from the output."""
    n = system.inputs
    X, t = system.C.T @ system.C, np.zeros(system.units)
    for group in reversed(groups):
        block = X[n + group.start : n + group.stop, n + group.start : n + group.stop]
        d = np.diag(block).clip(0) + np.diag(block).clip(0).mean() + 1e-12 * np.abs(X).max()
        root = np.sqrt(d)
        t[group] = s * max(float(np.linalg.eigvalsh(block / root / root[:, None])[-1]), 1e-12) * d
        step = _eliminate(system, group, X, t)
        if step is None:
            return math.inf, t
        X = step[0]
    return float(np.linalg.eigvalsh(X)[-1]), t


def _value(
    system: _System, groups: list[slice], t: Array, sharpness: float
) -> tuple[float, float, Array] | None:
    """ρ(t), its smoothed logarithm log ‖λ‖_p, and the gradient of the latter in log t."""
    n = system.inputs
    X, gains = system.C.T @ system.C, []
    for group in reversed(groups):
        step = _eliminate(system, group, X, t)
        if step is None:
            return None
        X, gain = step
        gains.append(gain)
    values, vectors = np.linalg.eigh(X)
    if not values[-1] > 0:
        return None
    powers = (values.clip(0) / values[-1]) ** (sharpness - 1)
    total = float((powers * values.clip(0) / values[-1]).sum())
    w = np.zeros((n + system.units, n))
    w[:n] = vectors
    for group, gain in zip(groups, reversed(gains), strict=True):
        w[n + group.start : n + group.stop] = gain @ w[: n + group.start]
    u, z = system.A @ w, w[n:]
    products = (z - system.alpha[:, None] * u) * (z - system.beta[:, None] * u)
    gradient = -2 * t * (products @ powers) / (total * values[-1])
    return float(values[-1]), math.log(values[-1]) + math.log(total) / sharpness, gradient


def _descend(system: _System, groups: list[slice], rho: float, t: Array) -> tuple[float, Array]:
    """A few steps of gradient descent on log t with adaptive lengths, per coordinate by sign memory."""
    log_t, best = np.log(t), (rho, t)
    found = _value(system, groups, t, 16.0)
    length, momentum = 0.3, np.zeros_like(t)
    for _ in range(_DESCENT_STEPS):
        if found is None:
            break
        _, objective, gradient = found
        size = float(np.abs(gradient).max())
        if size < 1e-6:
            break
        momentum = 0.6 * momentum - length * gradient / size
        while True:
            trial = _value(system, groups, np.exp(log_t + momentum), 16.0)
            if trial is not None and trial[1] < objective:
                length *= 1.1
                break
            momentum = -0.3 * length * gradient / size
            length *= 0.3
            if length < 1e-3:
                return best
        log_t, found = log_t + momentum, trial
        if trial[0] < best[0]:
            best = (trial[0], np.exp(log_t))
    return best


def _proved(system: _System, rho: float, t: Array) -> bool:
    """True only if ‖y‖² ≤ ρ‖x‖² is proved for all slopes: one Cholesky of M, with a margin for rounding.

    M = ρ·I_x − CᵀC + Σ tᵢ(pᵢqᵢᵀ + qᵢpᵢᵀ), pᵢ = eᵢ − αᵢaᵢ, qᵢ = eᵢ − βᵢaᵢ. For w of the network
    wᵀpᵢqᵢᵀw = (zᵢ − αᵢuᵢ)(zᵢ − βᵢuᵢ) ≤ 0, so wᵀMw ≥ 0 gives ‖Cw‖² ≤ ρ‖x‖². Rows and columns
    are scaled by powers of two, which is exact, so that the diagonal is of order one.

    Source: M. Fazlyab et al. (2019), with diagonal multipliers; S. Rump (2006) for the proof by Cholesky.
    """
    n, k = system.inputs, system.units
    size = n + k
    scale = np.r_[np.full(n, 2.0 ** -round(math.log2(rho) / 2)), np.exp2(-np.round(np.log2(t) / 2))]
    A, C = system.A * scale, system.C * scale
    P, Q = -system.alpha[:, None] * A, -system.beta[:, None] * A
    units = np.arange(k)
    P[units, n + units] += scale[n:]
    Q[units, n + units] += scale[n:]
    # Powers of two: t/power is of order one beside rows already scaled by power^−½.
    cross = P.T @ (t[:, None] * Q)
    M = cross + cross.T - C.T @ C
    M[np.arange(n), np.arange(n)] += rho * scale[:n] ** 2
    # |error| ≤ γ·E entrywise with E the same sums in absolute values; ‖E‖₂ ≤ its largest row sum (symmetric).
    p, q = np.abs(system.alpha)[:, None] * np.abs(A), np.abs(system.beta)[:, None] * np.abs(A)
    p[units, n + units] += scale[n:]
    q[units, n + units] += scale[n:]
    magnitude = p.T @ (t[:, None] * q)
    magnitude = magnitude + magnitude.T + np.abs(C).T @ np.abs(C)
    magnitude[np.arange(n), np.arange(n)] += rho * scale[:n] ** 2
    assembly = 2 * gamma(k + len(C) + 16) * float(magnitude.sum(1).max())
    factorisation = 2 * gamma(2 * size + 16) * float(np.abs(np.diag(M)).sum())
    M[np.diag_indices(size)] -= up_sum(assembly, factorisation)
    try:
        np.linalg.cholesky(M)
    except np.linalg.LinAlgError:
        return False
    return True
