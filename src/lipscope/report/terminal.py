"""The result as a table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..errors import LipscopeError
from ..results import (
    Ball,
    Bracket,
    Certified,
    Check,
    Comparison,
    Gate,
    Inspection,
    Kind,
    LayerSlope,
    NoBound,
    Quantity,
    Report,
    Result,
    Slack,
    UpperBound,
)
from . import format as fmt
from .comparing import Cell, lines, notices, verdict
from .rows import SIGNS, Row, rows
from .sheets import Column, Sheet, sheet_of
from .slack import (
    Order,
    SlackRow,
    by_type,
    chosen,
    conclusion,
    piece_growth,
    rest,
    slack_rows,
    won_back,
)

STYLES: dict[Kind, str] = {"upper": "magenta", "lower": "green", "estimate": "cyan"}
_ASCII = str.maketrans(
    {
        "≤": "<=",
        "≥": ">=",
        "≈": "~",
        "²": "^2",
        "∏": "prod ",
        "±": "+/-",
        "∞": "inf",
        "×": "x",
        "–": "-",
        "—": "-",
        "…": "...",
        "τ": "tau",
        "√": "sqrt ",
        "λ": "lambda",
        "σ": "sigma",
        "χ": "chi",
        "ξ": "xi",
        "Φ": "Phi",
        "‖": "|",
        "₀": "_0",
        "ᵀ": "^T",
        **dict(zip("▁▂▃▄▅▆▇█", "__--==##", strict=True)),
    }
)
_ROOM_FOR_MEANING = 110
_ROOM_FOR_BARS, _ROOM_FOR_SHAPES = 80, 136
_ROOM_FOR_NAMES, _NAME = 80, 28
_BAR = 12
_LOUD = 0.6
_LOST = ("Lost", "Share")
_MOST_SLOPES = 40


def print_report(report: Report, console: Console) -> None:
    """Print the table of a report of any kind that has one."""
    match report:
        case Result():
            print_result(report, console)
        case Bracket():
            print_bracket(report, console)
        case Inspection():
            print_inspection(report, console)
        case Comparison():
            print_comparison(report, console)
        case _:
            sheet = sheet_of(report)
            if sheet is None:
                raise LipscopeError(f"there is no table for a {type(report).__name__}")
            _print_sheet(sheet, console)


def print_result(result: Result, console: Console) -> None:
    """Print the bracket, the table of quantities and the mean slopes p_k."""
    _Printer(console).show(result)


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """Print each bound as claimed and as found again."""
    printer = _Printer(console)
    table = empty_table()
    for title in ("Bound", "Kind", "Claimed", "Found", ""):
        table.add_column(title, justify="right" if title in ("Claimed", "Found") else "left")
    for check in checks:
        verdict = "confirmed" if check.holds else f"NOT CONFIRMED {fmt.plain(check.reason)}".strip()
        table.add_row(
            printer._text(fmt.plain(check.name)),
            printer._text(f"{SIGNS[check.kind]} {check.kind}", STYLES[check.kind]),
            printer._text(fmt.number(check.claimed, check.kind, digits=7)),
            printer._text(fmt.number(check.found, check.kind, digits=7)),
            printer._text(verdict, "green" if check.holds else "bold red"),
        )
    console.print(table)


def print_gate(gate: Gate, console: Console) -> None:
    """Print the limits of `lipscope check`, what was measured, and the verdicts."""
    printer = _Printer(console)
    data = "" if gate.data is None else f" on {fmt.plain(gate.data.name)}"
    console.print(
        Text.assemble(printer._text(fmt.plain(gate.model.name), "bold"), printer._text(data, "dim"))
    )
    table = empty_table()
    for heading in ("Limit", "", "Measured", "Kind", "Verdict"):
        table.add_column(heading, justify="right" if heading in ("", "Measured") else "left", no_wrap=True)
    table.add_column("Over", overflow="fold")
    for each in gate.verdicts:
        holds = each.outcome == "holds"
        notes = [each.scope, *([] if each.origin == "given" else [each.origin])]
        notes += [each.note] if each.note else []
        table.add_row(
            printer._text(each.quantity),
            printer._text(f"≤ {fmt.number(each.limit)}"),
            printer._text(fmt.number(each.measured, each.kind), "bold"),
            printer._text(f"{SIGNS[each.kind]} {each.kind}", STYLES[each.kind]),
            printer._text(each.outcome if holds else each.outcome.upper(), "green" if holds else "bold red"),
            printer._text("; ".join(fmt.plain(note) for note in notes), "dim"),
        )
    console.print(table)
    kept = sum(each.outcome == "holds" for each in gate.verdicts)
    line = f"{'passed' if gate.passed else 'FAILED'}: {kept} of {len(gate.verdicts)} limits hold"
    console.print(printer._text(line, "green" if gate.passed else "bold red"))


def print_bracket(bracket: Bracket, console: Console) -> None:
    """Print the bracket of `lipscope certify` and the bounds behind it."""
    printer = _Printer(console)
    console.print()
    place = "" if bracket.ball is None else f" within {bracket.ball.radius:g} (ℓ_{bracket.ball.norm}) of "
    place += "" if bracket.ball is None else fmt.plain(bracket.ball.center)
    title = Text.assemble(
        printer._text(fmt.plain(bracket.model.name), "bold"),
        printer._text(f"{place}, norm ℓ_{bracket.norm} in and out", "dim"),
    )
    console.print(title)
    where = fmt.GLOBALLY if bracket.ball is None else fmt.OVER_BALL
    printer._bounds(bracket.lower, bracket.upper, bracket.no_bound, where)
    console.print()
    table = empty_table()
    for heading in ("Bound", "Kind", "Value", "Cost", "How"):
        table.add_column(heading, justify="right" if heading in ("Value", "Cost") else "left")
    for bound in sorted(bracket.bounds, key=lambda bound: -bound.value):
        table.add_row(
            printer._text(bound.name),
            printer._text(f"{SIGNS[bound.kind]} {bound.kind}", STYLES[bound.kind]),
            printer._text(fmt.number(bound.value, bound.kind), f"bold {STYLES[bound.kind]}"),
            printer._text(fmt.duration(bound.cost.seconds), "dim"),
            printer._text(_how(bound), "dim"),
        )
    console.print(table)


def print_inspection(
    inspection: Inspection, console: Console, order: Order = "order", top: int | None = None
) -> None:
    """Print the layers of `lipscope inspect`, the `top` that lose most (None: all), and what a certificate wins back."""
    printer, slack = _Printer(console), inspection.slack
    console.print()
    data = "" if inspection.data is None else f" on {fmt.plain(inspection.data.name)}"
    model = printer._text(fmt.plain(inspection.model.name), "bold")
    console.print(Text.assemble(model, printer._text(f"{data}, layer by layer", "dim")))
    printer._bounds(inspection.lower, inspection.upper, inspection.no_bound)
    console.print()
    printer._layers(slack, order, top)
    console.print()
    if inspection.certified is not None:
        printer._pieces(inspection.certified, slack)
        console.print()
    console.print(printer._text(conclusion(slack, inspection.analytical.no_bound), "bold"))
    if kinds := by_type(slack):
        console.print(printer._text(f"By type of layer: {kinds}.", "dim"))


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the quantities of all runs side by side, as many runs at once as fit."""
    printer = _Printer(console)
    console.print()
    found = lines(comparison)
    columns = [
        [
            printer._text(fmt.elide(fmt.plain(run.label), 24)),
            *(printer._compared(line.cells[k]) for line in found),
        ]
        for k, run in enumerate(comparison.runs)
    ]
    left = [printer._text(line.full_name) for line in found]
    room = console.width - max(name.cell_len for name in left) - len("≈ estimate") - 2
    while columns:
        widths = [max(text.cell_len for text in column) + 1 for column in columns]
        fitting = max(1, sum(total <= room for total in accumulate(widths)))
        table = empty_table()
        table.add_column("Quantity")
        table.add_column("Kind", no_wrap=True)
        for title, *_ in columns[:fitting]:
            table.add_column(title, justify="right")
        for place, line in enumerate(found):
            kind = printer._text(f"{SIGNS[line.kind]} {line.kind}", STYLES[line.kind])
            table.add_row(left[place], kind, *(column[place + 1] for column in columns[:fitting]))
        console.print(table)
        console.print()
        columns = columns[fitting:]
    console.print(printer._text(verdict(comparison), "bold"))
    for notice in notices(comparison):
        console.print(printer._text(notice, "yellow"))


def _print_sheet(sheet: Sheet, console: Console) -> None:
    """The findings of a command as a table, the more of it the wider the console."""
    console.print()
    model, subject = shown(console, sheet.model, "bold"), shown(console, f" {sheet.subject}", "dim")
    console.print(Text.assemble(model, subject))
    if sheet.lead:
        console.print(shown(console, sheet.lead))
    console.print()
    columns = [column for column in sheet.columns if console.width >= column.room]
    length = sheet.narrow_name if console.width < _ROOM_FOR_NAMES else _NAME
    table = empty_table()
    table.add_column(shown(console, sheet.title), overflow="fold")
    for column in columns:
        table.add_column(shown(console, column.title), justify="right", overflow="fold")
    for place, name in enumerate(sheet.names):
        cells = (_entry(sheet, column, place, console) for column in columns)
        table.add_row(shown(console, fmt.elide(name, length)), *cells)
    console.print(table)
    console.print()
    for line in sheet.lines:
        console.print(shown(console, line))


def _entry(sheet: Sheet, column: Column, place: int, console: Console) -> Text:
    cell = column.cells[place]
    error = cell.error if console.width >= sheet.room_for_errors else ""
    return shown(console, cell.text + error, f"bold {STYLES[column.kind]}" if column.strong else "")


def _how(bound: Quantity) -> str:
    """The method, or why there is no bound."""
    if not isinstance(bound, UpperBound) or bound.value < math.inf:
        return bound.method
    where = fmt.OVER_BALL if isinstance(bound, Ball) else fmt.GLOBALLY
    return fmt.no_upper(where) + fmt.reason(bound.no_bound)


class _Printer:
    """Prints on one console: knows its width and whether it can show more than ASCII."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.unicode = console.encoding.lower().startswith("utf")

    def show(self, result: Result) -> None:
        self.console.print()
        self._header(result)
        self._bounds(result.lower, result.upper, result.no_bound)
        self.console.print()
        if self.console.width >= _ROOM_FOR_MEANING:
            self._table(rows(result, name_length=60))
        else:
            self._list(rows(result, name_length=34))
        if result.slopes:
            self.console.print()
            self._slopes(result.slopes)
        self._notices(result)

    def _text(self, text: str, style: str = "") -> Text:
        return shown(self.console, text, style)

    def _compared(self, cell: Cell | None) -> Text:
        """One quantity of one run, and its ratio to that of the first run."""
        if cell is None:
            return self._text(fmt.MISSING, "dim")
        value = self._text(cell.row.figure_text, f"bold {STYLES[cell.row.kind]}")
        return Text.assemble(value, self._text(f" {cell.ratio_text}" if cell.ratio_text else "", "dim"))

    def _header(self, result: Result) -> None:
        samples = result.data.samples
        rest = f" on {fmt.plain(result.data.name)}, {fmt.integer(samples)} sample{'s' * (samples != 1)}"
        model = self._text(fmt.plain(result.model.name), "bold")
        self.console.print(Text.assemble(model, self._text(rest, "dim")))

    def _bounds(
        self, lower: float, upper: float, no_bound: NoBound | None, where: str = fmt.GLOBALLY
    ) -> None:
        low, between, high = fmt.bracket(lower, upper, where)
        line = Text.assemble(
            self._text(low, f"bold {STYLES['lower']}"),
            self._text(between),
            self._text(high, f"bold {STYLES['upper']}"),
        )
        if upper == math.inf:
            line.append_text(self._text(fmt.reason(no_bound)))
            self.console.print(line)
            if no_bound is not None:
                self.console.print(self._text(no_bound.remedy, "dim"))
            return
        legend = self._text("   attained ≤ Lipschitz constant ≤ certified", "dim")
        fits = line.cell_len + legend.cell_len <= self.console.width
        self.console.print(Text.assemble(line, legend) if fits else line)

    def _table(self, found: list[Row]) -> None:
        """One row a quantity, its meaning in the last column."""
        table = empty_table()
        table.add_column("Quantity", no_wrap=True)
        table.add_column("Kind", no_wrap=True)
        table.add_column("Value", justify="right", no_wrap=True)
        table.add_column(self._text("Value²"), justify="right", no_wrap=True)
        table.add_column("Cost", justify="right", no_wrap=True)
        table.add_column("Meaning and witness", overflow="fold")
        for row in found:
            name, kind, value, square = self._figures(row)
            if row.variant:
                name = Text.assemble(name, self._text(f"\n{row.variant}", "dim"))
            table.add_row(
                name,
                kind,
                value,
                square,
                self._text("\n".join(filter(None, [row.seconds, row.passes])), "dim"),
                Text.assemble(
                    self._text(row.meaning), *(self._text(f"\n{note}", "dim") for note in row.notes)
                ),
            )
        self.console.print(table)

    def _list(self, found: list[Row]) -> None:
        """One line of figures a quantity, its meaning below it."""
        lines = [[self._text(title) for title in ("Quantity", "Kind", "Value", "Value²", "Cost")]]
        for row in found:
            name, kind, value, square = self._figures(row)
            if row.variant:
                name = Text.assemble(name, self._text(f" {row.variant}", "dim"))
            lines.append([name, kind, value, square, self._text(row.seconds, "dim")])
        for title in lines[0]:
            title.stylize("bold")

        def needed() -> int:
            return sum(max(line[column].cell_len for line in lines) for column in range(len(lines[0]))) + 8

        if needed() > self.console.width:
            for row, line in zip(found, lines[1:], strict=True):
                if row.variant:
                    line[0] = self._text(f"{row.symbol_text} {row.variant}")
        cost_apart = needed() > self.console.width
        if cost_apart:
            lines = [line[:-1] for line in lines]
        widths = [max(line[column].cell_len for line in lines) for column in range(len(lines[0]))]
        for place, line in enumerate(lines):
            for column, (cell, width) in enumerate(zip(line, widths, strict=True)):
                cell.align("right" if column >= 2 else "left", width)
            self.console.print(Text("  ").join(line))
            if place == 0:
                rule = "─" if self.unicode else "-"
                self.console.print(Text(rule * min(self.console.width, sum(widths) + 2 * len(widths) - 2)))
                continue
            row = found[place - 1]
            cost = [row.seconds] if cost_apart else []
            notes = [row.meaning, *row.notes, *cost, *([row.passes] if row.passes else [])]
            self.console.print(Padding.indent(self._text("; ".join(notes), "dim"), 2))

    def _figures(self, row: Row) -> tuple[Text, Text, Text, Text]:
        style = STYLES[row.kind]
        return (
            self._text(f"{row.name} {row.symbol_text}"),
            self._text(f"{SIGNS[row.kind]} {row.kind}", style),
            self._text(row.value_text, f"bold {style}"),
            self._text(row.square_text),
        )

    def _slopes(self, slopes: list[LayerSlope]) -> None:
        table = empty_table()
        table.add_column("Mean slope p_k", overflow="fold")
        table.add_column("active", justify="right", no_wrap=True)
        table.add_column("secant", justify="right", no_wrap=True)
        hidden = len(slopes) - _MOST_SLOPES if len(slopes) > _MOST_SLOPES + 1 else 0
        head = _MOST_SLOPES // 2
        for place, slope in enumerate(slopes):
            if hidden and place == head:
                table.add_row(self._text(f"… {hidden} more layers", "dim"), "", "")
            if hidden and head <= place < head + hidden:
                continue
            table.add_row(
                Text.assemble(
                    self._text(fmt.elide(fmt.plain(slope.place), 40)),
                    self._text(f" {fmt.plain(slope.layer)}", "dim"),
                ),
                self._text(fmt.number(slope.active, digits=3)),
                self._text(fmt.number(slope.secant, digits=3)),
            )
        self.console.print(table)

    def _layers(self, slack: Slack, order: Order, top: int | None) -> None:
        """One row a layer; the wider the console, the more is told of it."""
        layers, left = chosen(slack, top, order)
        found, width = slack_rows(layers), self.console.width
        data = any(layer.active is not None for layer in slack.layers)
        columns: list[tuple[str, int, Callable[[SlackRow], str]]] = [
            ("Norm ≤", 0, lambda row: row.norm),
            ("Stretch", 0, lambda row: row.stretch),
            ("Slopes", 100, lambda row: row.slopes),
            *([("Active", 92, lambda row: row.active)] if data else []),
            ("Up to here ≤", 120, lambda row: row.cumulative),
            ("Lost", 0, lambda row: row.lost),
            ("Share", 0, lambda row: row.share),
        ]
        shown = [(title, cell) for title, least, cell in columns if width >= least]
        table = empty_table()
        table.add_column("Layer", overflow="fold")
        if width >= _ROOM_FOR_SHAPES:
            table.add_column("Output shape", no_wrap=True)
            table.add_column("Parameters", justify="right", no_wrap=True)
        for title, _ in shown:
            table.add_column(self._text(title), justify="right", no_wrap=True)
        bar = _BAR if width >= _ROOM_FOR_BARS else _BAR // 2
        table.add_column("", no_wrap=True, min_width=bar)
        for row in found:
            shape = [self._text(row.shape, "dim"), self._text(fmt.integer(row.layer.parameters), "dim")]
            loud = row.bar > _LOUD
            table.add_row(
                self._layer_name(row),
                *(shape if width >= _ROOM_FOR_SHAPES else []),
                *(self._text(cell(row), "bold red" if loud and t in _LOST else "") for t, cell in shown),
                self._text("█" * round(bar * row.bar), "red" if loud else "yellow"),
            )
        self.console.print(table)
        if more := rest(left):
            self.console.print(self._text(more, "dim"))

    def _layer_name(self, row: SlackRow) -> Text:
        width = self.console.width
        length = 20 if width < _ROOM_FOR_BARS else 28 if width < _ROOM_FOR_SHAPES else 44
        place = self._text(fmt.elide(row.place, length))
        return Text.assemble(place, self._text(f" {row.kind}", "dim")) if row.kind else place

    def _pieces(self, certified: Certified, slack: Slack) -> None:
        """What the certificate wins back, piece by piece."""
        table = empty_table()
        table.add_column("Piece of the certificate", overflow="fold")
        for title in ("By norms ≤", "Certified ≤", "Stretch", "Won back"):
            table.add_column(self._text(title), justify="right", no_wrap=True)
        length = 16 if self.console.width < _ROOM_FOR_BARS else 32
        for piece in certified.pieces:
            ends = " – ".join(fmt.elide(fmt.plain(end), length) for end in (piece.first, piece.last))
            table.add_row(
                self._text(ends),
                self._text(fmt.number(piece.product, "upper")),
                self._text(fmt.number(piece.bound, "upper")),
                self._text(piece_growth(slack, piece)),
                self._text(won_back(piece), "green"),
            )
        self.console.print(table)

    def _notices(self, result: Result) -> None:
        if result.empirical is None:
            notice = "No empirical constant: the data hold fewer than two distinct samples."
        elif result.empirical.duplicate_count:
            count = result.empirical.duplicate_count
            were = "pair was" if count == 1 else "pairs were"
            notice = f"{fmt.integer(count)} {were} left out: samples at distance zero."
        else:
            return
        self.console.print()
        self.console.print(self._text(notice, "yellow"))


def shown(console: Console, text: str, style: str = "") -> Text:
    """Text as the console can show it, without markup or control characters but line breaks.

    Names come from files of others, and may hold brackets and worse.
    """
    text = "\n".join(map(fmt.plain, text.split("\n")))
    encoding = console.encoding
    if not encoding.lower().startswith("utf"):
        text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return Text(text, style=style, overflow="fold")


def empty_table() -> Table:
    """A table in the house style, without columns."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
