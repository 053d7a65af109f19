"""The Lanczos solver against dense singular value decompositions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipscope.spectral import SpectralNorm, spectral_norm
from strategies import seeds

NEVER_ABOVE = 1 + 1e-10
LARGE = 48
"""Operators with clearly fewer inputs or outputs are solved densely; from here on by the iteration."""


@dataclass
class Matrices:
    """B dense operators (B, m, n) that act on vectors of shape (n / 2, 2) or (n,), and count products."""

    matrix: Tensor
    products: int = 0

    @property
    def batch(self) -> int:
        return self.matrix.shape[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        n = self.matrix.shape[2]
        return (n // 2, 2) if n % 2 == 0 else (n,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.matrix.shape[1],)

    def matvec(self, v: Tensor) -> Tensor:
        assert v.shape[1:] == (self.batch, *self.input_shape)
        self.products += 1
        return torch.einsum("bmn,pbn->pbm", self.matrix, v.flatten(2))

    def rmatvec(self, u: Tensor) -> Tensor:
        assert u.shape[1:] == (self.batch, *self.output_shape)
        return torch.einsum("bmn,pbm->pbn", self.matrix, u).reshape(*u.shape[:2], *self.input_shape)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def with_values(seed: int, rows: int, columns: int, values: list[float]) -> Tensor:
    """A random matrix (1, m, n) with the given leading singular values, the others zero."""
    count = len(values)
    u, _ = torch.linalg.qr(gaussian(seed, rows, count))
    v, _ = torch.linalg.qr(gaussian(seed + 1, columns, count))
    return (u @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ v.T)[None]


def norms(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix.double(), 2)


def assert_consistent(matrix: Tensor, result: SpectralNorm, precision: float = 1e-9) -> None:
    """Never above; unit vectors; J right = value·left; and the value is what the vectors attain."""
    exact = norms(matrix)
    assert bool((result.value <= exact * NEVER_ABOVE + 1e-300).all())
    right, left = result.right.flatten(1), result.left.flatten(1)
    assert right.shape == (matrix.shape[0], matrix.shape[2])
    assert left.shape == (matrix.shape[0], matrix.shape[1])
    for value, u, v, one in zip(result.value, left, right, matrix, strict=True):
        if value == 0:
            continue
        assert float(v.norm()) == pytest.approx(1, abs=precision)
        assert float(u.norm()) == pytest.approx(1, abs=precision)
        assert float((one @ v - value * u).norm()) <= precision * float(value)


def assert_solved(matrix: Tensor, relative: float = 1e-4, **options: object) -> SpectralNorm:
    """Consistent, and converged: to the norm, or with a lone vector at least to one of the first values."""
    result = spectral_norm(Matrices(matrix), **options)
    assert_consistent(matrix, result)
    exact = norms(matrix)
    if options.get("block", 1) > 1 or min(matrix.shape[1:]) < LARGE:
        assert bool((result.value >= exact * (1 - relative)).all())
    distance = (torch.linalg.svdvals(matrix) - result.value[:, None]).abs().amin(1)
    assert bool((distance <= relative * exact).all())
    return result


sizes = st.integers(1, 30) | st.integers(LARGE, LARGE + 40)


@given(seeds(), st.integers(1, 5), sizes, sizes, st.integers(1, 4))
@settings(max_examples=150)
def test_gaussian_matrices(seed: int, batch: int, rows: int, columns: int, block: int) -> None:
    assert_solved(gaussian(seed, batch, rows, columns), 1e-3, block=block, max_steps=400)
    assert_solved(gaussian(seed, batch, rows, columns), 1e-8, block=block, max_steps=400, tolerance=1e-9)


@given(seeds(), st.integers(LARGE, 90), st.integers(LARGE, 90), st.integers(0, 4), st.integers(1, 4))
@settings(max_examples=60)
def test_rank_deficient_and_zero_matrices(seed: int, rows: int, columns: int, rank: int, block: int) -> None:
    """Fewer singular values than a block, or none at all: the Krylov space is soon exhausted."""
    matrix = gaussian(seed, 2, rows, rank) @ gaussian(seed + 1, 2, rank, columns)
    assert_solved(matrix, 1e-9, block=block, tolerance=1e-10)
    mixed = torch.cat(
        [matrix, torch.zeros(1, rows, columns, dtype=torch.float64), gaussian(seed, 1, rows, columns)]
    )
    result = assert_solved(mixed, 1e-6, block=block, tolerance=1e-8, max_steps=400)
    assert float(result.value[2]) == 0.0
    assert float(result.error[2]) == 0.0


@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 31, 64, 200])
def test_rows_and_columns(size: int, block: int) -> None:
    """1 × n and n × 1."""
    for matrix in (gaussian(size, 2, 1, size), gaussian(size, 2, size, 1)):
        assert_solved(matrix, 1e-12, block=block)


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize(
    "matrix",
    [torch.eye(60, dtype=torch.float64)[None], -3 * torch.eye(60, 90, dtype=torch.float64)[None]],
    ids=["identity", "wide"],
)
def test_multiples_of_isometries(matrix: Tensor, block: int) -> None:
    """Every vector is singular: the first step exhausts the Krylov space."""
    result = assert_solved(matrix, 1e-13, block=block)
    assert result.steps <= 2


@given(seeds(), st.integers(1, 4), st.sampled_from([(60, 60), (50, 80), (80, 50)]), st.integers(2, 4))
@settings(max_examples=40)
def test_repeated_top_singular_values(seed: int, block: int, size: tuple[int, int], times: int) -> None:
    values = [2.0] * times + [1.5 * 0.97**i for i in range(40)]
    assert_solved(with_values(seed, *size, values), 1e-8, block=block, tolerance=1e-9, max_steps=300)


@given(seeds(), st.integers(1, 4), st.floats(1e-12, 1e-2))
@settings(max_examples=40)
def test_clustered_top_singular_values(seed: int, block: int, gap: float) -> None:
    """The value converges even where the vectors cannot be told apart."""
    values = [1 - gap * i for i in range(5)] + [0.9 * 0.98**i for i in range(40)]
    assert_solved(with_values(seed, 70, 60, values), 1e-6, block=block, tolerance=1e-7, max_steps=400)


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("basis_limit", [2, 5, 12])
def test_restarts(block: int, basis_limit: int) -> None:
    """A small basis restarts often and still converges, never above."""
    matrix = torch.cat([gaussian(3, 1, 70, 90), with_values(5, 70, 90, [1.3] + [0.98**i for i in range(60)])])
    few = spectral_norm(Matrices(matrix), block=block, basis_limit=basis_limit, max_steps=6, tolerance=1e-12)
    many = assert_solved(matrix, 1e-4, block=block, basis_limit=basis_limit, max_steps=3000, tolerance=1e-6)
    assert_consistent(matrix, few)
    assert few.steps == 6
    assert bool((many.value >= few.value * (1 - 1e-12)).all())


@given(seeds(), st.integers(1, 4))
@settings(max_examples=20)
def test_a_longer_run_is_no_worse(seed: int, block: int) -> None:
    matrix = gaussian(seed, 1, 60, 80)
    last = 0.0
    for steps in (1, 2, 4, 8, 30, 60):
        result = spectral_norm(
            Matrices(matrix), block=block, max_steps=steps, tolerance=1e-14, basis_limit=10 * block
        )
        assert result.steps <= steps
        assert_consistent(matrix, result)
        assert float(result.value[0]) >= last * (1 - 1e-12)
        last = float(result.value[0])


@given(seeds(), st.integers(1, 4))
@settings(max_examples=30)
def test_warm_start(seed: int, block: int) -> None:
    """From its own singular vectors a solve is short; from those of a near matrix, shorter than cold."""
    values = [1.02, 1.01] + [0.985**i for i in range(58)]
    matrix = with_values(seed, 60, 70, values)
    cold = assert_solved(matrix, 1e-7, block=block, tolerance=1e-8, max_steps=400)
    near = matrix + 1e-6 * gaussian(seed + 5, *matrix.shape)
    warm = assert_solved(near, 1e-7, block=block, tolerance=1e-8, max_steps=400, start=cold.right[None])
    assert warm.steps <= cold.steps
    first = spectral_norm(Matrices(matrix), block=block, max_steps=1, start=cold.right[None])
    assert float(first.value[0]) >= float(cold.value[0]) * (1 - 1e-4)


def test_a_warm_start_that_is_useless_does_no_harm() -> None:
    """Another singular vector, or zero: with a block of two or more the answer is the same.

    A lone vector that starts at the second singular vector is found converged and stays there.
    """
    values = [2.0, 1.9] + [0.97**i for i in range(40)]
    matrix = with_values(11, 60, 70, values)
    _, _, vh = torch.linalg.svd(matrix[0])
    for start in (vh[1], torch.zeros(70, dtype=torch.float64)):
        for block in (2, 3):
            assert_solved(
                matrix, 1e-6, tolerance=1e-8, block=block, max_steps=400, start=start.reshape(1, 1, 35, 2)
            )
    zero = torch.zeros(1, 1, 35, 2, dtype=torch.float64)
    result = spectral_norm(Matrices(matrix), tolerance=1e-8, max_steps=400, start=zero)
    assert float(result.value[0]) == pytest.approx(2.0, rel=1e-6)


def test_a_warm_start_with_more_vectors_than_the_block() -> None:
    matrix = gaussian(2, 2, 50, 60)
    start = gaussian(3, 5, 2, 30, 2)
    assert_solved(matrix, 1e-6, tolerance=1e-8, block=2, max_steps=400, start=start)


@given(seeds(), st.integers(1, 4), st.sampled_from([(20, 30), (60, 80), (80, 60)]))
@settings(max_examples=40)
def test_float32(seed: int, block: int, size: tuple[int, int]) -> None:
    matrix = gaussian(seed, 2, *size)
    result = spectral_norm(Matrices(matrix.float()), block=block, dtype=torch.float32, max_steps=300)
    exact = norms(matrix.float())
    assert result.value.dtype == result.left.dtype == result.right.dtype == torch.float32
    assert bool((result.value.double() <= exact * (1 + 1e-5)).all())
    assert bool((result.value.double() >= exact * (1 - 1e-3)).all())
    torch.testing.assert_close(result.right.flatten(1).norm(dim=1), torch.ones(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("exponent", [-140, -100, -20, 20, 100, 140])
@pytest.mark.parametrize("size", [(20, 10), (60, 50)])
def test_extreme_scales(exponent: int, size: tuple[int, int]) -> None:
    matrix = gaussian(4, 1, *size)
    plain = spectral_norm(Matrices(matrix), max_steps=300)
    scaled = spectral_norm(Matrices(matrix * 10.0**exponent), max_steps=300)
    assert float(scaled.value[0]) == pytest.approx(float(plain.value[0]) * 10.0**exponent, rel=1e-4)
    assert float(scaled.right.norm()) == pytest.approx(1, rel=1e-9)


def test_operators_of_one_batch_do_not_disturb_each_other() -> None:
    matrix = torch.cat([1e-6 * gaussian(0, 1, 50, 60), gaussian(1, 1, 50, 60), 1e6 * gaussian(2, 1, 50, 60)])
    together = spectral_norm(Matrices(matrix), tolerance=1e-9, max_steps=300)
    for b in range(3):
        alone = spectral_norm(Matrices(matrix[b : b + 1]), tolerance=1e-9, max_steps=300)
        assert float(together.value[b]) == pytest.approx(float(alone.value[0]), rel=1e-8)


def test_steps_count_the_products() -> None:
    operator = Matrices(gaussian(0, 2, 50, 60))
    result = spectral_norm(operator, max_steps=25, tolerance=1e-15, basis_limit=8)
    assert result.steps == operator.products == 25


@pytest.mark.parametrize("options", [{"block": 0}, {"max_steps": 0}, {"block": -1}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        spectral_norm(Matrices(gaussian(0, 1, 50, 60)), **options)


def test_how_often_a_run_stops_at_a_lower_singular_value() -> None:
    """The error estimate is the distance to the value converged to; how often is that not the largest?

    Measured with tolerance 1e-4 over 200 seeds of each of these spectra: a lone vector stops too low in
    0.5 %, 1.5 %, 40 % and 0 % of the runs (by up to 3 %, with an estimate below 1e-4), a block of 2, 3 or 4
    in none of 2400. Where it did not stop too low, the estimate covered the distance to the norm.
    """
    spectra = [
        [0.97**i for i in range(50)],
        [1.0, 0.98] + [0.9 * 0.97**i for i in range(48)],
        [1.0] + [0.99] * 20 + [0.9] * 20,
        [1 / (1 + i) for i in range(50)],
    ]
    late = {1: 0, 2: 0, 4: 0}
    for values in spectra:
        for seed in range(30):
            matrix = with_values(31 * seed, 60, 55, values)
            for block in late:
                result = spectral_norm(Matrices(matrix), block=block, max_steps=300)
                short = 1 - float(result.value[0])
                late[block] += short > 1e-4
                if short <= 1e-4:
                    assert short <= float(result.error[0]) + 1e-14
    assert late[2] == late[4] == 0
    assert late[1] <= 0.12 * 120
