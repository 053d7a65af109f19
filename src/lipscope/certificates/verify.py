"""The proof of a quadratic certificate, independent of how its parameters were found.

Claim: ‖y₁ − y₂‖² ≤ ρ ‖x₁ − x₂‖² for any two inputs of a piece. Write x, z_k, u_k, y for differences
(`problem.py`). Every nonlinear layer obeys, whatever its parameters,

* elementwise, with t > 0:              q_k = −2t (z − αu)(z − βu) ≥ 0, as z = du with α ≤ d ≤ β;
* windows z = yᵀu, y in the convex hull of the corners: if RᵀR ≽ (v − h)(v − h)ᵀ for every corner v,
  then |z − hᵀu| ≤ |Ru| (an ellipsoid is convex; Cauchy–Schwarz), so q_k = t (|Ru|² − (z − hᵀu)²) ≥ 0.

So if M = ρ|x|² − |y|² − Σ_k q_k is positive semidefinite as a quadratic form in (x, z_1, …), the claim
holds. M is assembled block by block from the maps and their error bounds (`Enclosure`), every
variable in units of about t^(−1/2) so that its entries are near 1, and a Cholesky factorisation of
M − δI that runs to completion proves M ≽ 0; δ covers the errors of the maps, of the assembly and of
the factorisation (`rounding.py`, `elimination.py`). Variables are eliminated from the output back, so
that ρ, on the input's rows, enters last. A pooled output is bounded by a form that couples aliases,
made diagonal by weighted diagonal dominance: Q ≼ diag(Σ_b |Q_ab| q_b / q_a) for any q > 0.

Only `problem.py`, `lattice.py`, `enclosure.py` and `elimination.py` are used: nothing of the optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import CertificateError
from ..rounding import COMPLEX_FACTOR, UNIT, gamma, up
from .elimination import BlockMatrix, definite
from .enclosure import Enclosure, frobenius
from .problem import Form, Maps, PooledOutput, Problem, Reading, Variable, X

Parameters = Mapping[str, Tensor]
"""Of each variable k: `k.t` (width,), and for windows `k.h` (width, taps), `k.r` (width, taps, taps);
of a pooled output `output.r` (width, taps, taps) and `output.q` (width, cells)."""

_SLACKS = (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_BATCH_ENTRIES = 2**24
_EXPONENTS = 250


def prove(
    problem: Problem,
    parameters: Parameters,
    proposal: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """The smallest ρ ≥ proposal, tried on a grid, for which every block is proved positive semidefinite.

    Args:
        problem: the maps of the piece.
        parameters: multipliers and ellipsoids; any values, feasible ones are proved.
        proposal: ρ as the optimiser believes it.

    Returns:
        ρ, float64, with ‖y‖² ≤ ρ‖x‖² for all differences of the piece.

    Raises:
        CertificateError: the parameters prove nothing near the proposal.
    """
    variables = problem.variables
    parameters = _checked(variables[1:], problem.maps(torch.arange(0)).pooled, parameters)
    if not (math.isfinite(proposal) and proposal > 0):
        raise CertificateError(f"no certificate: {proposal} was proposed")
    scales = {X: _power_of_two(torch.tensor([1 / math.sqrt(proposal)]).to(torch.float64))}
    scales[X] = scales[X].expand(problem.input.width)
    for variable in variables[1:]:
        scales[variable.name] = _power_of_two(parameters[f"{variable.name}.t"].rsqrt())
    size = sum(variable.size for variable in variables)
    batch = max(1, _BATCH_ENTRIES // size**2)
    attempt = 0
    for blocks in torch.arange(problem.count).split(batch):
        matrix = _assemble(problem.maps(blocks), variables, scales, parameters)
        units = float(scales[X][0]) ** 2
        rest = matrix.reduced(matrix.margin(_rho(proposal, len(_SLACKS) - 1) * units))
        if rest is None:
            raise CertificateError("the multipliers are not feasible")
        while not definite(rest, _rho(proposal, attempt) * units):
            # A larger ρ only adds to M, so the blocks proved before stay proved.
            attempt += 1
            if attempt == len(_SLACKS):
                raise CertificateError("the quadratic certificate could not be proved")
        progress(int(blocks[-1]) + 1, problem.count)
    return _rho(proposal, attempt)


def _rho(proposal: float, attempt: int) -> float:
    return up(proposal * (1 + _SLACKS[attempt]), 2) if attempt else proposal


def _power_of_two(x: Tensor) -> Tensor:
    """The nearest powers of two, by which scaling is exact."""
    exponents = x.log2().round()
    if not bool((exponents.abs() <= _EXPONENTS).all()):
        raise CertificateError("the multipliers are too large, too small or not numbers")
    return torch.exp2(exponents)


def _checked(
    variables: Sequence[Variable], pooled: PooledOutput | None, parameters: Parameters
) -> dict[str, Tensor]:
    """The parameters in float64, if they are those of the piece and every constraint they scale holds."""
    shapes: dict[str, tuple[int, ...]] = {}
    for v in variables:
        shapes[f"{v.name}.t"] = (v.width,)
        if v.corners is not None:
            shapes |= {f"{v.name}.h": (v.width, v.taps), f"{v.name}.r": (v.width, v.taps, v.taps)}
    if pooled is not None:
        shapes |= {"output.r": (pooled.width, pooled.taps, pooled.taps)}
        shapes |= {"output.q": (pooled.width, pooled.cells)}
    if {key: tuple(value.shape) for key, value in parameters.items()} != shapes:
        raise CertificateError("the certificate's parameters are not those of the piece")
    if any(value.is_complex() for value in parameters.values()):
        raise CertificateError("the certificate's parameters are not real numbers")
    parameters = {key: value.to("cpu", torch.float64) for key, value in parameters.items()}
    for v in variables:
        t = parameters[f"{v.name}.t"]
        if not bool(((t > 0) & t.isfinite()).all()):
            raise CertificateError(f"multipliers of layer {v.name} are not positive numbers")
        if v.corners is not None:
            _check_ellipsoids(parameters[f"{v.name}.h"], parameters[f"{v.name}.r"], v.corners)
    if pooled is not None:
        r, q = parameters["output.r"], parameters["output.q"]
        if not bool(((q > 0) & q.isfinite()).all()):
            raise CertificateError("the weights of the pooled output are not positive numbers")
        every_tap = torch.eye(pooled.taps, dtype=torch.float64)
        _check_ellipsoids(r.new_zeros(pooled.width, pooled.taps), r, every_tap)
    return parameters


def _check_ellipsoids(h: Tensor, r: Tensor, corners: Tensor) -> None:
    """Prove RᵀR ≽ (v − h)(v − h)ᵀ for all corners v: h (width, taps), r (width, taps, taps).

    Equivalent to [1, (v − h)ᵀ; v − h, RᵀR] ≽ 0, proved by Cholesky of it less a margin.
    """
    width, taps = h.shape
    points = corners[None] - h[:, None]
    gram = r.mT @ r
    bordered = gram.new_zeros(width, len(corners), taps + 1, taps + 1)
    bordered[..., 0, 0] = 1.0
    bordered[..., 0, 1:], bordered[..., 1:, 0] = points, points
    bordered[..., 1:, 1:] = gram[:, None]
    size = r.flatten(1).square().sum(1)
    error = gamma(taps + 4) * size + UNIT * (2 + points.abs().sum(-1).amax(-1))
    trace = bordered.diagonal(dim1=-2, dim2=-1).sum(-1)
    margin = 2 * (error[:, None] + gamma(2 * taps + 16) * trace)
    shifted = bordered - margin[..., None, None] * torch.eye(taps + 1, dtype=torch.float64)
    if bool(torch.linalg.cholesky_ex(shifted).info.any()) or not bool(shifted.isfinite().all()):
        raise CertificateError("an ellipsoid does not hold the selectors of its window")


def _assemble(
    maps: Maps, variables: list[Variable], scales: Mapping[str, Tensor], parameters: Parameters
) -> BlockMatrix:
    """M without its ρ term, in scaled variables, for a batch of blocks."""
    copies = {v.name: v.copies for v in variables}
    columns = {name: scale.repeat(copies[name]) for name, scale in scales.items()}
    sizes = {v.name: v.size for v in reversed(variables)}
    assembly = BlockMatrix(sizes, maps.blocks, maps.dtype)

    def scaled(form: Form, rows: Tensor | None) -> dict[str, Enclosure]:
        """The form's parts in scaled variables, its rows divided by those of the variable that reads it."""
        found: dict[str, Enclosure] = {}
        for name, part in form.parts.items():
            known = part or assembly.identity(name)
            known = known.scaled_columns(columns[name])
            found[name] = known if rows is None else known.scaled_rows(1 / rows)
        return found

    for reading in maps.readings:
        v = reading.variable
        # Exact: the scale is a power of two.
        weight = (parameters[f"{v.name}.t"] * scales[v.name].square()).repeat(v.copies)
        if reading.reader is None:
            _add_slope(assembly, reading, weight, scaled(reading.form, columns[v.name]))
        else:
            _add_window(assembly, reading, weight, scaled(reading.form, None), scales, parameters)
    if maps.pooled is None:
        output = scaled(maps.output, None)
        rows = next(iter(output.values())).mid.shape[1:3].numel() if output else 0
        _add_weighed(assembly, -torch.ones(1, rows, dtype=torch.float64), output)
    else:
        _add_weighed(assembly, -_pooled_weights(maps.pooled, parameters), scaled(maps.output, None))
    return assembly


def _add_slope(assembly: BlockMatrix, reading: Reading, weight: Tensor, u: Mapping[str, Enclosure]) -> None:
    """2c (ζ − αu)(ζ − βu), c = t·scale² and u in the units of ζ."""
    v = reading.variable
    alpha, beta = v.alpha.repeat(v.copies), v.beta.repeat(v.copies)
    assembly.add(v.name, v.name, assembly.identity(v.name).scaled_rows(2 * weight))
    for name, part in u.items():
        assembly.add(v.name, name, part.scaled_rows(-weight * (alpha + beta)))
    both = 2 * weight * alpha * beta
    if bool((both != 0).any()):
        _add_weighed(assembly, both[None], u)


def _add_window(
    assembly: BlockMatrix,
    reading: Reading,
    weight: Tensor,
    u: Mapping[str, Enclosure],
    scales: Mapping[str, Tensor],
    parameters: Parameters,
) -> None:
    """Add c (|ζ − hᵀu|² − |Ru|²) over the windows, u in the units of ζ."""
    v, reader = reading.variable, reading.reader
    assert reader is not None
    h, r = parameters[f"{v.name}.h"], parameters[f"{v.name}.r"]
    inverse = 1 / scales[v.name]
    centre: dict[str, Enclosure] = {v.name: assembly.identity(v.name)}
    spread: dict[str, Enclosure] = {}
    for name, part in u.items():
        taps = reader.read(part.mid)
        inner = taps.shape[3] // v.width
        # Rows (group, tap, copy, channel); the units of ζ differ between channels.
        units = inverse.repeat(inner)
        taps = taps * units[:, None]
        weights = h.repeat(inner, 1), r.repeat(inner, 1, 1)
        mean = torch.einsum("ct,fgtcn->fgcn", weights[0].to(taps.dtype), taps)
        mixed = torch.einsum("cst,fgtcn->fgscn", weights[1].to(taps.dtype), taps).flatten(2, 3)
        norm = frobenius(taps)
        # Reading sums over aliases, then over taps; the reader's own error acts on the exact map.
        largest = float(inverse.max())
        reading_error = (
            reader.relative_error() * (frobenius(part.mid) + part.radius)
            + COMPLEX_FACTOR * gamma(reader.terms + 8) * frobenius(part.mid) * math.sqrt(v.taps)
            + part.radius * math.sqrt(v.taps)
        ) * largest
        for target, computed, matrix in ((centre, mean, h), (spread, mixed, r)):
            size = float(frobenius(matrix).max())
            error = size * (reading_error + COMPLEX_FACTOR * gamma(v.taps + 4) * norm)
            enclosed = Enclosure(computed, error * (1 + gamma(64)) + 1e-200)
            target[name] = enclosed.scaled(-1.0) if target is centre else enclosed
    _add_weighed(assembly, weight[None], centre)
    _add_weighed(assembly, -weight[None], spread)


def _add_weighed(assembly: BlockMatrix, weights: Tensor, parts: Mapping[str, Enclosure]) -> None:
    """Σ wᴴVᴴ diag V w, real weights (F or 1, rows) that repeat where the maps have several taps a row.

    Each weight may be off by two roundings of its own.
    """
    names = list(parts)
    for i, a in enumerate(names):
        groups, rows = parts[a].mid.shape[1:3]
        factors = weights.reshape(len(weights), groups, -1)
        factors = factors.repeat(1, 1, rows // factors.shape[-1]).unsqueeze(-1)
        weighed = parts[a].mid * factors
        radius = parts[a].radius * float(factors.abs().max()) + 4 * UNIT * frobenius(weighed)
        enclosed = Enclosure(weighed, radius * (1 + gamma(8)))
        for b in names[i:]:
            assembly.add(a, b, enclosed.adjoint @ parts[b])


def _pooled_weights(pooled: PooledOutput, parameters: Parameters) -> Tensor:
    """Weights m (F, g·width) with Σ_windows uᵀBu ≤ Σ m |û|², rounded up; `_checked`: B = RᵀR holds every tap."""
    r, q = parameters["output.r"], parameters["output.q"]
    mixed = torch.einsum("cst,fgit->fgcis", r.to(pooled.phases.dtype), pooled.phases)
    coupling = torch.einsum("fgcs,fgcis->fgci", mixed[..., 0, :].conj(), mixed).abs()
    sizes = mixed.abs().square().sum(-1)
    phase = r.abs().sum((1, 2)).square()[:, None]
    error = COMPLEX_FACTOR * (gamma(4 * pooled.taps) + 64 * UNIT) * (sizes + sizes[..., :1] + phase)
    ratio = q[:, pooled.places].permute(1, 2, 0, 3)
    ratio = ratio / ratio[..., :1]
    total = ((coupling + error) * ratio).sum(-1) * (1 + gamma(32))
    return total.flatten(1)
