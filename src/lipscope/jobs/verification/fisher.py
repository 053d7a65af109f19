"""The bound of `lipscope fisher`: how much the output can tell of any input."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import ModelError
from ...quantities import fisher_bound, fisher_embedding
from ...results import Check, FisherReport
from .run import Run

_NAME = "λ_max of I(x)"


def fisher_checks(run: Run, record: FisherReport) -> Iterator[Check]:
    """The bound of the inputs' information, as it is found now."""
    claim = record.inputs
    assert claim is not None  # `read_record` refuses a run without
    found, reason = None, ""
    if (claim.variance is None) != (claim.likelihood == "softmax"):
        reason = f"its variance does not fit the {claim.likelihood} likelihood"
    else:
        variance = claim.variance or 1.0
        try:
            fisher_embedding(run.graph, claim.likelihood, variance)  # refuses a network that does not fit
            found = fisher_bound(run.graph, claim.likelihood, variance)
        except ModelError as error:
            reason = str(error)
    yield Check(name=_NAME, kind="upper", claimed=claim.bound, found=found, reason=reason)
