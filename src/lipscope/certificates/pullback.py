"""The pull-back of the output energy through a piece, as a differentiable function of the multipliers.

Eliminating the variables from the output to the input, each by its Schur complement, turns
M(ρ, T) ≽ 0 (`verify.py`) into X ≼ ρI for one form X of the input:

* slopes in [α, β]: S = 2T − X_kk ≻ 0, K = X_k· + T(α+β)U, X ← X + KᴴS⁻¹K − 2UᴴTαβU;
* windows: S = T − X_kk ≻ 0, K = X_k· + T hᵀE U, X ← X + KᴴS⁻¹K + (REU)ᴴT(REU) − (hᵀEU)ᴴT(hᵀEU).

For ReLU chains this is X ← WᵀT(2T − X)⁻¹TW. Nothing here is a proof: any
precision, any subset of the blocks and any smoothing may be used, since `verify.py` has the last word.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .enclosure import aligned, regroup
from .problem import Form, FourierProblem, Maps, PooledOutput, Problem, Variable, X

Raw = dict[str, Tensor]
"""Unconstrained parameters: `k.log_t`, of windows `k.h` and `k.l`, of a pooled output `output.l`, `output.c`."""

Blocks = dict[tuple[str, str], Tensor]

_MARGIN = 1e-7
"""T is taken a little smaller than it is: more than the proof's δ, which deep pieces would amplify."""


@dataclass
class InputForm:
    """X on the input as Σ ±FᴴF over factors (B, g, r, c) of a batch of B blocks."""

    factors: list[tuple[float, Tensor]]
    size: int

    def images(self, v: Tensor) -> list[tuple[float, Tensor]]:
        """±, F v for vectors (B, size, n)."""
        return [(sign, f @ v.unflatten(1, (f.shape[1], f.shape[3]))) for sign, f in self.factors]

    def quadratic(self, v: Tensor) -> Tensor:
        """VᴴXV of each vector; shape (B, n)."""
        parts = [sign * image.abs().square().sum((1, 2)) for sign, image in self.images(v)]
        return torch.stack(parts).sum(0)

    def apply(self, v: Tensor) -> Tensor:
        """X v."""
        total = torch.zeros_like(v)
        for (sign, f), (_, image) in zip(self.factors, self.images(v), strict=True):
            total = total + sign * (f.mH @ image).flatten(1, 2)
        return total

    def dense(self) -> Tensor:
        """X written out, shape (B, size, size)."""
        count = len(self.factors[0][1])
        total = self.factors[0][1].new_zeros(count, self.size, self.size)
        for sign, f in self.factors:
            total = total + sign * regroup(f.mH @ f, 1)[:, 0]
        return total


@dataclass
class Prepared:
    """The maps of some blocks in the working precision."""

    blocks: Tensor
    maps: Maps
    parts: list[dict[str, Tensor | None]]
    output: dict[str, Tensor | None]


class Feasibility:
    """λ_max(T^(−1/2) X_kk T^(−1/2)) per variable, estimated with warm-started vectors; T is raised above it.

    Differentiable: the eigenvectors are held, and X and T act through the Rayleigh quotient.
    """

    def __init__(self, count: int, margin: float = 0.96, vectors: int = 4, steps: int = 6) -> None:
        self.count, self.margin, self.vectors, self.steps = count, margin, vectors, steps
        self.store: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}

    def ratio(self, variable: Variable, blocks: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The ratio of each block (B,) to what T allows (feasible below 1)."""
        scale = t.repeat(variable.copies).reshape(1, x.shape[1], x.shape[2], 1)
        full = 1.0 if variable.taps else 2.0
        with torch.no_grad():
            root = scale.rsqrt()
            scaled = root * x * root.mT
            v = self._warm(variable, blocks, scaled)
            for _ in range(self.steps):
                v = orthonormal(scaled @ v)
            _, turn = torch.linalg.eigh(v.mH @ (scaled @ v))
            v = v @ turn
            self.store[variable.name][blocks] = v
            top = v[..., -1:]
        top = top / scale.sqrt()
        quotient: Tensor = (top.mH @ (x @ top)).real.flatten(1).amax(1) / full
        self.seen.setdefault(variable.name, torch.full((self.count,), math.inf))
        self.seen[variable.name][blocks] = quotient.detach().to(torch.float32)
        return quotient

    def worst(self) -> set[int]:
        """The block seen closest to infeasible, or beyond, for every variable."""
        return {int(torch.where(seen.isfinite(), seen, -math.inf).argmax()) for seen in self.seen.values()}

    def _warm(self, variable: Variable, blocks: Tensor, x: Tensor) -> Tensor:
        if variable.name not in self.store:
            generator = torch.Generator().manual_seed(1)
            shape = (self.count, x.shape[1], x.shape[2], min(self.vectors, x.shape[2]))
            self.store[variable.name] = torch.randn(shape, generator=generator).to(x.dtype)
        return self.store[variable.name][blocks]


class PullBack:
    """Evaluates the form on the input for given parameters."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.problem = problem
        self.dtype = dtype
        self.real = torch.empty(0, dtype=dtype).real.dtype if dtype.is_complex else dtype
        self.variables = problem.variables
        self.order = {v.name: i for i, v in enumerate(self.variables)}

    def prepare(self, blocks: Tensor) -> Prepared:
        """The maps of the numbered blocks."""
        maps = self.problem.maps(blocks)

        def mids(form: Form) -> dict[str, Tensor | None]:
            return {
                name: None if part is None else part.mid.to(self.dtype) for name, part in form.parts.items()
            }

        return Prepared(blocks, maps, [mids(r.form) for r in maps.readings], mids(maps.output))

    def evaluate(
        self,
        prepared: Prepared,
        raw: Raw,
        *,
        sharpness: float | None = None,
        feasibility: Feasibility | None = None,
        starter: Callable[[Variable, Tensor], Raw] | None = None,
        stop: str | None = None,
    ) -> InputForm | Tensor | None:
        """X on the input; None if some T is infeasible.

        Args:
            sharpness: exponent that smooths the maximum over the corners of windows (None: exact).
            feasibility: raises infeasible T inside.
            starter: gives the parameters a variable lacks, from X_kk.
            stop: return X_kk of this variable instead.
        """
        forms: Blocks = {}
        factors: list[tuple[float, Tensor]] = []
        self._start(prepared, raw, sharpness, forms, factors)
        readings = prepared.maps.readings
        for reading, parts in zip(reversed(readings), reversed(prepared.parts), strict=True):
            v = reading.variable
            own = forms.pop((v.name, v.name), None)
            if own is None:
                own = torch.zeros(len(prepared.blocks), v.size, 1, 1, dtype=self.dtype)
            if stop == v.name:
                return own
            if starter is not None and f"{v.name}.log_t" not in raw:
                raw.update(starter(v, own))
            t = raw[f"{v.name}.log_t"].to(self.real).exp()
            if feasibility is not None:
                ratio = feasibility.ratio(v, prepared.blocks, own, t).amax()
                t = t * (ratio / feasibility.margin).clamp_min(1.0)
            couplings = {name: form for (k, name), form in forms.items() if k == v.name}
            for name in couplings:
                del forms[v.name, name]
            if reading.reader is None:
                self._slopes(v, t, parts, couplings, forms, factors, prepared)
            else:
                h, r = self.ellipsoids(raw, v.name, v.corners, sharpness)
                known = {name: self._known(name, part, prepared) for name, part in parts.items()}
                means = {name: reading.reader.mean(h, part) for name, part in known.items()}
                spreads = {name: reading.reader.spread(r, part) for name, part in known.items()}
                self._windows(v, t, means, spreads, couplings, forms, factors)
            if not self._eliminate(v, t, own, couplings, forms, factors):
                return None
        return InputForm(factors, self.variables[0].size)

    def ellipsoids(
        self, raw: Raw, name: str, corners: Tensor | None, sharpness: float | None
    ) -> tuple[Tensor, Tensor]:
        """Ellipsoids h (width, taps) and r (width, taps, taps) with RᵀR ≽ (v − h)(v − h)ᵀ for all corners v."""
        assert corners is not None
        lower = raw[f"{name}.l"]
        lower = torch.tril(lower, -1) + torch.diag_embed(lower.diagonal(dim1=1, dim2=2).exp())
        h = raw.get(f"{name}.h", lower.new_zeros(lower.shape[:2]))
        points = corners.to(lower.dtype)[None] - h[:, None]
        lengths = torch.linalg.solve_triangular(lower, points.mT, upper=False).square().sum(1)
        largest = lengths.amax(1)
        if sharpness is not None:
            held = largest.detach()
            largest = held * (lengths / held[:, None]).pow(sharpness).sum(1).pow(1 / sharpness)
        r = largest.sqrt()[:, None, None] * lower.mT
        return h.to(self.real), r.to(self.real)

    def pooled_weights(
        self, pooled: PooledOutput, raw: Raw, sharpness: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(m, r, log q): see `verify.py`; m (B, g, width)."""
        corners = torch.eye(pooled.taps, dtype=torch.float64)
        _, r = self.ellipsoids(raw, "output", corners, sharpness)
        log_q = raw["output.c"].to(self.real) @ self._cosines().T
        mixed = torch.einsum("cst,fgit->fgcis", r.to(self.dtype), pooled.phases.to(self.dtype))
        coupling = torch.einsum("fgcs,fgcis->fgci", mixed[..., 0, :].conj(), mixed).abs()
        ratio = log_q[:, pooled.places].permute(1, 2, 0, 3)
        return (coupling * (ratio - ratio[..., :1]).exp()).sum(-1), r, log_q

    def start_output(self, pooled: PooledOutput) -> Raw:
        """Parameters of a pooled output to start from."""
        raw = start_ellipsoids("output", pooled.width, torch.eye(pooled.taps, dtype=torch.float64))
        del raw["output.h"]
        raw["output.c"] = torch.zeros(pooled.width, self._cosines().shape[1], dtype=torch.float64)
        return raw

    def _cosines(self) -> Tensor:
        """Low cosines at every place of the pooled output's torus, (cells, n): log q is made of them."""
        problem = self.problem
        assert isinstance(problem, FourierProblem)
        lattice = problem.lattice
        level = problem.levels[problem.last]
        cells = [n * m for n, m in zip(lattice.base, level, strict=True)]
        axes = [
            (torch.arange(n, dtype=torch.float64) + t / 2) / n
            for n, t in zip(cells, lattice.twist, strict=True)
        ]
        grid = torch.cartesian_prod(*axes).reshape(-1, len(cells))
        waves = [k for k in itertools.product((-1, 0, 1), repeat=len(cells)) if k > (0,) * len(cells)]
        return torch.cos(2 * math.pi * grid @ torch.tensor(waves, dtype=torch.float64).T).to(self.real)

    def _start(
        self,
        prepared: Prepared,
        raw: Raw,
        sharpness: float | None,
        forms: Blocks,
        factors: list[tuple[float, Tensor]],
    ) -> None:
        parts = {name: self._known(name, part, prepared) for name, part in prepared.output.items()}
        pooled = prepared.maps.pooled
        if pooled is not None:
            if "output.l" not in raw:
                raw.update(self.start_output(pooled))
            weights = self.pooled_weights(pooled, raw, sharpness)[0].sqrt()
            for name, part in parts.items():
                rows = weights.reshape(len(part), part.shape[1], part.shape[2], 1)
                parts[name] = rows * part
        self._add_gram(1.0, None, parts, forms, factors)

    def _known(self, name: str, part: Tensor | None, prepared: Prepared) -> Tensor:
        if part is not None:
            return part
        size = self.variables[self.order[name]].size
        return torch.ones(len(prepared.blocks), size, 1, 1, dtype=self.dtype)

    def _add_gram(
        self,
        sign: float,
        weights: Tensor | None,
        parts: Mapping[str, Tensor],
        forms: Blocks,
        factors: list[tuple[float, Tensor]],
    ) -> None:
        """Add sign·VᴴWV for the maps V and non-negative row weights W (repeated over taps)."""
        names = sorted(parts, key=self.order.__getitem__, reverse=True)
        if weights is not None:
            rooted = {}
            for name, part in parts.items():
                rows = weights.sqrt().reshape(1, part.shape[1], -1)
                rooted[name] = part * rows.repeat(1, 1, part.shape[2] // rows.shape[2]).unsqueeze(-1)
            parts = rooted
        for i, a in enumerate(names):
            for b in names[i:]:
                if a == X:
                    factors.append((sign, parts[a]))
                    continue
                one, other = aligned(parts[a], parts[b])
                self._add(forms, a, b, sign * (one.mH @ other))

    @staticmethod
    def _add(forms: Blocks, a: str, b: str, block: Tensor) -> None:
        known = forms.get((a, b))
        if known is not None:
            known, block = aligned(known, block)
            block = known + block
        forms[a, b] = block

    def _slopes(
        self,
        v: Variable,
        t: Tensor,
        parts: Mapping[str, Tensor | None],
        couplings: dict[str, Tensor],
        forms: Blocks,
        factors: list[tuple[float, Tensor]],
        prepared: Prepared,
    ) -> None:
        alpha, beta = v.alpha.to(self.real), v.beta.to(self.real)
        known = {name: self._known(name, part, prepared) for name, part in parts.items()}
        for name, part in known.items():
            rows = (t * (alpha + beta)).repeat(v.copies).reshape(1, *part.shape[1:3], 1)
            self._couple(couplings, name, rows * part)
        both = 2 * t * alpha * beta
        for sign, weights in ((-1.0, both.clamp_min(0)), (1.0, (-both).clamp_min(0))):
            if bool((weights.detach() > 0).any()):
                self._add_gram(sign, weights.repeat(v.copies), known, forms, factors)

    def _windows(
        self,
        v: Variable,
        t: Tensor,
        means: Mapping[str, Tensor],
        spreads: Mapping[str, Tensor],
        couplings: dict[str, Tensor],
        forms: Blocks,
        factors: list[tuple[float, Tensor]],
    ) -> None:
        for name, mean in means.items():
            rows = t.repeat(v.copies).reshape(1, *mean.shape[1:3], 1)
            self._couple(couplings, name, rows * mean)
        weights = t.repeat(v.copies)
        self._add_gram(1.0, weights, spreads, forms, factors)
        self._add_gram(-1.0, weights, means, forms, factors)

    @staticmethod
    def _couple(couplings: dict[str, Tensor], name: str, block: Tensor) -> None:
        known = couplings.get(name)
        if known is not None:
            known, block = aligned(known, block)
            block = known + block
        couplings[name] = block

    def _eliminate(
        self,
        v: Variable,
        t: Tensor,
        own: Tensor,
        couplings: Mapping[str, Tensor],
        forms: Blocks,
        factors: list[tuple[float, Tensor]],
    ) -> bool:
        groups = min([own.shape[1], *(k.shape[1] for k in couplings.values())])
        own = regroup(own, groups)
        full = (1.0 if v.taps else 2.0) * (1 - _MARGIN) * t.repeat(v.copies).reshape(1, groups, -1)
        lower, info = torch.linalg.cholesky_ex(torch.diag_embed(full.to(self.dtype)) - own)
        if bool(info.any()):
            return False
        solved = {
            name: torch.linalg.solve_triangular(lower, regroup(k, groups), upper=False)
            for name, k in couplings.items()
        }
        self._add_gram(1.0, None, solved, forms, factors)
        return True


def orthonormal(x: Tensor) -> Tensor:
    """Orthonormal columns that span those of x; columns that underflow made NaN start anew from nothing."""
    q: Tensor = torch.linalg.qr(x)[0]
    return torch.where(q.isfinite(), q, 0)


def start_ellipsoids(name: str, width: int, corners: Tensor) -> Raw:
    """Ellipsoids that favour signals that are alike over the window, a good start for smooth ones."""
    taps = corners.shape[1]
    alike = 0.6 * torch.eye(taps, dtype=torch.float64) + 0.4
    lower = torch.linalg.cholesky(torch.linalg.inv(alike))
    raw = torch.tril(lower, -1) + torch.diag(lower.diagonal().log())
    return {
        f"{name}.l": raw.expand(width, taps, taps).clone(),
        f"{name}.h": torch.full((width, taps), 0.02, dtype=torch.float64),
    }


def realised(pull: PullBack, raw: Raw, pooled: PooledOutput | None) -> dict[str, Tensor]:
    """The parameters that `verify.prove` reads, in float64."""
    exact = PullBack(pull.problem, torch.complex128 if pull.dtype.is_complex else torch.float64)
    raw = {key: value.detach().to(torch.float64) for key, value in raw.items()}
    found: dict[str, Tensor] = {}
    for v in exact.variables[1:]:
        found[f"{v.name}.t"] = raw[f"{v.name}.log_t"].exp()
        if v.taps:
            h, r = exact.ellipsoids(raw, v.name, v.corners, None)
            found[f"{v.name}.h"], found[f"{v.name}.r"] = h, r * (1 + 1e-7)
    if pooled is not None:
        _, r, log_q = exact.pooled_weights(pooled, raw, None)
        found["output.r"], found["output.q"] = r * (1 + 1e-7), log_q.exp()
    return found
