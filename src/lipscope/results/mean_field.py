"""What mean-field theory predicts of a network, and what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from .frames import frame
from .record import Cost, Kind, Record
from .report import DataInfo, ModelInfo, Provenance, Report

if TYPE_CHECKING:
    import pandas


class Measured(Record):
    """A mean over inputs, with its standard error (None: one input)."""

    value: float
    error: float | None = None


class FieldPrediction(Record):
    """What the theory predicts at one nonlinear layer; h are the numbers that enter it."""

    mean: float = Field(description="E h over units and inputs")
    length: float = Field(description="q = E h²")
    correlation: float = Field(description="c = E h h' / E h² for two inputs")
    slope: float = Field(description="mean slope p = E φ'(h); for max pooling 1/τ, the weight of each tap")
    square_slope: float = Field(description="E φ'(h)²; for max pooling 1/τ")
    chi: float | None = Field(
        description="χ = σ_w² E φ'(h)² with σ_w² of the linear layer before; for pooling the factor by which it "
        "changes `growth`; None behind a sum or a mixture"
    )
    growth: float = Field(
        description="E ‖row of J‖² = E ‖J‖_F² / units, J the Jacobian up to this layer's output"
    )


class FieldMeasurement(Record):
    """The same on data; None where it was not measured."""

    mean: Measured | None = None
    length: Measured | None = None
    correlation: Measured | None = None
    slope: Measured | None = None
    gaussian_slope: float | None = Field(
        None,
        description="E φ' of a Gaussian with the measured mean and length: what is left to `slope` is its shape",
    )
    square_slope: Measured | None = None
    chi: Measured | None = None
    growth: Measured | None = None


class LayerField(Record):
    """One nonlinear layer."""

    node: int = Field(description="number of the layer in the graph")
    place: str
    layer: str = Field(description="layer type")
    units: int = Field(description="numbers per sample at its output")
    weight_gain: float | None = Field(
        description="σ_w² = fan-in · var(w) of the linear layer before; None behind a sum, a mixture or pooling"
    )
    bias_variance: float | None = Field(description="σ_b² of that layer")
    approximated: bool = Field(
        description="what enters is no Gaussian (a sum with, or a mixture of, other signals) and was taken for one"
    )
    predicted: FieldPrediction | None = Field(description="None where the theory does not reach")
    measured: FieldMeasurement


class NotCovered(Record):
    """A layer at which the theory ends; nothing is predicted behind it."""

    place: str
    layer: str
    reason: str


class DepthScale(Record):
    """ξ = layers / |log of a factor over all of them|: over so many layers the factor is e or 1/e."""

    predicted: float | None = Field(description="∞ where nothing changes; None where the theory ends before")
    measured: float | None = None


class MeanField(Record):
    """Mean-field theory of a network with random weights of the same statistics, beside the network; estimates."""

    kind: Kind = "estimate"
    inputs: Literal["Gaussian", "data"] = Field(
        description="whether the theory starts from Gaussian inputs or from moments of data"
    )
    input_mean: float = Field(description="mean entry of an input")
    input_length: float = Field(description="q_0, the mean square of an entry")
    input_correlation: float = Field(description="c_0 of two inputs")
    layers: list[LayerField] = Field(description="one a nonlinear layer, in topological order")
    depth: int = Field(description="activations on the longest path to the last of them")
    log_growth: float | None = Field(description="log of `growth` at the last activation, predicted")
    phase: Literal["ordered", "critical", "chaotic"] | None = Field(
        description="critical if the growth over all layers is between 1/e and e, else ordered (less) or chaotic"
    )
    correlation_scale: DepthScale = Field(description="ξ_c: of differences between inputs, from `growth`")
    length_scale: DepthScale = Field(
        description="ξ_q: of differences in length, from dq at the last activation / dq_0"
    )
    frobenius: float | None = Field(description="E ‖J‖_F² of the whole network, predicted")
    measured_frobenius: Measured | None = Field(
        None, description="the same, by random probes of the Jacobian"
    )
    spectral_edge: float | None = Field(
        None,
        description="limit of σ_max(J) for wide dense chains with independent Gaussian weights; None elsewhere",
    )
    measured_norm: Measured | None = Field(
        None, description="mean of σ_max(J); None where it was not asked for"
    )
    not_covered: list[NotCovered] = Field(description="where the theory ends")
    samples: int = Field(0, description="inputs behind the measurements")
    cost: Cost


class MeanFieldReport(Report):
    """What `lipscope mean-field` found."""

    model: ModelInfo
    data: DataInfo | None = Field(None, description="None if inputs were Gaussian")
    mean_field: MeanField
    provenance: Provenance

    def to_frame(self) -> pandas.DataFrame:
        """One row a layer, as a pandas table (the extra `frames`), with `predicted_slope`, `measured_slope` and so on."""
        return frame(map(_flat, self.mean_field.layers))


def _flat(layer: LayerField) -> dict[str, Any]:
    row = layer.model_dump(exclude={"predicted", "measured"})
    for name in FieldPrediction.model_fields:
        row[f"predicted_{name}"] = getattr(layer.predicted, name, None)
    for name in FieldMeasurement.model_fields:
        found = getattr(layer.measured, name)
        row[f"measured_{name}"] = found.value if isinstance(found, Measured) else found
        if isinstance(found, Measured):
            row[f"measured_{name}_error"] = found.error
    return row
