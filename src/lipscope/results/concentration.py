"""How far outputs stray from their mean when the input is noisy: proved tails beside measured ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .frames import frame
from .record import Cost, Kind, NoBound, Record
from .report import ModelInfo, Provenance, Report

if TYPE_CHECKING:
    import pandas

Law = Literal["gaussian", "uniform", "signs"]
"""Independent entries of the noise, mean 0 and variance σ²: Gaussian, uniform on an interval, or ±σ."""


Statistic = Literal["output", "norm"]
"""What deviates: one output from its mean, |f − E f|, or all outputs together, ‖Φ − E Φ‖."""


class TailPoint(Record):
    """The probability of a deviation larger than `deviation`."""

    deviation: float = Field(ge=0)
    bound: float = Field(description="proved; upper")
    local: float = Field(description="the same for the linear map J(x): no bound; estimate")
    measured: float = Field(description="fraction of draws; estimate")
    low: float = Field(description="lower end of the Clopper–Pearson interval")
    high: float = Field(description="upper end")


class TailLevel(Record):
    """The deviation that is exceeded with no more than a probability."""

    probability: float = Field(gt=0, le=1)
    proved: float = Field(description="upper; ∞ where leaving the ball alone is more probable")
    local: float = Field(description="the same for the linear map J(x): no bound; estimate")
    measured: float | None = Field(description="estimate; None where there are too few draws")


class Tail(Record):
    """Tails of one deviation: of one output from its mean, or of all outputs together in norm."""

    statistic: Statistic = Field(description="|f − E f| of one output, or ‖Φ − E Φ‖")
    index: int | None = Field(
        None, description="number of that output, flattened: the one that varies most in the first draws"
    )
    offset: float = Field(
        description="proved bound of the mean deviation that is taken off; 0 for one output; upper"
    )
    spread: float = Field(description="root mean square deviation measured; estimate")
    center_error: float = Field(
        description="standard error of the mean that deviations are measured from; estimate"
    )
    points: list[TailPoint]
    levels: list[TailLevel]


class Concentration(Record):
    """Concentration of Φ(x + noise): P(|f − E f| > t) ≤ 2 exp(−t²/2V) + outside, with V = `variance_proxy`."""

    kind: Kind = Field("upper", description="of `bound` in the points; what is measured is an estimate")
    law: Law
    sigma: float = Field(gt=0, allow_inf_nan=False, description="standard deviation of an entry of the noise")
    lipschitz: float = Field(description="certified Lipschitz constant L that the tails rest on; upper")
    rests_on: str = Field(description="where L comes from: analytical, certified or ball")
    ball_radius: float | None = Field(None, description="of the ball L holds in; None: L holds everywhere")
    outside: float = Field(0.0, description="proved bound of the probability to leave the ball; upper")
    rank: int = Field(
        ge=0,
        lt=2**53,
        description="the fewest numbers that any layer passes on: no Jacobian has a larger rank",
    )
    column_squares: float = Field(
        description="bound of ΣL_i², L_i the constant in the i-th input alone; upper"
    )
    variance_proxy: float = Field(description="V; upper")
    local: float = Field(description="Lip(x) at the centre; estimate")
    local_frobenius: float = Field(description="‖J(x)‖_F there, by random probes; estimate")
    tails: list[Tail]
    draws: int = Field(description="draws behind the measured tails")
    confidence: float = Field(description="of each Clopper–Pearson interval alone")
    no_bound: NoBound | None = Field(None, description="why L is infinite; None if it is finite")
    cost: Cost


class ConcentrationReport(Report):
    """What `lipscope concentration` found."""

    model: ModelInfo
    center: str = Field(description="where the centre x came from")
    concentration: Concentration
    provenance: Provenance

    def to_frame(self) -> pandas.DataFrame:
        """One row a point of a tail, as a pandas table (the extra `frames`)."""
        return frame(
            {"statistic": tail.statistic, "index": tail.index, **point.model_dump()}
            for tail in self.concentration.tails
            for point in tail.points
        )
