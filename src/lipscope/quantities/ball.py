"""The certified Lipschitz constant over a ball of inputs: the least that several proofs give."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ..certificates import SMALLER_BALL, no_bound
from ..graph import Graph
from ..propagation import (
    DEFAULT_BUDGET,
    BallNorm,
    InputBall,
    LocalSlopes,
    Region,
    layer_constants,
    local_slopes,
    propagate,
)
from ..results import Ball, Cost, NoBound, Norm, OpenUnits
from .local_proofs import PROOFS, LocalProblem
from .operator_product import product_bound


def ball(
    graph: Graph,
    center: Tensor,
    radius: float,
    *,
    ball_norm: BallNorm = "2",
    norm: Norm = "2",
    budget: float = DEFAULT_BUDGET,
    seconds: float = 10.0,
    constants: Sequence[float] | None = None,
) -> Ball:
    """Certified upper bound of the Lipschitz constant on the ball ‖x − center‖ ≤ radius.

    Bounds of all values over the ball (`propagation`) give the slopes that activations and max
    pooling can take there; every proof of `local_proofs.PROOFS` bounds the network under such
    slopes, and the least counts. It is never above the global product bound in the same norm, and
    finite for many networks that have none: layers without a constant have one where values are bounded.
    Offsets are taken as the graph stores them.

    Args:
        graph: the network.
        center: shape *in or (1, *in), finite.
        radius: ≥ 0; 0 bounds every Jacobian at the centre, infinity gives a bound for the whole space.
        ball_norm: "2" or "inf", the norm of the ball.
        norm: "1", "2" or "inf": the norm of inputs and of outputs that the constant refers to.
        budget: multiplications that linear relaxation may take, and again the interval Jacobian.
        seconds: for the quadratic certificate to improve on its closed-form start.
        constants: those of `propagation.layer_constants`, to share between balls of one network.

    Raises:
        ValueError: a wrong centre, radius or norm.
        CertificateError: a layer's norm cannot be proved.

    Source: of the slopes, H. Zhang et al. (2018); of the proofs, named beside them in `local_proofs.py`.
    """
    started = time.perf_counter()
    if norm not in ("1", "2", "inf"):
        raise ValueError(f"the norm is '1', '2' or 'inf', not {norm!r}")
    region = InputBall.around(center, graph.input_shape, radius, ball_norm)
    exact = graph.to(torch.float64)
    constants = layer_constants(exact) if constants is None else constants
    regions = propagate(exact, region, budget, constants)
    slopes = local_slopes(exact, regions)
    problem = LocalProblem(exact, slopes, norm, constants, budget, seconds)
    global_bound = product_bound(exact, norm, constants)
    bounds = {"global product bound": global_bound} | {name: prove(problem) for name, prove in PROOFS.items()}
    best = min(bounds, key=bounds.__getitem__)
    return Ball(
        name="ball",
        value=bounds[best],
        method=best,
        source="slopes by interval bounds, distances and linear relaxation (Zhang et al. 2018)",
        cost=Cost(seconds=time.perf_counter() - started),
        center=center_digest(region.center),
        radius=region.radius,
        ball_norm=ball_norm,
        norm=norm,
        global_bound=global_bound,
        no_bound=_no_bound(exact, regions, slopes, norm) if math.isinf(bounds[best]) else None,
        proofs={name: bound for name, bound in bounds.items() if bound < math.inf},
        open_units=[
            OpenUnits(
                place=exact.nodes[i].place,
                layer=layer.kind,
                units=math.prod(exact.nodes[i].shape),
                open=slopes.open_units(exact, i),
            )
            for i, layer in exact.nonlinear().items()
        ],
    )


def center_digest(center: Tensor) -> str:
    """SHA-256 of a centre's values in float64, in any shape and on any device: what records and identities know it by."""
    values = center.detach().to("cpu", torch.float64).contiguous()
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def _no_bound(graph: Graph, regions: Sequence[Region], slopes: LocalSlopes, norm: Norm) -> NoBound:
    """Which layers have no constant over the ball; a layer whose input is one point there is not to blame."""
    blamed = [
        index
        for index, layer in graph.nonlinear().items()
        if regions[graph.nodes[index].inputs[0]].distance > 0
        and math.isinf(layer.local_lipschitz(norm, slopes.hull[index], graph.shapes_into(index)[0]))
    ]
    return no_bound(graph, blamed, SMALLER_BALL)
