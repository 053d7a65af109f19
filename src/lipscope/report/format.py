"""Numbers and names as text, for the terminal and the page alike.

Bounds stay true as printed: an upper bound is rounded up, a lower bound down, anything else to
nearest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

from ..results import Kind, NoBound
from ..text import plain as plain

MISSING = "—"
GLOBALLY, OVER_BALL = "global", "over this ball"

QUANTILES = {
    "0": "min",
    "0.05": "5 %",
    "0.25": "25 %",
    "0.5": "median",
    "0.75": "75 %",
    "0.95": "95 %",
    "1": "max",
}

_DIGITS = 4
_EXACT = 2500  # decimal digits that hold the square of any float
_ROUNDING = {"upper": ROUND_CEILING, "lower": ROUND_FLOOR, "estimate": ROUND_HALF_EVEN}
_POWER = re.compile(r"(?<=\d)e([+-]\d+)\b")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, kind: Kind = "estimate", digits: int = _DIGITS) -> str:
    """`value` to `digits` significant digits, rounded in the direction that keeps its kind true."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return _text(Decimal(value), kind, digits)


def square(value: float, kind: Kind = "estimate", digits: int = _DIGITS) -> str:
    """`value` squared, as `number` would print it; does not overflow."""
    if math.isnan(value) or math.isinf(value):
        return number(abs(value))
    exact = Context(prec=_EXACT).multiply(Decimal(value), Decimal(value))
    return _text(exact, kind, digits)


def _text(exact: Decimal, kind: Kind, digits: int) -> str:
    context = Context(prec=digits, rounding=_ROUNDING[kind])
    rounded = context.create_decimal(exact)
    if rounded.is_zero():
        return "0"
    exponent = rounded.adjusted()
    if -4 < exponent < digits:
        plain_text = f"{rounded:f}"
        return plain_text.rstrip("0").rstrip(".") if "." in plain_text else plain_text
    sign, figures, _ = rounded.as_tuple()
    mantissa = "".join(map(str, figures)).rstrip("0")
    point = f".{mantissa[1:]}" if len(mantissa) > 1 else ""
    return f"{'-' if sign else ''}{mantissa[0]}{point}e{exponent:+03d}"


def figure(value: float | None, kind: Kind = "estimate", digits: int = _DIGITS) -> str:
    """`number` for a page: a power of ten is written as one."""
    return typeset(number(value, kind, digits))


def typeset(text: str) -> str:
    """Figures of `number` or `square` with their powers of ten written as such: 1.16e+05 is 1.16×10⁵."""
    return _POWER.sub(lambda found: f"×10{str(int(found[1])).translate(_SUPERSCRIPT)}", text)


def bracket(lower: float, upper: float, where: str = GLOBALLY) -> tuple[str, str, str]:
    """`lower`, ` ≤ L ≤ `, `upper`, each end rounded outward; the upper end in words where there is none.

    `where` says what the bound is about, as in "no global upper bound".
    """
    low = number(lower, "lower")
    return (low, " ≤ L, ", no_upper(where)) if upper == math.inf else (low, " ≤ L ≤ ", number(upper, "upper"))


def no_upper(where: str = GLOBALLY) -> str:
    """That there is no finite upper bound, in words."""
    return f"no {where} upper bound" if where == GLOBALLY else f"no upper bound {where}"


def reason(no_bound: NoBound | None) -> str:
    """Why there is none, in brackets; nothing if that is not known."""
    return "" if no_bound is None else f" ({plain(no_bound.reason)})"


def mean_std(mean: float, std: float) -> str:
    """`mean ± std`; the mean alone where there is no deviation (one sample)."""
    return number(mean) if math.isnan(std) else f"{number(mean, digits=3)} ± {number(std, digits=3)}"


def error(standard_error: float | None, write: Callable[..., str] = number) -> str:
    """` ± …` to follow a value; nothing where the error is not known. `write` writes numbers."""
    if standard_error is None or not math.isfinite(standard_error):
        return ""
    return f" ± {write(standard_error, digits=2)}"


def integer(value: int) -> str:
    """An integer with its thousands apart."""
    return f"{value:,}"


def duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 0.0095:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 59.5:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{integer(hours)} h {minutes:02d} min"


def passes(forward_passes: float | None) -> str | None:
    """A number of network evaluations, or None where none was counted."""
    if forward_passes is None or not math.isfinite(forward_passes):
        return None
    return f"{integer(round(forward_passes))} passes"


def memory(size: int) -> str:
    """A size in bytes in binary units."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"


def shape(sizes: list[int]) -> str:
    """A tensor shape such as 64 × 55 × 55."""
    return " × ".join(map(str, sizes)) if sizes else "scalar"


def elide(text: str, length: int) -> str:
    """At most `length` characters, the middle left out: both ends of a path tell it apart."""
    if len(text) <= length:
        return text
    tail = length * 3 // 5
    return f"{text[: length - tail - 1]}…{text[-tail:]}"
