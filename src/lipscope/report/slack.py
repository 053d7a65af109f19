"""Where a bound loses, as text: the same words for the terminal and the page."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..results import CertifiedPiece, LayerSlack, NoBound, Slack
from . import format as fmt

Order = Literal["order", "slack"]
_NOTHING_LOST = 1e-9
_TYPES = 4


@dataclass(frozen=True)
class SlackRow:
    """One layer, as text; the names are printable, not escaped."""

    layer: LayerSlack
    place: str
    kind: str
    """The type, empty if the place tells it."""
    shape: str
    norm: str
    stretch: str
    slopes: str
    active: str
    lost: str
    share: str
    cumulative: str
    bar: float
    """The share relative to the largest one."""


def slack_rows(layers: Sequence[LayerSlack]) -> list[SlackRow]:
    """The layers as text, in the order given."""
    largest = max((layer.share for layer in layers), default=0.0)
    return [
        SlackRow(
            layer=layer,
            place=fmt.plain(layer.place),
            kind=_kind(layer),
            shape=fmt.shape(layer.shape),
            norm=fmt.number(layer.constant, "upper"),
            stretch=fmt.number(layer.stretch, digits=3),
            slopes=_slopes(layer),
            active=fmt.MISSING if layer.active is None else fmt.number(layer.active, digits=3),
            lost=factor(layer.factor),
            share=percent(layer.share),
            cumulative=fmt.number(layer.cumulative, "upper"),
            bar=layer.share / largest if largest > 0 else 0.0,
        )
        for layer in layers
    ]


def chosen(slack: Slack, top: int | None, order: Order) -> tuple[list[LayerSlack], list[LayerSlack]]:
    """The layers to list, and those left out: the ones that do nothing, and all but the `top` that lose most."""
    listed = [layer for layer in slack.layers if top is None or not does_nothing(layer)]
    by_loss = sorted(listed, key=lambda layer: (-layer.share, -layer.factor, layer.node))
    kept = by_loss if top is None else by_loss[:top]
    numbers = {layer.node for layer in kept}
    left = [layer for layer in slack.layers if layer.node not in numbers]
    return (kept if order == "slack" else [x for x in slack.layers if x.node in numbers]), left


def does_nothing(layer: LayerSlack) -> bool:
    """Whether a layer only moves entries or joins signals: nothing in it can be changed, and nothing is lost."""
    moves = layer.constant == 1 or len(layer.inputs) > 1
    fixed = layer.parameters == 0 and layer.slope_low is None
    return moves and fixed and layer.factor <= 1 + _NOTHING_LOST


def conclusion(slack: Slack, no_bound: NoBound | None = None, write: Callable[..., str] = fmt.number) -> str:
    """Where most is lost, in a sentence or two; `write` turns numbers into text."""
    infinite = [layer for layer in slack.layers if layer.factor == math.inf]
    if infinite:
        names = _listed([_named(layer) for layer in infinite])
        if slack.product == math.inf:
            return f"The bound is infinite: no constant holds for {names}."
        return (
            f"Nothing that is changed at {fmt.plain(slack.point)} reaches the output: it dies out at {names}. "
            "Look at other points, such as data."
        )
    if no_bound is not None and not no_bound.layers:
        return f"The bound is infinite: {no_bound.reason}."
    if slack.factor <= 1 + 1e-6:
        return "Nothing is lost: the product of the layers' constants is attained."
    worst = max(slack.layers, key=lambda layer: layer.share)
    return (
        f"The product bound {write(slack.product, 'upper')} is {write(slack.factor, digits=3)} times "
        f"the largest stretch {write(slack.growth)} at {fmt.plain(slack.point)}. Most is lost at {_named(worst)}: "
        f"{factor(worst.factor)}, {percent(worst.share)} of the loss."
    )


def by_type(slack: Slack) -> str:
    """The shares of the types of layers that lose most; empty if nothing is lost or all of it at few layers."""
    if slack.factor == math.inf:
        return ""
    shares: defaultdict[str, float] = defaultdict(float)
    for layer in slack.layers:
        shares[fmt.plain(layer.layer)] += layer.share
    ranked = sorted(((share, kind) for kind, share in shares.items() if share >= 0.005), reverse=True)
    return ", ".join(f"{kind} {percent(share)}" for share, kind in ranked[:_TYPES])


def rest(left: Sequence[LayerSlack]) -> str:
    """What is not listed, and what it loses together; empty if nothing is left out."""
    if not left:
        return ""
    lost = math.prod(layer.factor for layer in left)
    what = f"{fmt.integer(len(left))} more layer{'s' * (len(left) != 1)}"
    share = sum(layer.share for layer in left)
    return (
        f"{what}: {factor(lost)}, {percent(share)}" if lost > 1 + _NOTHING_LOST else f"{what}: nothing lost"
    )


def factor(value: float) -> str:
    """A factor such as ×1.94."""
    return f"×{fmt.number(value, digits=3)}"


def percent(share: float) -> str:
    """A share in per cent."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.9995 else f"{100 * round(share)} %"


def piece_growth(slack: Slack, piece: CertifiedPiece) -> str:
    """The growth of the witness direction over a piece of the certificate."""
    return fmt.number(slack.growth_over(piece))


def won_back(piece: CertifiedPiece) -> str:
    """By which factor the certificate of a piece is below its norms."""
    return factor(piece.product / piece.bound) if 0 < piece.bound < math.inf else fmt.MISSING


def _slopes(layer: LayerSlack) -> str:
    if layer.slope_low is None or layer.slope_high is None:
        return fmt.MISSING
    return f"[{fmt.number(layer.slope_low, digits=3)}, {fmt.number(layer.slope_high, digits=3)}]"


def _kind(layer: LayerSlack) -> str:
    """The type, if the place does not tell that of its module, as "features.0 (Conv2d)" does."""
    return "" if "(" in layer.place else fmt.plain(layer.layer)


def _named(layer: LayerSlack) -> str:
    return ", ".join(filter(None, [fmt.plain(layer.place), _kind(layer)]))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
