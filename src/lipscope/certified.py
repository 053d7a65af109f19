"""Certified spectral norms: numbers above the largest singular value, with a proof that covers rounding.

The proof is always the same. For a Hermitian matrix S, if the floating-point Cholesky
factorisation of c·I − S runs to completion, then λ_max(S) ≤ c + δ with
δ = (a few n)·u·trace(c·I − S): the factorisation's backward error. Eigenvalue solvers only
propose c; they prove nothing. See `rounding.py` for the rule and its sources.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, eigsh
from torch import Tensor

from .errors import CertificateError
from .rounding import COMPLEX_FACTOR, TINY, UNIT, gamma, up, up_ldexp, up_product, up_sum
from .windows import polyphase

_CHUNK_BYTES = 256 * 2**20
_DENSE_EIGENVALUES_BELOW = 600
_TWISTS_BELOW = 100
_POWER_STEPS = 12
_PEAKS = 8
_RANKED_BY_NORM = 2**20
_GRAM_STEPS = 3


def spectral_norm_upper(matrix: Tensor, relative_error: float = 0.0) -> float:
    """Certified upper bound of the spectral norm (largest singular value) of a dense matrix.

    Args:
        matrix: real or complex, shape (m, n), any float dtype (its entries are taken as exact).
        relative_error: entrywise relative uncertainty of `matrix`, covered by the bound.

    Raises:
        CertificateError: an entry is NaN or infinite.
    """
    if matrix.numel() == 0:
        return 0.0
    return batched_spectral_norm_upper(matrix.unsqueeze(0), relative_error=relative_error)


def batched_spectral_norm_upper(
    matrices: Tensor, relative_error: float = 0.0, at_least: float = 0.0
) -> float:
    """Certified upper bound of the largest spectral norm in a batch of matrices.

    Args:
        matrices: shape (batch, m, n), real or complex.
        relative_error: entrywise relative uncertainty of the entries.
        at_least: the bound may be raised to this value; matrices seen to lie below it cost little.

    Raises:
        CertificateError: an entry is NaN or infinite, or no factorisation completes.
    """
    if matrices.numel() == 0:
        return 0.0
    matrices = matrices.detach().to(torch.complex128 if matrices.is_complex() else torch.float64)
    matrices, exponent = _to_unit_size(matrices)
    rows, columns = matrices.shape[-2:]
    if rows > columns:
        matrices = matrices.mH
        rows, columns = columns, rows
    gram = matrices @ matrices.mH
    # One triangle stands for both, so that every step below sees the same Hermitian matrix.
    gram = gram.tril() + gram.tril(-1).mH
    trace = up(float(gram.diagonal(dim1=-2, dim2=-1).real.sum(-1).max()), rows + columns)
    gram_error = COMPLEX_FACTOR * gamma(columns + 2) * trace
    # No entry's modulus is above √2, so no norm is above the second term.
    floor = min(up_ldexp(at_least, -exponent), math.sqrt(2 * rows * columns)) ** 2
    eigenvalue = up_sum(_largest_eigenvalue_upper(gram, floor), gram_error)
    norm = up(math.sqrt(eigenvalue), 2)
    uncertainty = relative_error * up(math.sqrt(trace), 4)
    return up_ldexp(up_sum(norm, uncertainty), exponent)


def _to_unit_size(x: Tensor) -> tuple[Tensor, int]:
    """x·2⁻ᵉ, the largest real or imaginary part in [½, 1), and e: exact, and squares stay in range."""
    largest = float((torch.view_as_real(x) if x.is_complex() else x).abs().max())
    if not math.isfinite(largest):
        raise CertificateError("a weight is NaN or infinite: no bound exists")
    exponent = math.frexp(largest)[1]
    half = exponent // 2
    return x * 2.0**-half * 2.0 ** (half - exponent), exponent


def _largest_eigenvalue_upper(grams: Tensor, floor: float) -> float:
    """Certified upper bound, at least `floor`, of λ_max over a batch of positive semidefinite matrices."""
    size = grams.shape[-1]
    # λ ≤ ‖S‖_F and λ ≤ max row sum: cheap, and certified up to a rounding factor.
    cheap = torch.minimum(grams.abs().pow(2).sum((-2, -1)).sqrt(), grams.abs().sum(-1).amax(-1))
    cheap = cheap * (1.0 + gamma(4 * size * size + 8))
    if float(cheap.max()) <= floor:
        return floor
    proposal = max(floor, _largest_eigenvalue(grams[_most_promising(grams)]))
    unproved = (cheap > floor).nonzero().flatten()
    slack = 1e-10
    while slack < 0.1:
        bound = proposal * (1.0 + slack) + 64 * size * UNIT * proposal
        unproved = _not_below(grams, unproved[cheap[unproved] > bound], bound)
        if unproved.numel() == 0:
            return up_sum(bound, up(COMPLEX_FACTOR * gamma(2 * size + 16) * size * bound, 2))
        found = _largest_eigenvalue(grams[unproved[_most_promising(grams[unproved])]])
        if found > proposal:
            proposal = found
        else:
            slack *= 100
    raise CertificateError("no Cholesky factorisation completed: the matrix is too badly scaled")


def _most_promising(grams: Tensor) -> int:
    """Index of the matrix that a few batched power steps find largest (a guess, nothing is proved)."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(grams.shape[-1], 1, generator=generator).to(grams.dtype)
    vectors = vectors.expand(*grams.shape[:-1], 1)
    for _ in range(_POWER_STEPS):
        vectors = grams @ vectors
        norms = vectors.norm(dim=-2, keepdim=True)
        vectors = vectors / norms.clamp_min(1e-30)
    return int(norms.flatten().argmax())


def _largest_eigenvalue(gram: Tensor) -> float:
    """λ_max of one Hermitian matrix, as a proposal."""
    if gram.shape[-1] < _DENSE_EIGENVALUES_BELOW:
        return float(torch.linalg.eigvalsh(gram)[-1])
    # Random, since the top eigenvector of a structured matrix may be orthogonal to a structured start.
    start = np.random.default_rng(0).standard_normal(gram.shape[-1]).astype(gram.numpy().dtype)
    try:
        # A clustered top is found faster by the dense solver than by thousands of restarts.
        return float(
            eigsh(gram.numpy(), k=1, v0=start, which="LA", maxiter=100, return_eigenvectors=False)[0]
        )
    except ArpackError:
        return float(torch.linalg.eigvalsh(gram)[-1])


def _not_below(grams: Tensor, indices: Tensor, bound: float) -> Tensor:
    """Those of the indices whose matrix is not shown to be ≤ bound by a Cholesky factorisation."""
    size = grams.shape[-1]
    chunk = max(1, _CHUNK_BYTES // (size * size * grams.element_size()))
    identity = torch.eye(size, dtype=grams.dtype)
    failed = [torch.linalg.cholesky_ex(bound * identity - grams[some]).info for some in indices.split(chunk)]
    return indices[torch.cat(failed) != 0] if failed else indices


def convolution_norm_upper(
    weight: Tensor,
    *,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    period: Sequence[int],
    relative_error: float = 0.0,
) -> float:
    """Certified upper bound of the norm of a zero-padded convolution, from its symbol on a torus.

    The convolution y[o, i] = Σ_{c,j} w[o, c, j] x[c, s·i + d·j − p] on a zero-padded box is a
    compression (a restriction of input and output) of the circular convolution of period N,
    once no tap wraps around from data to data. Its norm is therefore at most
    max_f σ_max(H(f)) over the N/s frequencies f = (m + θ) s/N of the polyphase symbol
    H(f)[o, (c, r)] = Σ_u w[o, c, (u·s + r)/d] exp(2πi f u). Any twist θ is allowed, since
    modulating input and output by one character is unitary and shifts the frequencies. With
    θ = ½ the grid straddles a peak at frequency 0, as zero padding does; the better of 0 and ½
    in each dimension is taken. What is left for random kernels is below 0.3 % of the norm on
    images ten kernels wide, about 1 % at five and 2–7 % below three (tests hold the table).

    Args:
        weight: shape (c_out, c_in / groups, k_1, …, k_d).
        stride, dilation: one integer a dimension.
        groups: number of channel groups (the operator is block diagonal over them).
        period: N per dimension, a multiple of the stride (`Windows.torus_period`).
        relative_error: entrywise relative uncertainty of the weights.

    Raises:
        CertificateError: an entry is NaN or infinite, or no factorisation completes.

    Source: symbols of (twisted) block circulant matrices; H. Sedghi, V. Gupta, P. Long (2019)
    for stride 1 and no twist.
    """
    c_out, c_in = weight.shape[:2]
    kernel = weight.shape[2:]
    dims = len(kernel)
    dense, exponent = _to_unit_size(weight.detach().to("cpu", torch.float64))
    dense = dense.reshape(groups, c_out // groups, c_in, *kernel)
    # Taps first, matrices last, so that each symbol comes out contiguous.
    phased = torch.movedim(polyphase(dense, stride, dilation), (0, 1, 2), (-3, -2, -1)).contiguous()
    # Where windows do not overlap there is one tap, which a frequency only multiplies by a phase.
    counts = [
        n // s if taps > 1 else 1 for n, s, taps in zip(period, stride, phased.shape[:dims], strict=True)
    ]
    choices = [(0.0, 0.5) if 1 < count <= _TWISTS_BELOW else (0.0,) for count in counts]
    twists = list(itertools.product(*choices))
    twist = _best_twist(phased.to(torch.complex64), counts, twists) if len(twists) > 1 else twists[0]
    norm = 0.0
    for batch in _symbols(phased.to(torch.complex128), counts, twist):
        norm = max(norm, batched_spectral_norm_upper(batch, at_least=norm))
    # Each phase is within 16u of exact, and each entry sums one product a tap and dimension.
    entry_error = (16 * dims + COMPLEX_FACTOR * (math.prod(kernel) + dims + 2)) * 2 * UNIT
    absolute = dense.abs().flatten(3).sum(3)
    absolute_norm = up(float(absolute.pow(2).sum((1, 2)).sqrt().max()), absolute.numel() + 4)
    return up_ldexp(up_sum(norm, up_product(entry_error + relative_error, absolute_norm)), exponent)


def quick_norm_upper(
    weight: Tensor,
    *,
    stride: Sequence[int] = (),
    dilation: Sequence[int] = (),
    groups: int = 1,
    relative_error: float = 0.0,
) -> float:
    """Certified upper bound of the norm of a zero-padded convolution or a matrix, from few matrix products.

    No eigenvalue, no frequency: the least of three bounds.

    *By the autocorrelation of the kernel.* Tap t reads position p_t = d·j_t. On a torus of period N, a
    multiple of the stride on which no tap wraps around, the operator T is a compression of a circular
    convolution (see `convolution_norm_upper`), so ‖T‖ ≤ max_f ‖H(f)‖. Taps whose positions agree modulo
    the stride share a phase r of the polyphase symbol H, so that
    ‖H(f)‖_F² = Σ_r ‖Σ_{t∈r} w_t e^{2πi f·u_t}‖_F² = Σ_l A(l) e^{2πi f·l/s}, where
    A(l) = Σ ⟨w_t, w_t'⟩ over the pairs of taps with p_t' − p_t = l, l a multiple of the stride. Hence

        ‖T‖² ≤ Σ_l |A(l)| ≤ (Σ_t ‖w_t‖_F)²,

    the last by Cauchy–Schwarz; for a matrix (one tap) it is ‖w‖_F². The Frobenius norm of the operator,
    √(positions)·‖w‖_F, grows with the image; this bound does not.

    *The same of the Gram operator.* H Hᴴ is the symbol of the convolution with the kernel
    G(l) = Σ w_t w_t'ᵀ over the same pairs, so ‖T‖⁴ ≤ Σ_m |A_G(m)|: the sum of fourth powers of
    singular values in the place of squares. With Hᴴ H if that is smaller, and the stride is 1. For matrices, where
    it costs least, twice more: sixteenth powers.

    *By absolute sums* (Schur): ‖T‖² ≤ ‖T‖₁ ‖T‖_∞ ≤ max_c Σ_{o,t} |w| · max_o Σ_{c,t} |w|.

    Args:
        weight: shape (c_out, c_in / groups, k_1, …, k_d); a matrix has no k.
        stride, dilation: one integer a dimension.
        groups: number of channel groups (the operator is block diagonal over them).
        relative_error: entrywise relative uncertainty of the weights.

    Raises:
        CertificateError: an entry is NaN or infinite.

    Source: Gram iteration, B. Delattre, Q. Barthélemy, A. Araujo, A. Allauzen (2023), there on the
    frequencies of the image.
    """
    if weight.numel() == 0 or not bool(weight.any()):
        return 0.0
    dense, exponent = _to_unit_size(weight.detach().to("cpu", torch.float64))
    # A matrix is a convolution of one tap.
    c_out, c_in, *kernel = dense.shape if dense.ndim > 2 else (*dense.shape, 1)
    stride, dilation = stride or [1], dilation or [1]
    taps = dense.reshape(groups, c_out // groups, c_in, -1).movedim(-1, 1)
    count = taps.shape[1]
    magnitudes = taps.abs()
    columns, rows = (float(magnitudes.sum(axes).max()) for axes in ((1, 2), (1, 3)))
    schur = up(columns * rows, 2 * magnitudes[0].numel() + 4)
    if all(s == 1 for s in stride) and taps.shape[3] < taps.shape[2]:
        taps = taps.mT
    pairs = _pairs(
        tuple(itertools.product(*(range(0, d * k, d) for d, k in zip(dilation, kernel, strict=True)))),
        tuple(stride),
    )
    norm, size = _symbol_norm_upper(taps, pairs, _GRAM_STEPS if count == 1 else 1)
    # Every w_t is off by at most relative_error·‖w_t‖_F, and its operator by as much.
    uncertainty = up_product(relative_error, size)
    return up_ldexp(up_sum(min(norm, up(math.sqrt(schur), 2)), uncertainty), exponent)


def magnitude_norm_upper(weight: Tensor, groups: int = 1) -> float:
    """Certified Σ_t ‖w_t‖_F, the largest over the groups: no norm of a convolution with entries ≤ |w| is above it.

    Args:
        weight, groups: as for `quick_norm_upper`; of any stride and dilation.

    Raises:
        CertificateError: an entry is NaN or infinite.
    """
    if weight.numel() == 0:
        return 0.0
    dense, exponent = _to_unit_size(weight.detach().to("cpu", torch.float64))
    taps = dense.reshape(groups, weight.shape[0] // groups * weight.shape[1], -1)
    size = up_sum(float(taps.square().sum(1).sqrt().sum(1).max()), TINY)
    return up_ldexp(up(size, taps.shape[1] + taps.shape[2] + 4), exponent)


Place = tuple[int, ...]


@dataclass(frozen=True)
class _Pairs:
    """The pairs (t, t') of taps whose lag p_t' − p_t is a multiple of the stride, by lag.

    Lags come in lexicographic order, so that −l stands as far from the end as l does from the start.
    """

    lags: tuple[Place, ...]
    """By the stride."""
    numbers: Tensor
    """The number of each pair's lag, (τ, τ); that after the last for the other pairs."""
    members: tuple[tuple[Tensor, Tensor], ...]
    """The first and the second taps of the pairs of each lag."""


@functools.lru_cache(maxsize=256)
def _pairs(places: tuple[Place, ...], stride: Place) -> _Pairs:
    at = torch.tensor(places, dtype=torch.int64)
    differences = at[None] - at[:, None]
    joined = (differences % torch.tensor(stride) == 0).all(-1)
    lags, inverse = differences[joined].unique(dim=0, return_inverse=True)
    numbers = torch.full(joined.shape, len(lags))
    numbers[joined] = inverse
    first, second = joined.nonzero()[inverse.argsort(stable=True)].unbind(1)
    sizes = inverse.bincount().tolist()
    members = tuple(zip(first.split(sizes), second.split(sizes), strict=True))
    return _Pairs(tuple(map(tuple, (lags // torch.tensor(stride)).tolist())), numbers, members)


def _symbol_norm_upper(taps: Tensor, pairs: _Pairs, gram_steps: int) -> tuple[float, float]:
    """Certified bound of ‖H(f)‖ (see `quick_norm_upper`) of taps (groups, τ, rows, columns), over groups and f.

    And Σ_t ‖w_t‖_F, the largest over the groups.
    """
    squared, size = _symbol_energy_upper(taps, pairs)
    if gram_steps > 0:
        unit = (1,) * len(pairs.lags[0])
        found, _ = _symbol_norm_upper(_gram_kernel(taps, pairs), _pairs(pairs.lags, unit), gram_steps - 1)
        # ‖G(l)‖_F is off by γ·Σ‖w_t‖‖w_t'‖ over the pairs of the lag, all of them together by γ·size².
        rounding = up_product(gamma(taps.shape[1] * taps.shape[3] + 4), size, size)
        squared = min(squared, up_sum(found, rounding))
    return up(math.sqrt(squared), 2), size


def _symbol_energy_upper(taps: Tensor, pairs: _Pairs) -> tuple[float, float]:
    """Certified Σ_l |A(l)| ≥ ‖H(f)‖_F² of taps (groups, τ, rows, columns), and Σ_t ‖w_t‖_F; over the groups."""
    flat = taps.flatten(2)
    groups, count, entries = flat.shape
    products = (flat @ flat.mT).flatten(1)
    lags = len(pairs.lags)
    # The last column gathers the pairs of taps that no phase joins.
    correlation = products.new_zeros(groups, lags + 1).index_add_(1, pairs.numbers.flatten(), products)[
        :, :-1
    ]
    size = up(float(flat.square().sum(2).sqrt().sum(1).max()), entries + count + 4)
    # ⟨w_t, w_t'⟩ is within γ·‖w_t‖‖w_t'‖, and so is what is lost where A(l) and their moduli are summed.
    rounding = up_product(gamma(entries + count * count + lags + 16), size, size)
    return up_sum(float(correlation.abs().sum(1).max()), rounding, TINY), size


def _gram_kernel(taps: Tensor, pairs: _Pairs) -> Tensor:
    """G(l) = Σ w_t w_t'ᵀ over the pairs of each lag, (groups, lags, rows, rows)."""
    groups, _, rows, _ = taps.shape
    gram = taps.new_empty(groups, len(pairs.lags), rows, rows)
    for number, members in enumerate(pairs.members[: (len(pairs.lags) + 1) // 2]):
        left, right = (taps[:, some].transpose(1, 2).flatten(2) for some in members)
        product = left @ right.mT
        gram[:, number], gram[:, -1 - number] = product, product.mT
    return gram


def _symbols(phased: Tensor, counts: Sequence[int], twist: Sequence[float]) -> Iterator[Tensor]:
    """The symbol at every frequency (m + twist)/count of (taps_1, …, groups, c_out, c_in·∏s), in batches.

    Half of the last axis is left out: the weights are real, so H(−f) is the conjugate of H(f).
    """
    dims = len(counts)
    symbol = phased
    for dim, (count, theta) in reversed(list(enumerate(zip(counts, twist, strict=True)))):
        kept = (count // 2 + 1 if theta == 0 else (count + 1) // 2) if dim == dims - 1 else count
        # Twice the frequency index is an integer for both twists, so the angle is reduced exactly.
        doubled = 2 * torch.arange(kept) + int(2 * theta)
        turns = torch.outer(doubled, torch.arange(phased.shape[dim])).remainder(2 * count)
        angle = turns.to(torch.float64) * (math.pi / count)
        phases = torch.polar(torch.ones_like(angle), angle).to(phased.dtype)
        # The last tap axis moves to the front as a frequency axis, until all have.
        symbol = torch.tensordot(phases, symbol, dims=([1], [dims - 1]))
    batch = symbol.flatten(0, -3)
    yield from batch.split(max(1, _CHUNK_BYTES // (16 * batch.shape[1] * batch.shape[2])))


def _best_twist(
    phased: Tensor, counts: Sequence[int], twists: Sequence[tuple[float, ...]]
) -> tuple[float, ...]:
    """The twist that seems to give the smallest bound (a guess: every twist is valid).

    Small symbols are ranked by their norms. For larger ones, along the leading singular vectors u, v
    of the largest untwisted symbols, uᴴ H(f) v is a trigonometric polynomial whose values on the
    twisted grids rank the twists at little cost.
    """
    if math.prod(counts) * math.prod(phased.shape[-3:]) <= _RANKED_BY_NORM:
        return min(twists, key=lambda twist: max(map(_largest_norm, _symbols(phased, counts, twist))))
    # Symbols run through the groups fastest, so an index says which group's weights it came from.
    found = [_leading(batch, _PEAKS) for batch in _symbols(phased, counts, twists[0])]
    offsets = itertools.accumulate((size for *_, size in found), initial=0)
    indices = torch.cat([chosen + offset for (chosen, *_), offset in zip(found, offsets, strict=False)])
    left = torch.cat([u for _, u, _, _ in found])
    right = torch.cat([v for _, _, v, _ in found])
    weights = phased[..., indices % phased.shape[-3], :, :]
    along = (left.mH @ weights @ right).unsqueeze(-4)[..., 0]

    def height(twist: tuple[float, ...]) -> float:
        return max(float(values.abs().max()) for values in _symbols(along, counts, twist))

    return min(twists, key=height)


def _largest_norm(matrices: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrices, 2).max())


def _leading(matrices: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Indices and singular vectors u (·, m, 1), v (·, n, 1) of the largest matrices, and how many there are."""
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(matrices.shape[-1], 1, generator=generator).to(matrices.dtype)
    right = right.expand(len(matrices), -1, -1)
    for _ in range(_POWER_STEPS):
        left = matrices @ right
        norms = left.norm(dim=1, keepdim=True)
        left = left / norms.clamp_min(1e-30)
        right = (left.mH @ matrices).mH
        right = right / right.norm(dim=1, keepdim=True).clamp_min(1e-30)
    indices = norms.flatten().topk(min(count, len(matrices))).indices
    return indices, left[indices], right[indices], len(matrices)
