"""The terminal table and the HTML page, on synthetic results."""

from __future__ import annotations

import io
import json
import math
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lipscope.report import format as fmt
from lipscope.report import print_result, render_html, write_html
from lipscope.report.charts import LogScale, charts
from lipscope.report.html import embed_json
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
_SLOPES = {
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
            for place, (active, secant) in _SLOPES.items()
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
            source="Constantine 2015",
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


def png(width: int = 8, height: int = 8) -> bytes:
    """A grey PNG picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    pixels = (b"\0" + bytes(8 * place % 256 for place in range(width))) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


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


# Numbers


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (3147123.0, "estimate", "3.147e+06"),
        (67.9379, "estimate", "67.94"),
        (67.9379, "lower", "67.93"),
        (67.9311, "upper", "67.94"),
        (0.161, "estimate", "0.161"),
        (0.0518, "estimate", "0.0518"),
        (3.4971e-4, "estimate", "3.497e-04"),
        (9999.6, "estimate", "1e+04"),
        (4616.0, "lower", "4616"),
        (2.0, "upper", "2"),
        (0.0, "lower", "0"),
        (-0.0, "estimate", "0"),
        (-0.25, "estimate", "-0.25"),
        (math.inf, "upper", "∞"),
        (math.nan, "estimate", "—"),
        (None, "estimate", "—"),
        (1.7e308, "upper", "1.7e+308"),
    ],
)
def test_number(value: float | None, kind: Any, text: str) -> None:
    assert fmt.number(value, kind) == text


def test_bounds_stay_true_as_printed() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        value = 10 ** draw.uniform(-12, 12)
        assert float(fmt.number(value, "lower")) <= value <= float(fmt.number(value, "upper"))
        assert math.isclose(float(fmt.number(value)), value, rel_tol=6e-4)


def test_square_does_not_overflow() -> None:
    assert fmt.square(1e200, "lower") == "9.999e+399"
    assert fmt.square(math.inf) == "∞"
    assert fmt.square(5e-324) == "2.441e-647"
    assert fmt.square(1.115) == "1.243"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.42, "0.42 s"),
        (3.21, "3.2 s"),
        (59.9, "1 min 00 s"),
        (412.7, "6 min 53 s"),
        (7384, "2 h 03 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert fmt.duration(seconds) == text


def test_plain_shows_what_would_act() -> None:
    assert fmt.plain("a\x1b[31m\u202eb\u2028\udcff\n") == "a\\x1b[31m\\u202eb\\u2028\\udcff\\n"
    assert fmt.plain("café – 猫") == "café – 猫"


def test_elide_keeps_both_ends() -> None:
    assert fmt.elide("short", 10) == "short"
    assert fmt.elide("abcdefghijklmnop", 9) == "abc…lmnop"
    assert len(fmt.elide("x" * 99, 24)) == 24


# Terminal


def printed(result: Result, width: int, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    print_result(result, Console(file=stream, width=width, color_system=None))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_terminal_shows_everything(width: int) -> None:
    text = printed(make_result(duplicates=3), width)
    assert max(map(len, text.splitlines())) <= width
    lines = text.splitlines()
    bracket = next(place for place, line in enumerate(lines) if "67.94 ≤ L ≤ 3.15e+06" in line)
    assert bracket < next(place for place, line in enumerate(lines) if line.startswith("Quantity"))
    kinds = {"3.15e+06": "≤ upper", "67.94": "≥ lower", "1.114": "≥ lower", "0.161": "≈ estimate"}
    kinds |= {"0.0518": "≈ estimate", "0.03": "≈ estimate", "0.4": "≈ estimate", "0.2": "≈ estimate"}
    for value, kind in kinds.items():
        assert any(kind in line and f" {value} " in line for line in lines), value
    flat = " ".join(text.split())
    for wanted in (
        "9.919e+12",
        "4616",
        "1.243",
        "0.02592",
        "0.002683",
        "9e-04",
        "0.16",
        "0.04",
        "3.2 s",
        "6 min 53 s",
        "18.4 s",
        "0.42 s",
        "21,840 passes",
        "± 7.97 over 500 samples",
        "124,747 sample pairs",
        "L_c",
        "max Lip(x)",
        "L_emp",
        "L_eff",
        "scalar, active",
        "channel, secant",
        "3.497e-04",
        "1.136e-04",
        "3 pairs were left out",
    ):
        assert wanted in flat, wanted
    for place, (active, secant) in _SLOPES.items():
        assert re.search(rf"{re.escape(place)} ReLU\s+{active}\s+{secant}\n", text)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("case", AWKWARD)
def test_terminal_awkward(case: str, width: int) -> None:
    text = printed(make_result(**AWKWARD[case]), width)
    assert max(map(len, text.splitlines())) <= width
    assert "nan" not in text
    if case == "infinite upper":
        assert "67.94 ≤ L, no global upper bound" in text


def test_terminal_obeys_no_name() -> None:
    text = printed(hostile(), 120)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert SCRIPT in text
    assert "[bold]{{ 7*7 }}" in text


def test_terminal_without_unicode() -> None:
    text = printed(make_result(model="猫"), 80, "ascii")
    assert "67.94 <= L <= 3.15e+06" in text
    assert "\\u732b" in text


def test_terminal_colours_by_kind() -> None:
    stream = io.StringIO()
    print_result(make_result(), Console(file=stream, width=100, force_terminal=True, color_system="standard"))
    for code, kind in (("35", "≤ upper"), ("32", "≥ lower"), ("36", "≈ estimate")):
        assert f"\x1b[{code}m{kind}" in stream.getvalue()


def test_imports_stay_light() -> None:
    code = (
        "import sys, lipscope.report.terminal; "
        "assert not {'torch', 'jinja2', 'plotly'} & set(sys.modules), sorted(sys.modules); "
        "import lipscope.report; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Page


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


def test_page_holds_everything() -> None:
    result = make_result(duplicates=3)
    page = Page(
        render_html(result, {"empirical.x1": png(), "empirical.x2": png(), "local.x1": png(300, 200)})
    )
    for wanted in (
        "torchvision alexnet, features",
        "imagenette-val",
        "4 May 2026, 09:12 UTC",
        "67.94 attained",
        "3.15e+06 certified",
        "9.919e+12",
        "1.114",
        "0.161",
        "0.0518",
        "3.497e-04",
        "124,747 sample pairs",
        "21,840 passes",
        "6 min 53 s",
        "upper",
        "lower",
        "estimate",
        "Proved.",
        "Attained.",
        "Neither proved nor attained.",
        "features.10",
        "16.61",
        "192 × 13 × 13",
        "3.152e+06",
        "0.393",
        "0.089",
        "3 pairs of samples at distance zero were left out",
        "copy 2",
        "a3" * 32,
        "5e" * 32,
        "lipscope analyze alexnet.pt",
        "torch 2.13.0",
        "1.8 GiB",
        "7 min 22 s",
        "stored in witnesses.safetensors as empirical.x1, empirical.x2",
    ):
        assert wanted in page.text, wanted
    assert [chart["id"] for chart in page.figures] == [
        "chart-bracket",
        "chart-local",
        "chart-layers",
        "chart-slopes",
    ]
    marks = [trace for trace in page.figures[0]["data"] if "marker" in trace]
    symbols = {trace["name"]: trace["marker"]["symbol"] for trace in marks}
    assert len(set(symbols.values())) == 3
    assert set(symbols) == {"upper", "lower", "estimate"}


def test_levels_moments_and_errors_are_in_both() -> None:
    result = with_levels(make_result())
    directions = {f"second_moment.active.{k}": png() for k in (0, 1, 10)}
    page = Page(render_html(result, directions | {"local.x1": png(), "second_moment.other": png()}))
    for text in (page.text, " ".join(printed(result, 120).split())):
        for wanted in (
            "unit, active",
            "full, secant",
            "0.6214 ± 0.021",
            "4.612 ± 0.74",
            "0.0518 ± 4e-04",
            "mean slopes at the samples, one per unit",
            "mean secant slopes over pairs, one per channel",
            "mean of the secant Jacobians of pairs",
            "11.37 ± 0.34",
            "11.4, 9.1, 7.96",
        ):
            assert wanted in text, wanted
        assert "0.03 ±" not in text
    assert "√λ max" in page.text
    assert "√λ_max" in printed(result, 120)
    assert "sqrt lambda_max" in printed(result, 120, "ascii")
    for width in (60, 80):
        assert max(map(len, printed(result, width).splitlines())) <= width
    captions = [image["alt"] for image in page.all("img")]
    assert captions == [
        "Most sensitive input: n01440930/ILSVRC2012_val_00016102.JPEG",
        "Direction of largest mean-square stretch: stretch 11.37, at the samples",
        "Direction of largest mean-square stretch, 2nd: stretch 9.096, at the samples",
        "Direction of largest mean-square stretch: at the samples",
        "second_moment.other",
    ]


def test_bracket_chart_has_everything_on_one_axis() -> None:
    result = with_levels(make_result())
    figure = charts(result)["bracket"].figure
    marks = [trace for trace in figure["data"] if "marker" in trace]
    values = sorted(10**x for trace in marks for x in trace["x"])
    assert values == pytest.approx(sorted(quantity.value for quantity in result.quantities))
    labels = figure["layout"]["yaxis"]["ticktext"]
    assert [label for label in labels if label.startswith("<b>")] == [
        "<b>Proved</b>",
        "<b>Attained</b>",
        "<b>On these data, estimated</b>",
    ]
    assert len(figure["narrow"]["yaxis"]["ticktext"]) == len(labels) == len(set(labels))
    [estimates] = [trace for trace in marks if trace["name"] == "estimate"]
    for effective, x, ahead, behind in zip(
        [*result.effective, *result.second_moment],
        estimates["x"],
        estimates["error_x"]["array"],
        estimates["error_x"]["arrayminus"],
        strict=True,
    ):
        error = effective.standard_error or 0.0
        assert 10 ** (x + ahead) == pytest.approx(effective.value + error)
        assert 10 ** (x - behind) == pytest.approx(effective.value - error)
    spread = [trace["x"] for trace in figure["data"] if trace["mode"] == "lines"]
    ends = [tuple(10**x for x in line) for line in spread]
    quantiles = result.local.quantiles
    pairs = [("0", "1"), ("0.05", "0.95"), ("0.25", "0.75"), ("0.5", "0.5")]
    assert ends == [pytest.approx((quantiles[low], quantiles[high])) for low, high in pairs]
    assert "median 39.8" in charts(result)["bracket"].description


@pytest.mark.parametrize("error", [0.0, 0.1, 0.3, 1e9, math.inf, math.nan])
def test_error_bars_stay_on_the_axis(error: float) -> None:
    result = make_result(effective=[("scalar", "active", 0.2, None)])
    moved = result.model_copy(
        update={"effective": [result.effective[0].model_copy(update={"standard_error": error})]}
    )
    layout = charts(moved)["bracket"].figure["layout"]
    [trace] = [t for t in charts(moved)["bracket"].figure["data"] if t.get("name") == "estimate"]
    low, high = layout["xaxis"]["range"]
    assert low <= trace["x"][0] - trace["error_x"]["arrayminus"][0] <= trace["x"][0]
    assert trace["x"][0] <= trace["x"][0] + trace["error_x"]["array"][0] <= high
    assert ("0.2 ±" in printed(moved, 80)) == math.isfinite(error)


def test_stretch_chart_holds_the_curves_and_the_lines() -> None:
    result = with_levels(make_result())
    chart = charts(result)["stretch"]
    assert result.mid_range is not None
    named = {trace["name"]: trace for trace in chart.figure["data"] if "name" in trace}
    bands = [trace for trace in chart.figure["data"] if "fill" in trace]
    for curve, band in zip(result.mid_range.curves, bands, strict=True):
        trace = named[curve.name]
        assert [10**x for x in trace["x"]] == pytest.approx([one.distance for one in curve.bins])
        assert [10**y for y in trace["y"]] == pytest.approx([one.quantiles["0.5"] for one in curve.bins])
        count = len(curve.bins)
        assert [10**y for y in band["y"][:count]] == pytest.approx(
            [one.quantiles["0.95"] for one in curve.bins]
        )
        assert [10**y for y in band["y"][count:]] == pytest.approx(
            [one.quantiles["0.05"] for one in curve.bins[::-1]]
        )
    texts = [note["text"] for note in chart.figure["layout"]["annotations"]]
    assert texts == ["max Lip(x) 67.94", "L<sub>emp</sub> 1.114", "certified 3.15e+06 ↑"]
    near = charts(with_levels(make_result(upper=98.75)))["stretch"].figure["layout"]
    assert [note["text"] for note in near["annotations"]][2] == "certified 98.75"
    heights = [10 ** shape["y0"] for shape in near["shapes"]]
    assert heights == pytest.approx([67.943, 1.115, 98.75])
    page = Page(render_html(result))
    assert "L emp differ: stretch against distance" in page.text
    assert "two samples" in page.text
    assert "stretch" not in charts(make_result())
    assert "stretch against distance" not in Page(render_html(make_result())).text


@pytest.mark.parametrize("case", AWKWARD)
def test_levels_on_awkward_results(case: str) -> None:
    result = with_levels(make_result(**AWKWARD[case]))
    assert result.mid_range is not None
    zero = stretch_bin(3.0, 0.0, 0.1, 1)
    flat = [StretchCurve(name="pairs", bins=[zero]), StretchCurve(name="segments", bins=[])]
    lone = MidRange(curves=flat, cost=Cost(seconds=0.0, forward_passes=1.0))
    for one in (result, result.model_copy(update={"mid_range": lone})):
        page = Page(render_html(one))
        assert "nan" not in page.text.split()
        [figure] = [chart for chart in page.figures if chart["id"] == "chart-stretch"]
        for axis in (figure["layout"]["xaxis"], figure["layout"]["yaxis"]):
            assert all(map(math.isfinite, axis["range"]))
            assert axis["range"][0] < axis["range"][1]


def test_page_loads_nothing() -> None:
    text = render_html(make_result(), {"local.x1": png()})
    page = Page(text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, target)
        assert not any(name.startswith("on") for name in attributes)
    plotly = max((content for _, content in page.scripts), key=len)
    rest = text.replace(plotly, "")
    assert len(plotly) > 1_000_000
    assert not re.search(r"https?://|@import|url\(", rest)
    [policy] = [
        meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    assert "script-src 'sha256-" in policy
    assert "http" not in policy


def test_page_escapes_names() -> None:
    text = render_html(hostile())
    page = Page(text)
    assert len(page.all("script")) == 3
    assert not page.all("img")
    assert SCRIPT in page.text
    assert BREAKOUT in page.text
    assert SQL in page.text
    assert "{{ 7*7 }}" in page.text
    assert "\x1b" not in text
    assert "\u202e" not in text
    [data] = [content for attributes, content in page.scripts if attributes.get("id") == "charts"]
    assert not set("<>&\u2028\u2029") & set(data)
    for chart in page.figures:
        for shown in re.findall(r"<[^>]*>", json.dumps(chart)):
            assert shown in ("<b>", "</b>", "<br>", "<sub>", "</sub>", "<sup>", "</sup>"), shown


def test_embedded_json_survives() -> None:
    value = {"a": "</script><!-- & \u2028\u2029 é 😀", "b": [1.5, None]}
    text = str(embed_json(value))
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)
    with pytest.raises(ValueError, match="JSON"):
        embed_json([math.inf])


@pytest.mark.parametrize("case", AWKWARD)
def test_page_awkward(case: str) -> None:
    result = make_result(**AWKWARD[case])
    page = Page(render_html(result))
    assert "nan" not in page.text.split()
    for chart in page.figures:
        axis = chart["layout"]["xaxis"]
        assert all(math.isfinite(end) for end in axis["range"])
        assert axis["range"][0] < axis["range"][1]
    if case == "infinite upper":
        assert "∞ no global upper bound" in page.text
        assert "∞" in page.figures[0]["layout"]["xaxis"]["ticktext"]
    if case == "zeros":
        assert "0" in page.figures[0]["layout"]["xaxis"]["ticktext"]
    if case == "no empirical":
        assert "There is no empirical constant" in page.text
    if case == "one sample":
        assert "One sample was visited" in page.text
        assert "chart-local" not in [chart["id"] for chart in page.figures]


@pytest.mark.parametrize(
    "values", [[1.0], [0.0], [math.inf], [0.0, math.inf], [1e-300, 1e300], [2.0, 3.0], []]
)
def test_log_scale_has_room_for_all(values: list[float]) -> None:
    scale = LogScale.over(values)
    low, high = scale.range
    assert all(low <= scale.place(value) <= high for value in values)
    ticks = scale.axis("")["tickvals"]
    assert 1 <= len(ticks) <= 16
    assert ticks == sorted(ticks)
    assert set(scale.fewer_ticks()["tickvals"]) <= set(ticks)


def test_many_samples_stay_small() -> None:
    draw = random.Random(3)
    result = make_result(estimates=[draw.uniform(1, 50) for _ in range(20_000)])
    histogram, strip, _ = charts(result)["local"].figure["data"]
    assert sum(histogram["y"]) == 20_000
    assert len(strip["x"]) == 2000
    assert max(strip["x"]) == max(result.local.estimates)


def test_page_is_accessible() -> None:
    page = Page(render_html(with_levels(make_result(duplicates=1)), {"local.x1": png()}))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        label = attributes.get("aria-labelledby")
        assert label is None or set(label.split()) <= set(ids)
        target = attributes.get("href") or ""
        assert not target.startswith("#") or target[1:] in ids
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
        if tag == "img":
            assert attributes.get("alt")
        if attributes.get("role") in ("img", "region"):
            assert attributes.get("aria-label") or label
    assert page.all("html")[0]["lang"] == "en"


def test_pictures_must_be_png() -> None:
    with pytest.raises(ValueError, match=r"local\.x1"):
        render_html(make_result(), {"local.x1": b"<svg onload=alert(1)>"})


def test_write_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    write_html(make_result(), target)
    before = target.read_bytes()
    assert before.startswith(b"<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_html(make_result(model="other"), str(target))
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


# Browser


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = chromium(), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


def opened(browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> None:
    """Load a page and wait for its charts."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    wanted = browser.execute_script("return document.querySelectorAll('.chart').length")
    deadline = time.monotonic() + 20
    while (
        count(browser, ".js-plotly-plot .main-svg .xaxislayer-above") < wanted and time.monotonic() < deadline
    ):
        time.sleep(0.05)


def count(browser: Any, selector: str) -> int:
    found: int = browser.execute_script(
        "return [...document.querySelectorAll('figure')].filter(c => c.querySelector(arguments[0])).length",
        selector,
    )
    return found


def requests(browser: Any) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize(
    "case", ["plain", "levels", "hostile", "zeros", "infinite upper", "one sample", "long"]
)
def test_page_in_browser(browser: Any, tmp_path: Path, case: str, width: int) -> None:
    result = hostile() if case == "hostile" else make_result(**AWKWARD.get(case, {}))
    if case == "levels":
        result = with_levels(result)
    path = tmp_path / "report.html"
    write_html(result, path, {"local.x1": png()})
    opened(browser, path, width)
    assert browser.get_log("browser") == []
    assert [url for url in requests(browser) if url != path.as_uri() and not url.startswith("data:")] == []
    shown = browser.execute_script("return document.querySelectorAll('.js-plotly-plot').length")
    assert shown == len(charts(result))
    assert count(browser, ".js-plotly-plot svg.main-svg") == shown
    overflow = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0
    marks = browser.execute_script(
        "return document.querySelectorAll('#chart-bracket .scatterlayer .point').length"
    )
    assert marks == len(result.quantities)
    if case == "hostile":
        drawn = browser.execute_script("return document.getElementById('chart-slopes').textContent")
        assert "alert(2)>" in drawn
        assert (
            browser.execute_script("return document.querySelectorAll('svg a, svg script, img[src=x]').length")
            == 0
        )


def test_page_in_dark_mode(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(make_result(), path)
    look = (
        "return [getComputedStyle(document.documentElement).getPropertyValue('--accent').trim(), "
        "getComputedStyle(document.querySelector('#chart-bracket .trace.scatter .point')).fill, "
        "getComputedStyle(document.body).backgroundColor]"
    )
    opened(browser, path)
    light = browser.execute_script(look)
    opened(browser, path, scheme="dark")
    dark = browser.execute_script(look)
    assert light[2] == "rgb(255, 255, 255)"
    assert all(one != other for one, other in zip(light, dark, strict=True))
    media = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    deadline = time.monotonic() + 10
    while browser.execute_script(look) != light and time.monotonic() < deadline:
        time.sleep(0.05)
    assert browser.execute_script(look) == light


def test_page_refuses_scripts_that_slip_in(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(
        render_html(make_result()).replace("<main>", "<main><script>window.slipped = true</script>"),
        encoding="utf-8",
    )
    opened(browser, path)
    assert browser.execute_script("return window.slipped") is None


def test_page_in_print(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(make_result(), path)
    opened(browser, path, scheme="dark")
    browser.execute_script(
        "addEventListener('beforeprint', () => {"
        "  window.printed = [getComputedStyle(document.body).backgroundColor,"
        "    document.getElementById('chart-bracket').querySelector('svg').getBoundingClientRect().width,"
        "    document.querySelectorAll('details:not([open])').length] })"
    )
    browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    background, width, closed = browser.execute_script("return window.printed")
    assert background == "rgb(255, 255, 255)"
    assert width <= 640
    assert closed == 0
    assert browser.execute_script("return document.documentElement.hasAttribute('data-print')") is False
