"""Reading the record of a run that may have been altered."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import DataError, LipscopeError
from ...results import (
    Bracket,
    ConcentrationReport,
    DiscriminantReport,
    FisherReport,
    Gate,
    Inspection,
    Report,
    Result,
)
from ..folder import COMPARISON, MEAN_FIELD, REPORTS, RESULT, read_bytes

Quantities = Result | Bracket | Inspection | Gate
"""Reports whose bounds are quantities, each with its kind."""
Verifiable = Quantities | FisherReport | DiscriminantReport | ConcentrationReport

_NOTHING_TO_PROVE = {
    MEAN_FIELD: "is a run of mean-field, which holds estimates alone, so there is nothing in it to prove; verify a "
    "run of certify or analyze of the network",
    COMPARISON: "is a comparison, which copies the numbers of other runs, so there is nothing in it to prove; verify "
    "the runs that were compared",
}


def read_record(folder: Path) -> Verifiable:
    """The record of a run that holds bounds; numbers that follow from others do.

    Raises:
        DataError: there is none, or it cannot be read or was altered, or there are several.
    """
    found = [name for name in REPORTS if (folder / name).exists()]
    if len(found) > 1:
        raise DataError(
            f"{folder} holds {' and '.join(found)}, and a run has one of them; verify a folder of one run"
        )
    name = found[0] if found else RESULT
    if name in _NOTHING_TO_PROVE:
        raise DataError(f"{folder} {_NOTHING_TO_PROVE[name]}")
    path, content = folder / name, read_bytes(folder / name)
    try:
        record = REPORTS[name][0].from_json(content)
    except LipscopeError as error:
        raise DataError(f"{path}: {error}") from error
    _check_derived(path, json.loads(content), record)
    assert isinstance(record, Verifiable)  # the others have nothing to prove
    if isinstance(record, FisherReport) and record.inputs is None:
        raise DataError(
            f"{folder} is a run of fisher about parameters alone, which holds estimates alone, so there is nothing "
            "in it to prove; verify a run with --space inputs or both"
        )
    return record


def _check_derived(path: Path, raw: Any, record: Report) -> None:
    """Raise a `DataError` if a field that is computed from others says something else in the file."""
    differing = next(_differences(raw, json.loads(record.to_json()), ""), None)
    if differing is not None:
        place, stored, computed = differing
        raise DataError(
            f"{path} was altered: it says {place} is {stored}, but from its own numbers it is {computed}"
        )


def _differences(raw: Any, computed: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Where both hold a value and the values differ."""
    if isinstance(raw, dict) and isinstance(computed, dict):
        for key in raw.keys() & computed.keys():
            yield from _differences(raw[key], computed[key], f"{place}.{key}".lstrip("."))
    elif isinstance(raw, list) and isinstance(computed, list):
        for number, (one, other) in enumerate(zip(raw, computed, strict=False)):
            yield from _differences(one, other, f"{place}.{number}")
    elif raw != computed and not _close(raw, computed):
        yield place, raw, computed


def _close(one: Any, other: Any) -> bool:
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-12)
    except (TypeError, ValueError, OverflowError):
        return False
