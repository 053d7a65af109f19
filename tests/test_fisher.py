"""Fisher information of inputs and parameters: against dense matrices, identities, and the divergence it measures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipscope.eigen import leading_eigenpairs, trace_estimate
from strategies import seeds


# ---- eigenpairs from products ---------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), seeds())
@settings(max_examples=60)
def test_eigenpairs_are_those_of_the_matrix(size: int, rank: int, count: int, block: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, min(rank, size), generator=generator, dtype=torch.float64)
    matrix = factor @ factor.mT
    found = leading_eigenpairs(
        lambda v: v @ matrix, size, count, block=block, tolerance=1e-9, max_products=4000, basis_limit=12
    )
    expected = torch.linalg.eigvalsh(matrix).flip(0)[: len(found.values)]
    scale = float(expected[0])
    assert len(found.values) == min(count, size)
    torch.testing.assert_close(found.values, expected, rtol=1e-8, atol=1e-10 * scale)
    torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(len(found.values)).double())
    off = found.vectors @ matrix - found.values[:, None] * found.vectors
    torch.testing.assert_close(off.norm(dim=1), found.residuals, rtol=0.1, atol=1e-8 * scale)


def test_eigenpairs_of_multiples_and_of_zero() -> None:
    multiple = leading_eigenpairs(lambda v: 3 * v, 30, 5, block=2)
    torch.testing.assert_close(multiple.values, torch.full((5,), 3.0).double())
    nothing = leading_eigenpairs(lambda v: 0 * v, 30, 2, block=2)
    assert nothing.values.tolist() == [0, 0]


@given(seeds())
@settings(max_examples=20)
def test_the_trace_lies_within_its_error(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(60, 30, generator=generator, dtype=torch.float64)
    factor *= torch.logspace(1, -1, 30)
    matrix = factor @ factor.mT
    found = leading_eigenpairs(lambda v: v @ matrix, 60, 3, tolerance=1e-6)
    trace, error = trace_estimate(lambda v: ((v @ matrix) * v).sum(1), 60, found, probes=30, seed=seed)
    assert 0 < error < 0.1 * trace
    assert abs(trace - float(matrix.trace())) < 4.5 * error
    small = matrix[:5, :5]
    whole = leading_eigenpairs(lambda v: v @ small, 5, 5, tolerance=1e-12)
    known, error = trace_estimate(lambda v: ((v @ small) * v).sum(1), 5, whole)
    assert (known, error) == (pytest.approx(float(small.trace())), 0.0)
