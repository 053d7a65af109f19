"""Commands whose findings are one table: their main numbers, rows and sentences."""

from __future__ import annotations

from ...results import ConcentrationReport, DiscriminantReport, FisherReport, MeanFieldReport, Report
from .. import format as fmt
from .concentration import concentration_sheet
from .discriminant import discriminant_sheet
from .fisher import fisher_sheet
from .mean_field import mean_field_sheet
from .sheet import Cell, Column, Sheet, Write

__all__ = ["Cell", "Column", "Sheet", "sheet_of"]


def sheet_of(report: Report, write: Write = fmt.number) -> Sheet | None:
    """The sheet of a report, numbers in its sentences written by `write`; None for other kinds of reports."""
    match report:
        case FisherReport():
            return fisher_sheet(report, write)
        case DiscriminantReport():
            return discriminant_sheet(report, write)
        case MeanFieldReport():
            return mean_field_sheet(report, write)
        case ConcentrationReport():
            return concentration_sheet(report, write)
    return None
