"""Checking a finished run that someone else made: every proof is repeated, every witness evaluated again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from .certificates import Certificate, verify
from .errors import CertificateError, DataError, LipscopeError
from .graph import Graph
from .progress import Progress, silent
from .quantities import analytical, evaluate_pair
from .results import Check, Quantity, Result
from .runs import CERTIFICATE, RESULT, WITNESS, read_tensors


def verify_run(folder: str | Path, graph: Graph, progress: Progress = silent) -> list[Check]:
    """Check all bounds of a run folder against the network they are claimed of.

    Certified bounds are proved again from the weights and the stored certificate; attained ones are
    re-evaluated in float64 from the stored witnesses. Estimates are not bounds and are not checked.

    Raises:
        DataError: the folder holds no readable result, or one of another network.
    """
    folder = Path(folder)
    result = _result(folder)
    if result.model.fingerprint != graph.fingerprint():
        raise DataError(f"{folder} is a run of another network: structure or weights differ")
    witnesses = read_tensors(folder / WITNESS)
    return list(_checks(result, graph, folder, witnesses, progress))


def stated_shape(folder: str | Path) -> tuple[int, ...]:
    """The per-sample input shape that a run states.

    Raises:
        DataError: the folder holds no readable result.
    """
    return tuple(_result(Path(folder)).model.input_shape)


def _result(folder: Path) -> Result:
    try:
        return Result.from_json((folder / RESULT).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {folder / RESULT}: {error.strerror or error}") from error
    except LipscopeError as error:
        raise DataError(f"{folder / RESULT}: {error}") from error


def _checks(
    result: Result, graph: Graph, folder: Path, witnesses: dict[str, Tensor], progress: Progress
) -> Iterator[Check]:
    claim = result.analytical
    yield claim.checked(analytical(graph, progress).value)
    if result.certified is not None:
        yield _certificate(result.certified, graph, folder, progress)
    for quantity in result.quantities:
        witness = getattr(quantity, "witness", None)
        if witness is None:
            continue
        x1, x2 = (witnesses.get(f"{witness.key}.{end}") for end in ("x1", "x2"))
        if x1 is None or x2 is None or not x1.shape == x2.shape == graph.input_shape:
            yield quantity.checked(None, "its witness is missing")
            continue
        try:
            found = evaluate_pair(graph, x1, x2, tuple(witness.samples)).bound
        except ValueError as error:
            yield quantity.checked(None, str(error))
        else:
            yield quantity.checked(found)


def _certificate(claim: Quantity, graph: Graph, folder: Path, progress: Progress) -> Check:
    try:
        found = verify(graph, Certificate.load(folder / CERTIFICATE), progress)
    except CertificateError as error:
        return claim.checked(None, str(error))
    return claim.checked(found)
