"""A look into one network: its layers, what each is allowed and what it does, and where the bound loses most."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import ImagePreprocessing, Samples, load_samples
from ..graph import Graph
from ..progress import Progress, silent
from ..quantities import Pair, ascent, local, mean_slopes, slack
from ..results import Analytical, Attained, Inspection, LayerSlope, Local, Slack
from .folder import INSPECTION
from .stages import (
    ASCENT_STEPS,
    AnyEffort,
    Stages,
    Start,
    analytical_in,
    certify_in,
    check_device,
    completed,
    data_info,
    identity,
    model_info,
    network_and_data,
    provenance,
)

SAMPLES = 64
"""The most samples among which the most sensitive is sought."""
_GAUSSIAN = 16
_RANKING = 1e-2
"""Relative accuracy of Lip(x) that suffices to rank samples; the best few are refined."""
_BATCH = 16


def inspect(
    module: nn.Module | Graph,
    input_shape: tuple[int, ...] | None = None,
    data: Any = None,
    *,
    preprocess: ImagePreprocessing | None = None,
    samples: int = SAMPLES,
    effort: AnyEffort = "none",
    seconds: float | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> Inspection:
    """The layers of a network with their certified constants, and each one's share of what the bound loses.

    The loss is measured along the most stretched direction at one point: at the most sensitive of the samples;
    without data, where the ascent ended, or for effort "none" at the steepest of a few Gaussian points.

    Args:
        module: a torch module from one tensor (batch, *input_shape) to one tensor, or a `Graph`.
        input_shape: per-sample shape; not needed for a `Graph`, nor with data.
        data: samples, as for `analyze`.
        preprocess: how images become inputs.
        samples: use at most so many of them, chosen at random.
        effort, seconds: time for the certificate, as for `analyze`; "none" skips it.
        output: run folder for inspect.json, the certificate and the witness.
        name: the model's name in the result.
        seed: of all random choices.
        device: where points are searched; the shares are computed in float64 on the CPU.
        progress: called with (stage, done, total).

    Raises:
        ModelError: the model cannot be imported (`UnsupportedLayerError` names the layer).
        DataError: the data cannot be read or do not fit the model, or there is no input shape.
        RunFolderError: the folder cannot be used.
        CertificateError: a bound cannot be proved.
        ValueError: `samples` is not positive.
    """
    start = Start.now()
    if samples < 1:
        raise ValueError("samples must be positive")
    check_device(device)
    graph, given = network_and_data(module, input_shape, data, preprocess)
    if given is not None and samples < len(given):
        given = given.take(samples, seed)
    job = _Job(graph, given, effort, seconds, seed, device)

    def run(stages: Stages) -> Inspection:
        return job.inspection(stages, name or type(module).__name__, start)

    return completed(output, job.identity, Inspection, INSPECTION, run, progress)


@dataclass(frozen=True)
class _Job:
    graph: Graph
    samples: Samples | None
    effort: AnyEffort
    seconds: float | None
    seed: int
    device: str

    def identity(self) -> dict[str, Any]:
        """What decides the result."""
        asked = ("inspect", self.effort, self.seconds, self.seed, self.device)
        return identity(self.graph, self.samples, asked)

    def inspection(self, stages: Stages, label: str, start: Start) -> Inspection:
        """All parts, computed or read back."""
        effort = self.effort
        bounds = analytical_in(stages, self.graph)
        certified = None if effort == "none" else certify_in(stages, self.graph, effort, self.seconds)
        attained: Local | Attained
        if self.samples is None and effort != "none":
            attained = stages.once("ascent", Attained, lambda: self._ascent(stages.progress))
        else:
            attained = stages.once("local", Local, lambda: self._local(stages.progress))
        lost = stages.once("slack", Slack, lambda: (self._slack(bounds, attained, stages), None))
        return Inspection(
            model=model_info(self.graph, label),
            data=self.samples and data_info(self.samples),
            analytical=bounds,
            certified=certified,
            attained=stages.filed(attained),
            slack=lost,
            provenance=provenance(start, self.seed, self.device),
        )  # fmt: skip

    def _points(self) -> Samples:
        """The samples, or Gaussian points of several sizes."""
        if self.samples is not None:
            return self.samples
        generator = torch.Generator().manual_seed(self.seed)
        sizes = torch.logspace(-1, 0.7, _GAUSSIAN).reshape(-1, *[1] * len(self.graph.input_shape))
        return load_samples(sizes * torch.randn(_GAUSSIAN, *self.graph.input_shape, generator=generator))

    def _local(self, progress: Progress) -> tuple[Local, Pair]:
        return local(
            self.graph, self._points(), tolerance=_RANKING, batch_size=_BATCH, device=self.device,
            seed=self.seed, progress=progress,
        )  # fmt: skip

    def _ascent(self, progress: Progress) -> tuple[Attained, Pair]:
        return ascent(
            self.graph, steps=ASCENT_STEPS[self.effort], seed=self.seed, device=self.device, progress=progress
        )

    def _slack(self, bounds: Analytical, attained: Local | Attained, stages: Stages) -> Slack:
        x, point = self._steepest(attained, stages)
        rows: list[LayerSlope] = []
        if self.samples is not None:
            means = mean_slopes(
                self.graph, self.samples, pairs=0, batch_size=_BATCH, device=self.device, seed=self.seed
            )
            rows = means.table()
        return slack(self.graph, bounds, x, point, rows, seed=self.seed)

    def _steepest(self, attained: Local | Attained, stages: Stages) -> tuple[Tensor, str]:
        """Where the Jacobian is taken, and what to call it."""
        if isinstance(attained, Attained):
            x1, x2 = (stages.witnesses[f"ascent.{end}"] for end in ("x1", "x2"))
            return (x1 + x2) / 2, "the ascent's point"
        place = attained.steepest
        x = self._points().batch([place])[0]
        return x, attained.samples[place] if self.samples is not None else "a Gaussian point"
