"""Checking a finished run that someone else made: every proof is repeated, every witness evaluated again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from ...graph import Graph
from ...progress import Progress, silent
from ...results import Check, ConcentrationReport, DiscriminantReport, FisherReport
from .concentration import concentration_checks
from .discriminant import discriminant_checks
from .fisher import fisher_checks
from .quantities import quantity_checks
from .records import Verifiable, read_record
from .run import Run

__all__ = ["stated_shape", "verify_run"]


def verify_run(folder: str | Path, graph: Graph, progress: Progress = silent) -> list[Check]:
    """Check all bounds of a run folder against the network they are claimed of.

    The run is one of `analyze`, `certify`, `inspect`, `check`, `fisher`, `discriminant` or `concentration`.

    Certified bounds are proved again from the weights: by the stored certificate, and those over a ball and of a
    branch and bound by repeating the computation. Attained ones are re-evaluated in float64 from the stored
    witnesses, which must lie in the ball if there is one. Estimates are not bounds and are not checked.

    Raises:
        DataError: the folder holds no readable result, or one of another network, or one whose derived numbers
            (`lower`, `upper`, squares) are not those of its bounds, or one without bounds (`mean-field`, `compare`).
        CertificateError: a layer's norm cannot be proved.
    """
    run = Run(Path(folder), graph, progress)
    record = read_record(run.folder)
    if record.model.fingerprint != graph.fingerprint():
        raise DataError(f"{folder} is a run of another network: structure or weights differ")
    return list(_checks(run, record))


def _checks(run: Run, record: Verifiable) -> Iterator[Check]:
    match record:
        case FisherReport():
            return fisher_checks(run, record)
        case DiscriminantReport():
            return discriminant_checks(run, record)
        case ConcentrationReport():
            return concentration_checks(run, record)
        case _:
            return quantity_checks(run, record)


def stated_shape(folder: str | Path) -> tuple[int, ...]:
    """The per-sample input shape that a run states.

    Raises:
        DataError: the folder holds no readable result, or one without bounds.
    """
    shape = tuple(read_record(Path(folder)).model.input_shape)
    if not all(size > 0 for size in shape):
        raise DataError(f"{folder} states the impossible input shape {shape}")
    return shape
