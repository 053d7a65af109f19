"""How far apart the classes of a data set are, layer by layer of one network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..data import ImagePreprocessing, Labels, Samples, load_labels
from ..data.labels import LabelSource
from ..graph import Graph
from ..progress import Progress, silent
from ..quantities import discriminant
from ..results import Discriminant, DiscriminantReport
from .folder import DISCRIMINANT
from .stages import (
    Stages,
    Start,
    check_device,
    completed,
    data_info,
    identity,
    model_info,
    network_and_samples,
    provenance,
)

SAMPLES = 500
"""The most samples that are looked at."""


def separate(
    module: nn.Module | Graph,
    data: Any,
    labels: LabelSource | Labels | None = None,
    input_shape: tuple[int, ...] | None = None,
    *,
    accuracy: bool = False,
    preprocess: ImagePreprocessing | None = None,
    samples: int = SAMPLES,
    batch_size: int = 16,
    output: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> DiscriminantReport:
    """Scatter of the classes at every layer, and how it compares with what stretching alone could do.

    Args:
        module: a torch module from one tensor (batch, *input_shape) to one tensor, or a `Graph`.
        data: samples, as for `analyze`.
        labels: their classes, see `load_labels`; None: the sub-folders of a folder of images.
        input_shape: per-sample shape; by default that of the data.
        accuracy: also the accuracy of scikit-learn's linear discriminant analysis at each layer.
        preprocess: how images become inputs.
        samples: use at most about so many, each class in its proportion (at least two of each).
        batch_size: samples evaluated at once.
        output: run folder for discriminant.json and its page.
        name: the model's name in the result.
        seed: of all random choices.
        device: where the network is evaluated.
        progress: called with (stage, done, total).

    Raises:
        ModelError: the model cannot be imported.
        DataError: the data or labels cannot be read, do not fit, or hold too few classes or samples of one.
        RunFolderError: the folder cannot be used.
        CertificateError: a layer's norm cannot be proved.
        LipscopeError: `accuracy` without scikit-learn.
        ValueError: `samples` or `batch_size` is not positive.
    """
    start = Start.now()
    if min(samples, batch_size) < 1:
        raise ValueError("samples and batch_size must be positive")
    check_device(device)
    graph, given = network_and_samples(module, input_shape, data, preprocess)
    classes = labels if isinstance(labels, Labels) else load_labels(labels, given)
    if samples < len(given):
        chosen = classes.share(samples, seed)
        given, classes = given.select(chosen), classes.select(chosen)
    job = _Job(graph, given, classes, accuracy, batch_size, seed, device)

    def run(stages: Stages) -> DiscriminantReport:
        return job.report(stages, name or type(module).__name__, start)

    return completed(output, job.identity, DiscriminantReport, DISCRIMINANT, run, progress)


@dataclass(frozen=True)
class _Job:
    graph: Graph
    samples: Samples
    labels: Labels
    accuracy: bool
    batch_size: int
    seed: int
    device: str

    def identity(self) -> dict[str, Any]:
        """What decides the result."""
        asked = (
            "discriminant",
            self.labels.classes,
            self.labels.index.tolist(),
            self.accuracy,
            self.seed,
            self.device,
        )
        return identity(self.graph, self.samples, asked)

    def report(self, stages: Stages, label: str, start: Start) -> DiscriminantReport:
        """All parts."""
        found = stages.once("discriminant", Discriminant, lambda: (self._found(stages.progress), None))
        return DiscriminantReport(
            model=model_info(self.graph, label),
            data=data_info(self.samples),
            discriminant=found,
            provenance=provenance(start, self.seed, self.device),
        )

    def _found(self, progress: Progress) -> Discriminant:
        return discriminant(
            self.graph, self.samples, self.labels, accuracy=self.accuracy, batch_size=self.batch_size,
            device=self.device, seed=self.seed, progress=progress,
        )  # fmt: skip
