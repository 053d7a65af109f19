"""The main job: every quantity of one network on one data set, in one call."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from ._version import __version__
from .data import ImagePreprocessing, Samples, load_samples
from .engines import SERIAL, Engine
from .errors import DataError, ModelError
from .graph import Graph, from_torch
from .progress import Progress, silent
from .quantities import (
    Pair,
    analytical,
    ascent,
    effective,
    empirical,
    local,
    mean_jacobian_norm,
    mean_slopes,
    mid_range,
    second_moment,
)
from .quantities.local import visited
from .results import (
    Analytical,
    Attained,
    Certified,
    DataInfo,
    Effective,
    Empirical,
    LayerSlope,
    Local,
    MidRange,
    Result,
    SecondMoment,
)
from .runs import REPORT, RESULT, RunFolder, identity_key
from .stages import ASCENT_STEPS, AnyEffort, Stages, certify_in, model_info, provenance

if TYPE_CHECKING:
    from .quantities.effective import Reading
    from .quantities.mean_jacobian import PointsOrPairs
    from .slopes import Level

_LEVELS: tuple[tuple[Level, Reading], ...] = (
    ("scalar", "active"),
    ("scalar", "secant"),
    ("scalar", "paper"),
    ("channel", "active"),
    ("channel", "secant"),
    ("unit", "active"),
    ("unit", "secant"),
)

_READINGS: tuple[PointsOrPairs, ...] = ("active", "secant")

_STARTS = 4

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
    jacobians: int = 256
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
    clock = time.perf_counter()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    _check_device(options.device)
    samples = data if isinstance(data, Samples) else load_samples(data, input_shape, preprocess)
    if isinstance(module, Graph):
        graph, label = module, name or "graph"
    else:
        graph, label = from_torch(module, samples.shape), name or type(module).__name__
    if graph.input_shape != samples.shape:
        raise DataError(
            f"{samples.name}: samples of shape {samples.shape}, but the model takes {graph.input_shape}"
        )
    identity = {
        "lipscope": __version__,
        "model": graph.fingerprint(),
        "data": samples.fingerprint(),
        "options": asdict(options),
    }
    if output is None:
        stages = Stages(None, progress)
        return _run(graph, label, samples, options, engine, stages, started, clock)
    with RunFolder(Path(output), identity) as folder:
        if (finished := folder.finished(Result, RESULT, REPORT)) is not None:
            return finished
        return _run(graph, label, samples, options, engine, Stages(folder, progress), started, clock)


def default_output(label: str, data: str, key: Mapping[str, Any]) -> Path:
    """A run folder named after model, data and what was asked, so that the same command resumes."""
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{label}-{Path(data).name or data}")
    return Path("runs") / f"{stem[:60].strip('-')}-{identity_key(key)}"


class _SlopeStage(BaseModel):
    effective: list[Effective]
    slopes: list[LayerSlope]
    pairs: int


def _run(
    graph: Graph,
    label: str,
    samples: Samples,
    options: Options,
    engine: Engine,
    stages: Stages,
    started: str,
    clock: float,
) -> Result:
    precision: dict[str, Any] = {
        "batch_size": options.batch_size,
        "dtype": getattr(torch, options.dtype),
        "device": options.device,
        "seed": options.seed,
    }
    shared: dict[str, Any] = {
        "progress": stages.progress,
        "checkpoint": stages.checkpoint,
        "engine": engine,
    }

    readings = _READINGS if len(samples) > 1 else _READINGS[:1]

    def some(reading: PointsOrPairs) -> Samples:
        """Few samples for pairs too: each pair takes two evaluations, however many samples there are."""
        return samples.take((1 + (reading == "secant")) * options.jacobians, options.seed)

    def slopes_and_effective() -> tuple[_SlopeStage, None]:
        wide = precision | {"batch_size": 2 * options.batch_size}
        means = mean_slopes(graph, samples, pairs=options.pairs, **wide, **shared)
        found: list[Effective] = []
        direction: Tensor | None = None
        for number, (level, reading) in enumerate(_LEVELS):
            if reading != "secant" or means.pairs:
                # The levels share their leading direction, more or less: each starts from the last one's.
                value, direction = effective(means, level, reading, seed=options.seed, start=direction)
                found.append(value)
            stages.progress("effective", number + 1, len(_LEVELS))
        if options.jacobians:
            found += [
                mean_jacobian_norm(means, some(r), r, pairs=options.jacobians, **precision, **shared)
                for r in readings
            ]
        return _SlopeStage(effective=found, slopes=means.table(), pairs=means.pairs), None

    def moments() -> tuple[list[SecondMoment], dict[str, Tensor]]:
        found: list[SecondMoment] = []
        directions: dict[str, Tensor] = {}
        for reading in readings if options.jacobians else ():
            moment, vectors = second_moment(
                graph, some(reading), reading, pairs=options.jacobians, **precision, **shared
            )
            found.append(moment)
            directions |= {f"{reading}.{k}": vector for k, vector in enumerate(vectors)}
        return found, directions

    def all_pairs() -> tuple[Empirical | None, Pair | None]:
        found = empirical(graph, samples, batch_size=options.batch_size, device=options.device, **shared)
        return found if found is not None else (None, None)

    upper = stages.once("analytical", Analytical, lambda: (analytical(graph, stages.progress), None))
    certified: Certified | None = None
    if options.effort != "none":
        effort = options.effort
        certified = stages.once(
            "certified", Certified, lambda: (certify_in(stages, graph, effort, options.seconds), None)
        )
    averaged = stages.once("effective", _SlopeStage, slopes_and_effective)
    stretches: list[SecondMoment] = stages.once("second_moment", list[SecondMoment], moments)
    pairwise: Empirical | None = stages.once("empirical", Empirical | None, all_pairs)  # type: ignore[arg-type]
    pointwise = stages.once(
        "local",
        Local,
        lambda: local(
            graph, samples, limit=options.local_samples, tolerance=options.tolerance, **precision, **shared
        ),
    )
    distances = stages.once(
        "mid_range", MidRange, lambda: (mid_range(graph, samples, **precision, **shared), None)
    )
    climbed: Attained | None = None
    if options.effort != "none":
        # The most sensitive samples are where a steeper place may be near.
        steep = sorted(range(len(pointwise.estimates)), key=lambda i: -pointwise.estimates[i])[:_STARTS]
        chosen = visited(len(samples), options.local_samples, options.seed)
        starts = sorted(chosen[i] for i in steep)
        climbed = stages.once(
            "ascent",
            Attained,
            lambda: ascent(
                graph, samples.batch(starts), restarts=_STARTS, steps=ASCENT_STEPS[options.effort],
                seed=options.seed, progress=stages.progress, device=options.device,
                dtype=torch.float64 if options.dtype == "float64" else torch.float32,
            ),
        )  # fmt: skip
    result = Result(
        model=model_info(graph, label),
        data=DataInfo(
            name=samples.name,
            fingerprint=samples.fingerprint(),
            samples=len(samples),
            preprocessing=samples.preprocessing,
        ),
        analytical=upper,
        certified=certified,
        local=stages.filed(pointwise),
        ascent=climbed and stages.filed(climbed),
        empirical=pairwise and stages.filed(pairwise),
        effective=averaged.effective,
        second_moment=[stages.filed(moment) for moment in stretches],
        mid_range=distances,
        slopes=averaged.slopes,
        slope_pairs=averaged.pairs,
        provenance=provenance(started, clock, options.seed, options.device, options.dtype),
    )
    if stages.folder is not None:
        from .report import render_html

        pictures = witness_pictures(stages.witnesses)
        files = {REPORT: render_html(result, pictures), RESULT: result.to_json()}
        stages.folder.finish(files, stages.witnesses)
    return result


def witness_pictures(witnesses: Mapping[str, Tensor]) -> dict[str, bytes]:
    """PNG pictures of the witness inputs that are images (1 or 3 channels), by key."""
    from PIL import Image

    pictures: dict[str, bytes] = {}
    for key, x in witnesses.items():
        if x.ndim != 3 or x.shape[0] not in (1, 3) or min(x.shape[1:]) < 4:
            continue
        # Shown from its smallest to its largest value, channel by channel: normalisations differ.
        low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
        shown = ((x - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
        pixels = shown.permute(1, 2, 0).squeeze(-1).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        pictures[key] = buffer.getvalue()
    return pictures


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used: {reason}") from error
