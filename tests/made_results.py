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
    Cost,
    DataInfo,
    Duplicate,
    Effective,
    Empirical,
    LayerBound,
    LayerSlope,
    Local,
    MidRange,
    ModelInfo,
    Provenance,
    Result,
    SecondMoment,
    StretchBin,
    StretchCurve,
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
