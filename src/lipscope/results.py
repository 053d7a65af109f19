"""The typed results: what `lipscope.analyze` returns and what `result.json` holds.

Every number carries its kind. `upper`: a proof exists, rounding included. `lower`: attained by a
stored witness that was re-evaluated in float64. `estimate`: anything else. All constants are
Euclidean-to-Euclidean Lipschitz constants (norm out per norm in); `squared` is their square,
since the source's tables print squared ratios.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import FloatSchema

from .errors import LipscopeError

SCHEMA_VERSION = 1

Kind = Literal["upper", "lower", "estimate"]

Norm = Literal["2", "1", "inf"]
"""The norm ℓ_q of both inputs and outputs; a constant is the operator norm ℓ_q → ℓ_q."""


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


class Check(_Record):
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


class Quantity(_Record):
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


class UnboundedLayer(_Record):
    """A layer for which no constant is known that holds for all of its inputs."""

    place: str
    layer: str = Field(description="layer type")
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class NoBound(_Record):
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

    kind: Kind = "upper"
    no_bound: NoBound | None = Field(None, description="why `value` is infinite; None if it is finite")


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


class Analytical(UpperBound):
    """The certified upper bound L_c."""

    layers: list[LayerBound]
    product: float | None = Field(None, description="the bound by the product rule alone, certified")
    program: float | None = Field(
        None,
        description="the bound by the linear program over energies, certified; None where no filter bank or "
        "sum of linear images has a joint norm to offer, so that it would be the product rule's",
    )


class CertifiedPiece(_Record):
    """What a certificate claims of one piece, the part of the network between two cuts."""

    start: int = Field(description="node whose value is the piece's input")
    end: int = Field(description="node whose value is the piece's output")
    first: str = Field(description="place of the piece's first layer in the model")
    last: str = Field(description="place of its last layer")
    structure: Literal["norms", "dense", "frequency"] = Field(
        description="norms: composition of layer norms; dense: one multiplier a unit, the whole matrix; "
        "frequency: one multiplier a channel, one matrix a frequency"
    )
    bound: float = Field(description="certified Lipschitz constant of the piece")
    product: float = Field(description="the same from layer norms alone")
    rho: float | None = Field(None, description="ρ of the quadratic certificate, a squared constant")
    twist: list[int] | None = Field(None, description="half-step shifts of the frequencies, one a dimension")
    blocks: int = Field(1, description="matrices whose definiteness proves ρ")
    size: int = Field(0, description="rows of each of them")


class Certified(UpperBound):
    """The upper bound of the quadratic certificate; `lipscope verify` proves it again from its file."""

    effort: str
    pieces: list[CertifiedPiece]
    file: str | None = Field(
        None, description="safetensors file in the run folder; None if no folder was given"
    )


class Local(Quantity):
    """The largest Lip(x) over the data, as an attained lower bound of the global constant."""

    kind: Kind = "lower"
    witness: Witness
    estimates: list[float] = Field(description="Lip(x) of every sample visited, estimates, in data order")
    samples: list[str] = Field(description="names of the samples visited")
    population: int | None = Field(
        None, description="samples in the data set, of which those visited are all or a random choice"
    )
    mean: float
    std: float = Field(description="standard deviation over samples (n − 1)")
    quantiles: dict[str, float] = Field(description='at "0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"')
    relative_error: float = Field(description="largest estimated relative error of an entry of `estimates`")

    @property
    def steepest(self) -> int:
        """The place in `estimates` of the largest."""
        return max(range(len(self.estimates)), key=self.estimates.__getitem__)


class Duplicate(_Record):
    """Two samples at distance zero; they have no ratio and are left out."""

    first: str
    second: str


class Empirical(Quantity):
    """L_emp: the largest secant ratio over all pairs of the data, attained."""

    kind: Kind = "lower"
    witness: Witness
    pairs: int = Field(description="pairs compared: n(n−1)/2 less the duplicates")
    candidates: int | None = Field(
        None,
        description="pairs that bounds from projections could not rule out; None in older results",
    )
    rechecked: int = Field(description="candidate pairs recomputed by direct differences in float64")
    duplicates: list[Duplicate]
    duplicate_count: int = Field(description="number of duplicate pairs (the list shows the first 100)")


class Attained(Quantity):
    """A lower bound of the Lipschitz constant that an ascent found, attained by the stored pair."""

    kind: Kind = "lower"
    norm: Norm = Field(description='q of the operator norm ℓ_q → ℓ_q: "2" (Euclidean), "1" or "inf"')
    witness: Witness
    found_by: str = Field(description="the search that led to the pair: start, slopes, pairs or kinks")
    starts: int = Field(description="points the ascent started from")


class Exact(Quantity):
    """A bracket lower ≤ L ≤ value of a piecewise-linear network's Lipschitz constant by branch and bound."""

    kind: Kind = "upper"
    norm: Norm = Field(description='q of the operator norm ℓ_q → ℓ_q: "2" (Euclidean), "1" or "inf"')
    lower: float = Field(description="attained by the stored pair")
    upper: float = Field(description="proved, rounding included; the same as `value`")
    closed: bool = Field(description="upper ≤ lower·(1 + tolerance): L is known")
    tolerance: float
    nodes: int = Field(description="sets of activation regions that were bounded")
    units: int = Field(description="scalar nonlinear units (max pooling counts one a tap but the first)")
    witness: Witness


class LayerSlope(_Record):
    """The mean slope of one nonlinear layer."""

    place: str
    layer: str
    active: float | None = Field(description="mean slope at the points (for ReLU the active fraction)")
    secant: float | None = Field(description="mean secant slope over the pairs")


class Effective(Quantity):
    """L_eff: the spectral norm of the Jacobian with slopes replaced by their means, or of the mean Jacobian."""

    kind: Kind = "estimate"
    level: Literal["scalar", "channel", "unit", "full"] = Field(
        description="what is averaged: slopes by layer, channel or unit, or the whole Jacobian"
    )
    reading: Literal["active", "secant", "paper"] = Field(
        description="active: mean slope at points; secant: mean over pairs; paper: active, with pooling as "
        "1/τ times plain subsampling"
    )
    slope_product: float | None = Field(None, description="∏p_k (level scalar)")
    relative_error: float = Field(
        description="estimated relative error of the spectral norm, from its residual"
    )
    standard_error: float | None = Field(
        None,
        description="of `value`, by leaving out groups of samples in turn (jackknife); None if not asked for",
    )


class SecondMoment(Quantity):
    """√λ_max(E[JᵀJ]): the largest root-mean-square stretch of one direction over the data."""

    kind: Kind = "estimate"
    reading: Literal["active", "secant"] = Field(
        description="Jacobians at the samples, or over pairs of them"
    )
    leading: list[float] = Field(description="√λ of the leading directions, largest first")
    directions: list[str] = Field(description="keys of those unit vectors in `file`, shapes (*in)")
    file: str | None = Field(
        None, description="safetensors file in the run folder; None if no folder was given"
    )
    relative_error: float = Field(description="estimated relative error of `value`, from its residual")
    standard_error: float | None = Field(None, description="of `value`, by jackknife over groups of samples")


class StretchBin(_Record):
    """The secant ratios ‖Φ(x₁) − Φ(x₂)‖ / ‖x₁ − x₂‖ of the pairs whose distance lies in [low, high]."""

    low: float
    high: float
    distance: float = Field(description="median distance ‖x₁ − x₂‖ of the pairs")
    count: int
    quantiles: dict[str, float] = Field(description='at "0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"')


class StretchCurve(_Record):
    """Stretch against distance for one family of pairs."""

    name: Literal["steepest", "segments", "pairs"] = Field(
        description="steepest: from a sample along its most stretched direction; segments: from a sample part of "
        "the way to another; pairs: two samples"
    )
    bins: list[StretchBin]


class MidRange(_Record):
    """Stretch against distance, from Lip(x) at distance 0 to pairs of samples far apart; estimates."""

    curves: list[StretchCurve]
    cost: Cost


class LayerSlack(_Record):
    """What one layer is allowed to do by its certified constant, and what it does along the witness."""

    node: int = Field(description="number of the layer in the graph, in topological order; 0 is the input")
    inputs: list[int] = Field(description="numbers of the nodes it reads")
    place: str
    layer: str = Field(description="layer type")
    shape: list[int] = Field(description="per-sample output shape")
    parameters: int = Field(description="numbers the layer holds, after fusion with neighbouring scalings")
    constant: float = Field(description="certified Lipschitz constant of the layer alone; upper")
    cumulative: float = Field(description="certified Lipschitz constant from the input to its output; upper")
    growth: float = Field(
        description="‖J_k v‖: how much the witness direction v has grown at its output; estimate"
    )
    attained: float = Field(
        description="the growth divided by what the layer's constant allows, given the growth of its inputs: "
        "at most 1; 0 where the constant is infinite; estimate"
    )
    stretch: float | None = Field(
        description="constant · attained, which for a layer of one input is its growth by that of the input. "
        "None where nothing reaches the layer; estimate"
    )
    slope_low: float | None = Field(None, description="least slope an activation can take, certified")
    slope_high: float | None = Field(None, description="largest slope an activation can take, certified")
    active: float | None = Field(
        None, description="mean slope over the data; None without data and for pooling"
    )
    factor: float = Field(description="its part of `Slack.factor`: the factors multiply to it; estimate")
    share: float = Field(
        description="log(factor) / log(Slack.factor): the shares add to 1 (or are 0); estimate"
    )


class Slack(_Record):
    """Where the product bound exceeds what the network does in the direction it stretches most at one point."""

    kind: Kind = "estimate"
    product: float = Field(description="the bound by the product rule, certified; upper")
    growth: float = Field(description="‖J v‖ = σ_max(J) at the point, v its leading right singular vector")
    factor: float = Field(description="product / growth, ≥ 1: what the layers' factors multiply to")
    point: str = Field(description="where J was taken: the name of a sample, or how the point was found")
    layers: list[LayerSlack] = Field(description="one a layer, in topological order")
    residual: float = Field(
        description="|log(product / growth) − sum of the layers' finite logarithms|: error of the numerical "
        "integral; 0 where the factor is infinite"
    )
    cost: Cost

    def growth_over(self, piece: CertifiedPiece) -> float | None:
        """How much the witness direction grows from the start of a piece to its end; None if it is 0 before."""
        growths = {0: 1.0} | {layer.node: layer.growth for layer in self.layers}
        before = growths.get(piece.start, 0.0)
        return growths.get(piece.end, 0.0) / before if before > 0 else None


class OpenUnits(_Record):
    """How far a ball settles the slopes of one nonlinear layer."""

    place: str
    layer: str = Field(description="layer type")
    units: int = Field(description="outputs of the layer")
    open: int = Field(
        description="outputs whose slope (for max pooling, the winner) is not the same all over"
    )


class OperatorProduct(UpperBound):
    """The certified product of operator norms ℓ_q → ℓ_q of the layers."""

    norm: Norm = Field(description='q of the operator norm: "2", "1" or "inf"')


class Ball(UpperBound):
    """A certified Lipschitz constant over one ball of inputs."""

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


class _Schema(GenerateJsonSchema):
    """JSON schemas in which a number may be one of the strings that stand for what JSON has no number for."""

    def float_schema(self, schema: FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), {"enum": ["Infinity", "-Infinity", "NaN"]}]}


def _no_bound(quantities: Sequence[Quantity]) -> NoBound | None:
    """Why the least of the upper bounds is infinite; None if it is finite or says nothing."""
    uppers = [q for q in quantities if q.kind == "upper"]
    if any(q.value < math.inf for q in uppers):
        return None
    # A bound over a ball comes after the global ones, and its reason counts.
    given = [q.no_bound for q in uppers if isinstance(q, UpperBound) and q.no_bound is not None]
    return given[-1] if given else None


R = TypeVar("R", bound="Report")


class Report(_Record):
    """What a run writes as JSON."""

    schema_version: int = SCHEMA_VERSION

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of the file."""
        return cls.model_json_schema(mode="serialization", schema_generator=_Schema)

    def to_json(self) -> str:
        """The content of the file."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls: type[R], text: str | bytes) -> R:
        """Read a file that `to_json` wrote.

        Raises:
            LipscopeError: it is something else, or of a newer schema.
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


class Result(Report):
    """Everything `lipscope analyze` found."""

    model: ModelInfo
    data: DataInfo
    analytical: Analytical
    certified: Certified | None = Field(None, description="None in runs of versions without certificates")
    local: Local
    ascent: Attained | None = Field(None, description="None if no effort was spent on it")
    empirical: Empirical | None = Field(description="None if the data hold fewer than two distinct samples")
    effective: list[Effective]
    second_moment: list[SecondMoment] = Field([], description="one a reading; empty if it was not asked for")
    mid_range: MidRange | None = Field(None, description="stretch against distance; None in older runs")
    slopes: list[LayerSlope] = Field(description="mean slopes p_k, one row a nonlinear layer")
    slack: Slack | None = Field(
        None, description="where the product bound loses, layer by layer; None in older runs"
    )
    slope_pairs: int = Field(description="pairs behind the secant means")
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lower(self) -> float:
        """The best attained lower bound of the global Lipschitz constant."""
        return max(q.value for q in (self.local, self.ascent, self.empirical) if q is not None)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def upper(self) -> float:
        """The best certified upper bound of the global Lipschitz constant."""
        return min([self.analytical.value] + ([self.certified.value] if self.certified else []))

    @property
    def no_bound(self) -> NoBound | None:
        """Why `upper` is infinite; None if it is finite."""
        return _no_bound(self.quantities)

    @property
    def quantities(self) -> list[Quantity]:
        """All numbers, from the certified upper bound down."""
        found = (self.analytical, self.certified, self.ascent, self.local, self.empirical)
        return [q for q in found if q is not None] + [*self.effective, *self.second_moment]


class BallInfo(_Record):
    """The ball of inputs that a bracket is about."""

    center: str = Field(description="where the centre came from")
    radius: float
    norm: Literal["2", "inf"] = Field(description="the norm ‖x − centre‖ of the ball")


class Bracket(Report):
    """What `lipscope certify` found: lower ≤ L ≤ upper without data, globally or over a ball."""

    model: ModelInfo
    norm: Norm = Field(description="the norm ℓ_q of inputs and outputs")
    ball: BallInfo | None = Field(None, description="None: the whole space")
    bounds: list[Analytical | Certified | OperatorProduct | Ball | Attained | Exact] = Field(
        description="all bounds found"
    )
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lower(self) -> float:
        """The best attained lower bound."""
        attained = [q.value for q in self.bounds if q.kind == "lower"]
        return max([0.0, *attained, *(q.lower for q in self.bounds if isinstance(q, Exact))])

    @computed_field  # type: ignore[prop-decorator]
    @property
    def upper(self) -> float:
        """The best certified upper bound."""
        return min([math.inf, *(q.value for q in self.bounds if q.kind == "upper")])

    @property
    def no_bound(self) -> NoBound | None:
        """Why `upper` is infinite; None if it is finite."""
        return _no_bound(self.bounds)


class Inspection(Report):
    """What `lipscope inspect` found: the layers of a network, and where its bound loses."""

    model: ModelInfo
    data: DataInfo | None = Field(None, description="None if no data were given")
    analytical: Analytical
    certified: Certified | None = Field(None, description="None if no effort was spent on it")
    attained: Local | Attained = Field(
        description="the steepest sample, or what the ascent found without data; J is taken there"
    )
    slack: Slack
    provenance: Provenance

    @property
    def lower(self) -> float:
        """The attained lower bound of the global Lipschitz constant."""
        return self.attained.value

    @property
    def upper(self) -> float:
        """The best certified upper bound of the global Lipschitz constant."""
        return min([self.analytical.value] + ([self.certified.value] if self.certified else []))

    @property
    def no_bound(self) -> NoBound | None:
        """Why `upper` is infinite; None if it is finite."""
        return _no_bound([q for q in (self.analytical, self.certified) if q is not None])
