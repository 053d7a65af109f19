"""Fisher information of one network on one data set: about its inputs, and about its parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from ..data import ImagePreprocessing, Labels, Samples, load_labels
from ..data.labels import LabelSource
from ..errors import DataError
from ..graph import Graph
from ..progress import Progress, silent
from ..quantities import fisher_embedding, input_fisher, parameter_fisher
from ..results import FisherReport, FisherSpectrum, InputFisher, ParameterFisher
from ..results.fisher import Likelihood
from .folder import FISHER, WITNESS
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

Space = Literal["inputs", "parameters", "both"]
"""What the information is about."""

S = TypeVar("S", bound=FisherSpectrum)

SAMPLES = 64
"""The most samples that are looked at."""


def fisher(
    module: nn.Module,
    data: Any,
    input_shape: tuple[int, ...] | None = None,
    *,
    likelihood: Likelihood = "gaussian",
    variance: float = 1.0,
    space: Space = "both",
    labels: LabelSource | Labels | None = None,
    preprocess: ImagePreprocessing | None = None,
    samples: int = SAMPLES,
    directions: int = 4,
    products: int = 100,
    probes: int = 16,
    batch_size: int = 16,
    output: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> FisherReport:
    """Fisher information that a network's output carries about its input and about its parameters.

    Args:
        module: a torch module from one tensor (batch, *input_shape) to the mean of a Gaussian, or to logits.
        data: samples, as for `analyze`.
        input_shape: per-sample shape; by default that of the data.
        likelihood: "gaussian" or "softmax".
        variance: σ² of the Gaussian.
        space: "inputs", "parameters" or "both".
        labels: of the data, for the empirical Fisher information of the parameters beside the true one (softmax).
        preprocess: how images become inputs.
        samples: use at most so many of them, chosen at random.
        directions: eigenvalues wanted of each mean.
        products: products with the parameters' matrix at most.
        probes: random vectors behind each trace that is not exact.
        batch_size: samples treated at once.
        output: run folder for fisher.json, its page and the eigenvectors.
        name: the model's name in the result.
        seed: of all random choices.
        device: where the products are computed.
        progress: called with (stage, done, total).

    Raises:
        ModelError: the model cannot be imported or differentiated, or does not fit the likelihood.
        DataError: the data or labels cannot be read or do not fit.
        RunFolderError: the folder cannot be used.
        CertificateError: a layer's norm cannot be proved.
        ValueError: a number that must be positive is not.
    """
    start = Start.now()
    if min(samples, directions, products, batch_size) < 1 or probes < 2:
        raise ValueError(
            "samples, directions, products and batch_size must be positive, and probes at least 2"
        )
    if labels is not None and (likelihood != "softmax" or space == "inputs"):
        raise DataError(
            "labels make the empirical Fisher information of the parameters of a classifier; they go with the softmax "
            "likelihood and the parameters"
        )
    if not 0 < variance < math.inf:
        raise DataError(f"the variance of a Gaussian output is a positive number, not {variance}")
    check_device(device)
    graph, given = network_and_samples(module, input_shape, data, preprocess)
    # Refuses a network that does not fit, before anything is computed.
    fisher_embedding(graph, likelihood, variance)
    classes = None
    if labels is not None:
        classes = labels if isinstance(labels, Labels) else load_labels(labels, given)
    if samples < len(given):
        chosen = given.draw(samples, seed)
        given, classes = given.select(chosen), classes and classes.select(chosen)
    job = _Job(
        module,
        graph,
        given,
        classes,
        likelihood,
        variance,
        space,
        directions,
        products,
        probes,
        batch_size,
        seed,
        device,
    )

    def run(stages: Stages) -> FisherReport:
        return job.report(stages, name or type(module).__name__, start)

    return completed(output, job.identity, FisherReport, FISHER, run, progress)


@dataclass(frozen=True)
class _Job:
    module: nn.Module
    graph: Graph
    samples: Samples
    labels: Labels | None
    likelihood: Likelihood
    variance: float
    space: Space
    directions: int
    products: int
    probes: int
    batch_size: int
    seed: int
    device: str

    def identity(self) -> dict[str, Any]:
        """What decides the result."""
        labels = None if self.labels is None else self.labels.outputs.tolist()
        asked = ("fisher", self.likelihood, self.variance, self.space, self.directions, self.products, self.probes,
                 self.seed, self.device, labels)  # fmt: skip
        return identity(self.graph, self.samples, asked)

    def report(self, stages: Stages, label: str, start: Start) -> FisherReport:
        """All parts, computed or read back."""
        inputs, parameters = None, []
        if self.space != "parameters":
            inputs = stages.once("inputs", InputFisher, lambda: self._inputs(stages.progress))
            inputs = inputs.model_copy(update={"mean": _filed(inputs.mean, stages)})
        if self.space != "inputs":
            parameters.append(self._parameters(None, stages))
            if self.labels is not None:
                parameters.append(self._parameters(self.labels, stages))
        return FisherReport(
            model=model_info(self.graph, label),
            data=data_info(self.samples),
            inputs=inputs,
            parameters=parameters,
            provenance=provenance(start, self.seed, self.device),
        )

    def _inputs(self, progress: Progress) -> tuple[InputFisher, dict[str, Tensor]]:
        return input_fisher(
            self.graph, self.samples, self.likelihood, variance=self.variance, directions=self.directions,
            probes=self.probes, batch_size=self.batch_size, device=self.device, seed=self.seed, progress=progress,
        )  # fmt: skip

    def _parameters(self, labels: Labels | None, stages: Stages) -> ParameterFisher:
        def compute() -> tuple[ParameterFisher, dict[str, Tensor]]:
            return parameter_fisher(
                self.module, self.samples, self.likelihood, labels=labels, variance=self.variance,
                directions=self.directions, max_products=self.products, probes=self.probes,
                batch_size=self.batch_size, device=self.device, seed=self.seed, progress=stages.progress,
            )  # fmt: skip

        stage = "parameters" if labels is None else "empirical"
        return _filed(stages.once(stage, ParameterFisher, compute), stages)


def _filed(spectrum: S, stages: Stages) -> S:
    """With its eigenvectors marked as stored in the run folder, if there is one."""
    return spectrum if stages.folder is None else spectrum.model_copy(update={"file": WITNESS})
