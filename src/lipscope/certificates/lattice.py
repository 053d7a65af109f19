"""Tensors of a convolutional network on one hierarchy of tori, split by frequency.

A translation-invariant layer acts on each frequency alone, except that a stride s folds the
s^d frequencies that agree on the coarser lattice (aliases) into one. With N base cells a
dimension, the tensor at level m (m·N cells) has, for every base frequency, m^d aliases; so a whole
network is one block of (aliases × channels) per base frequency.

Alias order is hierarchical, coarse digits first, so that the blocks of a coarser level are
contiguous: grouping is a reshape. Frequencies may be shifted by half a step (a twist: modulating
every tensor by one character is unitary). Discrete Fourier transforms are unitary throughout.

Source: multirate (polyphase, alias component) analysis of filter banks; `certified.py` for twists.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.base import Filter
from ..rounding import COMPLEX_FACTOR, UNIT, gamma
from .enclosure import Enclosure, frobenius

Level = tuple[int, ...]
"""Cells of a tensor's torus over cells of the base torus, one integer a dimension."""

_PHASE_ERROR = 32 * UNIT
"""An angle below 2π from an exactly reduced integer, its sine and cosine: within 32u of the exact phase."""


@dataclass(frozen=True)
class Lattice:
    """The hierarchy: `base` cells a dimension, the `levels` in use from coarse to fine, and the twist.

    Each level divides the next. `twist` holds 0 or 1 a dimension: frequencies are m + twist/2.
    """

    base: tuple[int, ...]
    levels: tuple[Level, ...]
    twist: tuple[int, ...]

    def aliases(self, level: Level) -> int:
        """Aliases of one base frequency at a level."""
        return math.prod(level)

    def frequencies(self) -> Tensor:
        """Doubled base frequencies 2m + twist, shape (F, d); of f and −f only one, as weights are real."""
        kept = []
        for m in itertools.product(*(range(n) for n in self.base)):
            opposite = tuple((-k - t) % n for k, t, n in zip(m, self.twist, self.base, strict=True))
            if m <= opposite:
                kept.append([2 * k + t for k, t in zip(m, self.twist, strict=True)])
        return torch.tensor(kept, dtype=torch.int64)

    def at_level(self, doubled: Tensor, level: Level) -> Tensor:
        """Doubled frequencies of all aliases on the torus of a level, shape (F, aliases, d)."""
        found = doubled.unsqueeze(1)
        reached = (1,) * len(self.base)
        for following in self.levels:
            if reached == level:
                break
            steps = [range(f // r) for f, r in zip(following, reached, strict=True)]
            shift = torch.tensor(list(itertools.product(*steps)), dtype=torch.int64)
            period = torch.tensor([2 * n * r for n, r in zip(self.base, reached, strict=True)])
            found = (found.unsqueeze(2) + shift * period).flatten(1, 2)
            reached = following
        return found

    def phases(self, doubled: Tensor, level: Level, offsets: Sequence[Sequence[int]]) -> Tensor:
        """exp(2πi f·offset / cells) for doubled frequencies (…, d) of a level; shape (…, offsets)."""
        # The angle in units of π/∏cells is an integer, so it is reduced exactly.
        cells = [n * m for n, m in zip(self.base, level, strict=True)]
        whole = math.lcm(*cells)
        weights = torch.tensor([whole // n for n in cells])
        turns = (doubled * weights) @ torch.tensor(offsets, dtype=torch.int64).reshape(-1, len(cells)).T
        angle = turns.remainder(2 * whole).to(torch.float64) * (math.pi / whole)
        return torch.polar(torch.ones_like(angle), angle)

    def symbol(self, filter: Filter, doubled: Tensor, fine: Level, coarse: Level) -> Enclosure:
        """The filter as matrices (F, aliases of coarse, c_out, s^d·c_in), or its adjoint if transposed.

        `fine` is the level of the filter's input (of its output, if transposed), `coarse` that of the other.
        """
        frequencies = self.at_level(doubled, fine)
        phases = self.phases(frequencies, fine, filter.offsets)
        taps = filter.taps.to(torch.float64)
        count, c_out, c_in = taps.shape
        folded = math.prod(filter.stride)
        symbol = torch.tensordot(phases, taps.to(torch.complex128), dims=([-1], [0]))
        symbol = symbol.reshape(len(doubled), self.aliases(coarse), folded, c_out, c_in)
        mid = symbol.transpose(2, 3).reshape(len(doubled), self.aliases(coarse), c_out, folded * c_in)
        if folded > 1:
            mid = mid / math.sqrt(folded)
        sizes = float(frobenius(taps).sum()) * (1 + gamma(count + 4))
        relative = _PHASE_ERROR + COMPLEX_FACTOR * gamma(count + 6) + 2 * filter.relative_error
        # Each of the aliases·s^d symbols errs by relative·Σ‖W_j‖_F before it is divided by √s^d.
        radius = 2 * relative * sizes * math.sqrt(self.aliases(coarse))
        enclosed = Enclosure(mid, torch.full((len(doubled),), radius, dtype=torch.float64))
        return enclosed.adjoint if filter.transposed else enclosed
