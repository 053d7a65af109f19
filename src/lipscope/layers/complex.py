"""Complex signals: carried as real ones whose last axis holds the real and the imaginary part.

Fourier transforms, products with constants, sums and the modulus: what scattering networks are made of. Any other
operation on a complex signal is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..rounding import gamma, up, up_product, up_root
from .activation import LeakyReLU
from .aggregation import norm_pool
from .base import Layer, LinearLayer, Reference, Shape, TracedCall, torch_rule
from .copies import Copies

_TRANSFORMS: dict[str, Callable[..., Tensor]] = {
    "fft": torch.fft.fftn,
    "ifft": torch.fft.ifftn,
    "rfft": torch.fft.rfftn,
    "irfft": torch.fft.irfftn,
}


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous())


@dataclass(eq=False)
class Fourier(LinearLayer):
    """A discrete Fourier transform over per-sample axes of the lengths `sizes`, of one of four kinds.

    `fft` and `ifft` take complex signals to complex ones, `rfft` real ones to the non-negative
    frequencies of the last axis, and `irfft` those back; `normalisation` is torch's ("backward", …).
    """

    kind = "Fourier transform"
    transform: str
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    normalisation: str
    source: Shape

    def apply(self, *vs: Tensor) -> Tensor:
        x = vs[0] if self.transform == "rfft" else _complex(vs[0])
        dims = [axis + 1 for axis in self.axes]
        y = _TRANSFORMS[self.transform](x, self.sizes, dims, self.normalisation)
        return y if self.transform == "irfft" else torch.view_as_real(y)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        """By differentiation, which transposes each step of a linear map."""
        zeros = u.new_zeros(len(u), *self.source)
        pull = torch.func.vjp(self.apply, zeros)[1]
        return (pull(u)[0],)

    def norm(self, shapes: Sequence[Shape]) -> float:
        """√n times the scale of the normalisation, the norm of the whole unitary transform.

        `rfft` is its restriction to real signals and some frequencies. `irfft` first completes the
        spectrum by conjugates, which at most doubles the energy.
        """
        count = math.prod(self.sizes)
        inverse = self.transform in ("ifft", "irfft")
        scaled = {"backward": inverse, "forward": not inverse, "ortho": None}[self.normalisation]
        value = 1.0 if scaled is None else up(1 / math.sqrt(count), 2) if scaled else up_root(count)
        return up_product(value, up_root(2)) if self.transform == "irfft" else value

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> LinearLayer:
        """The entries themselves if they are few, else their largest modulus in place of each."""
        (shape,) = shapes
        if self.matrix(shape) is not None:
            return super().magnitudes(shapes, power)
        # √n·|entry| is the norm of the unitary transform; completed by conjugates, a part may count twice.
        largest = up_product(self.norm(shapes), up(1 / math.sqrt(math.prod(self.sizes)), 4))
        if self.transform == "irfft":
            largest = up_product(largest, up_root(2))
        target = tuple(self.apply(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
        parts = self.transform != "rfft", self.transform != "irfft"
        return _Spread(up(largest**power, 2), self.axes, (shape, target), parts)

    def rounding(self, shapes: Sequence[Shape], target: Shape) -> float:
        # Each output is a sum over all inputs of an axis; twiddle factors are rounded too.
        return gamma(64 * sum(self.sizes) + 64)


@dataclass(eq=False)
class _Spread(LinearLayer):
    """`factor` times the sum along per-sample `axes`, given to every place along them.

    `shapes` are those of input and output, `parts` whether each ends with real and imaginary parts: they are
    summed, and given to, likewise.
    """

    kind = "sum"
    factor: float
    axes: tuple[int, ...]
    shapes: tuple[Shape, Shape]
    parts: tuple[bool, bool]

    def apply(self, *vs: Tensor) -> Tensor:
        total = vs[0].sum([axis + 1 for axis in self.axes], keepdim=True)
        if self.parts[0]:
            total = total.sum(-1)
        if self.parts[1]:
            total = total.unsqueeze(-1)
        return self.factor * total.expand(-1, *self.shapes[1])

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return (replace(self, shapes=self.shapes[::-1], parts=self.parts[::-1]).apply(u),)


@dataclass(eq=False)
class ComplexScaling(LinearLayer):
    """y = factor·x entrywise, with complex numbers as pairs: `factor` (…, 2) broadcasts against (*s, 2)."""

    kind = "complex scaling"
    factor: Tensor

    def apply(self, *vs: Tensor) -> Tensor:
        return torch.view_as_real(_complex(vs[0]) * _complex(self.factor))

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return (torch.view_as_real(_complex(u) * _complex(self.factor).conj()),)

    def magnitudes(self, shapes: Sequence[Shape], power: int = 1) -> LinearLayer:
        """A real factor for each part, and the parts exchanged: |a|·x ± |b|·y."""
        return _Blocks(self.factor.abs() ** power)

    def norm(self, shapes: Sequence[Shape]) -> float:
        """The largest modulus."""
        return up(float(_complex(self.factor).abs().max()), 8)


def _as_complex(shape: Shape) -> Copies:
    """A real signal with imaginary parts 0."""
    count = math.prod(shape)
    cells = torch.stack([torch.arange(count), torch.full((count,), count)], -1)
    return Copies(shape, cells.reshape(*shape, 2))


@dataclass(eq=False)
class _Blocks(LinearLayer):
    """(x, y) ↦ (a·x + b·y, b·x + a·y) for pairs along the last axis, with `factor` (…, 2) = (a, b)."""

    kind = "blocks"
    factor: Tensor

    def apply(self, *vs: Tensor) -> Tensor:
        a, b = self.factor[..., :1], self.factor[..., 1:]
        return a * vs[0] + b * vs[0].flip(-1)

    def transpose(self, u: Tensor) -> tuple[Tensor, ...]:
        return (self.apply(u),)


@torch_rule(
    *(f"aten.fft_{name}{dims}.default" for name in _TRANSFORMS for dims in ("", "2", "n")),
    complex_signals=True,
)
def _fourier(call: TracedCall) -> Reference:
    (x,) = call.references
    name = call.op.removeprefix("aten.fft_").removesuffix(".default").rstrip("2")
    several = call.op.endswith(("2.default", "fftn.default"))
    name = name.removesuffix("n") if several else name
    if name in ("fft", "ifft") and not x.complex:
        x = call.apply(_as_complex(x.shape), x)
    signal = x.shape[:-1] if x.complex or name in ("fft", "ifft") else x.shape
    dims: Any = call.arg(2, "dim", (-2, -1) if call.op.endswith("2.default") else -1)
    if dims is None:
        raise call.unsupported("give the dimensions that it transforms")
    axes = tuple(d % (len(signal) + 1) - 1 for d in ([dims] if isinstance(dims, int) else dims))
    if -1 in axes:
        raise call.unsupported("it transforms the batch")
    # A half spectrum of m frequencies is that of a signal of 2m − 2 or 2m − 1 entries.
    sizes = [call.out_shape[a] if name == "irfft" else signal[a] for a in axes]
    kept = sizes[-1] // 2 + 1 if name == "irfft" else sizes[-1]
    given = call.arg(1, "s" if several else "n")
    given = sizes if given is None else [given] if isinstance(given, int) else list(given)
    if given != sizes or kept != signal[axes[-1]]:
        raise call.unsupported("it pads or trims the signal")
    return call.apply(Fourier(name, axes, tuple(sizes), call.arg(3, "norm") or "backward", x.shape), x)


@torch_rule("aten.view_as_real.default", "aten.view_as_complex.default", complex_signals=True)
def _view(call: TracedCall) -> Sequence[Layer]:
    return []


@torch_rule("aten.abs.default", complex_signals=True)
def _modulus(call: TracedCall) -> Sequence[Layer]:
    (x,) = call.references
    return [norm_pool(2.0, (len(x.shape) - 1,), False, x.shape)] if x.complex else [LeakyReLU(-1.0)]


def complex_product(call: TracedCall) -> Reference:
    """A signal times a constant, at least one of them complex."""
    if len(call.references) != 1 or call.op.startswith("aten.div"):
        raise call.unsupported("a complex signal can be multiplied by a constant only")
    (x,) = call.references
    constant = next(torch.as_tensor(a) for a in call.args[:2] if not isinstance(a, Reference))
    constant = call.per_sample(constant)
    if not x.complex:
        x = call.apply(_as_complex(x.shape), x)
    if x.shape[:-1] != call.out_shape:
        raise call.unsupported("it broadcasts a complex signal")
    return call.apply(ComplexScaling(torch.view_as_real(constant.to(torch.complex128).contiguous())), x)
