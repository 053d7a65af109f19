"""Synthetic results, ordinary and awkward, and the page that is made of them as elements and text."""

from __future__ import annotations

import json
import math
import random
import statistics
from html.parser import HTMLParser
from typing import Any

import numpy as np

from lipscope.results import (
    Analytical,
    ClassCount,
    Concentration,
    ConcentrationReport,
    Cost,
    DataInfo,
    DepthScale,
    Discriminant,
    DiscriminantReport,
    Duplicate,
    Effective,
    Empirical,
    FieldMeasurement,
    FieldPrediction,
    FisherReport,
    FisherSpectrum,
    InputFisher,
    LayerBound,
    LayerField,
    LayerSeparation,
    LayerSlope,
    Local,
    MeanField,
    MeanFieldReport,
    Measured,
    MidRange,
    ModelInfo,
    NoBound,
    NotCovered,
    ParameterFisher,
    Provenance,
    Report,
    Result,
    SecondMoment,
    StretchBin,
    StretchCurve,
    Tail,
    TailLevel,
    TailPoint,
    Witness,
)

SCRIPT = "<script>alert(1)</script>"
SQL = '"; DROP TABLE results; --'
BREAKOUT = "</script><img src=x onerror=alert(2)>"
ESCAPES = "red\x1b[31m\u202egnp.exe\u2028[bold]{{ 7*7 }}"

_LAYERS = [
    ("features.0", "Convolution", [64, 55, 55], 9.08),
    ("features.1", "ReLU", [64, 55, 55], 1.0),
    ("features.2", "MaxPool", [64, 27, 27], 2.0),
    ("features.3", "Convolution", [192, 27, 27], 14.99),
    ("features.4", "ReLU", [192, 27, 27], 1.0),
    ("features.5", "MaxPool", [192, 13, 13], 2.0),
    ("features.6", "Convolution", [384, 13, 13], 12.15),
    ("features.7", "ReLU", [384, 13, 13], 1.0),
    ("features.8", "Convolution", [256, 13, 13], 14.34),
    ("features.9", "ReLU", [256, 13, 13], 1.0),
    ("features.10", "Convolution", [256, 13, 13], 16.61),
    ("features.11", "ReLU", [256, 13, 13], 1.0),
    ("features.12", "MaxPool", [256, 6, 6], 2.0),
]
_EFFECTIVE = [
    ("scalar", "active", 0.161, 3.4971e-4),
    ("scalar", "secant", 0.0518, 1.1358e-4),
    ("scalar", "paper", 0.03, 3.4971e-4),
    ("channel", "active", 0.4, None),
    ("channel", "secant", 0.2, None),
]
# (level, reading, value, slope product, standard error)
_LEVELS = [
    ("scalar", "active", 0.161, 3.4971e-4, 0.0012),
    ("scalar", "secant", 0.0518, 1.1358e-4, 0.0004),
    ("scalar", "paper", 0.03, 3.4971e-4, None),
    ("channel", "active", 0.4, None, 0.011),
    ("channel", "secant", 0.2, None, 0.006),
    ("unit", "active", 0.6214, None, 0.021),
    ("unit", "secant", 0.3307, None, 0.013),
    ("full", "active", 4.612, None, 0.74),
    ("full", "secant", 0.9021, None, 0.037),
]
SLOPES = {
    "features.1": (0.393, 0.391),
    "features.4": (0.213, 0.165),
    "features.7": (0.176, 0.131),
    "features.9": (0.193, 0.151),
    "features.11": (0.123, 0.089),
}


def make_result(
    *,
    model: str = "torchvision alexnet, features",
    data: str = "imagenette-val",
    samples: int = 500,
    upper: float = 3.1493e6,
    local: float | None = None,
    empirical: float | None = 1.115,
    effective: list[tuple[str, str, float, float | None]] | None = None,
    layers: list[tuple[str, str, list[int], float]] | None = None,
    slopes: list[LayerSlope] | None = None,
    estimates: list[float] | None = None,
    names: list[str] | None = None,
    duplicates: int = 0,
    command: str = "lipscope analyze alexnet.pt --data imagenette/val --samples 500",
) -> Result:
    """A result with realistic numbers, or with whatever is to be tried."""
    if estimates is None:
        draw = random.Random(7)
        estimates = [
            min(67.2, max(28.0, draw.lognormvariate(math.log(40.5), 0.19))) for _ in range(samples - 1)
        ]
        estimates.insert(samples // 3, 67.943)
    names = names or [
        f"n0{1440764 + place}/ILSVRC2012_val_{place * 97:08d}.JPEG" for place in range(len(estimates))
    ]
    ordered = sorted(estimates)
    finite = all(map(math.isfinite, estimates))
    top = max(range(len(estimates)), key=estimates.__getitem__)
    local = estimates[top] if local is None else local
    bounds = []
    cumulative = 1.0
    for place, layer, shape, constant in _LAYERS if layers is None else layers:
        cumulative *= constant
        bounds.append(
            LayerBound(place=place, layer=layer, shape=shape, constant=constant, cumulative=cumulative)
        )

    def witness(key: str, chosen: list[str], ratio: float) -> Witness:
        return Witness(
            key=key, file="witnesses.safetensors", samples=chosen, distance=73.2, ratio=ratio, rounding=4e-13
        )

    def at(quantile: float) -> float:
        return ordered[round(quantile * (len(ordered) - 1))]

    return Result(
        model=ModelInfo(
            name=model,
            fingerprint="a3" * 32,
            input_shape=[3, 224, 224],
            output_shape=[256, 6, 6],
            parameters=2469696,
            layers=13,
        ),
        data=DataInfo(
            name=data,
            fingerprint="5e" * 32,
            samples=len(estimates),
            preprocessing="resize 256, centre crop 224, scale to [0, 1]",
        ),
        analytical=Analytical(
            name="analytical",
            value=upper,
            method="product of certified layer norms",
            source="Zou, Balan, Singh 2020",
            cost=Cost(seconds=3.21, forward_passes=None),
            layers=bounds,
        ),
        local=Local(
            name="local",
            value=local,
            method="largest σ_max(J(x)) over the samples by Lanczos; attained by a pair",
            source="Zou, Balan, Singh 2020: Lip(x) = σ_max(∏ D_k(x) T_k)",
            cost=Cost(seconds=412.7, forward_passes=21840.0),
            witness=witness("local", [names[top]], local),
            estimates=estimates,
            samples=names,
            mean=statistics.fmean(estimates) if finite else math.nan,
            std=statistics.stdev(estimates) if len(estimates) > 1 and finite else math.nan,
            quantiles={f"{q:g}": at(q) for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)},
            relative_error=2.3e-4,
        ),
        empirical=None
        if empirical is None
        else Empirical(
            name="empirical",
            value=empirical,
            method="largest secant ratio over all pairs, candidates re-evaluated in float64",
            source="Zou, Balan, Singh 2020: empirical Lipschitz constant",
            cost=Cost(seconds=18.4, forward_passes=512.0),
            witness=witness("empirical", [names[0], names[-1]], empirical),
            pairs=len(estimates) * (len(estimates) - 1) // 2 - duplicates,
            rechecked=64,
            duplicates=[Duplicate(first=names[0], second=f"copy {k}") for k in range(min(duplicates, 100))],
            duplicate_count=duplicates,
        ),
        effective=[
            Effective(
                name="effective",
                value=value,
                method=f"spectral norm of the Jacobian with {level} means",
                source="Czaja, Balan, Jabin 2020: effective Lipschitz constant",
                cost=Cost(seconds=0.42, forward_passes=36.0),
                level=level,  # type: ignore[arg-type]
                reading=reading,  # type: ignore[arg-type]
                slope_product=product,
                relative_error=1.1e-6,
            )
            for level, reading, value, product in (_EFFECTIVE if effective is None else effective)
        ],
        slopes=[
            LayerSlope(place=place, layer="ReLU", active=active, secant=secant)
            for place, (active, secant) in SLOPES.items()
        ]
        if slopes is None
        else slopes,
        slope_pairs=124750,
        provenance=Provenance(
            lipscope="0.1.0",
            torch="2.13.0",
            python="3.11.9",
            platform="Linux x86_64",
            threads=8,
            device="cpu",
            dtype="float32",
            seed=0,
            command=command,
            started="2026-05-04T09:12:33+00:00",
            seconds=441.8,
            peak_memory_bytes=1_932_735_283,
        ),
    )


def stretch_bin(distance: float, middle: float, spread: float, count: int) -> StretchBin:
    """A bin of ratios that are log-normal about `middle`."""
    normal = statistics.NormalDist()
    return StretchBin(
        low=distance / 1.2,
        high=distance * 1.2,
        distance=distance,
        count=count,
        quantiles={
            f"{q:g}": middle * math.exp(spread * normal.inv_cdf(min(max(q, 0.01), 0.99)))
            for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
        },
    )


def with_levels(result: Result) -> Result:
    """The result with every level of effective constants, second moments and stretch against distance."""
    effective = [
        Effective(
            name="effective",
            value=value,
            method=f"spectral norm of the Jacobian with {level} means",
            source="Czaja, Balan, Jabin 2020: effective Lipschitz constant",
            cost=Cost(seconds=0.42, forward_passes=36.0),
            level=level,  # type: ignore[arg-type]
            reading=reading,  # type: ignore[arg-type]
            slope_product=product,
            relative_error=1.1e-6,
            standard_error=error,
        )
        for level, reading, value, product, error in _LEVELS
    ]
    moments = [
        SecondMoment(
            name="second_moment",
            value=value,
            method="block Lanczos on the streamed second moment",
            source="DESIGN section 2",
            cost=Cost(seconds=12.0, forward_passes=8000.0),
            reading=reading,  # type: ignore[arg-type]
            leading=[value, 0.8 * value, 0.7 * value],
            directions=[f"second_moment.{reading}.{k}" for k in range(3)],
            file="witness.safetensors",
            relative_error=1e-4,
            standard_error=0.03 * value,
        )
        for reading, value in (("active", 11.37), ("secant", 0.7413))
    ]
    steps = [0.01 * 10 ** (k / 3) for k in range(13)]
    fractions = [0.1 * 10 ** (k / 3) for k in range(10)]
    curves = [
        StretchCurve(
            name="steepest",
            bins=[stretch_bin(d, 1.2 + 39.0 / (1 + (d / 1.5) ** 1.1), 0.15, 24) for d in steps],
        ),
        StretchCurve(
            name="segments", bins=[stretch_bin(d, 0.5 + 0.8 / (1 + d / 9.0), 0.3, 24) for d in fractions]
        ),
        StretchCurve(
            name="pairs",
            bins=[
                stretch_bin(d, 0.42 + 20 / d, 0.2, n)
                for d, n in ((48.0, 12), (61.0, 90), (78.0, 420), (99.0, 800), (126.0, 560), (160.0, 118))
            ],
        ),
    ]
    update = {
        "effective": effective,
        "second_moment": moments,
        "mid_range": MidRange(curves=curves, cost=Cost(seconds=8.1, forward_passes=2200.0)),
    }
    return result.model_copy(update=update)


def photograph() -> dict[str, np.ndarray]:
    """A stored pair of inputs that are images."""
    x = np.random.default_rng(0).normal(size=(2, 3, 12, 16))
    return {"local.x1": x[0], "local.x2": x[0] + 1e-3 * x[1]}


def hostile() -> Result:
    """Names that try to leave wherever they are put."""
    return make_result(
        model=SCRIPT,
        data=BREAKOUT,
        samples=40,
        names=[f"{ESCAPES}{place}" for place in range(40)],
        layers=[
            (f"{SCRIPT}.{SQL}.{place}", BREAKOUT, [3, 3], constant)
            for place, constant in enumerate([2.5, 0.0, math.inf, 0.2])
        ],
        slopes=[LayerSlope(place=BREAKOUT, layer=SQL, active=0.4, secant=None)],
        duplicates=2,
        command=f"lipscope analyze {SQL} {SCRIPT} <!-- ]]>",
    )


def make_sheets(text: str = "name") -> dict[str, Report]:
    """A report of each command whose page is one table; all that comes from outside is `text`."""
    result = make_result(model=text, data=text, samples=3, command=text)
    about = {"model": result.model, "data": result.data, "provenance": result.provenance}
    return {
        "fisher": FisherReport(inputs=_inputs(text), parameters=_parameters(), **about),
        "discriminant": DiscriminantReport(discriminant=_separation(text), **about),
        "mean-field": MeanFieldReport(mean_field=_field(text), **about),
        "concentration": ConcentrationReport(
            model=result.model, center=text, concentration=_tails(), provenance=result.provenance
        ),
    }


def directions() -> dict[str, np.ndarray]:
    """The tensors that are stored beside `make_sheets`."""
    x = np.random.default_rng(0).normal(size=(6, 3, 12, 16))
    keys = [*(f"inputs.mean.{k}" for k in range(4)), "inputs.steepest", "concentration.center"]
    return dict(zip(keys, x, strict=True))


def _spectrum(first: float, size: int) -> dict[str, Any]:
    return {
        "size": size,
        "leading": [first, 0.6 * first, 0.31 * first, 0.02 * first],
        "relative_error": 1e-4,
        "standard_error": 0.2 * first,
        "trace": 3.3 * first,
        "trace_error": 0.01 * first,
        "method": "block Lanczos",
        "source": "DESIGN",
        "cost": Cost(seconds=3.5),
    }


def _inputs(text: str) -> InputFisher:
    return InputFisher(
        likelihood="softmax",
        variance=None,
        mean=FisherSpectrum(directions=[f"inputs.mean.{k}" for k in range(4)], **_spectrum(2.055, 576)),
        samples=[text] * 6,
        eigenvalues=[0.0, 1e-9, 0.02, 1.4, 65.99, 3.1],
        traces=[0.0, 2e-9, 0.03, 1.5, 66.49, 3.2],
        stretches=[0.0, 9.4, 11.2, 14.0, 16.3, 15.2],
        relative_error=1e-4,
        probes=None,
        steepest="inputs.steepest",
        bound=13470.0,
    )


def _parameters() -> list[ParameterFisher]:
    return [
        ParameterFisher(
            which=which,  # type: ignore[arg-type]
            directions=[f"{stage}.{k}" for k in range(4)],
            likelihood="softmax",
            variance=None,
            samples=6,
            **_spectrum(first, 2_469_696),
        )
        for which, stage, first in (("true", "parameters", 39.92), ("empirical", "empirical", 9.784e5))
    ]


def _separation(text: str) -> Discriminant:
    def layer(node: int, kappa: float, bound: float, between: float, quotient: float) -> LayerSeparation:
        return LayerSeparation(
            node=node,
            place=f"{node} {text}",
            layer=text,
            shape=[8],
            certified=bound,
            attained=kappa,
            between=between,
            within=1.3,
            within_input=1.0,
            between_stretch=math.sqrt(between),
            within_stretch=1.14,
            total_stretch=1.2,
            rank=40,
            quotient=quotient,
            held_out=None if node == 1 else 7.1,
            shrinkage=0.2,
            direction_between=0.4,
            direction_within=0.1,
            accuracy=0.96,
        )

    layers = [(1.0, 1.0, 0.8, 9.19), (2.3, 5.82, 3.1, math.inf), (9.4, 110.0, 40.0, 12.5)]
    return Discriminant(
        classes=[ClassCount(name=text, samples=3)] * 2,
        layers=[layer(node, *numbers) for node, numbers in enumerate(layers * 4)],
        limit=1.7,
        chance=0.023,
        cost=Cost(seconds=14.0),
    )


def _field(text: str) -> MeanField:
    def layer(node: int, chi: float | None, slope: float | None) -> LayerField:
        predicted = FieldPrediction(
            mean=0.0, length=8.21, correlation=0.1, slope=0.5, square_slope=0.5, chi=chi, growth=3.0
        )
        measured = FieldMeasurement(
            length=Measured(value=5.46, error=0.57),
            correlation=Measured(value=0.138),
            slope=None if slope is None else Measured(value=slope, error=0.01),
            gaussian_slope=None if slope is None else 1.1 * slope,
            chi=None if chi is None else Measured(value=0.8 * chi, error=0.5 * chi),
        )
        return LayerField(
            node=node,
            place=f"{node} {text}",
            layer=text,
            units=64,
            weight_gain=None if slope is None else 4.92,
            bias_variance=0.0,
            approximated=node == 2,
            predicted=None if node == 3 else predicted,
            measured=measured,
        )

    return MeanField(
        inputs="data",
        input_mean=0.0,
        input_length=1.0,
        input_correlation=0.1,
        layers=[layer(0, 2.46, 0.396), layer(1, 1.5, None), layer(2, None, -0.1), layer(3, 0.9, 0.2)],
        depth=3,
        log_growth=1.95,
        phase="chaotic",
        correlation_scale=DepthScale(predicted=2.56, measured=6.95),
        length_scale=DepthScale(predicted=math.inf),
        frobenius=8.442e4,
        measured_frobenius=Measured(value=5.09e4, error=2.8e3),
        spectral_edge=11.2,
        measured_norm=Measured(value=14.0, error=0.3),
        not_covered=[NotCovered(place=text, layer=text, reason=text)],
        samples=64,
        cost=Cost(seconds=112.0),
    )


def _tails() -> Concentration:
    deviations = [0.1 * 1.2**k for k in range(30)]

    def tail(statistic: str, scale: float) -> Tail:
        return Tail(
            statistic=statistic,  # type: ignore[arg-type]
            index=9 if statistic == "output" else None,
            offset=0.0,
            spread=0.65 * scale,
            center_error=0.01,
            points=[
                TailPoint(
                    deviation=t * scale,
                    bound=min(1.0, 2 * math.exp(-t * t / 20)),
                    local=min(1.0, 2 * math.exp(-t * t)),
                    measured=math.exp(-2 * t * t) if t < 2 else 0.0,
                    low=math.exp(-3 * t * t) if t < 2 else 0.0,
                    high=min(1.0, math.exp(-1.5 * t * t) + 5e-4),
                )
                for t in deviations
            ],
            levels=[
                TailLevel(probability=p, proved=scale * r, local=scale * 0.3 * r, measured=m)
                for p, r, m in ((0.5, 6.37, 0.433), (0.001, 14.9, 2.12), (1e-6, 20.6, None))
            ],
        )

    return Concentration(
        law="gaussian",
        sigma=0.05,
        lipschitz=76.43,
        rests_on="ball",
        ball_radius=1.2,
        outside=1e-9,
        rank=10,
        column_squares=9e3,
        variance_proxy=14.6,
        local=19.31,
        local_frobenius=24.0,
        tails=[tail("output", 1.0), tail("norm", 2.0)],
        draws=10_000,
        confidence=0.99,
        cost=Cost(seconds=20.0),
    )


def awkward_sheets() -> dict[str, Report]:
    """Reports of the same commands with numbers that are missing, zero or infinite."""
    fisher, discriminant, field, tails = make_sheets().values()
    assert isinstance(fisher, FisherReport)
    assert isinstance(discriminant, DiscriminantReport)
    assert isinstance(field, MeanFieldReport)
    assert isinstance(tails, ConcentrationReport)
    assert fisher.inputs is not None
    nothing = FisherSpectrum(**{**_spectrum(0.0, 4), "standard_error": None}, directions=[])
    dead = {"mean": nothing, "eigenvalues": [0.0] * 6, "traces": [0.0] * 6, "stretches": [0.0] * 6}
    wild = {
        "likelihood": "gaussian",
        "variance": 1e-300,
        "bound": math.inf,
        "stretches": [1e-200, 1.0, 1e150, 1e200, 2.0, 3.0],
        "eigenvalues": [0.0, 1e300, math.inf, 1.0, 2.0, 3.0],
    }
    collapsed = [
        layer.model_copy(update={"within": 0.0, "certified": math.inf, "accuracy": None, "held_out": None})
        for layer in discriminant.discriminant.layers[:1]
    ]
    still = [
        layer.model_copy(update={"between": 0.0, "attained": 0.0, "certified": 0.0, "between_stretch": 0.0})
        for layer in collapsed
    ]
    bare = [
        layer.model_copy(update={"predicted": None, "measured": FieldMeasurement(), "weight_gain": None})
        for layer in field.mean_field.layers
    ]
    unknown = {"log_growth": None, "phase": None, "correlation_scale": DepthScale(predicted=None),
               "frobenius": None, "measured_frobenius": None, "spectral_edge": None}  # fmt: skip
    far = [
        tail.model_copy(
            update={
                "points": [],
                "spread": 0.0,
                "levels": [
                    level.model_copy(update={"proved": math.inf, "measured": None}) for level in tail.levels
                ],
            }
        )
        for tail in tails.concentration.tails
    ]
    missing = NoBound(layers=[], remedy="take a ball")

    def changed(report: Report, name: str, **update: object) -> Report:
        return report.model_copy(update={name: getattr(report, name).model_copy(update=update)})

    return {
        "parameters alone": fisher.model_copy(update={"inputs": None, "parameters": fisher.parameters[:1]}),
        "dead network": changed(fisher, "inputs", **dead).model_copy(update={"parameters": []}),
        "wild stretches": changed(fisher, "inputs", **wild),
        "classes are points": changed(discriminant, "discriminant", layers=collapsed, chance=None),
        "classes are one point": changed(discriminant, "discriminant", layers=still, limit=math.inf),
        "no theory": changed(field, "mean_field", layers=bare, **unknown),
        "no layers": changed(field, "mean_field", layers=[]),
        "Gaussian inputs": field.model_copy(update={"data": None}),
        "nothing proved": changed(tails, "concentration", tails=far, lipschitz=math.inf, no_bound=missing),
    }


AWKWARD: dict[str, Any] = {
    "plain": {},
    "no empirical": {"empirical": None},
    "one sample": {"estimates": [3.3], "empirical": None},
    "infinite upper": {"upper": math.inf},
    "zeros": {
        "estimates": [0.0, 0.0, 0.0],
        "empirical": 0.0,
        "upper": 0.0,
        "effective": [("scalar", "active", 0.0, 0.0)],
    },
    "zero lower, infinite upper": {
        "estimates": [0.0, 0.0],
        "empirical": 0.0,
        "upper": math.inf,
        "effective": [],
    },
    "equal estimates": {"estimates": [2.0] * 9},
    "wide estimates": {"estimates": [10.0**k for k in range(-8, 9)]},
    "extreme": {"upper": 1.7e308, "estimates": [5e-324, 1e-300, 1e300]},
    "not a number": {"estimates": [math.nan, 1.0, math.inf, 2.0], "local": 2.0},
    "empty": {"layers": [], "slopes": [], "effective": []},
    "long": {
        "layers": [(f"encoder.layers.encoder_layer_{k}.mlp", "Dense", [768], 1.5) for k in range(400)],
        "slopes": [LayerSlope(place=f"block.{k}", layer="GELU", active=-0.1, secant=1.1) for k in range(90)],
    },
}


class Page(HTMLParser):
    """The page as elements and text; scripts and styles kept apart."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self.open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open == "script":
            self.scripts.append((self.elements[-1][1], data))
        elif self.open != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def figures(self) -> list[dict[str, Any]]:
        [content] = [content for attributes, content in self.scripts if attributes.get("id") == "charts"]
        found: list[dict[str, Any]] = json.loads(content)
        return found
