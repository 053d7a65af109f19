"""Pages of all kinds of runs, their pictures, comparisons, tables for notebooks and pandas, figures as files."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import lipscope
from headless import opened, requests
from helpers import gaussian, small_network
from lipscope import cli
from lipscope.errors import DataError, LipscopeError
from lipscope.figures import figures_of, save
from lipscope.jobs.folder import read_report, read_tensors
from lipscope.report import format as fmt
from lipscope.report import has_page, print_comparison, print_report, render_html, write_html
from lipscope.report.charts import charts
from lipscope.report.comparing import lines, notices, verdict
from lipscope.report.pictures import FALL, RISE, Bars, input_drawing, signed_drawing
from lipscope.report.rows import rows
from lipscope.report.sheets import sheet_of
from lipscope.report.witnesses import groups
from lipscope.results import Bracket, Comparison, Inspection, Report, Result, SensitiveInput
from made_results import (
    AWKWARD,
    BREAKOUT,
    SCRIPT,
    SQL,
    Page,
    awkward_sheets,
    directions,
    hostile,
    make_result,
    make_sheets,
    photograph,
    with_levels,
)

HOSTILE = [
    f"{SCRIPT}{BREAKOUT}{SQL}",
    '"onmouseover="alert(1)\'><b>bold</b>nul\0nul\u202egnp.exe{{ 7*7 }}{% raw %}&amp;&lt;',
    "x" * 5000,
]
"""What names may not do: leave their place, hide, turn the text round, be a template, break the layout."""

SHEETS = ["fisher", "discriminant", "mean-field", "concentration"]
"""Runs whose page is one table."""


def decoded(uri: str) -> np.ndarray:
    """The pixels of a data URI, red, green, blue and alpha."""
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 3)).double()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, module: nn.Module) -> dict[str, Path]:
    """Finished runs of all commands, of small networks."""
    place = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    convolutional, _ = small_network()
    quick = lipscope.Options(effort="fast", seconds=0, pairs=20, jacobians=4, dtype="float64")
    for name, scale in (("one", 1.0), ("two", 3.0)):
        scaled = nn.Sequential(convolutional, nn.Linear(20, 20, bias=False).double())
        scaled[1].weight.data = scale * torch.eye(20, dtype=torch.float64)
        lipscope.analyze(scaled, gaussian(8, (2, 8, 8)), options=quick, output=place / name, name=name)
    lipscope.bracket(module, (1, 6, 6), effort="fast", seconds=0, output=place / "bracket", name="net")
    ball = lipscope.BallOptions(torch.zeros(1, 6, 6, dtype=torch.float64), 0.1, name="zeros")
    lipscope.bracket(module, (1, 6, 6), over=ball, effort="none", output=place / "ball", name="net")
    lipscope.bracket(module, (1, 6, 6), norm="inf", effort="none", output=place / "inf", name="net")
    lipscope.inspect(module, (1, 6, 6), effort="fast", seconds=0, output=place / "inspect", name="net")
    x, noise = gaussian(8, (1, 6, 6)), lipscope.Noise(torch.ones(1, 6, 6), 0.1)
    lipscope.fisher(module, x, likelihood="softmax", labels=[0, 1] * 4, output=place / "fisher", name="net")
    lipscope.separate(module, x, [0, 1] * 4, output=place / "discriminant", name="net")
    lipscope.compare_mean_field(module, data=x, output=place / "mean-field", name="net")
    lipscope.noise_tails(module, noise, draws=200, output=place / "concentration", name="net")
    return {path.name: path for path in place.iterdir()}


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {key: x.numpy() for key, x in read_tensors(folder / "witness.safetensors").items()}


# ---- pictures ------------------------------------------------------------------------------------------


@given(arrays.arrays(np.float64, (6, 9), elements=st.floats(-5, 5)))
def test_a_signed_picture_shows_signs_and_magnitudes(v: np.ndarray) -> None:
    pixels = decoded(signed_drawing(v).uri).astype(int)
    assert pixels.shape[:2] == v.shape
    drawn = pixels[..., 3] > 0
    assert (pixels[drawn & (v > 0)][:, :3] == RISE).all()
    assert (pixels[drawn & (v < 0)][:, :3] == FALL).all()
    assert not drawn[v == 0].any()
    # A larger magnitude is never painted fainter.
    order = np.argsort(np.abs(v), axis=None)
    assert (np.diff(pixels[..., 3].ravel()[order]) >= 0).all()


@given(arrays.arrays(np.float64, (3, 5, 6), elements=st.floats(-1, 1)))
def test_several_channels_are_shown_by_the_mix_of_most_energy(v: np.ndarray) -> None:
    drawing = signed_drawing(v)
    values = np.linalg.svd(v.reshape(3, -1), compute_uv=False)
    if values[0] < 1e-6:
        return
    share = values[0] ** 2 / (values**2).sum()
    found = re.match(r"(\d+) % of its energy", drawing.note)
    assert found is not None
    assert abs(int(found[1]) - 100 * share) <= 0.51


def test_a_direction_of_one_colour_is_shown_whole() -> None:
    plane = np.outer(np.linspace(-1, 1, 8), np.ones(7))
    drawing = signed_drawing(np.stack([0.6 * plane, 0.0 * plane, 0.8 * plane]))
    assert drawing.note.startswith("100 % of its energy")
    assert drawing.detail == "channels mixed 0.6, 0, 0.8"
    assert (decoded(drawing.uri) == decoded(signed_drawing(plane).uri)).all()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1000,), (3, 2), (64, 1, 1), (0,), (5, 3, 3)])
def test_what_is_no_picture_is_drawn_as_bars(shape: tuple[int, ...]) -> None:
    drawing = signed_drawing(np.random.default_rng(0).normal(size=shape))
    assert isinstance(drawing, Bars)
    count = math.prod(shape)
    assert drawing.note.startswith(f"{count:,} entr")
    bars = (drawing.rise + drawing.fall).count("M")
    assert bars == (count if count <= 160 else math.ceil(count / math.ceil(count / 160)))


def test_bars_are_as_long_as_their_entries() -> None:
    v = np.array([1.0, -0.5, 0.0, 2.0])
    drawing = signed_drawing(v)
    assert isinstance(drawing, Bars)
    assert drawing.zero == pytest.approx(120 * 2.0 / 2.5)
    lengths = [-float(x) for x in re.findall(r"v(-?[\d.]+)h", drawing.rise + drawing.fall)]
    assert lengths == pytest.approx([120 / 2.5, 240 / 2.5, -60 / 2.5])
    assert drawing.note == "4 entries, largest [3] 2, [0] 1, [1] -0.5"


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_shown_from_its_smallest_to_its_largest_value(channels: int) -> None:
    x = np.random.default_rng(1).normal(size=(channels, 9, 5))
    pixels = decoded(input_drawing(x).uri)[..., :channels].astype(float)
    low, high = x.min((1, 2)), x.max((1, 2))
    assert np.abs(pixels / 255 - (x.transpose(1, 2, 0) - low) / (high - low)).max() < 0.51 / 255


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 9), (2, 6, 6), (7, 8), (2, 3, 5, 6), (1, 1000, 700)])
@pytest.mark.parametrize("fill", [0.0, math.nan, math.inf, 1e300])
def test_pictures_of_anything(shape: tuple[int, ...], fill: float) -> None:
    x = np.full(shape, fill)
    x.flat[0] = 1.0
    for drawing in (input_drawing(x), signed_drawing(x)):
        assert max(drawing.width, drawing.height) <= 448
        assert decoded(drawing.uri).size > 0


def test_shrinking_a_direction_keeps_its_peaks() -> None:
    v = np.zeros((900, 1000))
    v[123, 456], v[800, 999] = -3.0, 3.0
    pixels = decoded(signed_drawing(v).uri)
    assert sorted(map(tuple, pixels[pixels[..., 3] > 0][:, :3].tolist())) == sorted([RISE, FALL])


def test_the_sensitive_inputs_are_those_of_largest_lip(folders: dict[str, Path]) -> None:
    result = Result.from_json((folders["one"] / "result.json").read_bytes())
    tensors = tensors_of(folders["one"])
    values = sorted(result.local.estimates, reverse=True)[:4]
    assert [one.value for one in result.sensitive] == pytest.approx(values, rel=2e-3)
    _convolutional, graph = small_network()
    for one in result.sensitive:
        x, v = (torch.from_numpy(tensors[f"{one.key}.{end}"]).double() for end in ("x", "v"))
        assert float(v.norm()) == pytest.approx(1.0)
        _, jv = torch.func.jvp(lambda t: graph.evaluate(t[None])[0], (x,), (v,))
        assert float(jv.norm()) == pytest.approx(one.value, rel=1e-3)
    titles = [group.title for group in groups(result, tensors)]
    assert titles[:3] == [
        "The worst pair of samples",
        "The most sensitive inputs",
        "The steepest place: ascent",
    ]
    older = groups(result.model_copy(update={"sensitive": []}), tensors)
    assert "The most sensitive input" in [group.title for group in older]
    assert groups(result, {}) == []


# ---- pages of all kinds of runs ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one", "bracket", "ball", "inf", "inspect", *SHEETS])
def test_every_run_has_its_page(folders: dict[str, Path], name: str) -> None:
    report = read_report(folders[name])
    text = (folders[name] / "report.html").read_text("utf-8")
    assert text == render_html(report, tensors_of(folders[name]))
    page = Page(text)
    if isinstance(report, Result | Bracket | Inspection):
        assert fmt.figure(report.lower, "lower") in page.text
        assert fmt.figure(report.upper, "upper") in page.text
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {a["href"][1:] for a in page.all("a")} <= ids
    assert [chart["id"] for chart in page.figures] == [f"chart-{name}" for name in charts(report)]
    assert page.all("img") or page.all("svg")
    assert len(page.all("img")) >= {"fisher": 5, "concentration": 1}.get(name, 0)
    assert "NaN" not in text.partition('id="charts">')[2].partition("</script>")[0]


def test_the_page_of_a_bracket_has_all_its_bounds(folders: dict[str, Path]) -> None:
    for name in ("bracket", "ball", "inf"):
        bracket = read_report(folders[name])
        assert isinstance(bracket, Bracket)
        page = Page((folders[name] / "report.html").read_text("utf-8"))
        table = rows(bracket)
        assert len(table) == len(bracket.bounds) + any(bound.name == "exact" for bound in bracket.bounds)
        for row in table:
            assert fmt.typeset(row.value_text) in page.text
        assert min(row.value for row in table if row.kind == "upper") == bracket.upper
        assert max(row.value for row in table if row.kind == "lower") == bracket.lower
    assert "over the ball of radius 0.1" in page.text or "norm ℓ_∞" in page.text
    assert "What the ball settles" in (folders["ball"] / "report.html").read_text("utf-8")


@pytest.mark.parametrize("case", [*SHEETS, *awkward_sheets()])
def test_the_page_has_the_table_of_the_terminal(case: str) -> None:
    report = (make_sheets() | awkward_sheets())[case]
    sheet = sheet_of(report)
    assert sheet is not None
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=260, color_system=None))
    printed = " ".join(stream.getvalue().split())
    page = Page(render_html(report, directions()))
    flat = page.text.replace(" ", "")
    for place, name in enumerate(sheet.names):
        cells = [column.cells[place].text + column.cells[place].error for column in sheet.columns]
        assert " ".join(" ".join([name, *cells]).split()) in printed
        written = "".join(map(fmt.typeset, [name, *cells]))
        assert written.replace(" ", "") in flat
    for line in (sheet.lead, *sheet.lines):
        assert line in printed
        assert fmt.typeset(line).replace("_", "").replace(" ", "") in flat
    assert "nan" not in page.text.lower().split()
    for chart in page.figures:
        for axis in (chart["layout"]["xaxis"], chart["layout"]["yaxis"]):
            low, high = axis["range"]
            assert math.isfinite(low)
            assert math.isfinite(high)
            assert low != high


def test_slopes_stand_beside_those_of_random_weights(folders: dict[str, Path]) -> None:
    result = read_report(folders["one"])
    assert isinstance(result, Result)
    assert result.slack is not None
    assert result.mean_field is not None
    page = Page(render_html(result))
    assert "Against random weights" in page.text
    places = {layer.node: layer.place for layer in result.slack.layers}
    predicted = [layer for layer in result.mean_field.layers if layer.predicted is not None]
    assert predicted
    for layer in predicted:
        assert places[layer.node] == layer.place
        assert layer.predicted is not None
        assert f" {fmt.number(layer.predicted.slope, digits=3)} " in page.text
    older = render_html(result.model_copy(update={"mean_field": None}))
    assert "random weights" not in older


def test_a_killed_page_is_built_again_by_report(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "bracket", "inspect", *SHEETS):
        before = (folders[name] / "report.html").read_bytes()
        (folders[name] / "report.html").unlink()
        done = CliRunner().invoke(cli.app, ["report", str(folders[name])])
        assert done.exit_code == 0, done.output
        assert (folders[name] / "report.html").read_bytes() == before
    with pytest.raises(DataError, match=r"none of result\.json, bracket\.json"):
        read_report(tmp_path)
    with pytest.raises(DataError, match=r"cannot read .*missing"):
        read_report(tmp_path / "missing")
    (tmp_path / "renamed.json").write_bytes((folders["bracket"] / "bracket.json").read_bytes())
    assert isinstance(read_report(tmp_path / "renamed.json"), Bracket)
    for content, words in ((b"[1]", "not a result file"), (b'{"schema_version": 99}', "newer than")):
        (tmp_path / "other.json").write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_report(tmp_path / "other.json")


# ---- names from outside --------------------------------------------------------------------------------


@cache
def named(text: str) -> tuple[Report, ...]:
    """Reports of all kinds, in which all that comes from outside is `text`."""
    torch.manual_seed(0)
    result = with_levels(make_result(model=text, data=text, samples=5, names=[text] * 5, command=text))
    bounds = [layer.model_copy(update={"place": text, "layer": text}) for layer in result.analytical.layers]
    analytical = result.analytical.model_copy(update={"layers": bounds})
    one = SensitiveInput(key="sensitive.0", file=text, sample=text, value=3.0)
    slopes = [slope.model_copy(update={"place": text, "layer": text}) for slope in result.slopes]
    result = result.model_copy(update={"analytical": analytical, "sensitive": [one], "slopes": slopes})
    found = lipscope.bracket(
        nn.Sequential(nn.Flatten(), nn.Linear(9, 2), nn.ReLU()), (1, 3, 3), effort="none", search=False,
        name=text, over=lipscope.BallOptions(torch.zeros(1, 3, 3), 0.5, name=text),
    )  # fmt: skip
    inspection = lipscope.inspect(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), (1, 3, 3), name=text)
    layers = [layer.model_copy(update={"place": text}) for layer in inspection.slack.layers]
    slack = inspection.slack.model_copy(update={"point": text, "layers": layers})
    inspection = inspection.model_copy(update={"slack": slack})
    compared = lipscope.compare(result, result, labels=[text, text])
    return result, found, inspection, compared, *make_sheets(text).values()


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_text_wherever_they_are(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipscope.report.html._plotly", lambda: "")
    tensors = photograph() | directions() | {f"sensitive.0.{end}": np.ones((1, 5, 5)) for end in ("x", "v")}
    for report, harmless in zip(named(text), named("name(1)" if "(" in text else "name"), strict=True):
        content = render_html(report, tensors)
        page, ordinary = Page(content), Page(render_html(harmless, tensors))
        # Whatever the name, the page has the same elements with the same attributes.
        assert [(tag, sorted(a)) for tag, a in page.elements] == [
            (t, sorted(a)) for t, a in ordinary.elements
        ]
        assert fmt.plain(text) in "".join(page.words)
        display = Page(report._repr_html_() or "")
        allowed = {"div", "strong", "span", "table", "thead", "tbody", "tr", "th", "td"}
        assert {tag for tag, _ in display.elements} <= allowed
        for shown in (content, report._repr_html_() or ""):
            assert not {"\0", "\u202e"} & set(shown)
    if len(text) < 5000:
        for name, figure in figures_of(named(text)[0]).items():
            save(figure, tmp_path / f"{name}.svg")


# ---- comparison ----------------------------------------------------------------------------------------


def test_compare_puts_numbers_side_by_side(folders: dict[str, Path]) -> None:
    found = lipscope.compare(folders["one"], folders["two"])
    assert [run.label for run in found.runs] == ["one", "two"]
    assert found.same_layers
    assert found.same_data
    for line in lines(found):
        first, second = line.cells
        assert first is not None
        assert second is not None
        assert first.ratio is None
        # The second network is three times the first.
        assert second.ratio == pytest.approx(3.0, rel=0.02)
    assert Comparison.from_json(found.to_json()) == found
    page = Page(render_html(found))
    assert "×3" in page.text
    assert [chart["id"] for chart in page.figures] == ["chart-comparison"]


def test_what_the_brackets_decide() -> None:
    small, large = make_result(upper=70.0, model="a"), make_result(local=300.0, model="b")
    assert "proved that b stretches more than a, at least 4.28 times" in verdict(
        lipscope.compare(small, large)
    )
    assert "proved that b stretches more than a" in verdict(lipscope.compare(large, small))
    assert "not decided" in verdict(lipscope.compare(small, make_result(model="c")))
    three = verdict(lipscope.compare(small, large, make_result(model="c")))
    assert "1 of 3 pairs" in three
    other = make_result(model="d")
    other = other.model_copy(update={"data": other.data.model_copy(update={"fingerprint": "00"})})
    assert any("different data" in notice for notice in notices(lipscope.compare(small, other)))


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_comparison_in_the_terminal(width: int) -> None:
    runs = [with_levels(make_result(model=f"epoch {k}", upper=70.0 * (k + 1))) for k in range(7)]
    stream = io.StringIO()
    print_comparison(lipscope.compare(*runs), Console(file=stream, width=width, color_system=None))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for k in range(7):
        assert f"epoch {k}" in text
        assert fmt.number(70.0 * (k + 1), "upper") in text


def test_runs_that_mean_something_else_are_refused(folders: dict[str, Path]) -> None:
    for one, other, words in (
        ("one", "bracket", "bracket is a run of certify, one of analyze"),
        ("bracket", "inf", "inf is about the norm ℓ_inf, bracket about ℓ_2"),
        ("bracket", "ball", r"ball is about the ball of radius 0\.1 .* zeros, bracket about all inputs"),
        ("one", "inspect", "inspect is a Inspection|only runs of analyze or of certify"),
    ):
        with pytest.raises(DataError, match=words):
            lipscope.compare(folders[one], folders[other])
    with pytest.raises(ValueError, match="two runs"):
        lipscope.compare(folders["one"])
    with pytest.raises(ValueError, match="1 labels for 2 runs"):
        lipscope.compare(folders["one"], folders["two"], labels=["a"])


def test_compare_from_the_command_line(folders: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "compared"
    paths = [str(folders["one"]), str(folders["two"] / "result.json")]
    done = CliRunner().invoke(cli.app, ["compare", *paths, "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert "×3" in done.output
    assert isinstance(read_report(output), Comparison)
    before = (output / "report.html").read_bytes()
    again = CliRunner().invoke(cli.app, ["report", str(output)])
    assert again.exit_code == 0, again.output
    assert (output / "report.html").read_bytes() == before
    for wrong, words in (
        (["compare", paths[0]], "two runs or more"),
        (["compare", *paths, "--label", "a"], "--label was given 1 times for 2 runs"),
    ):
        refused = CliRunner().invoke(cli.app, wrong)
        assert refused.exit_code == DataError.exit_code
        assert words in " ".join(refused.output.split())


# ---- notebooks, pandas, figures ------------------------------------------------------------------------


def test_reports_show_themselves_in_notebooks(folders: dict[str, Path]) -> None:
    for name in ("one", "bracket", "inspect"):
        report = read_report(folders[name])
        assert isinstance(report, Result | Bracket | Inspection)
        shown = report._repr_html_()
        assert shown is not None
        assert len(shown) < 20_000
        assert "<script" not in shown
        assert "<style" not in shown
        assert fmt.figure(report.upper, "upper") in Page(shown).text
    for report in (*make_sheets().values(), *awkward_sheets().values()):
        shown, sheet = Page(report._repr_html_() or ""), sheet_of(report, fmt.figure)
        assert sheet is not None
        assert all(name in shown.text for name in (*sheet.names, *sheet.lines))
        assert len(shown.all("td")) == len(sheet.names) * len(sheet.columns)

    class Other(Report):
        pass

    assert Other()._repr_html_() is None
    assert not has_page(Other())
    with pytest.raises(LipscopeError, match="no page for a Other"):
        render_html(Other())


def test_frames_hold_the_numbers(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    result, bracket, inspection = (read_report(folders[name]) for name in ("one", "bracket", "inspect"))
    assert isinstance(result, Result)
    frame = result.to_frame()
    assert frame["value"].tolist() == [quantity.value for quantity in result.quantities]
    assert not frame.duplicated(["quantity", "variant"]).any()
    assert isinstance(bracket, Bracket)
    assert bracket.to_frame()["kind"].tolist() == [bound.kind for bound in bracket.bounds]
    assert isinstance(inspection, Inspection)
    layers = inspection.to_frame()
    assert layers["share"].sum() == pytest.approx(1.0)
    fisher, separation, field, tails = make_sheets().values()
    assert fisher.to_frame()["lambda_max"].tolist() == fisher.inputs.eigenvalues
    assert separation.to_frame()["certified"].tolist() == [
        x.certified for x in separation.discriminant.layers
    ]
    predicted = field.to_frame()["predicted_slope"].dropna().tolist()
    assert predicted == [x.predicted.slope for x in field.mean_field.layers if x.predicted is not None]
    assert len(tails.to_frame()) == sum(len(tail.points) for tail in tails.concentration.tails)
    both = lipscope.compare(folders["one"], folders["two"]).to_frame()
    assert both.groupby("run").size().to_dict() == {"one": len(frame), "two": len(frame)}
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(LipscopeError, match=r"lipscope\[frames\]"):
        result.to_frame()


def test_figures_as_files(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = ["report", str(folders["one"]), "--figures", str(tmp_path), "--format", "pdf"]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0, done.output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{name}.pdf" for name in ("bracket", "local", "stretch", "layers", "slopes")}
    assert all(path.read_bytes().startswith(b"%PDF") for path in tmp_path.iterdir())
    compared = lipscope.compare(folders["one"], folders["two"])
    for report in (compared, *(read_report(folders[name]) for name in SHEETS)):
        for name, figure in figures_of(report).items():
            save(figure, tmp_path / f"{name}.svg")
    for name in ("comparison", *SHEETS):
        assert b"<svg" in (tmp_path / f"{name}.svg").read_bytes()


@pytest.mark.parametrize("case", sorted(AWKWARD.keys() - {"plain", "long", "equal estimates"}))
def test_figures_of_awkward_results(case: str) -> None:
    result = with_levels(make_result(**AWKWARD[case]))
    for figure in figures_of(result).values():
        figure.canvas.draw()
    compared = lipscope.compare(result, make_result())
    for figure in figures_of(compared).values():
        figure.canvas.draw()
    Page(render_html(compared))
    assert result._repr_html_()


# ---- in a browser --------------------------------------------------------------------------------------

CONTRAST = """
const luminance = (c) => {
  const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const page = parse(getComputedStyle(document.body).backgroundColor);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c;
  }
  return page;
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const style = getComputedStyle(element);
  const svg = element instanceof SVGElement;
  const worded = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (svg ? element.tagName !== "text" : !worded) continue;
  if (["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName) || !element.getClientRects().length) continue;
  if (element.closest(".skip, .visually-hidden")) continue;
  const ink = parse(svg ? style.fill : style.color), paper = svg ? page : behind(element);
  const [a, b] = [luminance(ink), luminance(paper)].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) found.push([element.tagName, element.textContent.slice(0, 30), ratio]);
}
return found;
"""


def page_of(name: str, folders: dict[str, Path], folder: Path) -> Path:
    """A run's page in a file of its own; of those that are one table, that of a made-up run of hostile names."""
    path = folder / "report.html"
    if name == "compare":
        write_html(lipscope.compare(folders["one"], folders["two"]), path)
    elif name in SHEETS:
        write_html(make_sheets(HOSTILE[0])[name], path, directions())
    else:
        write_html(read_report(folders[name]), path, tensors_of(folders[name]))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "ball", "inspect", "compare", *SHEETS])
def test_pages_in_browser(
    browser: Any, folders: dict[str, Path], tmp_path: Path, name: str, scheme: str
) -> None:
    path = page_of(name, folders, tmp_path)
    opened(browser, path, 360 if scheme == "dark" else 1200, scheme)
    assert browser.get_log("browser") == []
    assert [url for url in requests(browser) if url != path.as_uri() and not url.startswith("data:")] == []
    overflow = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0
    assert browser.execute_script(CONTRAST) == []
    blank = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
    assert browser.execute_script(blank) == 0


def test_tables_are_sorted_and_filtered_by_keyboard(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    result = with_levels(make_result())
    write_html(result, path)
    opened(browser, path)
    column = (
        "return [...document.querySelectorAll('#quantities-table tbody tr')].filter(r => !r.hidden)"
        ".map(r => Number(r.cells[2].dataset.value))"
    )
    keys = __import__("selenium.webdriver.common.keys", fromlist=["Keys"]).Keys
    original = browser.execute_script(column)
    assert original == [quantity.value for quantity in result.quantities]
    title = browser.find_element("css selector", "#quantities-table th:nth-child(3)")
    button = title.find_element("css selector", "button")
    for state, expected in (
        ("descending", sorted(original, reverse=True)),
        ("ascending", sorted(original)),
        ("none", original),
    ):
        button.send_keys(keys.ENTER)
        assert title.get_attribute("aria-sort") == state
        assert browser.execute_script(column) == expected
    browser.find_element("css selector", "button[data-kind=estimate]").send_keys(keys.SPACE)
    bounds = [quantity.value for quantity in result.quantities if quantity.kind != "estimate"]
    assert browser.execute_script(column) == bounds
    output = browser.find_element("css selector", "[data-for=quantities-table] output")
    assert output.text == f"{len(bounds)} of {len(original)} shown"
    field = browser.find_element("css selector", "[data-for=quantities-table] input[type=search]")
    field.send_keys("sample pairs")
    assert browser.execute_script(column) == [1.115]
    field.send_keys(keys.CONTROL, "a", keys.DELETE)
    browser.find_element("css selector", "button[data-kind=estimate]").send_keys(keys.SPACE)
    assert browser.execute_script(column) == original
    assert output.text == ""


def test_layers_that_lose_nothing_can_be_hidden(
    browser: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    inspection = read_report(folders["inspect"])
    assert isinstance(inspection, Inspection)
    write_html(inspection, path)
    opened(browser, path)
    shown = "return [...document.querySelectorAll('#layers-table tbody tr')].filter(r => !r.hidden).length"
    assert browser.execute_script(shown) == len(inspection.slack.layers)
    browser.find_element("css selector", "input[data-only=loss]").click()
    losing = sum(layer.share > 0 for layer in inspection.slack.layers)
    assert 0 < losing < len(inspection.slack.layers)
    assert browser.execute_script(shown) == losing


@pytest.mark.parametrize("name", ["one", *SHEETS])
def test_every_control_has_a_name(browser: Any, folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    opened(browser, page_of(name, folders, tmp_path))
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named_roles = {"button", "link", "searchbox", "checkbox", "image", "region", "table", "navigation"}
    nameless = [
        node["role"]["value"]
        for node in tree
        if not node.get("ignored")
        and node.get("role", {}).get("value") in named_roles
        and not node.get("name", {}).get("value", "").strip()
    ]
    assert nameless == []
    # Every page has charts and tables; a search and a check box only those with many rows.
    expected = named_roles if name == "one" else named_roles - {"searchbox", "checkbox"}
    assert {node["role"]["value"] for node in tree if not node.get("ignored")} >= expected


def test_json_of_a_page_survives_hostile_names() -> None:
    page = Page(render_html(hostile()))
    assert json.loads(json.dumps(page.figures)) == page.figures
    assert SQL in page.text
