"""Lip(x) = σ_max(J(x)) over a data set, and the largest as an attained lower bound."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph
from ..jacobian import linearize
from ..progress import Progress, silent
from ..results import Cost, Local
from ..spectral import spectral_norm
from .checkpoint import Checkpoint, no_checkpoint
from .witness import Pair, pair_along

if TYPE_CHECKING:
    from ..data import Samples

_REFINED = 3
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def local(
    graph: Graph,
    samples: Samples,
    *,
    tolerance: float = 1e-3,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Checkpoint = no_checkpoint,
) -> tuple[Local, Pair]:
    """Lip(x) at every sample, and a witness for the largest.

    Each Lip(x) is the spectral norm of the Jacobian with the slopes at x, an estimate from below.
    The largest few are refined in float64, and a pair of inputs on the line through x along the
    leading right singular vector gives the reported lower bound of the global constant.

    Args:
        graph: the network.
        samples: N ≥ 1 inputs.
        tolerance: relative accuracy of the estimates.
        batch_size: samples whose Jacobians are treated at once.
        dtype, device: of the estimates; the witness is evaluated in float64 on the CPU.
        seed: of the solver's random start.

    Returns:
        The result and the witness pair.

    Source: Zou, Balan, Singh (2020), local Lipschitz constant; DESIGN section 1.
    """
    started = time.perf_counter()
    working = graph.to(dtype, device)
    count = len(samples)
    values, errors = np.zeros(count), np.zeros(count)
    directions: dict[int, Tensor] = {}
    products = done = 0
    if (saved := checkpoint.load("local")) is not None:
        done, products = int(saved["done"]), int(saved["products"])
        values[:done], errors[:done] = saved["values"][:done], saved["errors"][:done]
        directions = dict(zip(saved["best"].tolist(), torch.from_numpy(saved["directions"]), strict=True))
    while done < count:
        indices = range(done, min(done + batch_size, count))
        x = samples.batch(indices).to(device, dtype)
        _, slopes = working.linearize_at(x)
        found = spectral_norm(
            linearize(working, slopes, len(indices)),
            tolerance=tolerance,
            seed=seed,
            dtype=dtype,
            device=device,
        )
        values[indices.start : indices.stop] = found.value.double().cpu().numpy()
        errors[indices.start : indices.stop] = found.error.double().cpu().numpy()
        directions.update(zip(indices, found.right.cpu(), strict=True))
        done = indices.stop
        products += found.steps * len(indices)
        kept = np.argsort(-(values + errors)[:done], kind="stable")[:_REFINED].tolist()
        directions = {i: directions[i] for i in kept}
        checkpoint.save(
            "local",
            done=np.array(done),
            products=np.array(products),
            values=values,
            errors=errors,
            best=np.array(kept),
            directions=torch.stack([directions[i] for i in kept]).numpy(),
        )
        progress("local", done, count)
    pair = _refine(graph, samples, directions, values)
    return (
        Local(
            name="local",
            value=pair.bound,
            method="largest σ_max(J(x)) over the samples by Lanczos; attained by a pair along its singular vector",
            source="Zou, Balan, Singh 2020: Lip(x) = σ_max(∏ D_k(x) T_k)",
            cost=Cost(seconds=time.perf_counter() - started, forward_passes=float(2 * products + count)),
            witness=pair.witness("local"),
            estimates=values.tolist(),
            samples=list(samples.names),
            mean=float(values.mean()),
            std=float(values.std(ddof=1)) if count > 1 else 0.0,
            quantiles={f"{q:g}": float(np.quantile(values, q)) for q in _QUANTILES},
            relative_error=float((errors / np.maximum(values, 1e-300)).max()),
        ),
        pair,
    )


def _refine(graph: Graph, samples: Samples, directions: dict[int, Tensor], values: np.ndarray) -> Pair:
    """Sharpen the leading candidates in float64; keep the best attained pair."""
    exact = graph.to(torch.float64, "cpu")
    for index, direction in directions.items():
        _, slopes = exact.linearize_at(samples.batch([index]).to("cpu", torch.float64))
        # Random vectors beside the warm start find a larger singular value that it may have missed.
        start = direction[None, None]
        found = spectral_norm(linearize(exact, slopes), tolerance=1e-9, start=start, block=3, max_steps=60)
        values[index], directions[index] = float(found.value), found.right[0]
    best: Pair | None = None
    for index in sorted(directions, key=lambda i: -values[i]):
        # Only where a formal Jacobian is not attained (at a kink) does a later candidate come into play.
        if best is None or best.bound < values[index]:
            pair = pair_along(exact, samples.batch([index])[0], directions[index], samples.names[index])
            best = pair if best is None or pair.bound > best.bound else best
    assert best is not None
    return best
