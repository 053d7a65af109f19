"""A network beside mean-field theory: the job behind `lipscope mean-field`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..data import ImagePreprocessing
from ..graph import Graph
from ..progress import Progress, silent
from ..quantities import mean_field
from ..results import MeanField, MeanFieldReport
from .folder import MEAN_FIELD
from .stages import (
    Stages,
    Start,
    check_device,
    completed,
    data_info,
    identity,
    model_info,
    network_and_data,
    provenance,
)


def compare_mean_field(
    module: nn.Module | Graph,
    input_shape: tuple[int, ...] | None = None,
    data: Any = None,
    *,
    preprocess: ImagePreprocessing | None = None,
    length: float = 1.0,
    samples: int = 64,
    probes: int = 4,
    batch_size: int = 16,
    output: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> MeanFieldReport:
    """What mean-field theory predicts of a network and what is measured, with where it comes from.

    Args:
        module: a torch module from one tensor (batch, *input_shape) to one tensor, or a `Graph`.
        input_shape: per-sample shape; not needed for a `Graph`, nor with data.
        data: samples, as for `analyze`; Gaussian inputs without.
        preprocess: how images become inputs.
        length: q_0, the mean square of an entry of Gaussian inputs.
        samples: use at most so many inputs.
        probes: random directions per input behind ‖J‖_F².
        batch_size: inputs treated at once.
        output: run folder for mean-field.json and its page.
        name: the model's name in the result.
        seed: of all random choices.
        device: where the network is evaluated.
        progress: called with (stage, done, total).

    Raises:
        ModelError: the model cannot be imported (`UnsupportedLayerError` names the layer).
        DataError: the data cannot be read or do not fit the model, or there is no input shape.
        RunFolderError: the folder cannot be used.
        ValueError: a number is not positive.
    """
    start = Start.now()
    check_device(device)
    graph, given = network_and_data(module, input_shape, data, preprocess)

    def key() -> dict[str, Any]:
        asked = ("mean field", length, samples, probes, batch_size, seed, device)
        return identity(graph, given, asked)

    def run(stages: Stages) -> MeanFieldReport:
        found = stages.once(
            "mean_field",
            MeanField,
            lambda: (
                mean_field(
                    graph, given, length=length, count=samples, probes=probes, batch_size=batch_size,
                    device=device, seed=seed, progress=stages.progress,
                ),
                None,
            ),
        )  # fmt: skip
        return MeanFieldReport(
            model=model_info(graph, name or type(module).__name__),
            data=given and data_info(given),
            mean_field=found,
            provenance=provenance(start, seed, device),
        )

    return completed(output, key, MeanFieldReport, MEAN_FIELD, run, progress)
