"""Certified norms of linear layers: never below the dense norm, and close above it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn

from lipscope import certified, rounding
from lipscope.errors import CertificateError
from lipscope.layers import LinearLayer
from lipscope.layers.convolution import Convolution, TransposedConvolution
from lipscope.layers.dense import Dense
from lipscope.layers.merge import Concatenation, Sum
from lipscope.layers.reshape import Permute, Reshape
from lipscope.layers.scaling import Scaling
from lipscope.windows import Windows
from strategies import (
    Shape,
    adaptive_pools,
    average_pools,
    batch_norms,
    convolutions,
    denses,
    import_lone,
    output_shape,
    seeds,
    transposed_convolutions,
)

SVD_ERROR = 1e-13
"""What LAPACK's own norm may be wrong by, relatively."""
TIGHT = 1e-9
"""How far a bound from a dense matrix may lie above it, relatively."""


def matrix_of(module: nn.Module, shape: Shape) -> Tensor:
    """The linear part of a module as a dense matrix (out, in), by torch's own operations."""
    x = torch.zeros(shape, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda v: module(v[None])[0])(x)
    return jacobian.detach().reshape(-1, x.numel())


def dense_norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0


def assert_encloses(bound: float, norm: float, looseness: float = TIGHT) -> None:
    assert bound >= norm * (1 - SVD_ERROR)
    assert bound <= norm * (1 + looseness)


# ---- generated layers -------------------------------------------------------------------------------


@given(denses())
@settings(max_examples=60)
def test_dense(drawn: tuple[nn.Module, Shape]) -> None:
    module, shape = drawn
    (layer,) = import_lone(module, shape)
    assert_encloses(layer.norm([shape]), dense_norm(module.weight.detach()))
    assert_encloses(layer.norm([shape]), dense_norm(matrix_of(module, shape)))


@given(convolutions(1) | convolutions(2) | convolutions(3))
@settings(max_examples=200)
def test_convolution(drawn: tuple[nn.Module, Shape]) -> None:
    module, shape = drawn
    (layer,) = import_lone(module, shape)
    matrix = matrix_of(module, shape)
    norm = dense_norm(matrix)
    assert_encloses(layer.norm([shape]), norm)
    assert layer.torus_norm() >= norm * (1 - SVD_ERROR)
    # The layer's own dense matrix, or its transpose, is the same to the last bit.
    own = layer.matrix(shape)
    assert torch.equal(own, matrix) or torch.equal(own, matrix.T)


@given(transposed_convolutions(1) | transposed_convolutions(2) | transposed_convolutions(3))
@settings(max_examples=100)
def test_transposed_convolution(drawn: tuple[nn.Module, Shape]) -> None:
    module, shape = drawn
    (layer,) = import_lone(module, shape)
    assert isinstance(layer, TransposedConvolution)
    matrix = matrix_of(module, shape)
    norm = dense_norm(matrix)
    out = output_shape(module, shape)
    assert_encloses(layer.norm([shape]), norm)
    assert layer.norm([shape]) == layer.adjoint.norm([out])
    assert layer.adjoint.torus_norm() >= norm * (1 - SVD_ERROR)
    size = math.prod(out)
    eye = torch.eye(size, dtype=torch.float64).reshape(size, *out)
    torch.testing.assert_close(layer.adjoint.apply(eye).flatten(1), matrix, rtol=1e-14, atol=1e-15)


@given(batch_norms(0) | batch_norms(1) | batch_norms(2) | batch_norms(3))
@settings(max_examples=60)
def test_batch_norm(drawn: tuple[nn.Module, Shape]) -> None:
    module, shape = drawn
    (layer,) = import_lone(module, shape)
    assert_encloses(layer.norm([shape]), dense_norm(matrix_of(module, shape)))
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer.forward(x), module(x), rtol=1e-12, atol=1e-12)


@given(average_pools(1) | average_pools(2) | average_pools(3))
@settings(max_examples=120)
def test_average_pool(drawn: tuple[nn.Module, Shape]) -> None:
    """Against torch's own pooling: the map itself, and its norm."""
    module, shape = drawn
    (layer,) = import_lone(module, shape)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer.forward(x), module(x), rtol=1e-12, atol=1e-13)
    assert_encloses(layer.norm([shape]), dense_norm(matrix_of(module, shape)))


@given(adaptive_pools(1) | adaptive_pools(2) | adaptive_pools(3))
@settings(max_examples=60)
def test_adaptive_pool(drawn: tuple[nn.Module, Shape]) -> None:
    module, shape = drawn
    (layer,) = import_lone(module, shape)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer.forward(x), module(x), rtol=1e-12, atol=1e-13)
    assert_encloses(layer.norm([shape]), dense_norm(matrix_of(module, shape)))


def own_matrix(layer: LinearLayer, shapes: Sequence[Shape]) -> Tensor:
    """The matrix on the direct sum of the inputs, built from `apply` one input at a time."""
    columns = []
    for i, shape in enumerate(shapes):
        size = math.prod(shape)
        xs = [torch.zeros(size, *s, dtype=torch.float64) for s in shapes]
        xs[i] = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
        columns.append(layer.apply(*xs).flatten(1).T)
    return torch.cat(columns, 1)


@given(
    st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=1, max_size=4),
    st.lists(st.floats(0, 1e3), min_size=4, max_size=4),
)
@settings(max_examples=60)
def test_sum(coefficients: list[float], bounds: list[float]) -> None:
    layer, shapes = Sum(tuple(coefficients)), [(2, 3)] * len(coefficients)
    assert_encloses(layer.norm(shapes), dense_norm(own_matrix(layer, shapes)))
    exact = math.fsum(abs(c) * b for c, b in zip(coefficients, bounds, strict=False))
    bound = layer.lipschitz(bounds[: len(coefficients)], shapes)
    assert exact * (1 - 1e-15) <= bound <= exact * (1 + 1e-14) + 1e-300


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 2), st.data())
@settings(max_examples=40)
def test_concatenation(widths: list[int], axis: int, data: st.DataObject) -> None:
    shapes = [tuple(w if i == axis else 2 for i in range(3)) for w in widths]
    layer = Concatenation(axis, tuple(widths))
    assert_encloses(layer.norm(shapes), dense_norm(own_matrix(layer, shapes)))
    bounds = data.draw(st.lists(st.floats(0, 1e3), min_size=len(widths), max_size=len(widths)))
    exact = math.hypot(*bounds)
    assert exact * (1 - 1e-15) <= layer.lipschitz(bounds, shapes) <= exact * (1 + 1e-14) + 1e-300


@given(st.permutations(range(3)))
@settings(max_examples=6)
def test_permutation_and_reshape(axes: list[int]) -> None:
    shape = (2, 3, 4)
    for layer in (Permute(tuple(axes)), Reshape(shape, (6, 4))):
        matrix = own_matrix(layer, [shape])
        assert torch.equal(matrix @ matrix.T, torch.eye(24, dtype=torch.float64))
        assert_encloses(layer.norm([shape]), dense_norm(matrix))
        u = torch.randn(2, *layer.apply(torch.zeros(1, *shape)).shape[1:], dtype=torch.float64)
        torch.testing.assert_close(layer.apply(layer.transpose(u)[0]), u, rtol=0, atol=0)


@given(st.sampled_from([(), (4,), (3, 1, 1), (3, 2, 4)]), seeds())
@settings(max_examples=30)
def test_scaling(extent: Shape, seed: int) -> None:
    factor = torch.randn(extent, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for operations in (0, 5):
        layer = Scaling(factor, operations=operations)
        assert_encloses(layer.norm([(3, 2, 4)]), dense_norm(own_matrix(layer, [(3, 2, 4)])))


# ---- extreme numbers --------------------------------------------------------------------------------


@given(st.integers(-150, 150), seeds(), st.integers(1, 12), st.integers(1, 12), st.booleans())
@settings(max_examples=80)
def test_scaled_matrices(exponent: int, seed: int, rows: int, columns: int, is_complex: bool) -> None:
    dtype = torch.complex128 if is_complex else torch.float64
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    scaled = matrix * 10.0**exponent
    # LAPACK's norm of the same numbers moved to unit size by a power of two, which is exact.
    power = math.frexp(float(scaled.abs().max()))[1]
    norm = dense_norm(scaled * 2.0**-power) * 2.0**power
    assert_encloses(certified.spectral_norm_upper(scaled), norm)


@given(st.integers(-150, 150), convolutions(1, bias=False) | convolutions(2, bias=False))
@settings(max_examples=80)
def test_scaled_convolutions(exponent: int, drawn: tuple[nn.Module, Shape]) -> None:
    module, shape = drawn
    (layer,) = import_lone(module, shape)
    plain = layer.torus_norm()
    power = round(exponent * math.log2(10))
    with torch.no_grad():
        module.weight.mul_(2.0**power)
    (layer,) = import_lone(module, shape)
    assert_encloses(layer.norm([shape]), dense_norm(matrix_of(module, shape) * 2.0**-power) * 2.0**power)
    # A power of two changes nothing but the exponent.
    assert layer.torus_norm() == pytest.approx(plain * 2.0**power, rel=1e-12)


@pytest.mark.parametrize("exponent", [-1074, -1060, -1022, -600, 600, 1000, 1023])
def test_the_ends_of_the_exponent_range(exponent: int) -> None:
    matrix = math.ldexp(1.0, exponent) * torch.eye(3, dtype=torch.float64)
    bound = certified.spectral_norm_upper(matrix)
    assert bound >= math.ldexp(1.0, exponent)
    assert bound <= math.ldexp(1.0, exponent) * (1 + TIGHT) or exponent < -1022
    weight = math.ldexp(1.0, exponent) * torch.ones(1, 1, 2, dtype=torch.float64)
    geometry = {"stride": (1,), "dilation": (1,), "groups": 1, "period": (8,)}
    bound = certified.convolution_norm_upper(weight, **geometry)
    # Two equal taps on 7 cells: 2·cos(π/16) ≤ norm ≤ 2.
    assert bound >= math.ldexp(1.9, exponent) if exponent < 1023 else bound >= 1.7e308


@given(seeds(), st.integers(1, 8), st.integers(1, 8))
@settings(max_examples=40)
def test_entries_of_very_different_sizes(seed: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    matrix = matrix * 10.0 ** torch.randint(-200, 200, (rows, columns), generator=generator).double()
    power = math.frexp(float(matrix.abs().max()))[1]
    norm = dense_norm(matrix * 2.0**-power) * 2.0**power
    assert_encloses(certified.spectral_norm_upper(matrix), norm)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 7, -1])
def test_nan_and_infinity_are_refused(bad: float, where: int) -> None:
    weight = torch.randn(2, 2, 3, dtype=torch.float64)
    weight.view(-1)[where] = bad
    with pytest.raises(CertificateError, match="NaN or infinite"):
        certified.spectral_norm_upper(weight.flatten(1))
    with pytest.raises(CertificateError, match="NaN or infinite"):
        certified.convolution_norm_upper(weight, stride=(1,), dilation=(1,), groups=1, period=(8,))
    windows = Windows((6,), (4,), (3,), (1,), (0,), (1,))
    for layer in (Dense(weight.flatten(1)), Scaling(weight), Convolution(weight, windows)):
        with pytest.raises(CertificateError, match="NaN or infinite"):
            layer.norm([(2, 6)])


def test_complex_infinity_is_refused() -> None:
    matrix = torch.zeros(2, 2, dtype=torch.complex128)
    matrix[0, 1] = complex(0, math.nan)
    with pytest.raises(CertificateError):
        certified.spectral_norm_upper(matrix)


def test_zero_layers_have_norm_zero() -> None:
    windows = Windows((6, 6), (4, 4), (3, 3), (1, 1), (0, 0), (1, 1))
    weight = torch.zeros(2, 3, 3, 3, dtype=torch.float64)
    assert Convolution(weight, windows).norm([(3, 6, 6)]) == 0.0
    assert Convolution(weight, windows).torus_norm() == 0.0
    assert Dense(torch.zeros(4, 3)).norm([(3,)]) == 0.0
    assert Scaling(torch.zeros(3)).norm([(3,)]) == 0.0
    assert Sum((0.0, 0.0)).norm([(3,), (3,)]) == 0.0
    assert certified.spectral_norm_upper(torch.zeros(0, 3)) == 0.0
    assert Dense(torch.zeros(4, 3)).lipschitz([math.inf], [(3,)]) == 0.0


@given(st.lists(st.floats(0, 1.7e308), min_size=1, max_size=6))
@settings(max_examples=300)
def test_scalar_rounding_is_upward(terms: list[float]) -> None:
    exact = [Fraction(t) for t in terms]
    product, total, squares = math.prod(exact), sum(exact), sum(t * t for t in exact)
    assert _at_least(rounding.up_product(*terms), product)
    assert _at_least(rounding.up_sum(*terms), total)
    assert _at_least(rounding.up_hypot(*terms), squares, power=2)
    assert rounding.up_product(*terms, 0.0) == 0.0
    if Fraction(1e-300) < product < Fraction(1e300):
        assert Fraction(rounding.up_product(*terms)) <= product * (1 + Fraction(1e-14))
    if Fraction(1e-300) < total < Fraction(1e300):
        assert Fraction(rounding.up_sum(*terms)) <= total * (1 + Fraction(1e-14))


def _at_least(bound: float, exact: Fraction, power: int = 1) -> bool:
    return bound == math.inf or Fraction(bound) ** power >= exact


def test_scalars_beyond_the_exponent_range() -> None:
    assert rounding.up_product(1e-200, 1e-200) == 5e-324
    assert rounding.up_product(1e-200, 1e-200, 1e300) == pytest.approx(1e-100)
    assert rounding.up_product(1e200, 1e200) == math.inf
    assert rounding.up_product(1e200, 1e200, 1e-300) == pytest.approx(1e100)
    assert rounding.up_sum(1.7e308, 1.7e308) == math.inf
    assert rounding.up_product(0.0, math.inf) == 0.0


# ---- the batched proof ------------------------------------------------------------------------------


@given(seeds(), st.integers(1, 60), st.integers(1, 20), st.integers(1, 20), st.booleans())
@settings(max_examples=60)
def test_batches(seed: int, batch: int, rows: int, columns: int, is_complex: bool) -> None:
    """The largest norm of many matrices of about the same norm, none of which is plainly the largest."""
    dtype = torch.complex128 if is_complex else torch.float64
    matrices = torch.randn(batch, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    norms = torch.linalg.matrix_norm(matrices, 2)
    assert_encloses(certified.batched_spectral_norm_upper(matrices), float(norms.max()))
    floor = 0.5 * float(norms.min())
    assert_encloses(certified.batched_spectral_norm_upper(matrices, at_least=floor), float(norms.max()))
    raised = certified.batched_spectral_norm_upper(matrices, at_least=2 * float(norms.max()))
    assert float(norms.max()) <= raised <= 2 * float(norms.max()) * (1 + TIGHT)


@pytest.mark.parametrize(("batch", "size"), [(2000, 8), (600, 32), (150, 96)])
def test_many_matrices_of_nearly_equal_norm(batch: int, size: int) -> None:
    """A wrong guess of which matrix is largest costs time, not tightness."""
    for seed in range(3):
        matrices = torch.randn(
            batch, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        matrices /= torch.linalg.matrix_norm(matrices, 2)[:, None, None]
        matrices *= torch.linspace(1 - 1e-3, 1, batch, dtype=torch.float64)[:, None, None]
        assert_encloses(certified.batched_spectral_norm_upper(matrices), 1.0)


@given(seeds(), st.integers(2, 40), st.floats(1e-16, 1e-2))
@settings(max_examples=40)
def test_clustered_singular_values(seed: int, size: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    values = 1 - spread * torch.rand(size, generator=generator, dtype=torch.float64)
    matrix = u @ torch.diag(values) @ v
    assert_encloses(certified.spectral_norm_upper(matrix), dense_norm(matrix))


@given(seeds(), st.floats(1e-12, 0.3))
@settings(max_examples=40)
def test_relative_error_is_covered(seed: int, uncertainty: float) -> None:
    """The worst entrywise perturbation of a positive matrix is to enlarge every entry."""
    matrix = torch.rand(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    worst = dense_norm(matrix * (1 + uncertainty))
    assert certified.spectral_norm_upper(matrix, relative_error=uncertainty) >= worst * (1 - SVD_ERROR)
    weight = matrix.reshape(5, 1, 7)
    geometry = {"stride": (1,), "dilation": (1,), "groups": 1, "period": (16,)}
    plain = certified.convolution_norm_upper(weight * (1 + uncertainty), **geometry)
    covered = certified.convolution_norm_upper(weight, relative_error=uncertainty, **geometry)
    assert covered >= plain * (1 - 1e-12)


@pytest.mark.parametrize("size", [640])
def test_a_large_matrix_whose_top_vector_is_antisymmetric(size: int) -> None:
    """The second difference: a start vector that is symmetric never meets its top singular vector."""
    module = nn.Conv1d(1, 1, 3, padding=1, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[[-1.0, 2.0, -1.0]]]))
    (layer,) = import_lone(module, (1, size))
    exact = 2 + 2 * math.cos(math.pi / (size + 1))
    assert_encloses(layer.norm([(1, size)]), exact)


def test_large_dense_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((1000, 700), (650, 1500), (1, 3000)):
        matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        assert_encloses(Dense(matrix).norm([(columns,)]), dense_norm(matrix))


# ---- realistic convolutions -------------------------------------------------------------------------


def attained_norm(module: nn.Module, shape: Shape) -> float:
    """The norm by Lanczos steps with torch's own products: at most the true one, by 1e-7 or less."""
    out = output_shape(module, shape)
    zero = torch.zeros(1, *shape, dtype=torch.float64)

    def matvec(v: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(v.reshape(1, *shape))).numpy().ravel()

    def rmatvec(u: np.ndarray) -> np.ndarray:
        _, pull = torch.func.vjp(module, zero)
        return pull(torch.from_numpy(u.reshape(1, *out)))[0].numpy().ravel()

    size = (math.prod(out), math.prod(shape))
    operator = LinearOperator(size, matvec=matvec, rmatvec=rmatvec, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(min(size))
    return float(svds(operator, k=1, tol=1e-8, v0=start, ncv=40, return_singular_vectors=False)[0])


def looseness(module: nn.Module, shape: Shape) -> float:
    """How far the torus bound lies above the norm, relatively; never below it."""
    (layer,) = import_lone(module, shape)
    norm, bound = attained_norm(module, shape), layer.torus_norm()
    assert bound >= norm * (1 - SVD_ERROR)
    return bound / norm - 1


def random_convolution(
    c_in: int, c_out: int, kernel: int, dims: int, settings: dict[str, object]
) -> nn.Module:
    """torch's own initialisation."""
    torch.manual_seed(c_in * 1000 + c_out * 10 + kernel)
    make = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return make(c_in, c_out, kernel, bias=False, **settings).double().requires_grad_(False)


# (c_in, c_out, kernel, image, settings, percent by which the torus bound was measured to exceed the norm)
MEASURED: list[tuple[int, int, int, Shape, dict[str, int], float]] = [
    # ten kernels wide
    (3, 16, 3, (32, 32), {"padding": 1}, 0.043),
    (2, 8, 9, (256,), {"padding": 4}, 0.057),
    (8, 8, 3, (64,), {"padding": 1}, 0.009),
    # five to seven wide
    (16, 16, 3, (16, 16), {"padding": 1}, 0.929),
    (3, 64, 3, (16, 16), {"padding": 1}, 0.430),
    (32, 64, 3, (14, 14), {"padding": 1}, 0.715),
    (8, 8, 3, (20, 20), {"padding": 0}, 0.721),
    (1, 8, 5, (28, 28), {"padding": 2}, 0.514),
    (1, 6, 5, (28, 28), {"padding": 0}, 1.860),
    # under three wide
    (8, 32, 5, (14, 14), {"padding": 2}, 2.296),
    (3, 32, 7, (16, 16), {"padding": 3}, 3.406),
    (6, 16, 5, (14, 14), {"padding": 0}, 7.198),
    (32, 32, 3, (8, 8), {"padding": 1}, 1.908),
    (64, 32, 3, (7, 7), {"padding": 1}, 2.153),
    (8, 8, 3, (8, 8, 8), {"padding": 1}, 4.175),
    # one tap: no truncation at all
    (16, 8, 1, (14, 14), {"padding": 0}, 0.0),
    # strides
    (3, 16, 3, (32, 32), {"padding": 1, "stride": 2}, 0.160),
    (16, 32, 3, (16, 16), {"padding": 1, "stride": 2}, 0.320),
    (3, 16, 7, (32, 32), {"padding": 3, "stride": 2}, 1.947),
    (3, 16, 11, (63, 63), {"padding": 2, "stride": 4}, 0.671),
    (16, 32, 1, (16, 16), {"padding": 0, "stride": 2}, 0.0),
    (8, 16, 4, (16, 16), {"padding": 1, "stride": 2}, 0.537),
    (8, 16, 2, (16, 16), {"padding": 0, "stride": 2}, 0.0),
    (16, 16, 3, (8, 8), {"padding": 1, "stride": 2}, 2.449),
    (3, 8, 4, (32, 32), {"padding": 0, "stride": 4}, 0.0),
    (2, 8, 9, (256,), {"padding": 4, "stride": 4}, 0.001),
    (4, 8, 3, (8, 8, 8), {"padding": 1, "stride": 2}, 5.322),
    # dilation: the image counts in kernel extents, and 3 taps at distance 4 reach over half of it
    (8, 16, 3, (16, 16), {"padding": 2, "dilation": 2}, 3.804),
    (8, 16, 3, (16, 16), {"padding": 4, "dilation": 4}, 8.684),
    (4, 8, 3, (64,), {"padding": 8, "dilation": 8}, 0.360),
    (8, 8, 3, (12, 12), {"padding": 3, "dilation": 3, "stride": 2}, 15.708),
    # groups
    (16, 16, 3, (16, 16), {"padding": 1, "groups": 4}, 0.250),
    (32, 32, 3, (14, 14), {"padding": 1, "groups": 32}, 2.173),
    (32, 32, 5, (14, 14), {"padding": 2, "groups": 32}, 3.176),
    (32, 32, 3, (14, 14), {"padding": 1, "groups": 32, "stride": 2}, 0.580),
]


@pytest.mark.parametrize(("c_in", "c_out", "kernel", "size", "options", "percent"), MEASURED)
def test_torus_bound_is_as_tight_as_measured(
    c_in: int, c_out: int, kernel: int, size: Shape, options: dict[str, int], percent: float
) -> None:
    """Never below the norm, and not further above it than the table says.

    What is left is the truncation to the image: the symbol of the unbounded convolution has a peak that
    the image is too small to resolve. It falls with the square of the image's width in kernels.
    """
    module = random_convolution(c_in, c_out, kernel, len(size), dict(options))
    assert looseness(module, (c_in, *size)) <= 1.02 * percent / 100 + 1e-6


def test_smooth_kernels_on_small_images() -> None:
    """A positive kernel peaks at frequency 0; twists by half a step resolve it as zero padding does."""
    for size in (8, 16, 28):
        module = random_convolution(2, 3, 3, 2, {"padding": 1})
        module.weight.abs_()
        assert looseness(module, (2, size, size)) < 0.01


def test_windows_that_do_not_overlap_are_bounded_whatever_the_size_of_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    bounded = certified.batched_spectral_norm_upper
    monkeypatch.setattr(
        certified,
        "batched_spectral_norm_upper",
        lambda batch, **options: seen.append(len(batch)) or bounded(batch, **options),
    )
    for kernel, stride in ((1, 1), (1, 2), (4, 4)):
        module = nn.Conv2d(3, 8, kernel, stride, bias=False).double().requires_grad_(False)
        (layer,) = import_lone(module, (3, 64, 48))
        assert layer.torus_norm() == pytest.approx(dense_norm(module.weight.flatten(1)), rel=1e-9)
    assert seen == [1, 1, 1]
