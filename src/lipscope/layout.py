"""Where a traced tensor keeps the batch.

Models move the batch (token-first attention) and fold it with other dimensions (windows as further
samples: (B, n, *s) viewed as (B·n, *s)). A layer always sees (B, *s); a `Layout` says how the tensor of
the traced program differs from that.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A traced tensor whose dimension `axis` is the batch or, if `folded`, runs over (sample, entry).

    With `fastest` it runs over (entry, sample): from one entry to the next the batch is the fastest. Its
    per-sample shape leaves the batch out; entries that are folded with it stay as a dimension.
    """

    axis: int = 0
    folded: bool = False
    fastest: bool = False

    @property
    def plain(self) -> bool:
        """Whether the batch is the first dimension, alone."""
        return self == PLAIN

    def per_sample(self, traced: Shape, batch: int) -> Shape:
        """The shape of one sample."""
        middle = (traced[self.axis] // batch,) if self.folded else ()
        return (*traced[: self.axis], *middle, *traced[self.axis + 1 :])

    def rank(self, sample: Shape) -> int:
        """The number of dimensions of the traced tensor."""
        return len(sample) + (not self.folded)

    def place(self, dim: int) -> int | None:
        """The per-sample axis that a dimension of the traced tensor is; None for the batch alone."""
        if self.folded or dim < self.axis:
            return dim
        return None if dim == self.axis else dim - 1

    def enter(self, x: Tensor) -> Tensor:
        """(B, *s) as the traced program has it."""
        moved = x.movedim(0, self.axis + self.fastest)
        return moved.flatten(self.axis, self.axis + 1) if self.folded else moved

    def leave(self, traced: Tensor, batch: int) -> Tensor:
        """The traced program's tensor as (B, *s); the inverse of `enter`."""
        return self.opened(traced, batch).movedim(self.axis + self.fastest, 0)

    def opened(self, traced: Tensor, batch: int) -> Tensor:
        """The traced tensor with the batch in a dimension of its own, `axis + fastest`."""
        sizes = (-1, batch) if self.fastest else (batch, -1)
        return traced.unflatten(self.axis, sizes) if self.folded else traced


PLAIN = Layout()
"""(B, *s) itself."""
