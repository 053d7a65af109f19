"""The proved tails of `lipscope concentration`.

Each number rests on those before it: a tail on V, V on the constant L. So each is derived again from those that the
record states, as far as they were confirmed: found anew they may differ in the last digits, which a tail magnifies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...certificates import verify
from ...errors import CertificateError, DataError
from ...quantities import analytical, noise_ball
from ...quantities.concentration import TailBound, column_squares, narrowest, proxies
from ...results import Check, Concentration, ConcentrationReport, Tail
from .run import BALL_SECONDS, Run


def concentration_checks(run: Run, record: ConcentrationReport) -> Iterator[Check]:
    """Every proved number as it is found now; of a tail's points, and of its levels, one for all."""
    claim = record.concentration
    name = f"L ({claim.rests_on})"
    try:
        constant = _constant(run, claim)
    except (CertificateError, DataError) as error:
        # All else rests on it.
        yield Check(name=name, kind="upper", claimed=claim.lipschitz, found=None, reason=str(error))
        return
    lipschitz = _upper(name, claim.lipschitz, constant.value)
    outside = _upper("outside the ball", claim.outside, constant.outside)
    rank = _upper("rank", claim.rank, narrowest(run.graph))
    squares = _upper("ΣL_i²", claim.column_squares, column_squares(run.graph, _settled(lipschitz)))
    proved = proxies(claim.law, claim.sigma, _settled(lipschitz), _settled(squares), int(_settled(rank)))
    variance = _upper("V", claim.variance_proxy, proved.variance)
    yield lipschitz
    if claim.outside != 0 or constant.outside != 0:
        yield outside
    yield from (rank, squares, variance)
    for tail in claim.tails:
        bound = replace(proved, variance=_settled(variance)).tail(tail.statistic, _settled(outside))
        yield from _tail_checks(tail, bound)


@dataclass(frozen=True)
class _Constant:
    """A Lipschitz constant that holds in a ball of the radius (None: everywhere), left with a probability."""

    value: float
    radius: float | None = None
    outside: float = 0.0


def _constant(run: Run, claim: Concentration) -> _Constant:
    """The constant that the tails rest on, proved now.

    Raises:
        CertificateError, DataError: it cannot be.
    """
    if claim.rests_on == "analytical":
        found = _Constant(analytical(run.graph, run.progress).value)
    elif claim.rests_on == "certified":
        found = _Constant(verify(run.graph, run.certificate(), run.progress))
    elif claim.rests_on == "ball":
        center = run.center("concentration.center")
        if center is None:
            raise DataError("the centre of its ball is not stored")
        bound = noise_ball(run.graph, center, claim.sigma, claim.law, BALL_SECONDS)
        found = _Constant(bound.bound.value, bound.radius, bound.outside)
    else:
        raise DataError("it is none of the constants that concentration proves")
    if not _same_radius(claim.ball_radius, found.radius):
        raise DataError("it is about another ball")
    return found


def _same_radius(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-12)


def _tail_checks(tail: Tail, bound: TailBound) -> Iterator[Check]:
    what = "norm" if tail.statistic == "norm" else f"output {tail.index}"
    offset = _upper(f"{what}: mean", tail.offset, bound.offset)
    if tail.offset != 0 or bound.offset != 0:
        yield offset
    bound = replace(bound, offset=_settled(offset))
    yield from _telling(
        _upper(f"{what}: P(> {point.deviation:.4g})", point.bound, bound.probability(point.deviation))
        for point in tail.points
    )
    yield from _telling(
        _upper(
            f"{what}: exceeded, P ≤ {level.probability:g}", level.proved, bound.deviation(level.probability)
        )
        for level in tail.levels
    )


def _upper(name: str, claimed: float, found: float) -> Check:
    return Check(name=name, kind="upper", claimed=claimed, found=found)


def _settled(check: Check) -> float:
    """What others are derived from: the number as claimed if that is confirmed, else as found."""
    assert check.found is not None
    return check.claimed if check.holds else check.found


def _telling(checks: Iterator[Check]) -> Iterator[Check]:
    """One for all: the first that fails, or the last if none does."""
    last = None
    for last in checks:
        if not last.holds:
            break
    if last is not None:
        yield last
