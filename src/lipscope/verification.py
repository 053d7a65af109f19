"""Checking a finished run that someone else made: every proof is repeated, every witness evaluated again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from .certificates import Certificate, verify
from .errors import CertificateError, DataError
from .graph import Graph
from .progress import Progress, silent
from .quantities import analytical, evaluate_pair, operator_product
from .results import (
    Analytical,
    Attained,
    Bracket,
    Certified,
    Check,
    Empirical,
    Exact,
    Gate,
    Local,
    Norm,
    OperatorProduct,
    Quantity,
    Result,
    Witness,
)
from .runs import CERTIFICATE, WITNESS, read_report, read_tensors


def verify_run(folder: str | Path, graph: Graph, progress: Progress = silent) -> list[Check]:
    """Check all bounds of a run folder against the network they are claimed of.

    Certified bounds are proved again from the weights and the stored certificate; attained ones are
    re-evaluated in float64 from the stored witnesses. Estimates are not bounds, and bounds over a ball
    and the upper end of a branch and bound keep no proof: they are not checked.

    Raises:
        DataError: the folder holds no readable result, or one of another network.
    """
    folder = Path(folder)
    record = _record(folder)
    if record.model.fingerprint != graph.fingerprint():
        raise DataError(f"{folder} is a run of another network: structure or weights differ")
    witnesses = read_tensors(folder / WITNESS)
    quantities = record.bounds if isinstance(record, Bracket) else record.quantities
    return list(_checks(quantities, graph, folder, witnesses, progress))


def stated_shape(folder: str | Path) -> tuple[int, ...]:
    """The per-sample input shape that a run states.

    Raises:
        DataError: the folder holds no readable result.
    """
    return tuple(_record(Path(folder)).model.input_shape)


def _record(folder: Path) -> Result | Bracket | Gate:
    record = read_report(folder)
    if not isinstance(record, (Result, Bracket, Gate)):
        raise DataError(f"{folder} holds no bounds to verify; give a run of analyze, certify or check")
    return record


def _checks(
    quantities: Sequence[Quantity],
    graph: Graph,
    folder: Path,
    witnesses: Mapping[str, Tensor],
    progress: Progress,
) -> Iterator[Check]:
    for quantity in quantities:
        if isinstance(quantity, Analytical):
            yield quantity.checked(analytical(graph, progress).value)
        elif isinstance(quantity, OperatorProduct):
            yield quantity.checked(operator_product(graph, quantity.norm).value)
        elif isinstance(quantity, Certified):
            yield _certificate(quantity, graph, folder, progress)
        elif isinstance(quantity, (Local, Empirical, Attained)):
            yield _witness(quantity, quantity.value, quantity.witness, graph, witnesses)
        elif isinstance(quantity, Exact):
            yield _witness(quantity, quantity.lower, quantity.witness, graph, witnesses)


def _witness(
    quantity: Quantity, claimed: float, witness: Witness, graph: Graph, witnesses: Mapping[str, Tensor]
) -> Check:
    """The bound that the stored pair attains now."""
    claim = quantity.model_copy(update={"kind": "lower", "value": claimed})
    x1, x2 = (witnesses.get(f"{witness.key}.{end}") for end in ("x1", "x2"))
    if x1 is None or x2 is None or not x1.shape == x2.shape == graph.input_shape:
        return claim.checked(None, "its witness is missing")
    norm: Norm = getattr(quantity, "norm", "2")
    try:
        return claim.checked(evaluate_pair(graph, x1, x2, tuple(witness.samples), norm).bound)
    except ValueError as error:
        # Two equal points attain 0, as a constant network does.
        return claim.checked(0.0, str(error))


def _certificate(claim: Certified, graph: Graph, folder: Path, progress: Progress) -> Check:
    try:
        found = verify(graph, Certificate.load(folder / CERTIFICATE), progress)
    except CertificateError as error:
        return claim.checked(None, str(error))
    return claim.checked(found)
