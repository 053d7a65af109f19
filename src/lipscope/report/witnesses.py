"""The inputs behind the numbers, as groups of pictures with their captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..results import (
    Attained,
    Bracket,
    ConcentrationReport,
    Exact,
    FisherReport,
    InputFisher,
    Inspection,
    Local,
    Report,
    Result,
    SecondMoment,
    Witness,
)
from . import format as fmt
from .pictures import Array, Drawing, input_drawing, signed_drawing

_DIRECTIONS = 4


@dataclass(frozen=True)
class Panel:
    """One picture with its caption; names are printable, not escaped."""

    caption: str
    note: str
    drawing: Drawing
    signed: bool


@dataclass(frozen=True)
class Group:
    """Pictures that belong together."""

    title: str
    words: str
    panels: list[Panel]


def groups(report: Report, tensors: Mapping[str, Array]) -> list[Group]:
    """What there is to see of a run, `tensors` being its stored inputs by key."""
    return list(_groups(report, tensors))


def _groups(report: Report, tensors: Mapping[str, Array]) -> Iterator[Group]:
    if isinstance(report, FisherReport):
        if report.inputs is not None:
            yield from _telling(report.inputs, tensors)
        return
    if isinstance(report, ConcentrationReport):
        center = tensors.get("concentration.center")
        # Zeros, the default, are no picture.
        if center is not None and center.any():
            panel = Panel("Input", fmt.plain(report.center), input_drawing(center), signed=False)
            yield Group("Without noise", "What the noise is added to.", [panel])
        return
    if isinstance(report, Bracket):
        for bound in report.bounds:
            if isinstance(bound, Attained | Exact):
                yield from _steep(bound, tensors)
        return
    if isinstance(report, Inspection):
        if isinstance(report.attained, Local):
            yield from _pair_beside_sample(report.attained, tensors)
        else:
            yield from _steep(report.attained, tensors)
        return
    if not isinstance(report, Result):
        return
    if report.empirical is not None:
        yield from _worst_pair(report.empirical.witness, report.empirical.value, tensors)
    found = list(_sensitive(report, tensors))
    yield from found or _pair_beside_sample(report.local, tensors)
    if report.ascent is not None:
        yield from _steep(report.ascent, tensors)
    for moment in report.second_moment:
        yield from _leading(moment, tensors)


def _worst_pair(witness: Witness, ratio: float, tensors: Mapping[str, Array]) -> Iterator[Group]:
    ends = _ends(witness.key, tensors)
    if ends is None:
        return
    names = [fmt.plain(name) for name in witness.samples]
    first, second = names if len(names) == 2 else ("", "")
    yield Group(
        "The worst pair of samples",
        f"They are {fmt.figure(witness.distance)} apart, and their outputs {fmt.figure(ratio, 'lower')} times as far.",
        [
            Panel("First sample", first, input_drawing(ends[0]), signed=False),
            Panel("Second sample", second, input_drawing(ends[1]), signed=False),
            Panel("Second minus first", "", signed_drawing(ends[1] - ends[0]), signed=True),
        ],
    )


def _sensitive(result: Result, tensors: Mapping[str, Array]) -> Iterator[Group]:
    panels: list[Panel] = []
    for one in result.sensitive:
        x, v = tensors.get(f"{one.key}.x"), tensors.get(f"{one.key}.v")
        if x is None or v is None:
            continue
        caption = f"Lip(x) = {fmt.figure(one.value)}"
        panels.append(Panel(caption, fmt.plain(one.sample), input_drawing(x), signed=False))
        panels.append(Panel("Its most stretched direction", "", signed_drawing(v), signed=True))
    if panels:
        yield Group(
            "The most sensitive inputs",
            "The samples of largest Lip(x), each beside the small change that is stretched by that factor.",
            panels,
        )


def _pair_beside_sample(local: Local, tensors: Mapping[str, Array]) -> Iterator[Group]:
    ends = _ends(local.witness.key, tensors)
    if ends is None:
        return
    name = ", ".join(map(fmt.plain, local.witness.samples))
    yield Group(
        "The most sensitive input",
        f"Beside it, the direction of a pair that is stretched by {fmt.figure(local.value, 'lower')}.",
        [
            Panel("Most sensitive input", name, input_drawing(ends[0]), signed=False),
            Panel("Its most stretched direction", "", _direction(ends), signed=True),
        ],
    )


def _steep(bound: Attained | Exact, tensors: Mapping[str, Array]) -> Iterator[Group]:
    ends = _ends(bound.witness.key, tensors)
    if ends is None:
        return
    value = bound.lower if isinstance(bound, Exact) else bound.value
    how = "The search for the exact constant" if isinstance(bound, Exact) else "Climbing"
    yield Group(
        f"The steepest place: {bound.name}",
        f"{how} found a pair that is stretched by {fmt.figure(value, 'lower')}, "
        f"{fmt.figure(bound.witness.distance, digits=2)} apart.",
        [
            Panel("One input of the pair", "", input_drawing(ends[0]), signed=False),
            Panel("Direction to the other", "", _direction(ends), signed=True),
        ],
    )


def _leading(moment: SecondMoment, tensors: Mapping[str, Array]) -> Iterator[Group]:
    stretches = [f"stretch {fmt.figure(value)}" for value in moment.leading]
    if panels := _directions(moment.directions, stretches, tensors):
        where = "at the samples" if moment.reading == "active" else "over pairs of samples"
        yield Group(
            f"Directions stretched most on average {where}",
            "Unit vectors of largest root-mean-square stretch, each orthogonal to those before it.",
            panels,
        )


def _telling(inputs: InputFisher, tensors: Mapping[str, Array]) -> Iterator[Group]:
    eigenvalues = [f"eigenvalue {fmt.figure(value)}" for value in inputs.mean.leading]
    if panels := _directions(inputs.mean.directions, eigenvalues, tensors):
        yield Group(
            "Changes of the input that the output tells most about, on average",
            "The leading unit eigenvectors of the mean Fisher information of the inputs.",
            panels,
        )
    if inputs.steepest in tensors:
        value, name = inputs.eigenvalues[inputs.largest], fmt.plain(inputs.samples[inputs.largest])
        caption = f"λ_max = {fmt.figure(value)}"
        yield Group(
            "The change that it tells most about at a sample",
            "The leading unit eigenvector of I(x) at the sample of the largest eigenvalue.",
            [Panel(caption, name, signed_drawing(tensors[inputs.steepest]), signed=True)],
        )


def _directions(keys: Sequence[str], notes: Sequence[str], tensors: Mapping[str, Array]) -> list[Panel]:
    """Pictures of the first of the stored directions, each with its note if it has one."""
    return [
        Panel(
            f"{_ordinal(place + 1)} direction",
            notes[place] if place < len(notes) else "",
            signed_drawing(tensors[key]),
            signed=True,
        )
        for place, key in enumerate(keys[:_DIRECTIONS])
        if key in tensors
    ]


def _ends(key: str, tensors: Mapping[str, Array]) -> tuple[Array, Array] | None:
    x1, x2 = (tensors.get(f"{key}.{end}") for end in ("x1", "x2"))
    return None if x1 is None or x2 is None or x1.shape != x2.shape else (x1, x2)


def _direction(ends: tuple[Array, Array]) -> Drawing:
    """The unit vector from the first to the second."""
    step = ends[1] - ends[0]
    return signed_drawing(step / (float(np.linalg.norm(step)) or 1.0))


def _ordinal(number: int) -> str:
    return ("First", "Second", "Third", "Fourth")[number - 1]
