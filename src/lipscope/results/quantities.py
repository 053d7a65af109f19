"""The result of each quantity."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .record import Cost, Norm, Quantity, Record, UpperBound, Witness


class LayerBound(Record):
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


class CertifiedPiece(Record):
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

    kind: Literal["lower"] = "lower"
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


class Duplicate(Record):
    """Two samples at distance zero; they have no ratio and are left out."""

    first: str
    second: str


class Empirical(Quantity):
    """L_emp: the largest secant ratio over all pairs of the data, attained."""

    kind: Literal["lower"] = "lower"
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

    kind: Literal["lower"] = "lower"
    norm: Norm = Field(description='q of the operator norm ℓ_q → ℓ_q: "2" (Euclidean), "1" or "inf"')
    witness: Witness
    found_by: str = Field(description="the search that led to the pair: start, slopes, pairs or kinks")
    starts: int = Field(description="points the ascent started from")


class Exact(Quantity):
    """A bracket lower ≤ L ≤ value of a piecewise-linear network's Lipschitz constant by branch and bound."""

    kind: Literal["upper"] = "upper"
    norm: Norm = Field(description='q of the operator norm ℓ_q → ℓ_q: "2" (Euclidean), "1" or "inf"')
    lower: float = Field(description="attained by the stored pair")
    upper: float = Field(description="proved, rounding included; the same as `value`")
    closed: bool = Field(description="upper ≤ lower·(1 + tolerance): L is known")
    tolerance: float
    nodes: int = Field(description="sets of activation regions that were bounded")
    units: int = Field(description="scalar nonlinear units (max pooling counts one a tap but the first)")
    witness: Witness


class LayerSlope(Record):
    """The mean slope of one nonlinear layer."""

    place: str
    layer: str
    active: float | None = Field(description="mean slope at the points (for ReLU the active fraction)")
    secant: float | None = Field(description="mean secant slope over the pairs")


class Effective(Quantity):
    """L_eff: the spectral norm of the Jacobian with slopes replaced by their means, or of the mean Jacobian."""

    kind: Literal["estimate"] = "estimate"
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

    kind: Literal["estimate"] = "estimate"
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


class StretchBin(Record):
    """The secant ratios ‖Φ(x₁) − Φ(x₂)‖ / ‖x₁ − x₂‖ of the pairs whose distance lies in [low, high]."""

    low: float
    high: float
    distance: float = Field(description="median distance ‖x₁ − x₂‖ of the pairs")
    count: int
    quantiles: dict[str, float] = Field(description='at "0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"')


class StretchCurve(Record):
    """Stretch against distance for one family of pairs."""

    name: Literal["steepest", "segments", "pairs"] = Field(
        description="steepest: from a sample along its most stretched direction; segments: from a sample part of "
        "the way to another; pairs: two samples"
    )
    bins: list[StretchBin]


class MidRange(Record):
    """Stretch against distance, from Lip(x) at distance 0 to pairs of samples far apart; estimates."""

    curves: list[StretchCurve]
    cost: Cost


class LayerSlack(Record):
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


class Slack(Record):
    """Where the product bound exceeds what the network does in the direction it stretches most at one point."""

    kind: Literal["estimate"] = "estimate"
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


class OpenUnits(Record):
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
