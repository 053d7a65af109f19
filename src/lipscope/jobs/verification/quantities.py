"""Bounds that are quantities, each with its kind: those of analyze, certify, inspect and check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ...certificates import verify
from ...errors import CertificateError, DataError, LipscopeError
from ...quantities import analytical, ball, evaluate_pair, exact, operator_product
from ...quantities.ball import center_digest
from ...quantities.witness import vector_norm
from ...results import (
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
    LayerBound,
    LayerSlack,
    Local,
    Norm,
    OperatorProduct,
    Quantity,
    Result,
    Slack,
    Witness,
)
from .records import Quantities
from .run import BALL_SECONDS, Run

_SEARCH_AGAIN = 4.0
"""How many times as long as it took a search may take when it is repeated: the machine may be slower."""
_LONGEST_SEARCH = 3600.0
_SAME = 1e-6


def quantity_checks(run: Run, record: Quantities) -> Iterator[Check]:
    """Every bound of the record as it is found now."""
    checker = _Checker(run, record, run.center("ball.center"))
    for quantity in _bounds(record):
        yield from checker.checks(quantity)
    if isinstance(record, (Result, Inspection)) and record.slack is not None:
        yield checker.layers(record.slack)


def _bounds(record: Quantities) -> list[Quantity]:
    if isinstance(record, Bracket):
        return list(record.bounds)
    if isinstance(record, (Result, Gate)):
        return [quantity for quantity in record.quantities if quantity.kind != "estimate"]
    return [q for q in (record.analytical, record.certified, record.attained) if q is not None]


@dataclass(frozen=True)
class _Checker:
    """Checks the bounds of one run; `center` is that of its ball as stored, if there is one."""

    run: Run
    record: Quantities
    center: Tensor | None

    @property
    def region(self) -> BallInfo | None:
        """The ball that the run is about."""
        return self.record.ball if isinstance(self.record, Bracket) else None

    def checks(self, quantity: Quantity) -> Iterator[Check]:
        """The bound as it is found now; for a bracket of its own, both ends."""
        if isinstance(quantity, Analytical):
            yield self._analytical(quantity)
        elif isinstance(quantity, OperatorProduct):
            yield quantity.checked(operator_product(self.run.graph, quantity.norm).value)
        elif isinstance(quantity, Certified):
            yield self._certified(quantity)
        elif isinstance(quantity, Ball):
            yield self._ball(quantity)
        elif isinstance(quantity, Exact):
            yield self._searched(quantity)
            yield self._attained(quantity, quantity.lower, quantity.witness)
        elif isinstance(quantity, (Local, Empirical, Attained)):
            yield self._attained(quantity, quantity.value, quantity.witness)

    @cached_property
    def proved(self) -> Analytical:
        """The bound by norms as it is found now."""
        return analytical(self.run.graph, self.run.progress)

    def layers(self, claim: Slack) -> Check:
        """The product rule's bound and the constants of the table of layers."""
        fault = _fault(claim.layers, self.proved.layers)
        found = None if fault else self.proved.product
        return Check(name="layers", kind="upper", claimed=claim.product, found=found, reason=fault)

    def _analytical(self, claim: Analytical) -> Check:
        found = self.proved
        for name in ("product", "program"):
            claimed, proved = getattr(claim, name), getattr(found, name)
            if claimed is not None and (proved is None or not proved <= claimed * (1 + _SAME)):
                return claim.checked(None, f"its field {name} is not confirmed")
        fault = _fault(claim.layers, found.layers)
        return claim.checked(None if fault else found.value, fault)

    def _certified(self, claim: Certified) -> Check:
        try:
            certificate = self.run.certificate()
            if certificate.pieces != claim.pieces:
                return claim.checked(None, "its pieces are not those of the certificate")
            found = verify(self.run.graph, certificate, self.run.progress)
        except (CertificateError, DataError) as error:
            return claim.checked(None, str(error))
        return claim.checked(found)

    def _ball(self, claim: Ball) -> Check:
        region, center = self.region, self.center
        if region is None or center is None:
            return claim.checked(None, "the centre of its ball is not stored")
        if (claim.radius, claim.ball_norm) != (region.radius, region.norm):
            return claim.checked(None, "it is about another ball")
        if center_digest(center) != claim.center:
            return claim.checked(None, "the stored centre is not that of its ball")
        found = ball(
            self.run.graph, center, region.radius, ball_norm=region.norm, norm=claim.norm, seconds=BALL_SECONDS
        )  # fmt: skip
        return claim.checked(found.value)

    def _searched(self, claim: Exact) -> Check:
        if claim.value != claim.upper:
            return claim.checked(None, "its fields value and upper differ")
        region, center = self.region, self.center
        if region is not None and center is None:
            return claim.checked(None, "the centre of its ball is not stored")
        within: dict[str, Any] = {}
        if region is not None:
            within = {"center": center, "radius": region.radius, "ball_norm": region.norm}
        seconds = min(_LONGEST_SEARCH, max(60.0, _SEARCH_AGAIN * claim.cost.seconds))
        try:
            found, _ = exact(
                self.run.graph, norm=claim.norm, seconds=seconds, tolerance=claim.tolerance, max_units=10**6,
                seed=self.record.provenance.seed, progress=self.run.progress, **within,
            )  # fmt: skip
        except LipscopeError as error:
            return claim.checked(None, str(error))
        if claim.closed and not found.closed:
            return claim.checked(None, f"the search did not close again within {seconds:.0f} s")
        return claim.checked(found.value)

    def _attained(self, quantity: Quantity, claimed: float, witness: Witness) -> Check:
        """The bound that the stored pair attains now."""
        claim = quantity.model_copy(update={"kind": "lower", "value": claimed})
        graph, tensors = self.run.graph, self.run.tensors
        x1, x2 = (tensors.get(f"{witness.key}.{end}") for end in ("x1", "x2"))
        if x1 is None or x2 is None or not x1.shape == x2.shape == graph.input_shape:
            return claim.checked(None, "its witness is missing")
        if self.region is not None:
            if self.center is None:
                return claim.checked(None, "the centre of its ball is not stored")
            if not all(_within(x, self.center, self.region) for x in (x1, x2)):
                return claim.checked(None, "its witness lies outside the ball")
        norm: Norm = getattr(quantity, "norm", "2")
        try:
            pair = evaluate_pair(graph, x1, x2, tuple(witness.samples), norm)
        except ValueError as error:
            # Two equal points attain 0, as a constant network does.
            return claim.checked(0.0, str(error))
        if not witness.ratio <= pair.ratio * (1 + _SAME):
            return claim.checked(
                None, f"its witness attains {pair.ratio:.7g}, not the ratio {witness.ratio:.7g}"
            )
        return claim.checked(pair.bound)


def _fault(rows: Sequence[LayerBound | LayerSlack], proved: Sequence[LayerBound]) -> str:
    """What is wrong with the constants of a table of layers; empty if nothing is."""
    if [(row.place, row.layer, row.shape) for row in rows] != [
        (layer.place, layer.layer, layer.shape) for layer in proved
    ]:
        return "its layers are not those of the network"
    for row, layer in zip(rows, proved, strict=True):
        for name in ("constant", "cumulative"):
            if not getattr(layer, name) <= getattr(row, name) * (1 + _SAME):
                return f"the field {name} of its layer {row.place} is not confirmed"
    return ""


def _within(x: Tensor, center: Tensor, region: BallInfo) -> bool:
    """Whether x lies in the ball, but for the rounding of the distance: the ascent stays a hair inside."""
    distance = vector_norm(x.to(center.dtype) - center, region.norm)
    return distance <= region.radius * (1 + 1e-12)
