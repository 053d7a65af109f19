"""Proofs by block elimination against dense linear algebra on generated sparse block matrices."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lipscope.certificates.elimination import BlockMatrix, definite, fill_in, operations
from lipscope.certificates.enclosure import Enclosure

Layout = tuple[dict[str, int], list[tuple[str, str]], int]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    sizes = {f"v{i}": draw(st.integers(1, 5)) for i in range(draw(st.integers(1, 6)))}
    pairs = list(itertools.combinations(sizes, 2))
    keys = [pair for pair in pairs if draw(st.booleans())]
    return sizes, keys, draw(st.integers(0, 10_000))


def spread(layout: Layout, dtype: torch.dtype) -> tuple[BlockMatrix, Tensor]:
    """A block matrix with unit diagonal blocks and random couplings, and the same written out."""
    sizes, keys, seed = layout
    generator = torch.Generator().manual_seed(seed)
    ends = [0, *itertools.accumulate(sizes.values())]
    rows = {name: slice(a, b) for name, (a, b) in zip(sizes, itertools.pairwise(ends), strict=True)}
    blocks, whole = BlockMatrix(sizes, 1, dtype), torch.eye(ends[-1], dtype=dtype)
    for name in sizes:
        blocks.add(name, name, blocks.identity(name))
    for i, (a, b) in enumerate(keys):
        block = torch.randn(sizes[a], sizes[b], generator=generator, dtype=dtype) / math.sqrt(ends[-1])
        # Either triangle may be given.
        entry = Enclosure.exact(block[None, None])
        blocks.add(*((a, b, entry) if i % 2 else (b, a, entry.adjoint)))
        whole[rows[a], rows[b]], whole[rows[b], rows[a]] = block, block.mH
    return blocks, whole


@given(layouts(), st.sampled_from([torch.float64, torch.complex128]), st.floats(-2, 2))
def test_what_is_proved_is_positive_and_what_is_clearly_positive_is_proved(
    layout: Layout, dtype: torch.dtype, added: float
) -> None:
    blocks, whole = spread(layout, dtype)
    last = layout[0][next(reversed(layout[0]))]
    least = whole.clone()
    least.diagonal()[-last:] += added
    truth = float(torch.linalg.eigvalsh(least)[0])
    delta = blocks.margin(max(added, 0.0))
    assert 0 < float(delta) < 1e-11
    rest = blocks.reduced(delta)
    proved = rest is not None and definite(rest, added)
    assert truth > 0 if proved else truth < 1e-10


@given(layouts(), st.integers(-12, -8))
def test_a_matrix_below_zero_by_little_is_not_proved(layout: Layout, exponent: int) -> None:
    blocks, whole = spread(layout, torch.float64)
    least = float(torch.linalg.eigvalsh(whole)[0])
    for name in layout[0]:
        blocks.add(name, name, blocks.identity(name).scaled(-least - 10.0**exponent))
    rest = blocks.reduced(blocks.margin(0.0))
    assert rest is None or not definite(rest, 0.0)


@given(layouts())
def test_the_rest_is_the_schur_complement(layout: Layout) -> None:
    blocks, whole = spread(layout, torch.float64)
    last = layout[0][next(reversed(layout[0]))]
    head, side, tail = whole[:-last, :-last], whole[:-last, -last:], whole[-last:, -last:]
    rest = blocks.reduced(torch.zeros(1, dtype=torch.float64))
    if rest is not None and float(torch.linalg.eigvalsh(whole)[0]) > 1e-3:
        found = torch.diag_embed(rest[0, :, 0, 0]) if rest.shape[1] > 1 else rest[0, 0]
        torch.testing.assert_close(found, tail - side.T @ torch.linalg.solve(head, side), rtol=0, atol=1e-9)


def test_errors_of_blocks_are_in_the_margin() -> None:
    blocks = BlockMatrix({"a": 2, "x": 2}, 1, torch.float64)
    for name in ("a", "x"):
        blocks.add(name, name, blocks.identity(name))
    half = Enclosure(0.5 * torch.eye(2, dtype=torch.float64)[None, None], torch.tensor([0.25]).double())
    blocks.add("a", "x", half)
    assert float(blocks.margin(0.0)) > 0.25
    rest = blocks.reduced(blocks.margin(0.0))
    assert rest is not None
    # The midpoint is definite with 0.5 for the last block, the matrix with a coupling of 0.75 is not.
    assert not definite(rest, -0.5)
    assert definite(rest, 0.0)


def test_fill_and_cost_of_chain_and_star() -> None:
    chain = [("c", "b"), ("b", "a"), ("a", "x")]
    sizes = {"c": 10, "b": 10, "a": 10, "x": 10}
    assert fill_in(sizes, chain) == {"c": ["b"], "b": ["a"], "a": ["x"], "x": []}
    star = [("c", "b"), ("c", "a"), ("c", "x")]
    assert fill_in(sizes, star)["a"] == ["x"]
    assert operations(sizes, chain) < operations(sizes, star)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_prove_nothing(bad: float) -> None:
    for place in [("a", "a"), ("a", "x"), ("x", "x")]:
        blocks = BlockMatrix({"a": 1, "x": 1}, 1, torch.float64)
        blocks.add("a", "a", blocks.identity("a"))
        blocks.add("x", "x", blocks.identity("x"))
        blocks.add(*place, Enclosure.exact(torch.full((1, 1, 1, 1), bad, dtype=torch.float64)))
        rest = blocks.reduced(blocks.margin(1.0))
        assert rest is None or not definite(rest, 1.0)
