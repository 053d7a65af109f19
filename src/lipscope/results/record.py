"""What every number carries: its kind, its cost, its witness or its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

Kind = Literal["upper", "lower", "estimate"]

Norm = Literal["2", "1", "inf"]
"""The norm ℓ_q of both inputs and outputs; a constant is the operator norm ℓ_q → ℓ_q."""


class Record(BaseModel):
    """A part of a result: frozen; fields it does not know are left out; ∞ is the string "Infinity" in JSON."""

    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="strings")


class Cost(Record):
    """What a number cost."""

    seconds: float
    forward_passes: float | None = Field(
        None, description="network evaluations of one sample, or equivalents"
    )


class Witness(Record):
    """A pair of inputs (x₁, x₂) that attains a lower bound: ‖Φ(x₁) − Φ(x₂)‖ / ‖x₁ − x₂‖ in float64.

    Norms are Euclidean unless the quantity has a field `norm`.

    The pair is stored as tensors `{key}.x1`, `{key}.x2` of `file`, beside `result.json`.
    """

    key: str
    file: str | None = Field(
        None, description="safetensors file in the run folder; None if no folder was given"
    )
    samples: list[str] = Field(description="names of the data samples it came from")
    distance: float = Field(description="‖x₁ − x₂‖")
    ratio: float = Field(description="the secant ratio, re-evaluated in float64")
    rounding: float = Field(description="allowance for rounding, already subtracted from the bound")


class Check(Record):
    """A bound that was checked again: as claimed and as found now (None: not proved, not evaluated)."""

    name: str
    kind: Kind
    claimed: float
    found: float | None
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether the bound found is as good as the claim, but for 1e-6 that other hardware may round away."""
        if self.found is None:
            return False
        if self.kind == "upper":
            return self.found <= self.claimed * (1 + 1e-6)
        return self.found >= self.claimed * (1 - 1e-6)


class Quantity(Record):
    """One number with its kind."""

    name: str = Field(
        description="analytical, certified, product, ball, local, ascent, exact, empirical or effective"
    )
    kind: Kind
    value: float
    method: str = Field(description="how it was computed, in a sentence")
    source: str = Field(description="the definition it follows (paper, section)")
    cost: Cost

    @computed_field  # type: ignore[prop-decorator]
    @property
    def squared(self) -> float:
        """value², the energy ratio printed by the source."""
        return self.value * self.value

    def checked(self, found: float | None, reason: str = "") -> Check:
        """The bound beside what was found when it was checked again."""
        return Check(name=self.name, kind=self.kind, claimed=self.value, found=found, reason=reason)


class UnboundedLayer(Record):
    """A layer for which no constant is known that holds for all of its inputs."""

    place: str
    layer: str = Field(description="layer type")
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class NoBound(Record):
    """Why an upper bound is infinite, and what there is instead."""

    layers: list[UnboundedLayer] = Field(
        description="the layers to blame; empty if every layer has a constant, but their product overflows"
    )
    remedy: str = Field(description="what gives a finite bound, with the command")

    @property
    def reason(self) -> str:
        """The first layer to blame, and how many more there are."""
        if not self.layers:
            return "the product of the layers' constants overflows"
        more = len(self.layers) - 1
        return f"{self.layers[0]}" + (f", and {more} more layer{'s' * (more != 1)}" if more else "")


class UpperBound(Quantity):
    """A certified upper bound; it may be infinite, and then says why."""

    kind: Literal["upper"] = "upper"
    no_bound: NoBound | None = Field(None, description="why `value` is infinite; None if it is finite")


def why_no_bound(quantities: Sequence[Quantity]) -> NoBound | None:
    """Why the least of the upper bounds is infinite; None if it is finite or says nothing."""
    uppers = [q for q in quantities if q.kind == "upper"]
    if any(q.value < math.inf for q in uppers):
        return None
    # A bound over a ball comes after the global ones, and its reason counts.
    given = [q.no_bound for q in uppers if isinstance(q, UpperBound) and q.no_bound is not None]
    return given[-1] if given else None
