"""Tails of a network's outputs under noise: the job behind `lipscope concentration`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..graph import Graph
from ..progress import Progress, silent
from ..quantities import concentration
from ..quantities.ball import center_digest
from ..quantities.concentration import NoiseBound, noise_ball
from ..results import Concentration, ConcentrationReport
from ..results.concentration import Law
from .folder import CONCENTRATION
from .stages import (
    AnyEffort,
    Kept,
    Stages,
    Start,
    analytical_in,
    certify_in,
    check_device,
    completed,
    identity,
    model_info,
    network,
    provenance,
)


@dataclass(frozen=True)
class Noise:
    """Independent entries of a law, standard deviation `sigma`, about `center` (*in), which came from `name`."""

    center: Tensor
    sigma: float
    law: Law = "gaussian"
    name: str = "tensor"


def noise_tails(
    module: nn.Module | Graph,
    noise: Noise,
    *,
    effort: AnyEffort = "none",
    seconds: float | None = None,
    in_ball: bool = False,
    draws: int = 2000,
    batch_size: int = 32,
    output: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> ConcentrationReport:
    """Proved and measured tails, resting on the least certified constant that is found.

    Args:
        module: a torch module from one tensor (batch, *input_shape) to one tensor, or a `Graph`.
        noise: what the input is.
        effort, seconds: time for a certificate, as for `analyze`; "none" skips it.
        in_ball: also certify the constant in a ball that the noise hardly leaves.
        draws: of the noise, behind the measured tails.
        batch_size: draws evaluated at once.
        output: run folder for concentration.json, its page, the certificate and the centre (`concentration.center`).
        name: the model's name in the result.
        seed: of the draws.
        device: where the network is evaluated.
        progress: called with (stage, done, total).

    Raises:
        ModelError: the model cannot be imported (`UnsupportedLayerError` names the layer).
        DataError: the centre does not fit the model.
        RunFolderError: the folder cannot be used.
        CertificateError: a bound cannot be proved.
        ValueError: a number is not positive.
    """
    start = Start.now()
    check_device(device)
    graph = network(module, tuple(noise.center.shape))
    if tuple(noise.center.shape) != graph.input_shape:
        raise DataError(f"the centre has shape {tuple(noise.center.shape)}, the input {graph.input_shape}")

    def key() -> dict[str, Any]:
        asked = asdict(noise) | {"center": center_digest(noise.center)}
        return identity(graph, None, (asked, effort, seconds, in_ball, draws, batch_size, seed, device))

    def run(stages: Stages) -> ConcentrationReport:
        def tails() -> tuple[Concentration, Kept]:
            bounds = _bounds(graph, noise, effort, seconds, in_ball, stages)
            best = min(bounds, key=lambda found: found.bound.value)
            found = concentration(
                graph, noise.center, noise.sigma, law=noise.law, bound=best, draws=draws,
                batch_size=batch_size, device=device, seed=seed, progress=stages.progress,
            )  # fmt: skip
            # The centre is kept, so that a bound in the ball about it can be checked again.
            return found, {"center": noise.center.detach().to("cpu", torch.float64)}

        return ConcentrationReport(
            model=model_info(graph, name or type(module).__name__),
            center=noise.name,
            concentration=stages.once("concentration", Concentration, tails),
            provenance=provenance(start, seed, device),
        )

    return completed(output, key, ConcentrationReport, CONCENTRATION, run, progress)


def _bounds(
    graph: Graph, noise: Noise, effort: AnyEffort, seconds: float | None, in_ball: bool, stages: Stages
) -> Iterator[NoiseBound]:
    """The certified constants that were asked for."""
    yield NoiseBound(analytical_in(stages, graph))
    if effort != "none":
        yield NoiseBound(certify_in(stages, graph, effort, seconds))
    if in_ball:
        yield noise_ball(graph, noise.center, noise.sigma, noise.law)
