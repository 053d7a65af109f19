"""Finished runs side by side: models, or checkpoints of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..results import Bracket, ComparedRun, Comparison, Report, Result
from .folder import read_report

_COMMANDS: dict[type[Report], str] = {Result: "analyze", Bracket: "certify"}


def compare(*runs: Result | Bracket | str | Path, labels: Sequence[str] | None = None) -> Comparison:
    """Runs of `analyze`, or runs of `certify`, side by side.

    Args:
        runs: two or more results, or paths of run folders or their JSON files.
        labels: what to call them; by default folders by their names and results by those of their models, numbered
            where two would be the same.

    Raises:
        DataError: a run cannot be read, or is of another kind, norm or ball than the first, so that its numbers
            mean something else.
        ValueError: fewer than two runs, or not one label a run.
    """
    if len(runs) < 2:
        raise ValueError("a comparison needs two runs or more")
    if labels is not None and len(labels) != len(runs):
        raise ValueError(f"{len(labels)} labels for {len(runs)} runs")
    reports = [read_report(Path(run)) if isinstance(run, str | Path) else run for run in runs]
    names = _distinct(labels or [_name(run, report) for run, report in zip(runs, reports, strict=True)])
    compared = [
        _checked(name, report, reports[0], names[0]) for name, report in zip(names, reports, strict=True)
    ]
    return Comparison(runs=compared)


def _name(run: Result | Bracket | str | Path, report: Report) -> str:
    if isinstance(run, str | Path):
        path = Path(run)
        return (path if path.is_dir() else path.parent).resolve().name
    return report.model.name if isinstance(report, Result | Bracket) else type(report).__name__


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, those that occur more than once numbered."""
    found: list[str] = []
    for place, name in enumerate(names):
        same = [other for other in range(len(names)) if names[other] == name]
        found.append(name if len(same) == 1 else f"{name} ({same.index(place) + 1})")
    return found


def _checked(name: str, report: Report, first: Report, first_name: str) -> ComparedRun:
    """The run, if its numbers mean the same as those of the first one."""
    if not isinstance(report, Result | Bracket):
        raise DataError(
            f"{name} is a {type(report).__name__}: only runs of analyze or of certify can be compared"
        )
    if type(report) is not type(first):
        raise DataError(
            f"{name} is a run of {_COMMANDS[type(report)]}, {first_name} of {_COMMANDS[type(first)]}: "
            "compare runs of one command"
        )
    if isinstance(report, Bracket) and isinstance(first, Bracket):
        if report.norm != first.norm:
            raise DataError(
                f"{name} is about the norm ℓ_{report.norm}, {first_name} about ℓ_{first.norm}: constants of "
                "different norms cannot be compared"
            )
        if report.ball != first.ball:
            raise DataError(
                f"{name} is about {_region(report)}, {first_name} about {_region(first)}: compare runs over "
                "the same inputs"
            )
    return ComparedRun(label=name, report=report)


def _region(report: Bracket) -> str:
    ball = report.ball
    if ball is None:
        return "all inputs"
    return f"the ball of radius {ball.radius:g} (ℓ_{ball.norm}) about {ball.center}"
