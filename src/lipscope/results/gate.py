"""What the command `check` finds: limits, what was measured, and whether they hold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, computed_field

from .quantities import Analytical, Attained, Certified, Effective, Empirical, Local
from .record import Kind, Quantity, Record
from .report import DataInfo, ModelInfo, Provenance, Report

Limited = Literal["upper", "local", "empirical", "effective"]
"""What a limit can be about."""


class Verdict(Record):
    """One limit, and whether it holds."""

    quantity: Limited
    limit: float
    origin: str = Field(description="where the limit comes from: given, or a baseline and a tolerance")
    measured: float = Field(
        description="for upper the best bound proved, or if that is above the limit and a pair attains more than "
        "the limit, what the pair attains"
    )
    kind: Kind = Field(description="of `measured`")
    scope: str = Field(description="what the verdict is about: all inputs, or the samples at hand")
    outcome: Literal["holds", "exceeded", "not proved"] = Field(
        description="not proved: no proof was found, and no pair of inputs that refutes the limit"
    )
    note: str = ""


class Gate(Report):
    """What `lipscope check` found; Euclidean Lipschitz constants over all inputs, or at the samples."""

    model: ModelInfo
    data: DataInfo | None = Field(None, description="None if no data were given")
    verdicts: list[Verdict] = Field(description="one a limit")
    measured: list[Analytical | Certified | Attained | Local | Empirical | Effective] = Field(
        description="the numbers behind the verdicts; a search for a certificate ends at the limit"
    )
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return all(verdict.outcome == "holds" for verdict in self.verdicts)

    @property
    def quantities(self) -> list[Quantity]:
        """All numbers, in the order they were measured."""
        return list(self.measured)
