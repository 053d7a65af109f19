"""A report as a small table for notebooks: styled inline, without scripts, everything escaped."""

from __future__ import annotations

from typing import Any

from ..results import Bracket, Comparison, Inspection, Report, Result
from . import format as fmt
from .comparing import lines, verdict
from .html import template
from .rows import SIGNS, rows
from .sheets import Sheet, sheet_of
from .slack import chosen, conclusion, rest, slack_rows

_LAYERS = 10


def notebook_html(report: Report) -> str | None:
    """The report's table as HTML that needs nothing around it; None for a kind of report that has none."""
    if (context := _context(report)) is None:
        return None
    return template("notebook.html.j2").render(context)


def _context(report: Report) -> dict[str, Any] | None:
    if (sheet := sheet_of(report, fmt.figure)) is not None:
        return _sheet_context(sheet)
    match report:
        case Comparison():
            return {
                "title": "Lipschitz constants compared",
                "subtitle": "",
                "answer": verdict(report, fmt.figure),
                "columns": ["Quantity", "Kind", *(run.label for run in report.runs)],
                "table": [
                    [
                        line.full_name,
                        f"{SIGNS[line.kind]} {line.kind}",
                        *(fmt.typeset(cell.row.value_text) if cell else fmt.MISSING for cell in line.cells),
                    ]
                    for line in lines(report)
                ],
                "texts": 2,
                "note": "",
            }
        case Result() | Bracket():
            where = fmt.GLOBALLY
            if isinstance(report, Bracket):
                where = fmt.GLOBALLY if report.ball is None else fmt.OVER_BALL
            return {
                "title": report.model.name,
                "subtitle": _subtitle(report),
                "answer": _answer(report.lower, report.upper, where),
                "columns": ["Quantity", "Kind", "Value", "Cost"],
                "table": [
                    [
                        row.full_name,
                        f"{SIGNS[row.kind]} {row.kind}",
                        fmt.typeset(row.value_text),
                        row.seconds,
                    ]
                    for row in rows(report)
                ],
                "texts": 2,
                "note": "",
            }
        case Inspection():
            kept, left = chosen(report.slack, _LAYERS, "order")
            return {
                "title": report.model.name,
                "subtitle": "layer by layer",
                "answer": f"{_answer(report.lower, report.upper, fmt.GLOBALLY)} "
                f"{conclusion(report.slack, report.analytical.no_bound, fmt.figure)}",
                "columns": ["Layer", "Norm ≤", "Stretch", "Lost", "Share"],
                "table": [
                    [
                        row.place,
                        fmt.typeset(row.norm),
                        fmt.typeset(row.stretch),
                        fmt.typeset(row.lost),
                        row.share,
                    ]
                    for row in slack_rows(kept)
                ],
                "texts": 1,
                "note": rest(left),
            }
    return None


def _sheet_context(sheet: Sheet) -> dict[str, Any]:
    return {
        "title": sheet.model,
        "subtitle": sheet.subject,
        "answer": " ".join(line for line in (sheet.lead, *sheet.lines) if line),
        "columns": [sheet.title, *(column.title.replace("\n", " ") for column in sheet.columns)],
        "table": [
            [
                name,
                *(fmt.typeset(column.cells[row].text + column.cells[row].error) for column in sheet.columns),
            ]
            for row, name in enumerate(sheet.names)
        ],
        "texts": 1,
        "note": "",
    }


def _answer(lower: float, upper: float, where: str) -> str:
    return f"{''.join(map(fmt.typeset, fmt.bracket(lower, upper, where)))}."


def _subtitle(report: Result | Bracket) -> str:
    if isinstance(report, Bracket):
        return (
            "without data"
            if report.ball is None
            else f"within {report.ball.radius:g} of {report.ball.center}"
        )
    return f"on {report.data.name}, {fmt.integer(report.data.samples)} samples"
