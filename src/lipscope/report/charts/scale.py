"""Logarithmic axes with a place for zero and for infinity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .chart import Figure


@dataclass(frozen=True)
class LogScale:
    """log₁₀ positions from `low` to `high`, with a place at the edge for zero and for infinity."""

    low: float
    high: float
    zero: bool
    infinite: bool

    @classmethod
    def over(cls, values: Sequence[float]) -> LogScale:
        """A scale that holds all `values`."""
        logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)]
        low, high = (min(logs), max(logs)) if logs else (0.0, 0.0)
        if high - low < 0.5:
            low, high = low - 0.25, high + 0.25
        return cls(low, high, any(value <= 0 for value in values), any(value == math.inf for value in values))

    @property
    def edge(self) -> float:
        """How far outside zero and infinity are put."""
        return 0.12 * (self.high - self.low)

    @property
    def range(self) -> tuple[float, float]:
        """The axis with its margins."""
        pad = 0.05 * (self.high - self.low)
        return (
            self.low - pad - (self.edge if self.zero else 0),
            self.high + pad + (self.edge if self.infinite else 0),
        )

    def place(self, value: float) -> float:
        """The position of `value`."""
        if math.isnan(value) or value <= 0:
            return self.low - self.edge
        return math.log10(value) if math.isfinite(value) else self.high + self.edge

    def fraction(self, value: float) -> float:
        """The position of `value`, 0 at the left and 1 at the right."""
        low, high = self.range
        return (self.place(value) - low) / (high - low)

    def axis(self, title: str) -> Figure:
        """The plotly axis."""
        positions, texts = self._ticks()
        if self.zero:
            positions, texts = [self.low - self.edge, *positions], ["0", *texts]
        if self.infinite:
            positions, texts = [*positions, self.high + self.edge], [*texts, "∞"]
        return {"title": {"text": title}, "range": list(self.range), "tickvals": positions, "ticktext": texts}

    def fewer_ticks(self) -> Figure:
        """The ticks for a narrow screen: every other one, and always those at the edges for 0 and ∞."""
        full = self.axis("")
        ticks = list(zip(full["tickvals"], full["ticktext"], strict=True))
        first, last = int(self.zero), len(ticks) - int(self.infinite)
        inner = ticks[first:last]
        kept = [*ticks[:first], *(inner[::2] if len(inner) > 5 else inner), *ticks[last:]]
        return {"tickvals": [position for position, _ in kept], "ticktext": [text for _, text in kept]}

    def _ticks(self) -> tuple[list[float], list[str]]:
        slack = 0.04 * (self.high - self.low)
        first, last = math.floor(self.low - slack), math.ceil(self.high + slack)
        decades = last - first
        if decades <= 3:
            mantissas: tuple[int, ...] = (
                (1, 2, 5) if self.high - self.low > 0.6 else (1, 2, 3, 4, 5, 6, 7, 8, 9)
            )
            steps = [(decade, m) for decade in range(first, last + 1) for m in mantissas]
        else:
            stride = max(1, math.ceil(decades / 10))
            steps = [(decade, 1) for decade in range(first - first % stride, last + 1, stride)]
        kept = [
            (decade + math.log10(m), _tick(decade, m))
            for decade, m in steps
            if self.low - slack <= decade + math.log10(m) <= self.high + slack
        ]
        return [position for position, _ in kept], [text for _, text in kept]


def _tick(decade: int, mantissa: int) -> str:
    if 0 <= decade <= 3:
        return str(mantissa * 10**decade)
    if -3 <= decade < 0:
        return f"{mantissa * 10.0**decade:.{-decade}f}"
    return f"10<sup>{decade}</sup>" if mantissa == 1 else f"{mantissa}·10<sup>{decade}</sup>"
