"""What every job has in common: stages that are run once, what was analysed, and how to get it again."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from .._version import __version__
from ..certificates import Effort, improve, norm_bounds
from ..data import ImagePreprocessing, Samples, load_samples
from ..data.files import printable
from ..errors import DataError, ModelError
from ..graph import Graph, from_torch
from ..progress import Progress
from ..quantities import Pair, analytical
from ..quantities.checkpoint import State, no_checkpoint
from ..results import (
    Analytical,
    Certified,
    Cost,
    DataInfo,
    ModelInfo,
    Provenance,
    Record,
    Report,
    SecondMoment,
    SensitiveInput,
)
from .folder import CERTIFICATE, REPORT, WITNESS, RunFolder, read_arrays

AnyEffort = Literal["none", "fast", "balanced", "tight"]
"""An effort for the certificate, or none."""

ASCENT_STEPS: dict[AnyEffort, int] = {"none": 10, "fast": 10, "balanced": 40, "tight": 200}
"""Steps of each search of the ascent, by effort: a number and no time limit, so that runs can be repeated."""

Kept = Pair | Mapping[str, Tensor] | None
"""What a stage leaves beside its record: the pair that attains it, or tensors by name."""

T = TypeVar("T")
Q = TypeVar("Q", bound=Record)
R = TypeVar("R", bound=Report)


class Stages:
    """Runs the stages of a job; with a folder, a finished stage is not run again."""

    def __init__(self, folder: RunFolder | None, progress: Progress) -> None:
        self.folder = folder
        self.progress = progress
        self.checkpoint = folder or no_checkpoint
        self.witnesses: dict[str, Tensor] = {}

    def once(self, name: str, kind: type[T], compute: Callable[[], tuple[T, Kept]]) -> T:
        """The stage's recorded result, or a newly computed one; its witness pair or tensors are kept."""
        record = TypeAdapter(kind)
        found = self._recorded(name, record)
        if found is None:
            result, kept = compute()
            tensors = {"x1": kept.x1, "x2": kept.x2} if isinstance(kept, Pair) else kept or {}
            points: State = {key: tensor.numpy() for key, tensor in tensors.items()}
            if self.folder is not None:
                self.folder.save(f"witness.{name}", **points)
                self.folder.save_text(name, record.dump_json(result).decode())
        else:
            result, points = found
        self.witnesses.update({f"{name}.{key}": torch.from_numpy(x) for key, x in points.items()})
        return result

    def _recorded(self, name: str, record: TypeAdapter[T]) -> tuple[T, State] | None:
        """What the stage left in an earlier life; None if it did not finish, or its files are damaged."""
        if self.folder is None or (text := self.folder.load_text(name)) is None:
            return None
        points = self.folder.load(f"witness.{name}")
        try:
            return None if points is None else (record.validate_json(text), points)
        except ValidationError:
            return None

    def filed(self, quantity: Q) -> Q:
        """The quantity with its witness or tensors, if any, marked as stored in the run folder."""
        return quantity if self.folder is None else quantity.model_copy(update=_filed(quantity))

    def finish(self, file: str, report: Report) -> None:
        """Write report, witnesses and, for kinds that have one, the page to the run folder; nothing without one."""
        if self.folder is not None:
            page = _page(report, lambda: {key: tensor.numpy() for key, tensor in self.witnesses.items()})
            # The record comes last: with it the run is done.
            self.folder.finish(page | {file: report.to_json()}, self.witnesses)

    def restore_page(self, report: Report) -> None:
        """Write the page of a finished run if somebody removed it."""
        if self.folder is not None and not (path := self.folder.path / REPORT).exists():
            for name, text in _page(report, lambda: read_arrays(path.parent)).items():
                self.folder.write_text(name, text)


def _page(report: Report, arrays: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, str]:
    """The report's page by its file's name, with pictures of the stored inputs; empty for kinds that have none."""
    from ..report import has_page, render_html

    return {REPORT: render_html(report, arrays())} if has_page(report) else {}


def _filed(record: Record) -> dict[str, Any]:
    """The fields that say where the record's witness or tensors are stored."""
    if isinstance(record, SecondMoment | SensitiveInput):
        return {"file": WITNESS}
    witness = getattr(record, "witness", None)
    return {} if witness is None else {"witness": witness.model_copy(update={"file": WITNESS})}


def analytical_in(stages: Stages, graph: Graph) -> Analytical:
    """The bound by norms, as a stage."""
    return stages.once("analytical", Analytical, lambda: (analytical(graph, stages.progress), None))


def certify_in(
    stages: Stages, graph: Graph, effort: Effort, seconds: float | None, enough: float = 0.0
) -> Certified:
    """As a stage, the best certificate within the effort, or the first ≤ `enough`; kept as it improves."""
    return stages.once(
        "certified", Certified, lambda: (_best_certificate(stages, graph, effort, seconds, enough), None)
    )


def _best_certificate(
    stages: Stages, graph: Graph, effort: Effort, seconds: float | None, enough: float
) -> Certified:
    started = time.perf_counter()
    for certificate in improve(graph, effort, seconds, stages.progress, enough=enough):
        best = certificate
        if stages.folder is not None:
            stages.folder.save_certificate(best.to_bytes())
    return Certified(
        name="certified",
        value=best.value,
        method="quadratic certificates of pieces of the network, each proved by Cholesky factorisations",
        source="docs/design/quadratic-certificates.md; Fazlyab et al. 2019 (the program of the dense structure)",
        cost=Cost(seconds=time.perf_counter() - started),
        no_bound=norm_bounds(graph).no_bound(graph) if math.isinf(best.value) else None,
        effort=effort,
        pieces=best.pieces,
        file=None if stages.folder is None else CERTIFICATE,
    )


def network(module: nn.Module | Graph, input_shape: tuple[int, ...] | None) -> Graph:
    """The module as a graph.

    Raises:
        DataError: it is a module and there is no input shape.
        ModelError: it cannot be imported.
    """
    if isinstance(module, Graph):
        return module
    if input_shape is None:
        raise DataError("the model's input shape is needed, such as 3x224x224")
    return from_torch(module, input_shape)


def network_and_samples(
    module: nn.Module | Graph,
    input_shape: tuple[int, ...] | None,
    data: Any,
    preprocess: ImagePreprocessing | None,
) -> tuple[Graph, Samples]:
    """The graph and the samples, checked to fit; by default the input's shape is that of the data.

    Raises:
        DataError: the data cannot be read, or do not fit.
        ModelError: the module cannot be imported.
    """
    if isinstance(module, Graph):
        input_shape = module.input_shape
    given = data if isinstance(data, Samples) else load_samples(data, input_shape, preprocess)
    graph = network(module, input_shape or given.shape)
    if given.shape != graph.input_shape:
        raise DataError(
            f"{given.name}: samples of shape {given.shape}, but the model takes {graph.input_shape}"
        )
    return graph, given


def network_and_data(
    module: nn.Module | Graph,
    input_shape: tuple[int, ...] | None,
    data: Any,
    preprocess: ImagePreprocessing | None,
) -> tuple[Graph, Samples | None]:
    """As `network_and_samples`, where there may be no data (None)."""
    if data is None:
        return network(module, input_shape), None
    return network_and_samples(module, input_shape, data, preprocess)


def identity(graph: Graph, samples: Samples | None, asked: object) -> dict[str, Any]:
    """What decides the result of a job that may have data: version, network, samples and what was asked."""
    return {
        "lipscope": __version__,
        "model": graph.fingerprint(),
        "data": samples and samples.fingerprint(),
        "options": repr(asked),
    }


def model_info(graph: Graph, label: str) -> ModelInfo:
    """What was analysed."""
    return ModelInfo(
        name=label,
        fingerprint=graph.fingerprint(),
        input_shape=list(graph.input_shape),
        output_shape=list(graph.output_shape),
        parameters=sum(p.numel() for p in graph.parameters()),
        layers=len(graph.nodes) - 1,
    )


def data_info(samples: Samples) -> DataInfo:
    """On which data."""
    return DataInfo(
        name=samples.name,
        fingerprint=samples.fingerprint(),
        samples=len(samples),
        preprocessing=samples.preprocessing,
    )


@dataclass(frozen=True)
class Start:
    """When a job began: the date, ISO 8601 in UTC, and the performance counter in seconds."""

    date: str
    clock: float

    @classmethod
    def now(cls) -> Start:
        """The present moment."""
        return cls(datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter())


def provenance(start: Start, seed: int, device: str = "cpu", dtype: str = "float32") -> Provenance:
    """How to get the same result again."""
    return Provenance(
        lipscope=__version__,
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=platform.platform(),
        threads=torch.get_num_threads(),
        device=device,
        dtype=dtype,
        seed=seed,
        command=printable(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        started=start.date,
        seconds=time.perf_counter() - start.clock,
        peak_memory_bytes=_peak_memory(),
    )


def completed(
    output: str | Path | None,
    identity: Callable[[], Mapping[str, Any]],
    kind: type[R],
    file: str,
    run: Callable[[Stages], R],
    progress: Progress,
) -> R:
    """What `run` reports, written to `file` of the run folder `output` if there is one, or read back from it.

    The report's page is written beside it.

    `identity` hashes network and data, so it is asked for only where there is a folder.

    Raises:
        RunFolderError: the folder cannot be used.
    """
    if output is None:
        return run(Stages(None, progress))
    with RunFolder(Path(output), identity()) as folder:
        stages = Stages(folder, progress)
        if (finished := folder.finished(kind, file)) is not None:
            stages.restore_page(finished)
            return finished
        result = run(stages)
        stages.finish(file, result)
    return result


def check_device(device: str) -> None:
    """Raise a `ModelError` if torch cannot compute there."""
    try:
        # Read back: there are devices on which nothing is computed.
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used: {reason}") from error


def _peak_memory() -> int:
    """Peak resident memory of this process in bytes (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
