"""Class separation layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import attrgetter

from ...results import Discriminant, DiscriminantReport, LayerSeparation
from .. import format as fmt
from ..slack import percent
from .sheet import Cell, Column, Main, Sheet, Write, numbers

_ROOM_FOR_STRETCH, _ROOM_FOR_CERTIFIED = 108, 136
_NARROW_NAME = 10
_DIGITS = 3


def discriminant_sheet(report: DiscriminantReport, write: Write) -> Sheet:
    """One row a layer, and where the classes are farthest apart."""
    found = report.discriminant
    classes, samples = len(found.classes), report.data.samples
    return Sheet(
        model=fmt.plain(report.model.name),
        subject=f"on {fmt.plain(report.data.name)}: {classes} classes, {fmt.integer(samples)} samples",
        main=list(_main(found, write)),
        lead="",
        title="Layer",
        names=[fmt.plain(layer.place) for layer in found.layers],
        columns=list(_columns(found)),
        lines=list(_conclusions(found, write)),
        narrow_name=_NARROW_NAME,
    )


def _columns(found: Discriminant) -> Iterator[Column]:
    for title, name, room in (
        ("Between/within", "ratio", 0),
        ("By stretch", "attained_separation", 0),
        ("Certified", "certified_separation", _ROOM_FOR_CERTIFIED),
        ("Fisher", "quotient", 0),
        ("Held out", "held_out", 0),
        ("Stretch between", "between_stretch", _ROOM_FOR_STRETCH),
        ("within", "within_stretch", _ROOM_FOR_STRETCH),
        ("largest", "attained", _ROOM_FOR_STRETCH),
    ):
        yield numbers(title, map(attrgetter(name), found.layers), _DIGITS, room=room)
    certified = [layer.certified for layer in found.layers]
    yield numbers("L ≤", certified, _DIGITS, kind="upper", room=_ROOM_FOR_CERTIFIED)
    if found.layers[0].accuracy is not None:
        shares = [layer.accuracy for layer in found.layers]
        cells = [Cell(fmt.MISSING if share is None else percent(share), value=share) for share in shares]
        yield Column("LDA", cells)


def _best(found: Discriminant) -> LayerSeparation:
    """Where classes are farthest apart."""
    return max(found.layers, key=lambda layer: layer.ratio)


def _main(found: Discriminant, write: Write) -> Iterator[Main]:
    first, last, best = found.layers[0], found.layers[-1], _best(found)
    yield Main(write(first.ratio, digits=_DIGITS), "estimate", "between/within at the input")
    yield Main(write(best.ratio, digits=_DIGITS), "estimate", f"at {fmt.plain(best.place)}, the largest")
    yield Main(write(last.certified, "upper"), "upper", f"L from the input to {fmt.plain(last.place)}")


def _conclusions(found: Discriminant, write: Write) -> Iterator[str]:
    """What the table says, in sentences."""
    best = _best(found)
    yield (
        f"Between/within is {write(found.layers[0].ratio, digits=_DIGITS)} at the input and largest at "
        f"{fmt.plain(best.place)}: {write(best.ratio, digits=_DIGITS)}."
    )
    above = best.ratio > found.limit
    yield (
        f"By stretch, no map reaches more than {write(found.limit, digits=_DIGITS)} on these samples"
        + (": what is above that in the first column is contraction within classes." if above else ".")
    )
    if any(math.isinf(layer.quotient) for layer in found.layers):
        yield (
            "Fisher's quotient is ∞ where features have more dimensions than there are samples, and says nothing there; "
            "the held-out one does."
        )
    if found.chance is not None:
        yield f"Held out, about {write(found.chance, digits=2)} is chance."
