"""What the commands `analyze`, `certify` and `inspect` find."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, computed_field

from .frames import frame, quantity_row
from .mean_field import MeanField
from .quantities import (
    Analytical,
    Attained,
    Ball,
    Certified,
    Effective,
    Empirical,
    Exact,
    LayerSlope,
    Local,
    MidRange,
    OperatorProduct,
    SecondMoment,
    Slack,
)
from .record import NoBound, Norm, Quantity, Record, why_no_bound
from .report import DataInfo, ModelInfo, Provenance, Report
from .sensitive import SensitiveInput

if TYPE_CHECKING:
    import pandas


class Result(Report):
    """Everything `lipscope analyze` found."""

    model: ModelInfo
    data: DataInfo
    analytical: Analytical
    certified: Certified | None = Field(None, description="None in runs of versions without certificates")
    local: Local
    ascent: Attained | None = Field(None, description="None if no effort was spent on it")
    empirical: Empirical | None = Field(description="None if the data hold fewer than two distinct samples")
    effective: list[Effective]
    second_moment: list[SecondMoment] = Field([], description="one a reading; empty if it was not asked for")
    mid_range: MidRange | None = Field(None, description="stretch against distance; None in older runs")
    slopes: list[LayerSlope] = Field(description="mean slopes p_k, one row a nonlinear layer")
    slack: Slack | None = Field(
        None, description="where the product bound loses, layer by layer; None in older runs"
    )
    slope_pairs: int = Field(description="pairs behind the secant means")
    sensitive: list[SensitiveInput] = Field(
        [], description="the most sensitive samples and directions, most sensitive first; empty in older runs"
    )
    mean_field: MeanField | None = Field(
        None, description="what mean-field theory predicts for random weights; None in older runs"
    )
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lower(self) -> float:
        """The best attained lower bound of the global Lipschitz constant."""
        return max(q.value for q in (self.local, self.ascent, self.empirical) if q is not None)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def upper(self) -> float:
        """The best certified upper bound of the global Lipschitz constant."""
        return min([self.analytical.value] + ([self.certified.value] if self.certified else []))

    @property
    def no_bound(self) -> NoBound | None:
        """Why `upper` is infinite; None if it is finite."""
        return why_no_bound(self.quantities)

    @property
    def quantities(self) -> list[Quantity]:
        """All numbers, from the certified upper bound down."""
        found = (self.analytical, self.certified, self.ascent, self.local, self.empirical)
        return [q for q in found if q is not None] + [*self.effective, *self.second_moment]

    def to_frame(self) -> pandas.DataFrame:
        """One row a quantity, as a pandas table (the extra `frames`)."""
        return frame(map(quantity_row, self.quantities))


class BallInfo(Record):
    """The ball of inputs that a bracket is about."""

    center: str = Field(description="where the centre came from")
    radius: float
    norm: Literal["2", "inf"] = Field(description="the norm ‖x − centre‖ of the ball")


class Bracket(Report):
    """What `lipscope certify` found: lower ≤ L ≤ upper without data, globally or over a ball."""

    model: ModelInfo
    norm: Norm = Field(description="the norm ℓ_q of inputs and outputs")
    ball: BallInfo | None = Field(None, description="None: the whole space")
    bounds: list[Analytical | Certified | OperatorProduct | Ball | Attained | Exact] = Field(
        description="all bounds found"
    )
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lower(self) -> float:
        """The best attained lower bound."""
        attained = [q.value for q in self.bounds if q.kind == "lower"]
        return max([0.0, *attained, *(q.lower for q in self.bounds if isinstance(q, Exact))])

    @computed_field  # type: ignore[prop-decorator]
    @property
    def upper(self) -> float:
        """The best certified upper bound."""
        return min([math.inf, *(q.value for q in self.bounds if q.kind == "upper")])

    @property
    def no_bound(self) -> NoBound | None:
        """Why `upper` is infinite; None if it is finite."""
        return why_no_bound(self.bounds)

    def to_frame(self) -> pandas.DataFrame:
        """One row a bound, as a pandas table (the extra `frames`)."""
        return frame(map(quantity_row, self.bounds))


class Inspection(Report):
    """What `lipscope inspect` found: the layers of a network, and where its bound loses."""

    model: ModelInfo
    data: DataInfo | None = Field(None, description="None if no data were given")
    analytical: Analytical
    certified: Certified | None = Field(None, description="None if no effort was spent on it")
    attained: Local | Attained = Field(
        description="the steepest sample, or what the ascent found without data; J is taken there"
    )
    slack: Slack
    provenance: Provenance

    @property
    def lower(self) -> float:
        """The attained lower bound of the global Lipschitz constant."""
        return self.attained.value

    @property
    def upper(self) -> float:
        """The best certified upper bound of the global Lipschitz constant."""
        return min([self.analytical.value] + ([self.certified.value] if self.certified else []))

    @property
    def no_bound(self) -> NoBound | None:
        """Why `upper` is infinite; None if it is finite."""
        return why_no_bound([q for q in (self.analytical, self.certified) if q is not None])

    def to_frame(self) -> pandas.DataFrame:
        """One row a layer, as a pandas table (the extra `frames`)."""
        return frame(layer.model_dump(exclude={"inputs"}) for layer in self.slack.layers)
