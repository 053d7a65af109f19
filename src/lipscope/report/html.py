"""A report as one self-contained HTML page that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import write_atomically
from ..errors import LipscopeError
from ..results import (
    Analytical,
    Ball,
    Bracket,
    Certified,
    Comparison,
    ConcentrationReport,
    DiscriminantReport,
    FisherReport,
    Inspection,
    Kind,
    MeanFieldReport,
    Report,
    Result,
    Slack,
)
from . import format as fmt
from .charts import Chart, charts
from .charts.stretch import FAMILIES
from .comparing import lines, notices, verdict
from .pictures import Array
from .rows import KINDS, READINGS, rows
from .sheets import Sheet, sheet_of
from .slack import by_type, conclusion, percent, piece_growth, slack_rows, won_back
from .witnesses import groups

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_PAGES = {
    Result: "result",
    Bracket: "bracket",
    Inspection: "inspection",
    Comparison: "comparison",
    FisherReport: "fisher",
    DiscriminantReport: "discriminant",
    MeanFieldReport: "mean_field",
    ConcentrationReport: "concentration",
}
_SHEET_KINDS: dict[Kind, str] = {
    "upper": "Proved. What it bounds is at most this number; rounding errors are included.",
    "estimate": KINDS["estimate"],
}
_NAME_LENGTH = 120
_SUBSCRIPT = re.compile(r"(?<=[λξσ‖])_(max|[Fcqw])")


def has_page(report: Report) -> bool:
    """Whether there is a page for reports of this kind."""
    return type(report) in _PAGES


def render_html(report: Report, tensors: Mapping[str, Array] | None = None) -> str:
    """The page for a report, with pictures of its stored inputs, `tensors` under keys such as "local.x1".

    Raises:
        LipscopeError: there is no page for reports of this kind.
    """
    if not has_page(report):
        raise LipscopeError(f"there is no page for a {type(report).__name__}")
    drawn = charts(report)
    plain_scripts = ["charts.js", "tables.js"] if drawn else ["tables.js"]
    scripts = ([_plotly()] if drawn else []) + [_asset(name) for name in plain_scripts]
    context = _context(report, drawn, tensors or {})
    return template(f"{_PAGES[type(report)]}.html.j2").render(
        r=report,
        charts=drawn,
        charts_json=embed_json([{"id": chart.id, **chart.figure} for chart in drawn.values()]),
        style=_safe(_asset("report.css")),
        scripts=[_safe(script) for script in scripts],
        policy=f"default-src 'none'; script-src {' '.join(map(_source, scripts))}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
        sections=_sections(context, drawn),
        **context,
    )


def write_html(
    report: Report, path: str | os.PathLike[str], tensors: Mapping[str, Array] | None = None
) -> None:
    """Write the page to `path`, whole or not at all."""
    page = render_html(report, tensors).encode("utf-8")
    write_atomically(Path(path).resolve(), lambda file: file.write(page))


def template(name: str) -> Template:
    """A template of this package, in which everything from outside is escaped and made printable."""
    return _environment().get_template(name)


def embed_json(value: object) -> Any:
    """`value` as JSON that no HTML parser can leave, for a `<script type="application/json">`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _safe(text)


def _context(report: Report, drawn: Mapping[str, Chart], tensors: Mapping[str, Array]) -> dict[str, Any]:
    """What the template of this kind of report shows."""
    if isinstance(report, Comparison):
        return _comparison_context(report)
    if (sheet := sheet_of(report, fmt.figure)) is not None:
        return _sheet_context(sheet, report, tensors)
    assert isinstance(report, Result | Bracket | Inspection)
    shared: dict[str, Any] = {
        "title": report.model.name,
        "version": report.provenance.lipscope,
        "gap": _gap(report.lower, report.upper),
        "groups": groups(report, tensors),
        "where": fmt.GLOBALLY,
        "norm": "2",
        "ball": None,
        "told": False,
        "effective": False,
        "meanings": {k: KINDS[k] for k in KINDS if k != "estimate" or not isinstance(report, Bracket)},
        "data": None,
        "open_units": [],
        "random": {},
        "rows": [],
    }
    if isinstance(report, Bracket):
        analytical = next((bound for bound in report.bounds if isinstance(bound, Analytical)), None)
        certified = next((bound for bound in report.bounds if isinstance(bound, Certified)), None)
        ball = next((bound for bound in report.bounds if isinstance(bound, Ball)), None)
        return shared | _layers(analytical, certified, None) | {
            "rows": rows(report, _NAME_LENGTH),
            "norm": report.norm,
            "ball": report.ball,
            "where": fmt.GLOBALLY if report.ball is None else fmt.OVER_BALL,
            "open_units": [] if ball is None else ball.open_units,
        }  # fmt: skip
    shared |= _layers(report.analytical, report.certified, report.slack) | {"data": report.data}
    if isinstance(report, Inspection):
        return shared | {"told": True}
    return shared | {
        "rows": rows(report, _NAME_LENGTH),
        "effective": True,
        "random": _random_slopes(report),
        "families": FAMILIES,
        "quantiles": [(fmt.QUANTILES.get(key, key), value) for key, value in report.local.quantiles.items()],
    }


def _sheet_context(sheet: Sheet, report: Any, tensors: Mapping[str, Array]) -> dict[str, Any]:
    kinds = {main.kind for main in sheet.main} | {column.kind for column in sheet.columns}
    tails = report.concentration if isinstance(report, ConcentrationReport) else None
    return {
        "title": report.model.name,
        "version": report.provenance.lipscope,
        "sheet": sheet,
        "groups": groups(report, tensors),
        "data": getattr(report, "data", None),
        "meanings": {kind: text for kind, text in _SHEET_KINDS.items() if kind in kinds},
        "pictured": "What the output tells most about" if tails is None else "The input",
        "ball": tails is not None and tails.ball_radius is not None,
        "effective": False,
    }


def _layers(
    analytical: Analytical | None, certified: Certified | None, slack: Slack | None
) -> dict[str, Any]:
    """What the sections on the layers and on the certificate show."""
    return {
        "bounds": [] if analytical is None else analytical.layers,
        "certified": certified,
        "slack": slack,
        "lost": slack and slack_rows(slack.layers),
        "active": slack is not None and any(layer.active is not None for layer in slack.layers),
        "lost_most": slack
        and conclusion(slack, None if analytical is None else analytical.no_bound, fmt.figure),
        "lost_by_type": slack and by_type(slack),
    }


def _random_slopes(result: Result) -> dict[int, float]:
    """The mean slopes that mean-field theory predicts, by the number of the layer in the graph."""
    layers = [] if result.mean_field is None else result.mean_field.layers
    return {layer.node: layer.predicted.slope for layer in layers if layer.predicted is not None}


def _comparison_context(comparison: Comparison) -> dict[str, Any]:
    reports = [run.report for run in comparison.runs]
    tables: Sequence[Sequence[object]] = []
    if comparison.same_layers:
        tables = [report.analytical.layers for report in reports if isinstance(report, Result)]
    labels = [run.label for run in comparison.runs]
    return {
        "title": " and ".join(labels) if len(labels) <= 2 else f"{labels[0]} and {len(labels) - 1} more",
        "version": reports[0].provenance.lipscope,
        "lines": lines(comparison),
        "layers": list(zip(*tables, strict=True)),
        "verdict": verdict(comparison, fmt.figure),
        "notices": notices(comparison),
        "of_brackets": isinstance(reports[0], Bracket),
        "norm": comparison.norm,
        "ball": comparison.ball,
    }


def _sections(context: Mapping[str, Any], drawn: Mapping[str, Chart]) -> list[tuple[str, str]]:
    """Anchors and words of the sections that the page has."""
    # An inspection is about the layers: what was looked at comes after them.
    pictures = ("pictures", "Pictures", context.get("groups"))
    first, last = ([], [pictures]) if context.get("told") else ([pictures], [])
    found = [
        ("quantities", "Quantities", context.get("rows") or context.get("lines")),
        ("table", "Table", context.get("sheet")),
        ("local", "Lip(x)", "quantiles" in context),
        ("stretch", "Distance", "stretch" in drawn),
        *first,
        ("units", "Open units", context.get("open_units")),
        ("layers", "Layers", context.get("bounds") or context.get("layers") or context.get("lost")),
        ("certificate", "Certificate", context.get("certified")),
        *last,
        ("slopes", "Mean slopes", "slopes" in drawn),
        ("mean-field", "Random weights", context.get("random")),
        ("kinds", "Kinds", True),
        ("provenance", "Provenance", True),
    ]
    return [(anchor, words) for anchor, words, there in found if there]


def _gap(lower: float, upper: float) -> str | None:
    """By which factor the ends of a bracket are apart; None if that is no number."""
    if lower <= 0 or not math.isfinite(upper):
        return None
    gap = upper / lower
    rounded = float(f"{gap:.2g}")
    if gap < 1.0005:
        return "are the same to the digits shown"
    return (
        f"are a factor of {fmt.integer(int(rounded)) if 10 <= gap < 1e6 else fmt.figure(gap, digits=3)} apart"
    )


def _date(started: str) -> str:
    """An ISO 8601 time for people; anything else as it is."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return started
    return f"{moment.day} {moment:%B %Y, %H:%M}" + (" UTC" if started.endswith(("Z", "+00:00")) else "")


def _sortable(value: float | None) -> str:
    """A number as scripts of the page read it; empty where there is none."""
    if value is None or math.isnan(value):
        return ""
    return repr(float(value)) if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def _subscripts(text: str) -> Any:
    """Text in which λ_max, ‖J‖_F and their like have their subscripts, for a page."""
    from markupsafe import escape

    return _safe(_SUBSCRIPT.sub(r"<sub>\1</sub>", str(escape(fmt.plain(text)))))


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _source(script: str) -> str:
    """The policy's name for exactly this script, so no other one runs."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


@cache
def _asset(name: str) -> str:
    return _text("assets", name)


def _text(folder: str, name: str) -> str:
    path = files(__package__).joinpath(folder, name)
    return path.read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def printable(value: object) -> object:
        return fmt.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printable,
        loader=FunctionLoader(lambda name: _text("templates", name)),
    )
    environment.filters |= {
        "date": _date,
        "sortable": _sortable,
        "typeset": fmt.typeset,
        "subscripts": _subscripts,
    }
    environment.tests["finite"] = math.isfinite
    environment.globals |= {
        "fmt": fmt,
        "number": fmt.figure,
        "kinds": KINDS,
        "readings": READINGS,
        "percent": percent,
        "piece_growth": piece_growth,
        "won_back": won_back,
    }
    return environment
