"""What the training monitor finds at one step."""

from __future__ import annotations

from pydantic import Field

from .record import Cost, Kind, Record, Witness


class Snapshot(Record):
    """A network in training at one step; all numbers refer to its map in evaluation mode. Norms are Euclidean."""

    step: int = Field(description="training steps that the monitor has seen")
    seconds: float = Field(description="since the monitor was set up, over the steps; pauses included")
    upper: float = Field(
        description="certified upper bound of the Lipschitz constant by the product rule, valid at this step"
    )
    drift: float = Field(
        description="the factor of `upper` that stands for changes of layers since their norms were proved"
    )
    lower: float = Field(description="attained lower bound, by the witness")
    witness: Witness = Field(
        description="the pair that attains `lower`; `Monitor.pair` holds it until the next"
    )
    local_max: float = Field(description="largest σ_max(J(x)) over the probes")
    local_mean: float = Field(description="mean σ_max(J(x)) over the probes")
    effective: dict[str, float] = Field(
        description="L_eff under the running mean slopes, by level_reading such as unit_active"
    )
    slopes: dict[str, float] = Field(
        description="running mean slope p_k by layer, of the first reading; pooling left out"
    )
    share: float = Field(description="the monitor's share of all time so far")
    proved: list[str] = Field(description="layers whose norms were computed for this snapshot")
    evaluated: list[str] = Field(
        description="layers that were evaluated at the probes: those that changed and all behind"
    )
    traced: bool = Field(description="whether the network had to be traced anew")
    cost: Cost

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers by the names they have in logs; the running mean slopes as slope:LAYER."""
        return {
            "upper": self.upper,
            "lower": self.lower,
            "local_max": self.local_max,
            "local_mean": self.local_mean,
            **{f"effective_{name}": value for name, value in self.effective.items()},
            "drift": self.drift,
            "share": self.share,
            **{f"slope:{place}": value for place, value in self.slopes.items()},
        }


def kind_of(name: str) -> Kind:
    """The kind of one of `Snapshot.numbers`."""
    kinds: dict[str, Kind] = {"upper": "upper", "lower": "lower"}
    return kinds.get(name, "estimate")
