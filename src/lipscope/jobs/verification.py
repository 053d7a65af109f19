"""Checking a finished run that someone else made: every proof is repeated, every witness evaluated again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..certificates import Certificate, verify
from ..errors import CertificateError, DataError, LipscopeError
from ..graph import Graph
from ..progress import Progress, silent
from ..quantities import analytical, ball, evaluate_pair, exact, operator_product
from ..quantities.witness import vector_norm
from ..results import (
    Analytical,
    Attained,
    Ball,
    BallInfo,
    Bracket,
    Certified,
    Check,
    Empirical,
    Exact,
    Gate,
    Inspection,
    Local,
    Norm,
    OperatorProduct,
    Quantity,
    Report,
    Result,
    Witness,
)
from .folder import (
    BRACKET,
    CERTIFICATE,
    CHECK,
    INSPECTION,
    RESULT,
    WITNESS,
    check_plain,
    read_bytes,
    read_tensors,
)

Verifiable = Result | Bracket | Inspection | Gate

_RECORDS: dict[str, type[Verifiable]] = {
    BRACKET: Bracket,
    CHECK: Gate,
    INSPECTION: Inspection,
    RESULT: Result,
}
_SEARCH_AGAIN = 4.0
"""How many times as long as it took a search may take when it is repeated: the machine may be slower."""
_LONGEST_SEARCH = 3600.0
_BALL_SECONDS = 60.0
_SAME = 1e-6


def verify_run(folder: str | Path, graph: Graph, progress: Progress = silent) -> list[Check]:
    """Check all bounds of a run folder against the network they are claimed of.

    The run is one of `analyze`, `certify`, `inspect` or `check`.

    Certified bounds are proved again from the weights: by the stored certificate, and those over a ball and of a
    branch and bound by repeating the computation. Attained ones are re-evaluated in float64 from the stored
    witnesses, which must lie in the ball if there is one. Estimates are not bounds and are not checked.

    Raises:
        DataError: the folder holds no readable result, or one of another network, or one whose derived numbers
            (`lower`, `upper`, squares) are not those of its bounds.
    """
    folder = Path(folder)
    record = _record(folder)
    if record.model.fingerprint != graph.fingerprint():
        raise DataError(f"{folder} is a run of another network: structure or weights differ")
    checker = _Checker(graph, folder, record, read_tensors(folder / WITNESS), progress)
    return [check for quantity in _bounds(record) for check in checker.checks(quantity)]


def stated_shape(folder: str | Path) -> tuple[int, ...]:
    """The per-sample input shape that a run states.

    Raises:
        DataError: the folder holds no readable result.
    """
    shape = tuple(_record(Path(folder)).model.input_shape)
    if not all(size > 0 for size in shape):
        raise DataError(f"{folder} states the impossible input shape {shape}")
    return shape


def _record(folder: Path) -> Verifiable:
    name = next((name for name in _RECORDS if (folder / name).exists()), RESULT)
    path, content = folder / name, read_bytes(folder / name)
    try:
        record = _RECORDS[name].from_json(content)
    except LipscopeError as error:
        raise DataError(f"{path}: {error}") from error
    _check_derived(path, json.loads(content), record)
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


def _bounds(record: Verifiable) -> list[Quantity]:
    if isinstance(record, Bracket):
        return list(record.bounds)
    if isinstance(record, (Result, Gate)):
        return [quantity for quantity in record.quantities if quantity.kind != "estimate"]
    return [q for q in (record.analytical, record.certified, record.attained) if q is not None]


@dataclass(frozen=True)
class _Checker:
    """Checks the bounds of one run."""

    graph: Graph
    folder: Path
    record: Verifiable
    tensors: Mapping[str, Tensor]
    progress: Progress

    def checks(self, quantity: Quantity) -> Iterator[Check]:
        """The bound as it is found now; for a bracket of its own, both ends."""
        if isinstance(quantity, Analytical):
            yield self._analytical(quantity)
        elif isinstance(quantity, OperatorProduct):
            yield quantity.checked(operator_product(self.graph, quantity.norm).value)
        elif isinstance(quantity, Certified):
            yield self._certified(quantity)
        elif isinstance(quantity, Ball):
            yield self._ball(quantity)
        elif isinstance(quantity, Exact):
            yield self._searched(quantity)
            yield self._attained(quantity, quantity.lower, quantity.witness)
        elif isinstance(quantity, (Local, Empirical, Attained)):
            yield self._attained(quantity, quantity.value, quantity.witness)

    def _analytical(self, claim: Analytical) -> Check:
        found = analytical(self.graph, self.progress)
        for name in ("product", "program"):
            claimed, proved = getattr(claim, name), getattr(found, name)
            if claimed is not None and (proved is None or not proved <= claimed * (1 + _SAME)):
                return claim.checked(None, f"its field {name} is not confirmed")
        return claim.checked(found.value)

    def _certified(self, claim: Certified) -> Check:
        path = self.folder / CERTIFICATE
        try:
            check_plain(path)
            certificate = Certificate.load(path)
            if certificate.pieces != claim.pieces:
                return claim.checked(None, "its pieces are not those of the certificate")
            found = verify(self.graph, certificate, self.progress)
        except (CertificateError, DataError) as error:
            return claim.checked(None, str(error))
        return claim.checked(found)

    def _ball(self, claim: Ball) -> Check:
        info, center = self._region()
        if info is None or center is None:
            return claim.checked(None, "the centre of its ball is not stored")
        if (claim.radius, claim.ball_norm) != (info.radius, info.norm):
            return claim.checked(None, "it is about another ball")
        if hashlib.sha256(center.numpy().tobytes()).hexdigest() != claim.center:
            return claim.checked(None, "the stored centre is not that of its ball")
        found = ball(
            self.graph, center, info.radius, ball_norm=info.norm, norm=claim.norm, seconds=_BALL_SECONDS
        )
        return claim.checked(found.value)

    def _searched(self, claim: Exact) -> Check:
        if claim.value != claim.upper:
            return claim.checked(None, "its fields value and upper differ")
        info, center = self._region()
        if info is not None and center is None:
            return claim.checked(None, "the centre of its ball is not stored")
        within: dict[str, Any] = {}
        if info is not None:
            within = {"center": center, "radius": info.radius, "ball_norm": info.norm}
        seconds = min(_LONGEST_SEARCH, max(60.0, _SEARCH_AGAIN * claim.cost.seconds))
        try:
            found, _ = exact(
                self.graph, norm=claim.norm, seconds=seconds, tolerance=claim.tolerance, max_units=10**6,
                seed=self.record.provenance.seed, progress=self.progress, **within,
            )  # fmt: skip
        except LipscopeError as error:
            return claim.checked(None, str(error))
        if claim.closed and not found.closed:
            return claim.checked(None, f"the search did not close again within {seconds:.0f} s")
        return claim.checked(found.value)

    def _attained(self, quantity: Quantity, claimed: float, witness: Witness) -> Check:
        """The bound that the stored pair attains now."""
        claim = quantity.model_copy(update={"kind": "lower", "value": claimed})
        x1, x2 = (self.tensors.get(f"{witness.key}.{end}") for end in ("x1", "x2"))
        if x1 is None or x2 is None or not x1.shape == x2.shape == self.graph.input_shape:
            return claim.checked(None, "its witness is missing")
        info, center = self._region()
        if info is not None:
            if center is None:
                return claim.checked(None, "the centre of its ball is not stored")
            if not all(_within(x, center, info) for x in (x1, x2)):
                return claim.checked(None, "its witness lies outside the ball")
        norm: Norm = getattr(quantity, "norm", "2")
        try:
            pair = evaluate_pair(self.graph, x1, x2, tuple(witness.samples), norm)
        except ValueError as error:
            # Two equal points attain 0, as a constant network does.
            return claim.checked(0.0, str(error))
        if not witness.ratio <= pair.ratio * (1 + _SAME):
            return claim.checked(
                None, f"its witness attains {pair.ratio:.7g}, not the ratio {witness.ratio:.7g}"
            )
        return claim.checked(pair.bound)

    def _region(self) -> tuple[BallInfo | None, Tensor | None]:
        """The ball that the run is about, and its centre as stored, if there is one that fits."""
        info = self.record.ball if isinstance(self.record, Bracket) else None
        center = self.tensors.get("ball.center")
        if center is None or center.dtype != torch.float64 or tuple(center.shape) != self.graph.input_shape:
            return info, None
        return info, center if bool(center.isfinite().all()) else None


def _within(x: Tensor, center: Tensor, info: BallInfo) -> bool:
    """Whether x lies in the ball, but for the rounding of the distance: the ascent stays a hair inside."""
    distance = vector_norm(x.to(torch.float64) - center, info.norm)
    return distance <= info.radius * (1 + 1e-12)
