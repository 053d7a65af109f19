"""Where the bound loses: shares that add up, the layer to blame, and `lipscope inspect` as a user meets it."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

import lipscope
from helpers import gaussian, small_network
from lipscope import cli
from lipscope.graph import Graph, GraphBuilder
from lipscope.layers.activation import ReLU
from lipscope.layers.dense import Dense
from lipscope.layers.merge import Concatenation, Sum
from lipscope.report import print_inspection, render_html
from lipscope.report.charts.layers import layer_chart
from lipscope.report.slack import chosen, conclusion, does_nothing
from lipscope.results import Inspection, LayerSlack, Slack
from strategies import networks, seeds


def slack_of(graph: Graph, seed: int = 0) -> Slack:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(graph.input_shape, generator=generator, dtype=torch.float64)
    return lipscope.slack(graph, lipscope.analytical(graph), x, "here", tolerance=1e-9)


def diagonal(*entries: float) -> Dense:
    return Dense(torch.diag(torch.tensor(entries, dtype=torch.float64)))


def orthogonal(size: int, scale: float, seed: int) -> Dense:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return Dense(scale * q)


def at(slack: Slack, node: int) -> LayerSlack:
    return slack.layers[node - 1]


# ---- the shares ---------------------------------------------------------------------------------------


@given(networks(), seeds())
@settings(max_examples=25)
def test_shares_close_the_gap_and_are_never_negative(network, seed) -> None:
    graph = network.graph
    bounds = lipscope.analytical(graph)
    slack = slack_of(graph, seed)
    assert slack.product == bounds.product
    assert all(layer.share >= 0 and layer.factor >= 1 and 0 <= layer.attained <= 1 for layer in slack.layers)
    assert slack.residual <= 1e-6 * max(1.0, math.log(slack.factor))
    if slack.growth > 0 and math.isfinite(slack.product):
        product = math.prod(layer.factor for layer in slack.layers)
        assert product == pytest.approx(slack.product / slack.growth, rel=1e-5)
        assert slack.factor == pytest.approx(product, rel=1e-9)
    if slack.factor > 1:
        assert sum(layer.share for layer in slack.layers) == pytest.approx(1.0)


@given(networks(most=4), seeds())
@settings(max_examples=12)
def test_growth_is_that_of_the_most_stretched_direction(network, seed) -> None:
    graph = network.graph
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, *network.shape, generator=generator, dtype=torch.float64)
    dense = lipscope.linearize(graph, graph.linearize_at(x)[1]).dense()[0]
    expected = float(torch.linalg.matrix_norm(dense, 2))
    assert slack_of(graph, seed).growth == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_on_a_chain_a_layer_loses_what_it_does_not_attain() -> None:
    _, graph = small_network()
    for layer in slack_of(graph).layers:
        assert layer.factor == pytest.approx(1 / layer.attained, rel=1e-9)
        assert layer.stretch == pytest.approx(layer.constant * layer.attained)


def test_the_layer_whose_directions_are_out_of_line_is_to_blame() -> None:
    # The second layer stretches another coordinate than the first and the third.
    graph = Graph.chain(
        (2,), [diagonal(8.0, 1.0), diagonal(1.0, 2.0), diagonal(3.0, 1.0), diagonal(5.0, 0.5)]
    )
    slack = slack_of(graph)
    assert slack.factor == pytest.approx(2.0)
    assert [layer.share for layer in slack.layers] == pytest.approx([0, 1, 0, 0], abs=1e-9)
    assert at(slack, 2).stretch == pytest.approx(1.0)
    assert "layer 2" in conclusion(slack)


def test_an_activation_that_cuts_the_direction_is_to_blame() -> None:
    # Beyond the bias, the unit that is stretched most is off.
    bias = torch.tensor([-100.0, 100.0], dtype=torch.float64)
    first = Dense(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)), offset=bias)
    slack = slack_of(Graph.chain((2,), [first, ReLU(), diagonal(1.0, 1.0)]))
    assert slack.growth == pytest.approx(1.0)
    # Along the direction that is left the first layer stretches by 1, not by 4.
    assert [layer.factor for layer in slack.layers] == pytest.approx([4.0, 1.0, 1.0])


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6), seeds())
@settings(max_examples=20)
def test_scaled_orthogonal_layers_lose_nothing(scales: list[float], seed: int) -> None:
    graph = Graph.chain((5,), [orthogonal(5, scale, seed + k) for k, scale in enumerate(scales)])
    slack = slack_of(graph, seed)
    assert slack.factor == pytest.approx(1.0, abs=1e-9)
    assert conclusion(slack).startswith("Nothing is lost")


@given(st.floats(0.2, 5.0), st.floats(0.2, 5.0), st.floats(-3.0, 3.0))
@settings(max_examples=40)
def test_a_sum_of_two_branches_is_shared_as_in_closed_form(a: float, b: float, angle: float) -> None:
    """y = a R x + b x in the plane, R a rotation: only the sum can lose, and all of it."""
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    builder = GraphBuilder((2,))
    first = builder.add(Dense(a * turn), [0])
    second = builder.add(diagonal(b, b), [0])
    total = builder.add(Sum((1.0, 1.0)), [first, second])
    slack = slack_of(builder.build(total))
    assert at(slack, 3).factor == pytest.approx(slack.product / slack.growth, rel=1e-5)
    assert at(slack, 1).factor == pytest.approx(1.0, abs=1e-6)


def test_a_branch_weighs_as_much_as_it_contributes() -> None:
    """x → (p x, q x) side by side; a layer of the first branch attains γ of its constant c."""
    builder = GraphBuilder((1,))
    column = torch.tensor([[3.0], [0.0]], dtype=torch.float64)
    turned = torch.tensor([[0.2, 1.0]], dtype=torch.float64)  # norm √1.04, but 0.2 along what comes
    first = builder.add(Dense(turned), [builder.add(Dense(column), [0])])
    second = builder.add(Dense(torch.tensor([[2.0]], dtype=torch.float64)), [0])
    joined = builder.add(Concatenation(0, (1, 1)), [first, second])
    slack = slack_of(builder.build(joined))
    assert slack.growth == pytest.approx(math.hypot(0.6, 2.0))
    assert at(slack, 2).factor == pytest.approx(math.hypot(3 * math.sqrt(1.04), 2.0) / math.hypot(0.6, 2.0))
    assert at(slack, 2).share == pytest.approx(1.0)


def _branches(order: list[int]) -> Slack:
    builder = GraphBuilder((4,))
    ends = []
    for number in order:
        generator = torch.Generator().manual_seed(number)
        weights = [torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
        middle = builder.add(ReLU(), [builder.add(Dense(weights[0]), [0])])
        ends.append(builder.add(Dense(weights[1]), [middle], f"branch {number}"))
    total = builder.add(Sum((1.0,) * len(order)), ends)
    return slack_of(builder.build(total), seed=3)


def test_the_order_of_branches_does_not_matter() -> None:
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        slack = _branches(order)
        found.append({layer.place: layer.factor for layer in slack.layers if "branch" in layer.place})
        assert slack.residual <= 1e-6
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_branch_that_dies_out_takes_what_it_was_allowed() -> None:
    builder = GraphBuilder((1,))
    off = torch.tensor([-1e9], dtype=torch.float64)
    dead = builder.add(
        ReLU(), [builder.add(Dense(torch.tensor([[3.0]], dtype=torch.float64), offset=off), [0])]
    )
    after = builder.add(Dense(torch.tensor([[5.0]], dtype=torch.float64)), [dead])
    total = builder.add(Sum((1.0, 1.0)), [after, 0])
    slack = slack_of(builder.build(total))
    assert (slack.product, slack.growth) == (pytest.approx(16.0), pytest.approx(1.0))
    assert at(slack, 2).share == pytest.approx(1.0, abs=1e-6)
    assert at(slack, 2).attained == 0
    assert at(slack, 3).stretch is None
    assert slack.residual <= 1e-6 * math.log(16)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_a_layer_without_a_constant_takes_all() -> None:
    torch.manual_seed(0)
    graph = lipscope.from_torch(nn.Sequential(nn.Linear(4, 4), Square(), nn.Linear(4, 2)).double(), (4,))
    slack = slack_of(graph)
    [blamed] = [layer for layer in slack.layers if layer.constant == math.inf]
    assert (slack.product, slack.factor, blamed.factor, blamed.share) == (math.inf, math.inf, math.inf, 1.0)
    assert slack.growth > 0
    assert all(math.isfinite(layer.factor) for layer in slack.layers if layer is not blamed)
    assert blamed.place in conclusion(slack)
    assert Slack.model_validate_json(slack.model_dump_json()) == slack


def test_where_everything_dies_out_is_said() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    nn.init.constant_(module[0].bias, -1e6)
    slack = slack_of(lipscope.from_torch(module, (4,)))
    assert (slack.growth, slack.factor) == (0.0, math.inf)
    assert [layer.share for layer in slack.layers] == [0, 1, 0]
    assert "dies out at 1 (ReLU)" in conclusion(slack)


def test_a_constant_network_loses_nothing() -> None:
    slack = slack_of(
        Graph.chain((3,), [diagonal(1.0, 2.0, 3.0), Dense(torch.zeros(2, 3, dtype=torch.float64))])
    )
    assert (slack.product, slack.growth, slack.factor) == (0.0, 0.0, 1.0)
    assert conclusion(slack).startswith("Nothing is lost")
    assert slack_of(lipscope.from_torch(nn.Identity(), (3,))).factor == 1.0


def test_bounds_of_deep_networks_do_not_overflow() -> None:
    layers = [diagonal(1e40, 1.0), diagonal(1.0, 1e40)] * 6
    slack = slack_of(Graph.chain((2,), layers))
    assert slack.product == math.inf
    assert sum(layer.share for layer in slack.layers) == pytest.approx(1.0)
    assert slack.factor == pytest.approx(1e240, rel=1e-9)


def test_a_point_of_another_shape_is_refused() -> None:
    _, graph = small_network()
    with pytest.raises(ValueError, match="another network"):
        lipscope.slack(graph, lipscope.analytical(graph), torch.zeros(3), "x")


# ---- the job ------------------------------------------------------------------------------------------


def test_inspect_finds_the_most_sensitive_sample() -> None:
    module, graph = small_network()
    samples = gaussian(9, (2, 8, 8))
    found = lipscope.inspect(module, data=samples)
    local, _ = lipscope.local(graph, samples, dtype=torch.float64)
    assert found.slack.point == local.samples[int(np.argmax(local.estimates))]
    assert found.slack.growth == pytest.approx(max(local.estimates), rel=1e-3)
    assert found.slack.growth <= found.upper
    assert found.lower == pytest.approx(local.value, rel=1e-2)
    assert Inspection.from_json(found.to_json()) == found
    _, slopes = graph.linearize_at(samples.batch(range(9)))
    relus = [layer for layer in found.slack.layers if layer.layer == "ReLU"]
    for layer in relus:
        mean = float(slopes[layer.node].mean("scalar").values)
        assert layer.active == pytest.approx(mean, rel=1e-5)
        assert (layer.slope_low, layer.slope_high) == (0.0, 1.0)


def test_inspect_without_data_is_seeded_and_certificates_win_back() -> None:
    module, _ = small_network()
    one, other = (lipscope.inspect(module, (2, 8, 8), seed=4).slack for _ in range(2))
    assert [layer.share for layer in one.layers] == [layer.share for layer in other.layers]
    assert all(layer.active is None for layer in one.layers)
    found = lipscope.inspect(module, (2, 8, 8), effort="fast", seconds=0.5)
    assert found.certified is not None
    growths = [found.slack.growth_over(piece) for piece in found.certified.pieces]
    assert math.prod(growths) == pytest.approx(found.slack.growth)
    for piece, growth in zip(found.certified.pieces, growths, strict=True):
        assert growth <= piece.bound * (1 + 1e-9)


def test_analyze_lists_the_loss_of_the_most_sensitive_sample() -> None:
    module, _ = small_network()
    options = lipscope.Options(effort="none", jacobians=0, dtype="float64")
    result = lipscope.analyze(module, gaussian(6, (2, 8, 8)), options=options)
    slack = result.slack
    assert slack is not None
    assert slack.growth == pytest.approx(max(result.local.estimates), rel=1e-3)
    active = [layer.active for layer in slack.layers if layer.layer in ("ReLU", "max pooling")]
    assert active == [slope.active for slope in result.slopes]
    page = render_html(result)
    assert "where the bound loses" in page
    worst = max(slack.layers, key=lambda layer: layer.share)
    assert f"Most is lost at {worst.place}" in page
    chart = layer_chart(result.analytical.layers, slack)
    assert chart is not None
    [dots] = [trace for trace in chart.figure["data"] if trace.get("name") == "stretch"]
    assert [10**x for x in dots["x"]] == pytest.approx([layer.stretch for layer in slack.layers])
    older = render_html(result.model_copy(update={"slack": None}))
    assert "Certified constants by layer" in older


# ---- the table ----------------------------------------------------------------------------------------


def printed(found: Inspection, width: int, encoding: str = "utf-8", **options: object) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    console = Console(file=stream, width=width, color_system=None)
    print_inspection(found, console, **options)  # type: ignore[arg-type]
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def inspection() -> Inspection:
    module, _ = small_network()
    return lipscope.inspect(module, data=gaussian(5, (2, 8, 8)), effort="fast", seconds=0.2, name="net")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_the_table_fits(inspection: Inspection, width: int) -> None:
    text = printed(inspection, width, top=40)
    assert max(map(len, text.splitlines())) <= width
    for wanted in ("0 (Conv2d)", "1 (ReLU)", "Norm ≤", "Share", "%", "Most is lost at", "Won back"):
        assert wanted in " ".join(text.split())
    assert ("Output shape" in text) == (width >= 136)
    assert "nothing lost" in text  # the flattening is left out
    assert "<=" in printed(inspection, width, "ascii")


def test_layers_are_chosen_and_sorted(inspection: Inspection) -> None:
    slack = inspection.slack
    [flat] = [layer for layer in slack.layers if does_nothing(layer)]
    everything, left = chosen(slack, None, "order")
    assert everything == slack.layers
    assert left == []
    most, left = chosen(slack, 2, "slack")
    assert [layer.share for layer in most] == sorted((layer.share for layer in slack.layers), reverse=True)[
        :2
    ]
    assert flat in left
    assert len(most) + len(left) == len(slack.layers)
    text = printed(inspection, 80, top=2)
    assert "4 more layers: ×" in text
    assert text.index(most[0].place) > 0


# ---- the command --------------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "net.py").write_text(MODEL)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 6)).astype("f4"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lipscope", "inspect", *args])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return call


def test_the_command_prints_a_table_and_writes_the_file(run, tmp_path: Path) -> None:
    code, out, err = run("net.py:build", "--data", "x.npy", "--samples", "8", "--output", "run")
    assert code == 0, err
    assert "2 (Linear)" in out
    assert "Active" in out
    found = Inspection.from_json((tmp_path / "run" / "inspect.json").read_bytes())
    assert found.data is not None
    assert found.data.samples == 8
    assert (tmp_path / "run" / "witness.safetensors").exists()
    again = run("net.py:build", "--data", "x.npy", "--samples", "8", "--output", "run")
    assert again[:2] == (code, out)
    assert run("net.py:build", "--data", "x.npy", "--seed", "1", "--output", "run")[0] == 6


def test_the_command_prints_json(run, tmp_path: Path) -> None:
    code, out, err = run("net.py:build", "--input-shape", "6", "--json", "--output", "run")
    assert code == 0, err
    raw = json.loads(out)
    assert raw == json.loads((tmp_path / "run" / "inspect.json").read_text("utf-8"))
    assert sum(layer["share"] for layer in raw["slack"]["layers"]) == pytest.approx(1.0)
    assert set(Inspection.json_schema()["properties"]) == set(raw)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["net.py:build"], 5, ["--input-shape"]),
        (["net.py:build", "--data", "nowhere"], 5, ["nowhere"]),
        (["net.py:build", "--data", "x.npy", "--input-shape", "7"], 5, ["(6,)", "(7,)"]),
        (["net.py:missing", "--input-shape", "6"], 3, ["missing"]),
        (["net.py:build", "--input-shape", "6", "--device", "cuda:99"], 3, ["cuda:99"]),
        (["net.py:build", "--input-shape", "6", "--output", "."], 6, ["not a run folder"]),
    ],
)
def test_mistakes_end_in_one_sentence(run, args: list[str], code: int, words: list[str]) -> None:
    stopped, _, err = run(*args)
    said = " ".join(err.split())
    assert stopped == code, said
    assert said.startswith("error: ")
    for word in words:
        assert word in said
