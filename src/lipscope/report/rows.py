"""The rows of the main table, in the same words for the terminal and the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..results import (
    Attained,
    Certified,
    Effective,
    Kind,
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

Key = Literal["analytical", "certified", "ascent", "local", "empirical", "effective", "second moment"]


@dataclass(frozen=True)
class Row:
    """One quantity, as text; names from outside are already made printable, not escaped."""

    key: Key
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


def rows(result: Result, name_length: int = 48) -> list[Row]:
    """The table from the certified upper bound down, names of samples cut to `name_length`."""
    analytical, local, empirical = result.analytical, result.local, result.empirical
    layers = len(analytical.layers)
    found = [
        _row(
            analytical,
            "analytical",
            ("L", "c"),
            meaning=_upper_meaning(analytical, "no two inputs are stretched more"),
            basis=f"certified norms of {layers} layer{'s' * (layers != 1)}",
        ),
        *([] if result.certified is None else [_certified_row(result.certified)]),
        *([] if result.ascent is None else [_ascent_row(result.ascent, name_length)]),
        _row(
            local,
            "local",
            ("max Lip(x)", ""),
            meaning=_local_meaning(result),
            witness=_named(local.witness, name_length),
        ),
    ]
    if empirical is not None:
        pairs = f"{fmt.integer(empirical.pairs)} sample pair{'s' * (empirical.pairs != 1)}"
        found.append(
            _row(
                empirical,
                "empirical",
                ("L", "emp"),
                meaning=f"largest of {pairs}",
                witness=_named(empirical.witness, name_length),
            )
        )
    found += [_effective_row(effective) for effective in result.effective]
    return found + [_second_moment_row(moment) for moment in result.second_moment]


def _upper_meaning(bound: UpperBound, meaning: str) -> str:
    """What a finite bound means, or why there is none."""
    return meaning if bound.value < math.inf else fmt.no_upper() + fmt.reason(bound.no_bound)


def _ascent_row(ascent: Attained, name_length: int) -> Row:
    return _row(
        ascent,
        "ascent",
        ("L", "asc"),
        meaning="found by climbing from the most sensitive samples",
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
    key: Key,
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
    )


def _local_meaning(result: Result) -> str:
    local = result.local
    count = len(local.estimates)
    if count == 1:
        return "one sample"
    return f"mean {fmt.mean_std(local.mean, local.std)} over {fmt.integer(count)} samples"


def _named(witness: Witness, length: int) -> tuple[str, ...]:
    return tuple(fmt.elide(fmt.plain(name), length) for name in witness.samples)
