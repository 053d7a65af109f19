"""The typed results: what `lipscope.analyze` returns and what `result.json` holds.

Every number carries its kind. `upper`: a proof exists, rounding included. `lower`: attained by a
stored witness that was re-evaluated in float64. `estimate`: anything else. All constants are
Euclidean-to-Euclidean Lipschitz constants (norm out per norm in); `squared` is their square,
since the source's tables print squared ratios.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from .errors import LipscopeError

SCHEMA_VERSION = 1

Kind = Literal["upper", "lower", "estimate"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="strings")


class Cost(_Record):
    """What a number cost."""

    seconds: float
    forward_passes: float | None = Field(
        None, description="network evaluations of one sample, or equivalents"
    )


class Witness(_Record):
    """A pair of inputs (x₁, x₂) that attains a lower bound: ‖Φ(x₁) − Φ(x₂)‖ / ‖x₁ − x₂‖ in float64.

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


class Quantity(_Record):
    """One number with its kind."""

    name: str = Field(description="analytical, local, empirical, effective or ball")
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


class LayerBound(_Record):
    """The certified constant of one layer, and of the network up to it."""

    place: str
    layer: str = Field(description="layer type")
    shape: list[int] = Field(description="per-sample output shape")
    constant: float = Field(
        description="certified Lipschitz constant (Bessel bound's root) of the layer alone"
    )
    cumulative: float = Field(
        description="certified Lipschitz constant from the input to this layer's output"
    )


class Analytical(Quantity):
    """The certified upper bound L_c."""

    kind: Kind = "upper"
    layers: list[LayerBound]


class Local(Quantity):
    """The largest Lip(x) over the data, as an attained lower bound of the global constant."""

    kind: Kind = "lower"
    witness: Witness
    estimates: list[float] = Field(description="Lip(x) of every sample visited, estimates, in data order")
    samples: list[str] = Field(description="names of the samples visited")
    mean: float
    std: float = Field(description="standard deviation over samples (n − 1)")
    quantiles: dict[str, float] = Field(description='at "0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"')
    relative_error: float = Field(description="largest estimated relative error of an entry of `estimates`")


class Duplicate(_Record):
    """Two samples at distance zero; they have no ratio and are left out."""

    first: str
    second: str


class Empirical(Quantity):
    """L_emp: the largest secant ratio over all pairs of the data, attained."""

    kind: Kind = "lower"
    witness: Witness
    pairs: int = Field(description="pairs compared: n(n−1)/2 less the duplicates")
    rechecked: int = Field(description="candidate pairs recomputed by direct differences in float64")
    duplicates: list[Duplicate]
    duplicate_count: int = Field(description="number of duplicate pairs (the list shows the first 100)")


class LayerSlope(_Record):
    """The mean slope of one nonlinear layer."""

    place: str
    layer: str
    active: float | None = Field(description="mean slope at the points (for ReLU the active fraction)")
    secant: float | None = Field(description="mean secant slope over the pairs")


class Effective(Quantity):
    """L_eff: the spectral norm of the Jacobian with slopes replaced by their means."""

    kind: Kind = "estimate"
    level: Literal["scalar", "channel"]
    reading: Literal["active", "secant", "paper"] = Field(
        description="active: mean slope at points; secant: mean over pairs; paper: active, with pooling as "
        "1/τ times plain subsampling"
    )
    slope_product: float | None = Field(None, description="∏p_k (level scalar)")
    relative_error: float = Field(
        description="estimated relative error of the spectral norm, from its residual"
    )


class OpenUnits(_Record):
    """How far a ball settles the slopes of one nonlinear layer."""

    place: str
    layer: str = Field(description="layer type")
    units: int = Field(description="outputs of the layer")
    open: int = Field(
        description="outputs whose slope (for max pooling, the winner) is not the same all over"
    )


class Ball(Quantity):
    """A certified Lipschitz constant over one ball of inputs."""

    kind: Kind = "upper"
    center: str = Field(description="SHA-256 of the centre's numbers in float64")
    radius: float
    ball_norm: Literal["2", "inf"] = Field(description="the norm ‖x − centre‖ of the ball")
    norm: Literal["1", "2", "inf"] = Field(
        description="the norm of inputs and outputs the constant refers to"
    )
    global_bound: float = Field(description="the product bound over the whole space, in the same norm")
    proofs: dict[str, float] = Field(description="what each proof gave; `value` is the least")
    open_units: list[OpenUnits] = Field(description="one row a nonlinear layer")


class ModelInfo(_Record):
    """What was analysed."""

    name: str
    fingerprint: str = Field(description="SHA-256 of structure and weights")
    input_shape: list[int]
    output_shape: list[int]
    parameters: int
    layers: int


class DataInfo(_Record):
    """On which data."""

    name: str
    fingerprint: str = Field(description="SHA-256 of the samples as the network sees them")
    samples: int
    preprocessing: str


class Provenance(_Record):
    """How to get the same result again."""

    lipscope: str
    torch: str
    python: str
    platform: str
    threads: int
    device: str
    dtype: str = Field(
        description="precision of the estimates; certificates and witnesses are always float64"
    )
    seed: int
    command: str
    started: str = Field(description="UTC, ISO 8601")
    seconds: float
    peak_memory_bytes: int


class Result(_Record):
    """Everything `lipscope analyze` found."""

    schema_version: int = SCHEMA_VERSION
    model: ModelInfo
    data: DataInfo
    analytical: Analytical
    local: Local
    empirical: Empirical | None = Field(description="None if the data hold fewer than two distinct samples")
    effective: list[Effective]
    slopes: list[LayerSlope] = Field(description="mean slopes p_k, one row a nonlinear layer")
    slope_pairs: int = Field(description="pairs behind the secant means")
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lower(self) -> float:
        """The best attained lower bound of the global Lipschitz constant."""
        return max([self.local.value] + ([self.empirical.value] if self.empirical else []))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def upper(self) -> float:
        """The best certified upper bound of the global Lipschitz constant."""
        return self.analytical.value

    @property
    def quantities(self) -> list[Quantity]:
        """All numbers, from the certified upper bound down."""
        found: list[Quantity] = [self.analytical, self.local]
        return found + ([self.empirical] if self.empirical else []) + list(self.effective)

    def to_json(self) -> str:
        """The content of `result.json`."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Result:
        """Read a `result.json`.

        Raises:
            LipscopeError: it is not a result, or of a newer schema.
        """
        try:
            raw: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LipscopeError(f"not a result file: {error}") from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise LipscopeError(f"result of schema {version}, newer than {SCHEMA_VERSION}: upgrade lipscope")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise LipscopeError(f"not a result file: {where}: {first['msg']}") from error
