"""Functions of torch that are kept whole while a module is traced.

Tracing decomposes local response normalisation, power-average pooling, division by the Euclidean norm and
softsign into powers and quotients, which have no global Lipschitz constant although the functions have one,
and the shrinkages into differences and comparisons, whose parts lose it. So while a module is traced,
`torch.nn.functional` holds operators of the `lipscope` library in their place: each computes what the
function computes, and arrives as one operation with an import rule of its own.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..windows import per_dimension

_LP_POOLS: dict[int, Callable[..., Any]] = {
    1: functional.lp_pool1d,
    2: functional.lp_pool2d,
    3: functional.lp_pool3d,
}
_LOCAL_RESPONSE_NORM = functional.local_response_norm
_NORMALIZE: Callable[..., Any] = functional.normalize
_SOFTSHRINK: Callable[..., Tensor] = functional.softshrink


@torch.library.custom_op("lipscope::local_response_norm", mutates_args=())
def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """`functional.local_response_norm`."""
    return _LOCAL_RESPONSE_NORM(x, size, alpha, beta, k)


@local_response_norm.register_fake
def _(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return torch.empty_like(x)


def _pooled(x: Tensor, p: float, kernel: list[int], stride: list[int], ceil_mode: bool) -> Tensor:
    windows = (kernel[0], stride[0]) if len(kernel) == 1 else (kernel, stride)
    pooled: Tensor = _LP_POOLS[len(kernel)](x, p, *windows, ceil_mode)
    return pooled


@torch.library.custom_op("lipscope::lp_pool", mutates_args=())
def lp_pool(x: Tensor, p: float, kernel: list[int], stride: list[int], ceil_mode: bool) -> Tensor:
    """`functional.lp_pool1d`, `lp_pool2d` or `lp_pool3d`, by the length of `kernel`; p is finite."""
    return _pooled(x, p, kernel, stride, ceil_mode)


@lp_pool.register_fake
def _(x: Tensor, p: float, kernel: list[int], stride: list[int], ceil_mode: bool) -> Tensor:
    return _pooled(x, p, kernel, stride, ceil_mode)


@torch.library.custom_op("lipscope::normalize", mutates_args=())
def normalize(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """`functional.normalize` by the Euclidean norm."""
    normalised: Tensor = _NORMALIZE(x, 2.0, tuple(dims), eps)
    return normalised


@normalize.register_fake
def _(x: Tensor, dims: list[int], eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("lipscope::tanhshrink", mutates_args=())
def tanhshrink(input: Tensor) -> Tensor:
    """`functional.tanhshrink`."""
    return input - input.tanh()


@tanhshrink.register_fake
def _(input: Tensor) -> Tensor:
    return torch.empty_like(input)


@torch.library.custom_op("lipscope::softsign", mutates_args=())
def softsign(input: Tensor) -> Tensor:
    """`functional.softsign`."""
    return input / (1 + input.abs())


@softsign.register_fake
def _(input: Tensor) -> Tensor:
    return torch.empty_like(input)


@torch.library.custom_op("lipscope::softshrink", mutates_args=())
def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """`functional.softshrink`."""
    return _SOFTSHRINK(input, lambd)


@softshrink.register_fake
def _(input: Tensor, lambd: float = 0.5) -> Tensor:
    return torch.empty_like(input)


def _kept_local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    kept: Tensor = local_response_norm(input, size, alpha, beta, k)
    return kept


def _kept_lp_pool(dims: int) -> Callable[..., Tensor]:
    def pool(
        input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> Tensor:
        p = float(norm_type)
        kept: Tensor
        if p in (float("inf"), -float("inf")):
            kept = _LP_POOLS[dims](input, p, kernel_size, stride, ceil_mode)
        else:
            kernel = list(per_dimension(kernel_size, dims))
            steps = kernel if stride is None else list(per_dimension(stride, dims))
            kept = lp_pool(input, p, kernel, steps, ceil_mode)
        return kept

    return pool


def _kept_normalize(
    input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    kept: Tensor
    if p != 2 or out is not None or input.is_complex():
        kept = _NORMALIZE(input, p, dim, eps, out)
    else:
        kept = normalize(input, [dim] if isinstance(dim, int) else list(dim), eps)
    return kept


_KEPT: dict[str, Callable[..., Tensor]] = {
    "local_response_norm": _kept_local_response_norm,
    **{f"lp_pool{dims}d": _kept_lp_pool(dims) for dims in _LP_POOLS},
    "normalize": _kept_normalize,
    "tanhshrink": tanhshrink,
    "softsign": softsign,
    "softshrink": softshrink,
}


def _group_sort(input: Tensor, group_size: int | None = None, dim: int = 1) -> Tensor:
    """GroupSort of deel-torchlip by a sort: as maxima beside minima, pairs would count twice (√2 for 1)."""
    length = input.shape[dim]
    size = length if group_size is None or group_size > length else group_size
    if length % size:
        raise ValueError("The input size must be a multiple of the group size.")
    grouped = input.unflatten(dim, (length // size, size))
    in_order: Tensor = grouped.sort(dim + 1)[0].reshape(input.shape)
    return in_order


def _replacements() -> list[tuple[Any, str, Callable[..., Tensor]]]:
    """Where a function stands, its name there, and what takes its place; of other packages only if loaded."""
    found: list[tuple[Any, str, Callable[..., Tensor]]] = [
        (functional, name, kept) for name, kept in _KEPT.items()
    ]
    if (deel := sys.modules.get("deel.torchlip.functional")) is not None:
        found.append((deel, "group_sort", _group_sort))
    return found


_LOCK = threading.RLock()


@contextmanager
def kept_functions() -> Iterator[None]:
    """Inside, and in this thread alone, the functions above are replaced; one thread at a time."""
    with _LOCK:
        thread = threading.get_ident()

        def in_this_thread(
            kept: Callable[..., Tensor], original: Callable[..., Tensor]
        ) -> Callable[..., Tensor]:
            def function(*args: Any, **kwargs: Any) -> Tensor:
                return (kept if threading.get_ident() == thread else original)(*args, **kwargs)

            return function

        replaced = [(home, name, kept, getattr(home, name)) for home, name, kept in _replacements()]
        try:
            for home, name, kept, original in replaced:
                setattr(home, name, in_this_thread(kept, original))
            yield
        finally:
            for home, name, _, original in replaced:
                setattr(home, name, original)
