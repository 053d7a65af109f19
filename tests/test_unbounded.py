"""Networks without a global bound: infinity and its reason everywhere, and bounds over balls that hold."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

import lipscope
from helpers import gaussian
from lipscope.certificates import certify, norm_bounds
from lipscope.graph import Graph, from_torch
from lipscope.jobs.brackets import BallOptions
from lipscope.jobs.verification import verify_run
from lipscope.layers.activation import Activation
from lipscope.layers.aggregation import Product
from lipscope.layers.dense import Dense
from lipscope.quantities import analytical, ball, evaluate_pair, operator_product
from lipscope.quantities.local_proofs import PROOFS
from lipscope.report import print_bracket, print_checks, print_result, render_html
from lipscope.results import Analytical, Bracket, Check, NoBound, Norm, Report, Result
from strategies import Apply, randomised, seeds

NORMS: list[Norm] = ["2", "1", "inf"]
ORDERS = {"2": 2, "1": 1, "inf": math.inf}
REASON = "product of two signals of which one is unbounded"
REMEDY = "lipscope certify MODEL --ball CENTER RADIUS"


class SqueezeExcitation(nn.Module):
    """x · sigmoid(fc(relu(fc(mean of x))))."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(means))))


SHAPE = (2, 4, 4)


def network(seed: int = 0) -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), SqueezeExcitation(3, 2), nn.Flatten(), nn.Linear(48, 3)
    )  # fmt: skip
    return randomised(module, seed).double()


@dataclass(eq=False)
class Square(Activation):
    """t², an activation whose slopes have no bound."""

    kind = "square"

    @property
    def slope_range(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] * xs[0]

    def derivative(self, x: Tensor) -> Tensor:
        return 2 * x


def unbounded_activation(first: Tensor) -> Graph:
    return Graph.chain((2,), [Dense(first), Square(), Dense(torch.ones(1, 2, dtype=torch.float64))])


# ---- infinity and its reason ------------------------------------------------------------------------


def check_reason(no_bound: NoBound | None, place: str = "2 (SqueezeExcitation)") -> None:
    assert no_bound is not None
    assert [str(layer) for layer in no_bound.layers] == [f"{place}: {REASON}"]
    assert no_bound.reason == f"{place}: {REASON}"
    assert REMEDY in no_bound.remedy


def test_every_upper_bound_is_infinite_with_the_reason() -> None:
    graph = from_torch(network(), SHAPE)
    found = analytical(graph)
    assert found.value == math.inf
    assert found.program is None
    check_reason(found.no_bound)
    for norm in NORMS:
        product = operator_product(graph, norm)
        assert product.value == math.inf
        check_reason(product.no_bound)
    certificate = certify(graph, "fast", seconds=0)
    assert certificate.value == math.inf
    assert [piece.structure for piece in certificate.pieces] == ["norms"]


def test_layers_after_an_unbounded_one_stay_infinite_and_none_is_nan() -> None:
    constants = [bound for layer in analytical(from_torch(network(), SHAPE)).layers
                 for bound in (layer.constant, layer.cumulative)]  # fmt: skip
    assert not any(map(math.isnan, constants))
    layers = analytical(from_torch(network(), SHAPE)).layers
    first = next(i for i, layer in enumerate(layers) if layer.constant == math.inf)
    assert all(layer.cumulative < math.inf for layer in layers[:first])
    assert all(layer.cumulative == math.inf for layer in layers[first:])


def test_several_layers_are_all_named() -> None:
    module = nn.Sequential(SqueezeExcitation(2, 2), nn.ReLU(), SqueezeExcitation(2, 2))
    reason = analytical(from_torch(module, SHAPE)).no_bound
    assert reason is not None
    assert [layer.place for layer in reason.layers] == ["0 (SqueezeExcitation)", "2 (SqueezeExcitation)"]
    assert reason.reason.endswith("and 1 more layer")


def test_zero_times_infinity_is_zero_only_if_the_signal_is_constant() -> None:
    """A layer without a constant stretches nothing if it reads a constant, and is not to blame."""
    zeros, ones = torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    still = analytical(unbounded_activation(zeros))
    assert still.value == 0.0
    assert still.no_bound is None
    assert analytical(unbounded_activation(1e-300 * ones)).value == math.inf
    ends = Graph.chain((2,), [Dense(ones), Square(), Dense(zeros)])
    assert analytical(ends).value == 0.0
    assert norm_bounds(ends).no_bound(ends) is None


def test_a_product_of_finite_constants_that_overflows_is_told_from_layers_without_one() -> None:
    large = Dense(1e200 * torch.eye(2, dtype=torch.float64))
    found = analytical(Graph.chain((2,), [large, large]))
    assert found.value == math.inf
    assert found.no_bound is not None
    assert found.no_bound.layers == []
    assert "overflows" in found.no_bound.reason


# ---- over a ball ------------------------------------------------------------------------------------


def steepest(graph: Graph, center: Tensor, radius: float, ball_norm: str, norm: str, seed: int) -> float:
    """The largest ratio between points of the ball, some of them close together."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(24, *center.shape, generator=generator, dtype=torch.float64)
    lengths = torch.linalg.vector_norm(step.flatten(1), ORDERS[ball_norm], dim=1)
    points = center + (1 - 1e-12) * radius * step / lengths.reshape(-1, *[1] * center.ndim)
    near = center + (points - center) * 0.999
    pairs = [*zip(points, points.roll(1, 0), strict=True), *zip(points, near, strict=True)]
    return max(evaluate_pair(graph, a, b, (), norm).bound for a, b in pairs)


@given(seeds(), st.sampled_from([1e-3, 0.1, 2.0]), st.sampled_from(["2", "inf"]), st.sampled_from(NORMS))
@settings(max_examples=12)
def test_a_ball_has_a_finite_bound_that_no_pair_inside_exceeds(
    seed: int, radius: float, ball_norm: Any, norm: Norm
) -> None:
    graph = from_torch(network(seed), SHAPE)
    center = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = ball(graph, center, radius, ball_norm=ball_norm, norm=norm, budget=1e7, seconds=0)
    assert found.value < found.global_bound == math.inf
    assert found.no_bound is None
    assert steepest(graph, center, radius, ball_norm, norm, seed) <= found.value


@given(seeds(), st.sampled_from([0.1, 3.0]))
@settings(max_examples=6)
def test_products_of_free_signals_are_bounded_over_balls(seed: int, radius: float) -> None:
    module = Apply(lambda x: x * x.roll(1, 1) * torch.tanh(x), "cubic")
    graph = from_torch(module, (3,))
    assert sum(isinstance(node.layer, Product) for node in graph.nodes) == 2
    center = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = ball(graph, center, radius, seconds=0)
    assert steepest(graph, center, radius, "2", "2", seed) <= found.value < math.inf


def test_an_infinite_ball_says_why_it_has_no_bound() -> None:
    graph = from_torch(network(), SHAPE)
    for norm in NORMS:
        found = ball(graph, torch.zeros(SHAPE), math.inf, norm=norm, seconds=0)
        assert found.value == math.inf
        check_reason(found.no_bound)
        assert "smaller RADIUS" in (found.no_bound.remedy if found.no_bound else "")


def test_unbounded_slopes_break_no_proof_over_a_ball() -> None:
    """An activation of unknown slopes over the ball makes each proof infinite, never NaN or an error."""
    graph = unbounded_activation(torch.eye(2, dtype=torch.float64))
    found = ball(graph, torch.zeros(2), 1.0, seconds=0)
    assert found.value == math.inf
    assert found.proofs == {}
    assert found.no_bound is not None
    assert [layer.layer for layer in found.no_bound.layers] == ["square"]
    assert "square without a constant" in found.no_bound.reason
    assert len(PROOFS) > 1


# ---- files and reports ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Graph, Result]:
    folder = tmp_path_factory.mktemp("run")
    graph = from_torch(network(), SHAPE)
    options = lipscope.Options(pairs=10, jacobians=2, effort="fast", seconds=0.0)
    return folder, graph, lipscope.analyze(graph, gaussian(6, SHAPE), output=folder, options=options)


def shown(show: Any, record: Any) -> str:
    stream = io.StringIO()
    show(record, Console(file=stream, width=160, color_system=None))
    return " ".join(stream.getvalue().split())


def test_a_run_is_written_and_read_back(run: tuple[Path, Graph, Result]) -> None:
    folder, _, result = run
    assert result.upper == math.inf
    check_reason(result.no_bound)
    text = (folder / "result.json").read_text()
    raw = json.loads(text, parse_constant=pytest.fail)
    assert raw["upper"] == raw["analytical"]["value"] == raw["certified"]["pieces"][0]["bound"] == "Infinity"
    again = Result.from_json(text)
    assert again == result
    assert again.analytical.value == math.inf


def test_the_schema_allows_the_strings_that_stand_for_infinity() -> None:
    value = Result.json_schema()["$defs"]["Analytical"]["properties"]["value"]
    assert {"type": "number"} in value["anyOf"]
    assert {"enum": ["Infinity", "-Infinity", "NaN"]} in value["anyOf"]
    assert issubclass(Result, Report)


def test_verify_confirms_such_a_run(run: tuple[Path, Graph, Result]) -> None:
    folder, graph, _ = run
    checks = verify_run(folder, graph)
    assert {check.name for check in checks} >= {"analytical", "certified", "local", "empirical"}
    assert all(check.holds for check in checks)
    assert "∞" in shown(print_checks, checks)
    assert not Check(name="analytical", kind="upper", claimed=1.0, found=math.inf).holds


def test_terminal_and_page_say_why(run: tuple[Path, Graph, Result]) -> None:
    _, _, result = run
    text = shown(print_result, result)
    assert f"≤ L, no global upper bound (2 (SqueezeExcitation): {REASON})" in text
    assert REMEDY in text
    page = render_html(result)
    assert f"no global upper bound for this network (2 (SqueezeExcitation): {REASON})" in page
    assert REMEDY in page
    assert "NaN" not in page.partition('id="charts">')[2].partition("</script>")[0]


def test_brackets_without_and_over_a_ball(tmp_path: Path) -> None:
    graph = from_torch(network(), SHAPE)
    whole = lipscope.bracket(graph, effort="fast", seconds=0, output=tmp_path / "whole")
    text = shown(print_bracket, whole)
    assert f"≤ L, no global upper bound (2 (SqueezeExcitation): {REASON})" in text
    assert Bracket.from_json((tmp_path / "whole" / "bracket.json").read_bytes()) == whole
    assert all(check.holds for check in verify_run(tmp_path / "whole", graph))
    over = BallOptions(torch.zeros(SHAPE, dtype=torch.float64), 0.5)
    found = lipscope.bracket(graph, over=over, effort="fast", seconds=0)
    assert found.no_bound is None
    assert 0 < found.lower <= found.upper < math.inf
    assert any(isinstance(bound, Analytical) and bound.value == math.inf for bound in found.bounds)
    assert " ≤ L ≤ " in shown(print_bracket, found)
