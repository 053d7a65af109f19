"""The brackets of several runs on one logarithmic axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from ...results import ComparedRun, Comparison, Kind, Result
from .. import format as fmt
from .chart import SYMBOLS, Chart, Figure
from .places import NARROW_NAME, WIDE_NAME, places
from .scale import LogScale

_ROW = 44


@dataclass(frozen=True)
class _Mark:
    """A number of each run that is drawn beside the bracket."""

    words: str
    symbol: str
    colour: str
    values: list[float | None]


def comparison_chart(comparison: Comparison) -> Chart:
    """One line a run: the interval that holds its constant, and what was found on data."""
    runs = comparison.runs
    marks = [mark for mark in _marks(runs) if any(value is not None for value in mark.values)]
    ends = [end for run in runs for end in (run.report.lower, run.report.upper)]
    beside = [value for mark in marks for value in mark.values if value is not None]
    scale = LogScale.over([*ends, *beside])
    traces = [_interval(run, place, scale) for place, run in enumerate(runs)]
    kinds: tuple[Kind, ...] = ("lower", "upper")
    for kind in kinds:
        values = [getattr(run.report, kind) for run in runs]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": kind,
                "x": [scale.place(value) for value in values],
                "y": list(range(len(runs))),
                "text": [fmt.figure(value, kind) for value in values],
                "textposition": "top left" if kind == "lower" else "top right",
                "textfont": {"size": 12, "color": f"var(--{kind})"},
                "hovertext": [
                    f"{escape(fmt.plain(run.label))}: {kind} {fmt.figure(value, kind)}"
                    for run, value in zip(runs, values, strict=True)
                ],
                "hoverinfo": "text",
                "cliponaxis": False,
                "marker": {"symbol": SYMBOLS[kind], "size": 14, "color": f"var(--{kind})"},
            }
        )
    traces += [_beside(mark, runs, scale) for mark in marks]
    names = [fmt.plain(run.label) for run in runs]
    layout = {
        "height": 92 + _ROW * len(runs),
        "margin": {"l": 8, "r": 64, "t": 16, "b": 44},
        "xaxis": scale.axis("norm out / norm in, log scale"),
        "yaxis": places(names, WIDE_NAME) | {"range": [len(runs) - 0.5, -0.75]},
    }
    told = "; ".join(
        f"{name} from {fmt.figure(run.report.lower, 'lower')} to {fmt.figure(run.report.upper, 'upper')}"
        for name, run in zip(names, runs, strict=True)
    )
    narrow = {
        "xaxis": scale.fewer_ticks(),
        "yaxis": places(names, NARROW_NAME) | {"range": [len(runs) - 0.5, -0.75]},
    }
    return Chart(
        "chart-comparison",
        {"data": traces, "layout": layout, "narrow": narrow},
        f"Brackets of the runs on a logarithmic axis: {told}.",
    )


def _interval(run: ComparedRun, place: int, scale: LogScale) -> Figure:
    high = scale.range[1] if run.report.upper == math.inf else scale.place(run.report.upper)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [scale.place(run.report.lower), high],
        "y": [place, place],
        "line": {"width": 6, "color": "var(--grid)"},
        "hoverinfo": "skip",
    }


def _marks(runs: list[ComparedRun]) -> list[_Mark]:
    results = [run.report if isinstance(run.report, Result) else None for run in runs]
    local = [None if result is None else result.local.value for result in results]
    pairs = [None if result is None else result.empirical for result in results]
    empirical = [None if found is None else found.value for found in pairs]
    return [
        _Mark("largest Lip(x)", "diamond", "pairs", local),
        _Mark("largest between samples", "square", "segments", empirical),
    ]


def _beside(mark: _Mark, runs: list[ComparedRun], scale: LogScale) -> Figure:
    there = [place for place, value in enumerate(mark.values) if value is not None]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": mark.words,
        "x": [scale.place(mark.values[place] or 0.0) for place in there],
        "y": there,
        "hovertext": [
            f"{escape(fmt.plain(runs[place].label))}: {mark.words} {fmt.figure(mark.values[place])}"
            for place in there
        ],
        "hoverinfo": "text",
        "cliponaxis": False,
        "marker": {"symbol": mark.symbol, "size": 9, "color": f"var(--{mark.colour})"},
    }
