"""The rows of the main table, in the same words for the terminal and the page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..results import (
    Analytical,
    Attained,
    Ball,
    Bracket,
    Certified,
    Effective,
    Empirical,
    Exact,
    Kind,
    Local,
    OperatorProduct,
    Quantity,
    Result,
    SecondMoment,
    UpperBound,
    Witness,
)
from . import format as fmt

SIGNS: dict[Kind, str] = {"upper": "≤", "lower": "≥", "estimate": "≈"}

KINDS: dict[Kind, str] = {
    "upper": "Proved. The Lipschitz constant L of the network is at most this number, for all inputs; "
    "rounding errors are included.",
    "lower": "Attained. A stored pair of inputs is stretched by this factor, re-evaluated in float64, "
    "so L is at least this number.",
    "estimate": "Neither proved nor attained. It describes the network on these data and bounds nothing.",
}

READINGS: dict[str, str] = {
    "active": "mean slopes at the samples",
    "secant": "mean secant slopes over pairs",
    "paper": "mean slopes, pooling as 1/τ",
}

_LEADING = 4

_AVERAGED: dict[str, str] = {
    "scalar": "one per layer",
    "channel": "one per channel",
    "unit": "one per unit",
}

_WHOLE: dict[str, str] = {
    "active": "mean of the Jacobians at the samples",
    "secant": "mean of the secant Jacobians of pairs",
    "paper": "mean of the Jacobians at the samples",
}


@dataclass(frozen=True)
class Row:
    """One quantity, as text; names from outside are already made printable, not escaped."""

    key: str
    symbol: tuple[str, str]
    variant: str
    kind: Kind
    value: float
    error: float | None
    """One standard error of `value`, if it is known."""
    figure_text: str
    error_text: str
    square_text: str
    seconds: str
    passes: str | None
    meaning: str
    basis: str
    witness: tuple[str, ...]
    product: str | None
    quantity: Quantity = field(compare=False)

    @property
    def name(self) -> str:
        """The quantity in words."""
        return self.key

    @property
    def value_text(self) -> str:
        """The value, with its standard error if it is known."""
        return self.figure_text + self.error_text

    @property
    def symbol_text(self) -> str:
        """The symbol on one line: L_c, max Lip(x), L_emp, L_eff or √λ_max."""
        return "_".join(part for part in self.symbol if part)

    @property
    def notes(self) -> list[str]:
        """What stands behind the number, in a line each, for plain text."""
        found = [self.basis, " – ".join(self.witness), f"∏p_k = {self.product}" if self.product else ""]
        return [note for note in found if note]

    @property
    def full_name(self) -> str:
        """The quantity in words, with its variant."""
        return f"{self.name}, {self.variant}" if self.variant else self.name


def rows(report: Result | Bracket, name_length: int = 48) -> list[Row]:
    """The table from the proved bounds down, names of samples cut to `name_length`."""
    if isinstance(report, Result):
        starts = "the most sensitive samples"
        return [row for quantity in report.quantities for row in _rows_of(quantity, starts, name_length)]
    found = [row for bound in report.bounds for row in _rows_of(bound, "random points", name_length)]
    return sorted(found, key=lambda row: (row.kind != "upper", -row.value))


def _rows_of(quantity: Quantity, starts: str, name_length: int) -> list[Row]:
    """The row of a quantity; two of them, one an end, if it is a bracket itself. `starts`: where ascents began."""
    match quantity:
        case Analytical():
            return [_analytical_row(quantity)]
        case Certified():
            return [_certified_row(quantity)]
        case OperatorProduct():
            meaning = _upper_meaning(
                quantity, "no two inputs are stretched more; product of the layers' norms"
            )
            return [_row(quantity, "product", ("L", "c"), meaning=meaning)]
        case Ball():
            return [_ball_row(quantity)]
        case Exact():
            return _exact_rows(quantity)
        case Attained():
            return [_ascent_row(quantity, starts, name_length)]
        case Local():
            witness = _named(quantity.witness, name_length)
            return [_row(quantity, "local", ("max Lip(x)", ""), _local_meaning(quantity), witness=witness)]
        case Empirical():
            return [_empirical_row(quantity, name_length)]
        case Effective():
            return [_effective_row(quantity)]
        case SecondMoment():
            return [_second_moment_row(quantity)]
    return [_row(quantity, quantity.name, (quantity.name, ""), meaning=quantity.method)]


def _analytical_row(analytical: Analytical) -> Row:
    layers = len(analytical.layers)
    return _row(
        analytical,
        "analytical",
        ("L", "c"),
        meaning=_upper_meaning(analytical, "no two inputs are stretched more"),
        basis=f"certified norms of {layers} layer{'s' * (layers != 1)}",
    )


def _empirical_row(empirical: Empirical, name_length: int) -> Row:
    pairs = f"{fmt.integer(empirical.pairs)} sample pair{'s' * (empirical.pairs != 1)}"
    return _row(
        empirical,
        "empirical",
        ("L", "emp"),
        meaning=f"largest of {pairs}",
        witness=_named(empirical.witness, name_length),
    )


def _ball_row(ball: Ball) -> Row:
    meaning = "no two inputs of the ball are stretched more"
    if ball.value == math.inf:
        meaning = fmt.no_upper(fmt.OVER_BALL) + fmt.reason(ball.no_bound)
    return _row(ball, "ball", ("L", "ball"), meaning=meaning, basis=ball.method)


def _exact_rows(exact: Exact) -> list[Row]:
    known = f"the constant itself, to {fmt.number(exact.tolerance, digits=1)}" if exact.closed else ""
    basis = f"{fmt.integer(exact.nodes)} sets of regions of {fmt.integer(exact.units)} units"
    upper = known or "no activation region has a steeper Jacobian; the search was stopped early"
    lower = known or "the steepest region that the search found"
    attained = exact.model_copy(update={"kind": "lower", "value": exact.lower})
    return [
        _row(exact, "exact", ("L", "exact"), meaning=upper, basis=basis, variant="from above"),
        _row(attained, "exact", ("L", "exact"), meaning=lower, variant="from below"),
    ]


def _upper_meaning(bound: UpperBound, meaning: str) -> str:
    """What a finite bound means, or why there is none."""
    return meaning if bound.value < math.inf else fmt.no_upper() + fmt.reason(bound.no_bound)


def _ascent_row(ascent: Attained, starts: str, name_length: int) -> Row:
    return _row(
        ascent,
        "ascent",
        ("L", "asc"),
        meaning=f"found by climbing from {starts}",
        witness=_named(ascent.witness, name_length),
    )


def _certified_row(certified: Certified) -> Row:
    pieces = [piece for piece in certified.pieces if piece.structure != "norms"]
    if not pieces:
        basis = "no multipliers improve on the norms"
    else:
        blocks = sum(piece.blocks for piece in pieces)
        largest = max(piece.size for piece in pieces)
        basis = (
            f"{len(certified.pieces)} piece{'s' * (len(certified.pieces) != 1)}, {fmt.integer(blocks)} matri"
            f"{'x' if blocks == 1 else 'ces'} of up to {fmt.integer(largest)} rows proved positive"
        )
    meaning = _upper_meaning(
        certified, "no two inputs are stretched more; multipliers over several layers at once"
    )
    return _row(certified, "certified", ("L", "cert"), meaning=meaning, basis=basis)


def _effective_row(effective: Effective) -> Row:
    product, level, reading = effective.slope_product, effective.level, effective.reading
    return _row(
        effective,
        "effective",
        ("L", "eff"),
        variant=f"{level}, {reading}",
        meaning=_WHOLE[reading] if level == "full" else f"{READINGS[reading]}, {_AVERAGED[level]}",
        product=None if product is None else fmt.number(product),
        error=effective.standard_error,
    )


def _second_moment_row(moment: SecondMoment) -> Row:
    where = "J at the samples" if moment.reading == "active" else "secant J of pairs"
    leading = ", ".join(fmt.number(value, digits=3) for value in moment.leading[:_LEADING])
    more = ", …" if len(moment.leading) > _LEADING else ""
    return _row(
        moment,
        "second moment",
        ("√λ", "max"),
        variant=moment.reading,
        meaning=f"largest root-mean-square stretch of a direction, of E[JᵀJ], {where}",
        basis=f"leading directions: {leading}{more}" if len(moment.leading) > 1 else "",
        error=moment.standard_error,
    )


def _row(
    quantity: Quantity,
    key: str,
    symbol: tuple[str, str],
    meaning: str,
    basis: str = "",
    witness: tuple[str, ...] = (),
    product: str | None = None,
    variant: str = "",
    error: float | None = None,
) -> Row:
    return Row(
        key=key,
        symbol=symbol,
        variant=variant,
        kind=quantity.kind,
        value=quantity.value,
        error=error,
        figure_text=fmt.number(quantity.value, quantity.kind),
        error_text=fmt.error(error),
        square_text=fmt.square(quantity.value, quantity.kind),
        seconds=fmt.duration(quantity.cost.seconds),
        passes=fmt.passes(quantity.cost.forward_passes),
        meaning=meaning,
        basis=basis,
        witness=witness,
        product=product,
        quantity=quantity,
    )


def _local_meaning(local: Local) -> str:
    count = len(local.estimates)
    if count == 1:
        return "one sample"
    return f"mean {fmt.mean_std(local.mean, local.std)} over {fmt.integer(count)} samples"


def _named(witness: Witness, length: int) -> tuple[str, ...]:
    return tuple(fmt.elide(fmt.plain(name), length) for name in witness.samples)
