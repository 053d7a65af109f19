"""What `lipscope discriminant` finds: how far apart the classes are, layer by layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field, computed_field

from .frames import frame
from .record import Cost, Kind, Record
from .report import DataInfo, ModelInfo, Provenance, Report

if TYPE_CHECKING:
    import pandas


class ClassCount(Record):
    """A class and how many samples it has."""

    name: str
    samples: int


class LayerSeparation(Record):
    """The scatter of the features of one layer, and how it compares with what stretching alone could do."""

    kind: Kind = "estimate"
    node: int = Field(description="number of the layer in the graph, in topological order; 0 is the input")
    place: str
    layer: str = Field(description="layer type; input for the data themselves")
    shape: list[int] = Field(description="per-sample shape of the features")
    certified: float = Field(description="certified Lipschitz constant from the input to the features; upper")
    attained: float = Field(
        description="largest stretch ‖Φ(x)−Φ(x′)‖/‖x−x′‖ of two of the samples, in the precision of the run: the "
        "constant on these data; estimate"
    )
    between: float = Field(description="tr S_b, scatter of the class means about the mean")
    within: float = Field(description="tr S_w, mean scatter of the samples about the means of their classes")
    within_input: float = Field(description="tr S_w of the input")
    between_stretch: float = Field(description="√(tr S_b / tr S_b of the input)")
    within_stretch: float = Field(
        description="√(tr S_w / tr S_w of the input): root-mean-square stretch of pairs within classes"
    )
    total_stretch: float = Field(
        description="√(tr S_t / tr S_t of the input): root-mean-square stretch of all pairs"
    )
    rank: int = Field(description="dimensions that the features of the samples span about their mean")
    quotient: float = Field(
        description="largest eigenvalue of S_w⁻¹S_b, the Fisher quotient of linear discriminant analysis on these "
        "samples; ∞ where some direction has no scatter within classes"
    )
    held_out: float | None = Field(
        description="the quotient on one half of the samples along the direction found on the other half with "
        "shrinkage, mean of both ways; None where a class has fewer than four samples"
    )
    shrinkage: float = Field(description="Ledoit–Wolf share of the identity in S_w for the direction below")
    direction_between: float = Field(
        description="wᵀS_b w along the unit direction w of linear discriminant analysis with shrinkage on all samples"
    )
    direction_within: float = Field(description="wᵀS_w w along it")
    accuracy: float | None = Field(
        None,
        description="cross-validated accuracy of scikit-learn's linear discriminant analysis, if asked for",
    )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ratio(self) -> float:
        """Tr S_b / tr S_w; ∞ where classes are collapsed to points."""
        return _quotient(self.between, self.within)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def attained_separation(self) -> float:
        """Tr S_b / (κ² tr S_w(input)), κ the constant on these data: at most `ratio` and at most the limit."""
        return self._normalised(self.between, self.attained)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def certified_separation(self) -> float:
        """Tr S_b / (L² tr S_w(input)), L the certified constant: what is left if noise were stretched by all of L."""
        return self._normalised(self.between, self.certified)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def attained_direction(self) -> float:
        """wᵀS_b w / (κ² tr S_w(input))."""
        return self._normalised(self.direction_between, self.attained)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def certified_direction(self) -> float:
        """wᵀS_b w / (L² tr S_w(input))."""
        return self._normalised(self.direction_between, self.certified)

    def _normalised(self, between: float, constant: float) -> float:
        if between == 0 or math.isinf(constant):
            return 0.0
        return _quotient(_quotient(_quotient(between, constant), constant), self.within_input)


def _quotient(above: float, below: float) -> float:
    if below > 0:
        return above / below
    return math.inf if above > 0 else 0.0


class Discriminant(Record):
    """Scatter between and within classes, layer by layer, the input first."""

    classes: list[ClassCount]
    layers: list[LayerSeparation]
    limit: float = Field(
        description="no map gives a larger tr S_b / (L² tr S_w(input)) on these samples, L its Lipschitz constant: "
        "tr S_b/tr S_w of the input plus the mean of 1 − share of a class, weighted by its scatter"
    )
    chance: float | None = Field(
        description="about what `held_out` is without any difference between classes; None where it is not there"
    )
    cost: Cost


class DiscriminantReport(Report):
    """Everything `lipscope discriminant` found."""

    model: ModelInfo
    data: DataInfo
    discriminant: Discriminant
    provenance: Provenance

    def to_frame(self) -> pandas.DataFrame:
        """One row a layer, as a pandas table (the extra `frames`)."""
        return frame(layer.model_dump(exclude={"kind"}) for layer in self.discriminant.layers)
