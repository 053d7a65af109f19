"""The spectral norm of Jacobian operators: batched block Golub–Kahan–Lanczos bidiagonalisation.

The solver builds orthonormal bases U_k, V_k with J V_k = U_k B_k and
Jᵀ U_k = V_k B_kᵀ + V_{k+1} S E_kᵀ; the largest singular value of the small block-bidiagonal B_k
approximates that of J from below, and ‖S p‖ (p the last block of its left singular vector) is
the residual ‖Jᵀu − σv‖. It yields estimates: nothing here is ever an upper bound.

Source: G. Golub, F. Luk, M. Overton, A block Lanczos method for computing the singular values
and corresponding singular vectors of a matrix (ACM TOMS 7, 1981).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .layers.base import Shape

_DENSE_UP_TO = 32
_DENSE_BLOCK = 8


class LinearOperator(Protocol):
    """What the solver needs: B operators at once on blocks (P, B, *shape); see `Jacobian`."""

    @property
    def batch(self) -> int: ...  # noqa: D102

    @property
    def input_shape(self) -> Shape: ...  # noqa: D102

    @property
    def output_shape(self) -> Shape: ...  # noqa: D102

    def matvec(self, v: Tensor) -> Tensor: ...  # noqa: D102

    def rmatvec(self, u: Tensor) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class SpectralNorm:
    """The leading singular triplet of each of B operators.

    `value` (B,) never exceeds the true norm but for rounding; `error` (B,) estimates the distance
    to the singular value converged to, from the residual; `left` (B, *out) and `right` (B, *in)
    are unit vectors with J right ≈ value·left; `steps` counts products with J (and as many with Jᵀ).
    A zero operator has zero vectors where nothing is stretched.
    """

    value: Tensor
    error: Tensor
    left: Tensor
    right: Tensor
    steps: int


def spectral_norm(
    operator: LinearOperator,
    *,
    tolerance: float = 1e-4,
    max_steps: int = 100,
    block: int = 1,
    start: Tensor | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    basis_limit: int = 40,
) -> SpectralNorm:
    """Estimate the spectral norm (Euclidean operator norm) of each operator in a batch.

    Operators with at most 32 inputs or outputs are written out and solved directly.

    Args:
        operator: products with J and Jᵀ on blocks (P, B, *shape).
        tolerance: stop when every estimated error is below tolerance·value.
        max_steps: stop after this many products with J at the latest.
        block: vectors P per operator; more find clustered or multiple singular values safely.
        start: warm start (P', B, *in), for instance earlier right singular vectors; random
            vectors fill up to `block`.
        seed: seed of the random start.
        dtype, device: those of the operator, in which it gets its vectors. The algebra around it runs in
            float32 at least (`working_dtype`), and so do the results; a 16-bit operator is not
            iterated beyond its own rounding, which `error` includes.
        basis_limit: basis vectors kept before a restart from the best Ritz vectors.

    Raises:
        ValueError: `block` or `max_steps` is not positive.
    """
    if block < 1 or max_steps < 1:
        raise ValueError("block and max_steps must be positive")
    if min(_size(operator.output_shape), _size(operator.input_shape)) <= _DENSE_UP_TO:
        return _dense(operator, dtype, device)
    run = _Bidiagonalisation(operator, block, dtype, device)
    current = run.start_vectors(start, seed)
    noise = _product_noise(dtype)
    tolerance = max(tolerance, noise)
    steps = 0
    while True:
        budget = min(max(2, basis_limit // run.block), max_steps - steps)
        result = run.sweep(current, budget, tolerance)
        steps += result.steps
        scale = result.value.clamp_min(torch.finfo(run.dtype).tiny)
        if steps >= max_steps or result.exhausted or bool((result.error <= tolerance * scale).all()):
            break
        current = result.ritz
    shape = (operator.batch, *operator.input_shape)
    return SpectralNorm(
        value=result.value,
        error=result.error + noise * result.value if noise else result.error,
        left=result.left.reshape(operator.batch, *operator.output_shape),
        right=result.ritz[..., 0].reshape(shape),
        steps=steps,
    )


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where the algebra around products of this dtype runs: float32 for 16 bits, else the same."""
    return dtype if torch.finfo(dtype).bits > 16 else torch.float32


def _product_noise(dtype: torch.dtype) -> float:
    """Relative rounding of products that is coarser than the algebra's own."""
    return 0.0 if working_dtype(dtype) is dtype else torch.finfo(dtype).eps


def _dense(operator: LinearOperator, dtype: torch.dtype, device: torch.device | str) -> SpectralNorm:
    """The norm from the matrix itself, for operators with few inputs or outputs (exact but for rounding)."""
    by_rows = _size(operator.output_shape) <= _size(operator.input_shape)
    shape = operator.output_shape if by_rows else operator.input_shape
    multiply = operator.rmatvec if by_rows else operator.matvec
    count = _size(shape)
    units = torch.eye(count, dtype=dtype, device=device).reshape(count, 1, *shape)
    blocks = units.expand(-1, operator.batch, *shape).split(_DENSE_BLOCK)
    matrix = torch.cat([multiply(block) for block in blocks]).flatten(2).transpose(0, 1)
    noise = _product_noise(dtype)
    dtype = working_dtype(dtype)
    matrix = matrix.to(dtype)
    # Scaled, so that squares neither overflow nor vanish.
    scale = matrix.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    matrix = matrix / scale
    eigenvalues, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    value = eigenvalues[:, -1].clamp_min(0).sqrt() * scale[:, 0, 0]
    short = vectors[:, :, -1]
    long = (short.unsqueeze(1) @ matrix).squeeze(1)
    long = long / long.norm(dim=1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    left, right = (short, long) if by_rows else (long, short)
    return SpectralNorm(
        value=value,
        error=value * (count * torch.finfo(dtype).eps + noise),
        left=left.reshape(-1, *operator.output_shape),
        right=right.reshape(-1, *operator.input_shape),
        steps=-(-count // 2),
    )


@dataclass
class _Sweep:
    value: Tensor
    error: Tensor
    left: Tensor
    ritz: Tensor
    steps: int
    exhausted: bool


class _Bidiagonalisation:
    """One operator batch; vectors are flattened to (B, n, P) for the dense algebra."""

    def __init__(
        self, operator: LinearOperator, block: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.operator, self.operator_dtype = operator, dtype
        self.dtype, self.device = working_dtype(dtype), device
        self.rows = _size(operator.output_shape)
        self.columns = _size(operator.input_shape)
        self.block = max(1, min(block, self.rows, self.columns))

    def start_vectors(self, start: Tensor | None, seed: int) -> Tensor:
        batch, generator = self.operator.batch, torch.Generator().manual_seed(seed)
        # The same random start for every operator, so that a result does not depend on its batch.
        random = torch.randn(1, self.columns, self.block, generator=generator, dtype=torch.float64)
        vectors = random.to(self.device, self.dtype).expand(batch, -1, -1).clone()
        if start is not None:
            given = start.flatten(2).permute(1, 2, 0)[..., : self.block].to(self.device, self.dtype)
            # A small random part keeps the sought direction reachable from any start. A lone start vector
            # that is already singular still stops at once: where vectors may cross, take block ≥ 2.
            length = given.norm(dim=1, keepdim=True)
            noise = 1e-3 * length / max(self.columns, 1) ** 0.5
            random = vectors[..., : given.shape[-1]]
            vectors[..., : given.shape[-1]] = torch.where(length > 0, given + noise * random, random)
        return vectors

    def sweep(self, start: Tensor, budget: int, tolerance: float) -> _Sweep:
        """Extend the bases from `start` until converged, exhausted or out of budget."""
        right, _ = _orthonormalise(start, [])
        # Reorthogonalising the shorter vectors fully keeps the longer ones orthogonal too
        # (H. Simon, H. Zha, 2000), at a fraction of the memory traffic.
        left_memory = None if self.rows <= self.columns else 1
        right_memory = None if self.columns < self.rows else 1
        rights: list[Tensor] = [right]
        lefts: list[Tensor] = []
        diagonal: list[Tensor] = []
        coupling: list[Tensor] = []
        for step in range(1, budget + 1):
            image = self._matvec(rights[-1])
            left, r = _orthonormalise(image, _latest(lefts, left_memory))
            lefts.append(left)
            diagonal.append(_on_cpu(r))
            back = self._rmatvec(left)
            following, s = _orthonormalise(back, _latest(rights, right_memory))
            below = _on_cpu(s)
            value, error, p, q = _small_problem(diagonal, coupling, below)
            limit = tolerance * value.clamp_min(torch.finfo(self.dtype).tiny)
            exhausted = (step - 1) * self.block >= min(self.rows, self.columns)
            if step == budget or exhausted or bool((error <= limit).all()):
                u = torch.cat(lefts, -1) @ p[..., :1].to(self.device, self.dtype)
                ritz = torch.cat(rights, -1) @ q[..., : self.block].to(self.device, self.dtype)
                value, error = (x.to(self.device, self.dtype) for x in (value, error))
                return _Sweep(value, error, u, ritz, step, exhausted)
            coupling.append(below)
            rights.append(following)
        raise AssertionError("the budget is positive")

    def _matvec(self, v: Tensor) -> Tensor:
        block = v.permute(2, 0, 1).reshape(v.shape[-1], -1, *self.operator.input_shape)
        image = self.operator.matvec(block.to(self.operator_dtype)).to(self.dtype)
        return image.flatten(2).permute(1, 2, 0)

    def _rmatvec(self, u: Tensor) -> Tensor:
        block = u.permute(2, 0, 1).reshape(u.shape[-1], -1, *self.operator.output_shape)
        image = self.operator.rmatvec(block.to(self.operator_dtype)).to(self.dtype)
        return image.flatten(2).permute(1, 2, 0)


def _latest(basis: list[Tensor], count: int | None) -> list[Tensor]:
    return basis if count is None else basis[-count:]


def _orthonormalise(w: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Orthonormal columns q (zero where w adds nothing new) and r with w = q r modulo the basis."""
    floor = 32 * torch.finfo(w.dtype).eps * w.norm(dim=1, keepdim=True).amax(-1, keepdim=True)
    r = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device).expand(w.shape[0], -1, -1)
    q = w
    for _ in range(2):
        for known in basis:
            q = q - known @ (known.mT @ q)
        if q.shape[-1] == 1:
            length = q.norm(dim=1, keepdim=True)
            q, part = q / length.clamp_min(torch.finfo(w.dtype).tiny), length
        else:
            q, part = torch.linalg.qr(q)
        r = part @ r
    # Columns made of rounding alone are dropped: kept, they would break the orthogonality of the basis.
    alive = (r.diagonal(dim1=1, dim2=2).abs().unsqueeze(1) > floor).to(w.dtype)
    return q * alive, r * alive.mT


def _on_cpu(x: Tensor) -> Tensor:
    """In float64 on the CPU: the CPU first, since not every device has float64."""
    return x.cpu().to(torch.float64)


def _small_problem(
    diagonal: list[Tensor], coupling: list[Tensor], next_coupling: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Singular values of the block bidiagonal B_k: the leading one, its error, and singular vectors.

    All are float64 on the CPU, where small decompositions are fastest.
    """
    width, count = diagonal[0].shape[-1], len(diagonal)
    batch = diagonal[0].shape[0]
    small = torch.zeros(batch, count * width, count * width, dtype=torch.float64)
    for j, r in enumerate(diagonal):
        here = slice(j * width, (j + 1) * width)
        small[:, here, here] = r
        if j > 0:
            small[:, (j - 1) * width : j * width, here] = coupling[j - 1].mT
    p, values, qh = torch.linalg.svd(small)
    last = next_coupling @ p[:, -width:, :1]
    residual = last.squeeze(-1).norm(dim=-1)
    value = values[:, 0]
    gap = value - values[:, 1] if values.shape[1] > 1 else torch.zeros_like(value)
    # The residual bounds the distance to some singular value; its square over the gap is sharper once separated.
    error = torch.where(gap > residual, residual.square() / gap.clamp_min(1e-300), residual)
    return value, error, p, qh.mT


def _size(shape: Shape) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
