"""The terminal table and the HTML page, on synthetic results."""

from __future__ import annotations

import io
import json
import math
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from headless import count, opened, requests
from lipscope.report import format as fmt
from lipscope.report import print_result, render_html, write_html
from lipscope.report.charts import LogScale, charts
from lipscope.report.html import embed_json
from lipscope.results import Cost, MidRange, Result, StretchCurve
from made_results import (
    AWKWARD,
    BREAKOUT,
    SCRIPT,
    SLOPES,
    SQL,
    Page,
    directions,
    hostile,
    make_result,
    make_sheets,
    photograph,
    stretch_bin,
    with_levels,
)

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
    for place, (active, secant) in SLOPES.items():
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


def test_page_holds_everything() -> None:
    result = make_result(duplicates=3)
    page = Page(render_html(result))
    for wanted in (
        "torchvision alexnet, features",
        "imagenette-val",
        "4 May 2026, 09:12 UTC",
        "67.94 attained",
        "3.15×10⁶ certified",
        "9.919×10¹²",
        "1.114",
        "0.161",
        "0.0518",
        "3.497×10⁻⁴",
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
        "3.152×10⁶",
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
    page = Page(render_html(result))
    for text in (page.text, fmt.typeset(" ".join(printed(result, 120).split()))):
        for wanted in (
            "unit, active",
            "full, secant",
            "0.6214 ± 0.021",
            "4.612 ± 0.74",
            "0.0518 ± 4×10⁻⁴",
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
    assert texts == ["max Lip(x) 67.94", "L<sub>emp</sub> 1.114", "certified 3.15×10⁶ ↑"]
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
    text = render_html(make_result(), photograph())
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
    assert len(page.all("script")) == 4
    assert not page.all("img")
    assert SCRIPT in page.text
    assert BREAKOUT in page.text
    assert SQL in page.text
    assert "{{ 7*7 }}" in page.text
    own = text.replace(get_plotlyjs(), "")
    assert len(own) < len(text)
    assert "\x1b" not in own
    assert "\u202e" not in own
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


@pytest.mark.parametrize("name", ["analyze", *make_sheets()])
def test_page_is_accessible(name: str) -> None:
    reports = {"analyze": with_levels(make_result(duplicates=1))} | make_sheets()
    page = Page(render_html(reports[name], photograph() | directions()))
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


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize(
    "case", ["plain", "levels", "hostile", "zeros", "infinite upper", "one sample", "long"]
)
def test_page_in_browser(browser: Any, tmp_path: Path, case: str, width: int) -> None:
    result = hostile() if case == "hostile" else make_result(**AWKWARD.get(case, {}))
    if case == "levels":
        result = with_levels(result)
    path = tmp_path / "report.html"
    write_html(result, path, photograph())
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
