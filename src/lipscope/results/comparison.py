"""What the command `compare` finds: runs of one kind side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from .frames import frame, quantity_row
from .record import Norm, Quantity, Record
from .report import Report
from .runs import BallInfo, Bracket, Result

if TYPE_CHECKING:
    import pandas


class ComparedRun(Record):
    """One of the runs, under the name it has in the comparison."""

    label: str
    report: Result | Bracket

    @property
    def quantities(self) -> list[Quantity]:
        """All numbers of the run."""
        return list(self.report.bounds) if isinstance(self.report, Bracket) else self.report.quantities


class Comparison(Report):
    """Runs of `analyze`, or runs of `certify` of one norm and ball, side by side."""

    runs: list[ComparedRun] = Field(description="in the order given; all of one kind")

    @property
    def norm(self) -> Norm:
        """The norm ℓ_q of inputs and outputs that all constants refer to."""
        first = self.runs[0].report
        return first.norm if isinstance(first, Bracket) else "2"

    @property
    def ball(self) -> BallInfo | None:
        """The ball that all bounds are about; None: the whole space."""
        first = self.runs[0].report
        return first.ball if isinstance(first, Bracket) else None

    @property
    def same_data(self) -> bool:
        """Whether estimates and attained numbers are of the same samples; True if no run has data."""
        found = {run.report.data.fingerprint for run in self.runs if isinstance(run.report, Result)}
        return len(found) <= 1

    @property
    def same_layers(self) -> bool:
        """Whether all runs of `analyze` list the same layers, as checkpoints of one network do."""
        reports = [run.report for run in self.runs]
        listed = [
            [(layer.place, layer.layer) for layer in report.analytical.layers]
            for report in reports
            if isinstance(report, Result)
        ]
        return len(listed) == len(reports) and all(one == listed[0] and one for one in listed)

    def to_frame(self) -> pandas.DataFrame:
        """One row a quantity and run, as a pandas table (the extra `frames`)."""
        return frame(
            {"run": run.label, "model": run.report.model.name} | quantity_row(quantity)
            for run in self.runs
            for quantity in run.quantities
        )
