"""The main job: every quantity of one network on one data set, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from ..data import ImagePreprocessing, Samples
from ..engines import SERIAL, Engine
from ..graph import Graph
from ..progress import Progress, silent
from ..quantities import (
    Pair,
    ascent,
    effective,
    empirical,
    input_moments,
    local,
    mean_field_theory,
    mean_jacobian_norm,
    mean_slopes,
    mid_range,
    second_moment,
    sensitive,
    slack,
)
from ..quantities.local import visited
from ..results import (
    Analytical,
    Attained,
    Certified,
    Effective,
    Empirical,
    LayerSlope,
    Local,
    MeanField,
    MidRange,
    Result,
    SecondMoment,
    SensitiveInput,
    Slack,
)
from ..spectral import working_dtype
from .folder import RESULT
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
    network_and_samples,
    provenance,
)

if TYPE_CHECKING:
    from ..quantities.effective import Reading
    from ..quantities.mean_jacobian import PointsOrPairs
    from ..slopes import Level

_LEVELS: tuple[tuple[Level, Reading], ...] = (
    ("scalar", "active"),
    ("scalar", "secant"),
    ("scalar", "paper"),
    ("channel", "active"),
    ("channel", "secant"),
    ("unit", "active"),
    ("unit", "secant"),
)

_STEEPEST = 4
_MOMENTS = 64
"""Samples behind the moments of the inputs."""

Precision = Literal["float32", "float64", "bfloat16", "float16"]
"""What the estimates may be computed in."""


@dataclass(frozen=True)
class Options:
    """What decides the numbers, beside model and data.

    `pairs`: pairs behind the mean secant slopes. `jacobians`: Jacobians, at samples and over pairs,
    behind the level `full` and the second moment; 0 leaves those out. `local_samples`: the most
    samples at which Lip(x) is computed, chosen at random. `tolerance`: relative accuracy of Lip(x).
    `effort`, `seconds`: how long is spent on the certificate (None: the effort's own time); "none" skips it.
    `batch_size`: samples treated at once (memory grows with it). `dtype`: precision of the
    estimates; certificates and witnesses are always float64, on the CPU.
    """

    pairs: int = 10_000
    jacobians: int = 128
    local_samples: int = 1000
    effort: AnyEffort = "balanced"
    seconds: float | None = None
    tolerance: float = 1e-3
    batch_size: int = 16
    seed: int = 0
    device: str = "cpu"
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.batch_size < 1 or self.local_samples < 1:
            raise ValueError("pairs, local_samples and batch_size must be positive")
        if self.jacobians < 0:
            raise ValueError("jacobians must not be negative")
        if self.seconds is not None and not self.seconds >= 0:
            raise ValueError("seconds must not be negative")
        if not 0 < self.tolerance < 1:
            raise ValueError("tolerance must lie between 0 and 1")


def analyze(
    module: nn.Module | Graph,
    data: Any,
    *,
    input_shape: tuple[int, ...] | None = None,
    preprocess: ImagePreprocessing | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    options: Options | None = None,
    engine: Engine = SERIAL,
    progress: Progress = silent,
) -> Result:
    """Certified, attained and effective Lipschitz constants of a network on a data set.

    Args:
        module: a torch module from one tensor (batch, *input_shape) to one tensor, or a `Graph`.
        data: samples: a tensor or array, a folder of images, an .npy, .npz, .safetensors or .pt
            file, a torch data set or loader, `Samples`, or "demo".
        input_shape: per-sample shape; that of the data if omitted.
        preprocess: how images become inputs; by default centre crops of the input's size in 0..1.
        output: run folder for result, report and witnesses; a killed run goes on from there, and a
            finished one of the same model, data and options is read back.
        name: the model's name in the report.
        options: see `Options`.
        engine: where passes over the data run: in this process, or a `RayEngine`.
        progress: called with (stage, done, total).

    Returns:
        All quantities, each with kind, cost and witness. Norms are Euclidean.

    Raises:
        ModelError: the model cannot be imported (`UnsupportedLayerError` names the layer).
        DataError: the data cannot be read or do not fit the model.
        RunFolderError: the folder cannot be used.
        CertificateError: a bound cannot be proved.
    """
    options = options or Options()
    start = Start.now()
    check_device(options.device)
    graph, samples = network_and_samples(module, input_shape, data, preprocess)

    def key() -> dict[str, Any]:
        return identity(graph, samples, options)

    def run(stages: Stages) -> Result:
        job = _Job(graph, samples, options, engine, stages)
        return job.result(name or type(module).__name__, start)

    return completed(output, key, Result, RESULT, run, progress)


class _SlopeStage(BaseModel):
    effective: list[Effective]
    slopes: list[LayerSlope]
    pairs: int


@dataclass(frozen=True)
class _Job:
    """One network, one data set: every quantity as a stage that is run once."""

    graph: Graph
    samples: Samples
    options: Options
    engine: Engine
    stages: Stages

    @property
    def _numerics(self) -> dict[str, Any]:
        """How the quantities over data compute, and where they report and keep what is done."""
        return {
            "batch_size": self.options.batch_size,
            "dtype": getattr(torch, self.options.dtype),
            "device": self.options.device,
            "seed": self.options.seed,
            "engine": self.engine,
            "progress": self.stages.progress,
            "checkpoint": self.stages.checkpoint,
        }

    @property
    def _readings(self) -> tuple[PointsOrPairs, ...]:
        return ("active", "secant") if len(self.samples) > 1 else ("active",)

    def result(self, label: str, start: Start) -> Result:
        """All quantities, computed or read back."""
        once, filed = self.stages.once, self.stages.filed
        upper = analytical_in(self.stages, self.graph)
        certified = self._certified()
        averaged = once("effective", _SlopeStage, self._effective)
        moments: list[SecondMoment] = once("second_moment", list[SecondMoment], self._second_moments)
        pairwise: Empirical | None = once("empirical", Empirical | None, self._empirical)  # type: ignore[arg-type]
        pointwise = once("local", Local, self._local)
        distances = once("mid_range", MidRange, self._mid_range)
        lost = once("slack", Slack, lambda: (self._slack(upper, pointwise, averaged.slopes), None))
        shown: list[SensitiveInput] = once(
            "sensitive", list[SensitiveInput], lambda: self._sensitive(pointwise)
        )
        random = once("mean_field", MeanField, lambda: (self._mean_field(averaged.slopes), None))
        climbed = self._ascent(pointwise)
        return Result(
            model=model_info(self.graph, label),
            data=data_info(self.samples),
            analytical=upper,
            certified=certified,
            local=filed(pointwise),
            ascent=climbed and filed(climbed),
            empirical=pairwise and filed(pairwise),
            effective=averaged.effective,
            second_moment=[filed(moment) for moment in moments],
            mid_range=distances,
            slopes=averaged.slopes,
            slope_pairs=averaged.pairs,
            slack=lost,
            sensitive=[filed(one) for one in shown],
            mean_field=random,
            provenance=provenance(start, self.options.seed, self.options.device, self.options.dtype),
        )

    def _certified(self) -> Certified | None:
        effort = self.options.effort
        if effort == "none":
            return None
        return certify_in(self.stages, self.graph, effort, self.options.seconds)

    def _effective(self) -> tuple[_SlopeStage, None]:
        wide = self._numerics | {"batch_size": 2 * self.options.batch_size}
        means = mean_slopes(self.graph, self.samples, pairs=self.options.pairs, **wide)
        found: list[Effective] = []
        direction: Tensor | None = None
        for number, (level, reading) in enumerate(_LEVELS):
            if reading != "secant" or means.pairs:
                # The levels share their leading direction, more or less: each starts from the last one's.
                value, direction = effective(means, level, reading, seed=self.options.seed, start=direction)
                found.append(value)
            self.stages.progress("effective", number + 1, len(_LEVELS))
        count = self.options.jacobians
        for whole in self._readings if count else ():
            found.append(mean_jacobian_norm(means, self._some(whole), whole, pairs=count, **self._numerics))
        return _SlopeStage(effective=found, slopes=means.table(), pairs=means.pairs), None

    def _some(self, reading: PointsOrPairs) -> Samples:
        """The samples behind whole Jacobians: two for each pair, however many there are."""
        return self.samples.take((1 + (reading == "secant")) * self.options.jacobians, self.options.seed)

    def _second_moments(self) -> tuple[list[SecondMoment], dict[str, Tensor]]:
        found: list[SecondMoment] = []
        directions: dict[str, Tensor] = {}
        count = self.options.jacobians
        for reading in self._readings if count else ():
            moment, vectors = second_moment(
                self.graph, self._some(reading), reading, pairs=count, **self._numerics
            )
            found.append(moment)
            directions |= {f"{reading}.{k}": vector for k, vector in enumerate(vectors)}
        return found, directions

    def _empirical(self) -> tuple[Empirical | None, Pair | None]:
        numerics = {k: v for k, v in self._numerics.items() if k not in ("dtype", "seed")}
        found = empirical(self.graph, self.samples, **numerics)
        return found if found is not None else (None, None)

    def _local(self) -> tuple[Local, Pair]:
        limit, tolerance = self.options.local_samples, self.options.tolerance
        return local(self.graph, self.samples, limit=limit, tolerance=tolerance, **self._numerics)

    def _mid_range(self) -> tuple[MidRange, None]:
        return mid_range(self.graph, self.samples, **self._numerics), None

    def _mean_field(self, slopes: list[LayerSlope]) -> MeanField:
        moments = input_moments(self.graph, self.samples.take(_MOMENTS, self.options.seed))
        return mean_field_theory(self.graph, moments, slopes)

    def _slack(self, bounds: Analytical, pointwise: Local, slopes: list[LayerSlope]) -> Slack:
        place = pointwise.steepest
        chosen = visited(len(self.samples), self.options.local_samples, self.options.seed)
        x = self.samples.batch([chosen[place]])[0]
        return slack(self.graph, bounds, x, pointwise.samples[place], slopes, seed=self.options.seed)

    def _steepest(self, pointwise: Local) -> list[int]:
        """The samples of the largest Lip(x), the largest first."""
        steep = sorted(range(len(pointwise.estimates)), key=lambda i: -pointwise.estimates[i])[:_STEEPEST]
        chosen = visited(len(self.samples), self.options.local_samples, self.options.seed)
        return [chosen[i] for i in steep]

    def _sensitive(self, pointwise: Local) -> tuple[list[SensitiveInput], dict[str, Tensor]]:
        numerics = {key: self._numerics[key] for key in ("dtype", "device", "seed")}
        return sensitive(self.graph, self.samples, self._steepest(pointwise), **numerics)

    def _ascent(self, pointwise: Local) -> Attained | None:
        options = self.options
        if options.effort == "none":
            return None
        # The most sensitive samples are where a steeper place may be near.
        starts = sorted(self._steepest(pointwise))
        return self.stages.once(
            "ascent",
            Attained,
            lambda: ascent(
                self.graph, self.samples.batch(starts), restarts=_STEEPEST, steps=ASCENT_STEPS[options.effort],
                seed=options.seed, progress=self.stages.progress, device=options.device,
                dtype=working_dtype(getattr(torch, options.dtype)),
            ),
        )  # fmt: skip
