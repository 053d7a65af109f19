"""The bracket lower ≤ L ≤ upper of a network without data: globally or over a ball, in three norms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import DataError, LipscopeError
from ..graph import Graph
from ..progress import Progress, silent
from ..quantities import ascent, ball, exact, operator_product
from ..quantities.ball import center_digest
from ..results import (
    Analytical,
    Attained,
    Ball,
    BallInfo,
    Bracket,
    Certified,
    Exact,
    Norm,
    OperatorProduct,
)
from .folder import BRACKET
from .stages import (
    ASCENT_STEPS,
    AnyEffort,
    Stages,
    Start,
    analytical_in,
    certify_in,
    completed,
    identity,
    model_info,
    network,
    provenance,
)

_EXACT_UNITS = 60
_EXACT_SECONDS = {"none": 0.0, "fast": 10.0, "balanced": 60.0, "tight": 600.0}


@dataclass(frozen=True)
class BallOptions:
    """A ball ‖x − center‖ ≤ radius in the norm "2" or "inf"; `center` (*in), `name` says where it came from."""

    center: Tensor
    radius: float
    norm: Literal["2", "inf"] = "2"
    name: str = "tensor"


def bracket(
    module: nn.Module | Graph,
    input_shape: tuple[int, ...] | None = None,
    *,
    norm: Norm = "2",
    over: BallOptions | None = None,
    effort: AnyEffort = "balanced",
    seconds: float | None = None,
    search: bool | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Bracket:
    """Certified and attained bounds of a network's Lipschitz constant, without data.

    Args:
        module: a torch module from one tensor (batch, *input_shape) to one tensor, or a `Graph`.
        input_shape: per-sample shape; not needed for a `Graph`.
        norm: ℓ_q of inputs and outputs, "2", "1" or "inf".
        over: a ball of inputs; None for the whole space.
        effort, seconds: time for the certificate, as for `analyze`.
        search: whether to search for the exact constant by branch and bound; by default for networks of
            few piecewise-linear units.
        output: run folder for bracket.json, the certificate and the witnesses.
        name: the model's name in the result.
        seed: of all random choices.
        progress: called with (stage, done, total).

    Returns:
        All bounds, each with kind, cost and witness; `lower` and `upper` are the best of them.

    Raises:
        ModelError: the model cannot be imported (`UnsupportedLayerError` names the layer).
        DataError: the ball does not fit the model.
        RunFolderError: the folder cannot be used.
        CertificateError: a bound cannot be proved.
    """
    if norm not in get_args(Norm):
        raise ValueError(f'the norm is "2", "1" or "inf", not {norm!r}')
    start = Start.now()
    graph = network(module, input_shape)
    if over is not None and tuple(over.center.shape) != graph.input_shape:
        raise DataError(
            f"the ball's centre has shape {tuple(over.center.shape)}, the input {graph.input_shape}"
        )
    if over is not None and not over.radius >= 0:
        raise DataError(f"the ball's radius is {over.radius}; it must not be negative")
    if over is not None and not bool(over.center.isfinite().all()):
        raise DataError("the ball's centre holds a NaN or an infinity")
    request = _Request(graph, norm, over, effort, seconds, search, seed)

    def run(stages: Stages) -> Bracket:
        return Bracket(
            model=model_info(graph, name or type(module).__name__),
            norm=norm,
            ball=None if over is None else BallInfo(center=over.name, radius=over.radius, norm=over.norm),
            bounds=[stages.filed(bound) for bound in _bounds(request, stages)],
            provenance=provenance(start, seed),
        )

    return completed(output, request.identity, Bracket, BRACKET, run, progress)


@dataclass(frozen=True)
class _Request:
    graph: Graph
    norm: Norm
    over: BallOptions | None
    effort: AnyEffort
    seconds: float | None
    search: bool | None
    seed: int

    def identity(self) -> dict[str, Any]:
        """What decides the result."""
        ball = self.over and asdict(self.over) | {"center": center_digest(self.over.center)}
        asked = (self.norm, ball, self.effort, self.seconds, self.search, self.seed)
        return identity(self.graph, None, asked)

    @property
    def region(self) -> dict[str, Any]:
        """The ball as the quantities take it."""
        if self.over is None:
            return {}
        return {"center": self.over.center, "radius": self.over.radius, "ball_norm": self.over.norm}

    @property
    def centre(self) -> dict[str, Tensor]:
        """The ball's centre in float64, kept beside the bounds over it so that they can be checked again."""
        assert self.over is not None
        return {"center": self.over.center.detach().to("cpu", torch.float64)}


Bound = Analytical | Certified | OperatorProduct | Ball | Attained | Exact


def _bounds(request: _Request, stages: Stages) -> Iterator[Bound]:
    graph, norm, effort = request.graph, request.norm, request.effort
    if norm == "2":
        yield analytical_in(stages, graph)
        if effort != "none":
            yield certify_in(stages, graph, effort, request.seconds)
    else:
        yield stages.once("product", OperatorProduct, lambda: (operator_product(graph, norm), None))
    if request.over is not None:
        yield stages.once("ball", Ball, lambda: (ball(graph, norm=norm, **request.region), request.centre))
    yield stages.once(
        "ascent",
        Attained,
        lambda: ascent(
            graph,
            norm=norm,
            steps=ASCENT_STEPS[effort],
            seed=request.seed,
            progress=stages.progress,
            **request.region,
        ),
    )
    units = sum(math.prod(graph.nodes[index].shape) for index in graph.nonlinear())
    if request.search is False or (request.search is None and units > _EXACT_UNITS):
        return
    try:
        yield stages.once(
            "exact",
            Exact,
            lambda: exact(
                graph,
                norm=norm,
                seconds=_EXACT_SECONDS[effort],
                max_units=_EXACT_UNITS if request.search is None else 10**6,
                seed=request.seed,
                progress=stages.progress,
                **request.region,
            ),
        )
    except LipscopeError:
        # Too many units, or an activation that is not piecewise linear: the other bounds stand.
        if request.search:
            raise
