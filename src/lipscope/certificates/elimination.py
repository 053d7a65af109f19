"""Positive definiteness of sparse block matrices, proved by eliminating one variable after the other.

Block Cholesky factorisation, the variables in the order given. The backward error of Cholesky
holds for any order of elimination and of summation, with the products that are not zero counted
alone: the factor R of a matrix M satisfies RᴴR = M + E, |E_ij| ≤ γ √(M_ii M_jj), where γ counts the
rows above i that touch it, and E is zero where no fill-in occurs. Over blocks with traces τ_a this
gives ‖E‖ ≤ γ·max_a Σ_b √(τ_a τ_b), b over the blocks that touch a: in a chain of layers the margin
grows with their width, not with their number.

Sources: N. Higham, Accuracy and Stability of Numerical Algorithms (2nd ed.), lemma 8.4 and theorem
10.3; J. Demmel's bound by the diagonal (ibid., 10.1); A. George, J. Liu (1981) for fill-in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..rounding import COMPLEX_FACTOR, UNIT, gamma
from .enclosure import Enclosure, aligned, frobenius, regroup

Key = tuple[str, str]


def fill_in(order: Iterable[str], keys: Iterable[Key]) -> dict[str, list[str]]:
    """For every variable, in order, the later ones that its row of the factor touches."""
    place = {name: i for i, name in enumerate(order)}
    touched: dict[str, set[str]] = {name: set() for name in place}
    for a, b in keys:
        if a != b:
            first, second = sorted((a, b), key=place.__getitem__)
            touched[first].add(second)
    found = {}
    for name in place:
        found[name] = sorted(touched[name], key=place.__getitem__)
        for i, a in enumerate(found[name]):
            touched[a].update(found[name][i + 1 :])
    return found


def operations(sizes: Mapping[str, int], keys: Iterable[Key]) -> float:
    """Floating-point operations of the elimination; `sizes` in its order."""
    total = 0.0
    for name, later in fill_in(sizes, keys).items():
        n, others = sizes[name], sum(sizes[b] for b in later)
        total += n**3 / 3 + n**2 * others + n * others * (others + 1)
    return total


class BlockMatrix:
    """A batch of F Hermitian matrices by their blocks, each the exact one up to the `radius` (F,).

    Blocks are block diagonal themselves, shape (F, g, r, c), and held once, rows before columns in
    the order of elimination; what is not held is zero.
    """

    def __init__(self, sizes: Mapping[str, int], batch: int, dtype: torch.dtype) -> None:
        self.sizes = dict(sizes)
        self.place = {name: i for i, name in enumerate(sizes)}
        self.batch, self.dtype = batch, dtype
        self.blocks: dict[Key, Tensor] = {}
        self.radius = torch.zeros(batch, dtype=torch.float64)

    def identity(self, name: str) -> Enclosure:
        """The identity of a variable, as 1×1 blocks."""
        return Enclosure.exact(torch.ones(self.batch, self.sizes[name], 1, 1, dtype=self.dtype))

    def add(self, row: str, column: str, block: Enclosure) -> None:
        """Add a block, and its adjoint at the mirrored place if that is another."""
        if self.place[row] > self.place[column]:
            row, column, block = column, row, block.adjoint
        known = self.blocks.get((row, column))
        if known is None:
            self.blocks[row, column] = block.mid
        else:
            one, other = aligned(known, block.mid)
            self.blocks[row, column] = total = one + other
            self.radius += 2 * UNIT * frobenius(total)
        self.radius += block.radius * (1 + gamma(8))

    def margin(self, added: float) -> Tensor:
        """The δ (F,) by which a factorisation of M + added·I (on the last variable) − δI proves M + added·I ≽ 0."""
        last = next(reversed(self.sizes))
        traces: dict[str, Tensor] = {}
        for name, size in self.sizes.items():
            own = self.blocks.get((name, name))
            trace = self.radius.new_zeros(self.batch)
            if own is not None:
                trace = own.diagonal(dim1=2, dim2=3).real.abs().sum((1, 2))
            traces[name] = trace + (added * size if name == last else 0.0)
        touching: dict[str, list[str]] = {name: [name] for name in self.sizes}
        products = dict(self.sizes)
        for name, later in fill_in(self.sizes, self.blocks).items():
            touching[name] += later
            for other in later:
                touching[other].append(name)
                products[other] += self.sizes[name]
        sums = [
            traces[a].sqrt() * torch.stack([traces[b].sqrt() for b in others]).sum(0)
            for a, others in touching.items()
        ]
        norm = torch.minimum(torch.stack(sums).amax(0), torch.stack(list(traces.values())).sum(0))
        # Twice the products: the diagonal is a sum itself, with the shift and what is added.
        count = 2 * max(products.values()) + 32
        # Only one triangle of a diagonal block is read, so an error there counts √2 times.
        delta = 1.5 * self.radius + COMPLEX_FACTOR * gamma(count) * norm
        delta = delta * (1 + gamma(64 + len(self.sizes)))
        return torch.where(delta.isfinite(), delta, math.inf)

    def reduced(self, delta: Tensor) -> Tensor | None:
        """The Schur complement of M − δI on the last variable, (F, g, r, r); None if M − δI is not positive.

        The blocks are used up.
        """
        last = next(reversed(self.sizes))
        shift = delta.reshape(-1, 1, 1, 1)
        for name, later in fill_in(self.sizes, self.blocks).items():
            own = self.blocks.pop((name, name), None)
            if own is None:
                own = torch.zeros(self.batch, self.sizes[name], 1, 1, dtype=self.dtype)
            own = own - shift * torch.eye(own.shape[-1], dtype=self.dtype)
            if name == last:
                return own
            rows = {b: self.blocks.pop((name, b)) for b in later}
            groups = min([own.shape[1], *(row.shape[1] for row in rows.values())])
            factor, info = torch.linalg.cholesky_ex(regroup(own, groups))
            if bool(info.any()):
                return None
            for b, row in rows.items():
                rows[b] = torch.linalg.solve_triangular(factor, regroup(row, groups), upper=False)
            for i, a in enumerate(later):
                for b in later[i:]:
                    known, update = self.blocks.get((a, b)), rows[a].mH @ rows[b]
                    if known is None:
                        self.blocks[a, b] = -update
                    else:
                        known, update = aligned(known, update)
                        self.blocks[a, b] = known - update
        raise AssertionError("no variables")


def definite(matrix: Tensor, added: float) -> bool:
    """Whether Cholesky factorises every (F, g, r, r) + added·I."""
    shifted = matrix + added * torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return not bool(torch.linalg.cholesky_ex(shifted).info.any())
