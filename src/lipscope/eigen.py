"""Leading eigenpairs and the trace of a large symmetric positive semidefinite operator, from products alone.

Block Lanczos with full reorthogonalisation and thick restarts. The basis V satisfies A V = V H + Q R E_lastᵀ
with V and Q orthonormal, so an eigenpair (θ, s) of the small H gives the Ritz pair (θ, V s), whose residual
is ‖R s_last‖; a restart keeps the leading Ritz vectors and Q, for which the same relation holds.
The results are estimates from below.

Sources: G. Golub, R. Underwood, The block Lanczos method for computing eigenvalues (1977); K. Wu, H. Simon,
Thick-restart Lanczos method (SIAM J. Matrix Anal. 22, 2000); R. Meyer, C. Musco, C. Musco, D. Woodruff,
Hutch++: optimal stochastic trace estimation (SOSA 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""A V for a block of rows V (P, n)."""

_SMALL = 1e-3
"""Eigenvalues smaller than this part of the largest need not be found as accurately, relative to themselves."""


@dataclass(frozen=True)
class Eigenpairs:
    """Ritz pairs: `values` (k,) float64, largest first; `vectors` (k, n), orthonormal; `residuals` (k,) ‖A v − θ v‖.

    An eigenvalue lies within its residual of each value.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    """Vectors that A was applied to."""


def leading_eigenpairs(
    apply: Product,
    size: int,
    count: int,
    *,
    tolerance: float = 1e-3,
    max_products: int = 200,
    block: int = 2,
    basis_limit: int = 48,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Eigenpairs:
    """The `count` largest eigenvalues of a symmetric positive semidefinite A (n, n), and unit eigenvectors.

    Args:
        apply: products with A.
        size: n.
        tolerance: stop once the residual of each wanted value θ is below tolerance·max(θ, 1e-3·largest).
        max_products: stop after about so many products at the latest.
        block: vectors a step; eigenvalues of multiplicity up to `block` are found safely.
        basis_limit: vectors kept in memory before a restart, at least count + 2·block.
        seed: of the random start.
        dtype, device: of the vectors.

    Raises:
        ValueError: a number that must be positive is not.
    """
    if min(size, count, block, max_products) < 1:
        raise ValueError("size, count, block and max_products must be positive")
    count, block = min(count, size), min(block, size)
    limit = max(basis_limit, count + 2 * block)
    generator = torch.Generator().manual_seed(seed)

    def random() -> Tensor:
        return torch.randn(block, size, generator=generator, dtype=torch.float64).to(device, dtype)

    start = random()
    fresh, _ = _orthonormal(start, start[:0])
    basis, small, products = fresh, torch.zeros(0, 0, dtype=torch.float64), 0
    while True:
        image = apply(fresh)
        products += len(fresh)
        columns = _inner(basis, image)
        small = _bordered(small, columns)
        values, vectors = (x.flip(-1) for x in torch.linalg.eigh(small))
        fresh, lengths = _orthonormal(image, basis, float(values[0].clamp_min(0)))
        residuals = (lengths @ vectors[-lengths.shape[1] :]).norm(dim=0)[:count]
        wanted = values[:count].clamp_min(_SMALL * float(values[0]))
        converged = len(values) >= count and bool((residuals <= tolerance * wanted).all())
        if converged or products >= max_products:
            break
        if not len(fresh):
            # An invariant subspace: it holds all that the start has a part in, but not all of a multiple eigenvalue.
            if len(values) >= count:
                break
            fresh, _ = _orthonormal(random(), basis)
        if len(basis) + len(fresh) > limit:
            kept = min(len(values), max(count, limit // 2))
            basis = _combined(vectors[:, :kept], basis)
            small = torch.diag(values[:kept])
        basis = torch.cat([basis, fresh])
    return Eigenpairs(
        values=values[:count].clamp_min(0),
        vectors=_combined(vectors[:, :count], basis),
        residuals=residuals,
        products=products,
    )


def trace_estimate(
    energy: Product, size: int, found: Eigenpairs, *, probes: int = 16, seed: int = 0
) -> tuple[float, float]:
    """The trace of A and its standard error, by random vectors beside the leading eigenpairs.

    tr A = Σ θᵢ + tr (I − VVᵀ) A (I − VVᵀ), the second term as the mean of vᵀAv over Rademacher vectors v less their
    part along V.

    Args:
        energy: vᵀAv of each row of a block (P, n), as a tensor (P,).
        size: n.
        found: eigenpairs of A, from `leading_eigenpairs`.
        probes: random vectors, at least two.

    Raises:
        ValueError: fewer than two probes.
    """
    if probes < 2:
        raise ValueError("a standard error takes at least two probes")
    known = float(found.values.sum())
    if len(found.vectors) == size:
        return known, 0.0
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(probes):
        signs = torch.randint(0, 2, (1, size), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        v = signs.to(found.vectors.device, found.vectors.dtype)
        v = v - (v @ found.vectors.mT) @ found.vectors
        drawn.append(float(energy(v)))
    rest = torch.tensor(drawn, dtype=torch.float64)
    return known + float(rest.mean()), float(rest.std()) / math.sqrt(probes)


def _inner(basis: Tensor, rows: Tensor) -> Tensor:
    """Basis · rowsᵀ, float64 on the CPU."""
    return (basis @ rows.mT).cpu().to(torch.float64)


def _combined(weights: Tensor, basis: Tensor) -> Tensor:
    return weights.mT.to(basis.device, basis.dtype) @ basis


def _bordered(small: Tensor, columns: Tensor) -> Tensor:
    """H with the coefficients of the newest block as last columns and rows."""
    old, new = len(small), columns.shape[1]
    grown = torch.zeros(old + new, old + new, dtype=torch.float64)
    grown[:old, :old] = small
    grown[:, old:] = columns
    grown[old:, :old] = columns[:old].mT
    corner = grown[old:, old:]
    grown[old:, old:] = (corner + corner.mT) / 2
    return grown


def _orthonormal(rows: Tensor, basis: Tensor, scale: float = 0.0) -> tuple[Tensor, Tensor]:
    """Orthonormal rows Q beside the basis and R with rowsᵀ = Qᵀ R modulo the basis; what is rounding is dropped.

    `scale`: of the operator that made the rows, to tell rounding from directions.
    """
    floor = 64 * torch.finfo(rows.dtype).eps * max(scale, float(rows.norm(dim=1).max()) if scale == 0 else 0)
    for _ in range(2):
        rows = rows - (rows @ basis.mT) @ basis
    q, r = torch.linalg.qr(rows.mT)
    p, lengths, qh = torch.linalg.svd(r.cpu().to(torch.float64))
    kept = lengths > floor
    q = q @ p[:, kept].to(q.device, q.dtype)
    # A short row is mostly rounding of the first projection.
    q = q - basis.mT @ (basis @ q)
    q, turn = torch.linalg.qr(q)
    right = turn.cpu().to(torch.float64) @ (lengths[kept, None] * qh[kept])
    return q.mT.contiguous(), right
