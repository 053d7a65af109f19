"""Bounds over a ball against what networks do in it: values, slopes, Jacobians, secants, in three norms."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipscope.errors import CertificateError
from lipscope.graph import INPUT, Graph, from_torch
from lipscope.jacobian import linearize
from lipscope.layers import LinearLayer
from lipscope.layers.activation import Activation, PiecewiseLinear, Softplus
from lipscope.layers.base import Norm
from lipscope.layers.dense import Dense
from lipscope.layers.max_pool import MaxPool
from lipscope.layers.merge import Concatenation, Sum
from lipscope.propagation import (
    BallNorm,
    InputBall,
    LocalSlopes,
    Region,
    layer_constants,
    local_slopes,
    propagate,
    slope_intervals,
)
from lipscope.quantities.ball import ball
from lipscope.quantities.local_proofs import (
    LocalProblem,
    _rows_of_jacobian,
    interval_jacobian,
    local_product,
)
from lipscope.quantities.operator_product import operator_norm_upper, product_bound
from lipscope.results import Ball
from strategies import (
    Network,
    adaptive_pools,
    average_pools,
    batch_norms,
    convolutions,
    denses,
    import_lone,
    max_pools,
    networks,
    randomised,
    seeds,
    transposed_convolutions,
)
from test_activations import PAIRS, TORCH_SWITCH

NORMS: list[Norm] = ["1", "2", "inf"]
ORDERS = {"1": 1, "2": 2, "inf": math.inf}
ROUNDING = 1 - 1e-12
"""Dense norms of Jacobians are themselves computed in float64."""
BALL_NORMS: list[BallNorm] = ["2", "inf"]
RADII = [1e-9, 1e-4, 0.01, 0.1, 0.5, 3.0]


def inside(center: Tensor, radius: float, norm: BallNorm, count: int, seed: int) -> Tensor:
    """Points of the ball, half of them on its boundary: spread out, along axes and in corners."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *center.shape)
    step = torch.randn(shape, generator=generator, dtype=torch.float64)
    step[::3] = step[::3].sign()
    step[1::3] *= torch.rand(step[1::3].shape, generator=generator) < 2 / max(center.numel(), 2)
    flat = step.flatten(1)
    length = torch.linalg.vector_norm(flat, ORDERS[norm], dim=1).clamp_min(1e-300)
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    share[::2] = 1.0
    scale = (1 - 1e-12) * radius * share / length
    return center + step * scale.reshape(-1, *[1] * center.ndim)


def node_values(graph: Graph, x: Tensor) -> list[Tensor]:
    values = [x]
    for node in graph.nodes[1:]:
        assert node.layer is not None
        values.append(node.layer.forward(*(values[i] for i in node.inputs)))
    return values


def dense_norm(matrix: Tensor, norm: Norm) -> float:
    return float(torch.linalg.matrix_norm(matrix, ORDERS[norm]).max())


def regions_of(graph: Graph, center: Tensor, radius: float, norm: BallNorm, budget: float) -> list[Region]:
    return propagate(graph, InputBall.around(center, graph.input_shape, radius, norm), budget)


def mlp(*widths: int, seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> Graph:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return from_torch(randomised(nn.Sequential(*layers[:-1]), seed, gain=1.5), widths[:1])


# ---- propagation ------------------------------------------------------------------------------------


@given(networks(most=7), seeds())
@settings(max_examples=50)
def test_values_slopes_and_jacobians_of_the_ball_lie_in_their_bounds(net: Network, seed: int) -> None:
    graph = net.graph
    center = net.points()
    constants = layer_constants(graph)
    choices = random.Random(seed)
    for budget in (0.0, 1e10):
        radius, norm = choices.choice(RADII), choices.choice(BALL_NORMS)
        region = InputBall.around(center, graph.input_shape, radius, norm)
        regions = propagate(graph, region, budget, constants)
        check_values(graph, regions, center, inside(center, radius, norm, 48, seed))
        x1, x2 = inside(center, radius, norm, 40, seed + 1), inside(center, radius, norm, 40, seed + 2)
        slopes = local_slopes(graph, regions)
        check_secants(graph, slopes.intervals(graph), x1, x2)
        check_jacobians(graph, slopes, x1[:12])


def check_values(graph: Graph, regions: list[Region], center: Tensor, x: Tensor) -> None:
    at_center = node_values(graph, center[None])
    for value, middle, region in zip(node_values(graph, x), at_center, regions, strict=True):
        # The slack is the rounding of the values here, far below any radius.
        slack = 2e-14 * (1 + value.abs())
        assert bool((value >= region.box.low - slack).all())
        assert bool((value <= region.box.high + slack).all())
        assert bool((middle >= region.at_center.low - slack[:1]).all())
        assert bool((middle <= region.at_center.high + slack[:1]).all())
        moved = (value - middle).flatten(1).norm(dim=1)
        assert bool((moved <= region.distance + slack.flatten(1).norm(dim=1)).all())
        # The centre's own value is known to rounding, or to torch's switch of softplus, stretched.
        width = region.at_center.high - region.at_center.low
        switch = any(isinstance(a, Softplus) for a in graph.nonlinear().values())
        assert float(width.max()) <= (1e-5 if switch else 1e-9) * (
            1 + float(region.at_center.magnitude.max())
        )


def check_secants(graph: Graph, slopes: dict[int, tuple[Tensor, Tensor]], x1: Tensor, x2: Tensor) -> None:
    activations = {i: a for i, a in graph.nonlinear().items() if isinstance(a, Activation)}
    assert slopes.keys() == activations.keys()
    before1, before2 = graph.preactivations(x1)[1], graph.preactivations(x2)[1]
    for index, layer in activations.items():
        alpha, beta = slopes[index]
        assert alpha.shape == beta.shape == graph.nodes[index].shape
        assert alpha.dtype == beta.dtype == torch.float64
        low, high = layer.slope_range
        assert bool(((low <= alpha) & (alpha <= beta) & (beta <= high)).all())
        a, b = before1[index], before2[index]
        swap = a < b
        a, b = torch.where(swap, b, a), torch.where(swap, a, b)
        change, gap = layer.forward(a) - layer.forward(b), a - b
        slack = 1e-13 * (1 + a.abs() + b.abs())
        if isinstance(layer, Softplus):
            slack = slack + TORCH_SWITCH
        assert bool((change >= alpha * gap - slack).all())
        assert bool((change <= beta * gap + slack).all())


def check_jacobians(graph: Graph, slopes: LocalSlopes, x: Tensor) -> None:
    """Entry by entry, max pooling included: at points and under secant slopes."""
    problem = LocalProblem(graph, slopes, "2", [1.0] * len(graph.nodes), 1e10)
    count = math.prod(graph.output_shape)
    units = torch.eye(count, dtype=torch.float64).reshape(count, *graph.output_shape)
    middle, radii = _rows_of_jacobian(problem, units)
    size = (middle.abs() + radii).max()
    for found, slack in (
        (linearize(graph, graph.linearize_at(x)[1], len(x)).dense(), 1e-12 * size),
        # Secant slopes of near points are themselves only good to some 1e-10.
        (linearize(graph, graph.secant_slopes(x, x.roll(1, 0)), len(x)).dense(), 1e-9 * size),
    ):
        assert bool(((found - middle).abs() <= radii + slack).all())


@given(networks(most=6), st.sampled_from(BALL_NORMS))
@settings(max_examples=12)
def test_slope_intervals_and_bounds_grow_with_the_radius(net: Network, norm: BallNorm) -> None:
    """With intervals alone; linear relaxation may choose other lines for a larger ball."""
    graph = net.graph
    center = net.points()
    constants = layer_constants(graph)
    previous = None
    values = dict.fromkeys(NORMS, 0.0)
    for radius in (0.0, 1e-6, 1e-3, 0.1, 1.0, 1e3, math.inf):
        slopes = slope_intervals(graph, center, radius, norm, 0.0)
        for index, (alpha, beta) in slopes.items():
            if previous is not None:
                assert bool((alpha <= previous[index][0] + 1e-9).all())
                assert bool((beta >= previous[index][1] - 1e-9).all())
            if math.isinf(radius):
                layer = graph.nodes[index].layer
                assert isinstance(layer, Activation)
                low, high = layer.slope_range
                assert bool((alpha >= low).all())
                assert bool((beta <= high).all())
        previous = slopes
        for q in NORMS:
            value = ball(
                graph, center, radius, ball_norm=norm, norm=q, budget=0.0, seconds=0, constants=constants
            ).value
            assert value >= values[q] * (1 - 1e-9)
            values[q] = value
    for q in NORMS:
        assert values[q] <= product_bound(graph, q)


def test_an_infinite_radius_gives_the_global_slopes_and_bound() -> None:
    for name in (
        "relu",
        "leaky negative",
        "hardtanh",
        "sigmoid",
        "gelu",
        "gelu tanh",
        "silu",
        "elu deep",
        "tanh",
    ):
        layer, make = PAIRS[name]
        graph = from_torch(randomised(nn.Sequential(nn.Linear(3, 4), make(), nn.Linear(4, 2)), 1), (3,))
        slopes = slope_intervals(graph, torch.zeros(3), math.inf, "2", 1e10)
        alpha, beta = slopes[2]
        assert float(alpha.max()) == layer.slope_range[0]
        assert float(beta.min()) == layer.slope_range[1]
        found = ball(graph, torch.zeros(3), math.inf)
        assert found.value <= found.global_bound == product_bound(graph, "2")


def test_linear_relaxation_is_tighter_than_intervals_on_a_deep_network() -> None:
    graph = mlp(8, 24, 24, 24, 24, 24, 24, 4, seed=3)
    center = 0.5 * torch.ones(8, dtype=torch.float64)
    for norm, radius in (("inf", 0.05), ("2", 0.1)):
        alone = regions_of(graph, center, radius, norm, 0.0)
        relaxed = regions_of(graph, center, radius, norm, 1e10)
        last = graph.nodes[max(graph.nonlinear())].inputs[0]
        widths = [(r[last].box.high - r[last].box.low) for r in (alone, relaxed)]
        assert bool((widths[1] <= widths[0] * (1 + 1e-9)).all())
        assert float(widths[1].mean()) < 0.25 * float(widths[0].mean())
        settled = [
            sum(
                float((beta - alpha).sum())
                for alpha, beta in local_slopes(graph, r).intervals(graph).values()
            )
            for r in (alone, relaxed)
        ]
        assert settled[1] < 0.5 * settled[0]
    # The true ranges are not far below: a bound that were too tight to be true would fail the tests above.
    seen = node_values(graph, inside(center, 0.1, "2", 2000, 0))[last]
    assert float((seen.amax(0) - seen.amin(0)).mean()) > 0.05 * float(widths[1].mean())


def test_the_budget_decides_layer_by_layer() -> None:
    graph = mlp(6, 12, 12, 12, 3, seed=5)
    center = torch.ones(6, dtype=torch.float64)
    widths = []
    for budget in (0.0, 6e3, 1e10):
        regions = regions_of(graph, center, 0.5, "inf", budget)
        widths.append([float((regions[i].box.high - regions[i].box.low).sum()) for i in (1, 3, 5)])
    # The second layer's 24 functionals cost 5472 multiplications, the third's more than twice as much.
    assert widths[0][0] == widths[1][0] == widths[2][0]
    assert widths[0][1] > widths[1][1] == widths[2][1]
    assert widths[0][2] > widths[1][2] > widths[2][2]


# ---- activations over intervals ---------------------------------------------------------------------

every_activation = pytest.mark.parametrize("name", sorted(PAIRS))


def intervals(seed: int) -> tuple[Tensor, Tensor]:
    """Of every width from 1e-9 to 100, many of them around kinks and bends; some degenerate."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.tensor([0.0, 6.0, -1.0, 1.0, -0.2, 0.1, 1.414, -1.414, 2.4, -2.4, -0.75, -1.28])
    middle = torch.cat([places.double().repeat(30), 3 * torch.randn(240, generator=generator).double()])
    width = 10.0 ** (11 * torch.rand(2, len(middle), generator=generator).double() - 9)
    width[:, ::17] = 0.0
    return middle - width[0], middle + width[1]


def grid(low: Tensor, high: Tensor) -> Tensor:
    steps = torch.linspace(0, 1, 400, dtype=torch.float64).unsqueeze(1)
    return torch.cat(
        [torch.minimum(low + steps * (high - low), high), torch.where(low * high < 0, 0.0, low)[None]]
    )


@every_activation
@pytest.mark.parametrize("seed", [0, 1])
def test_activation_facts_over_intervals(name: str, seed: int) -> None:
    layer, _ = PAIRS[name]
    low, high = intervals(seed)
    x = grid(low, high)
    y, slopes = layer.forward(x), layer.derivative(x)
    alpha, beta = layer.slope_range_over(low, high)
    eps = 8 * torch.finfo(torch.float64).eps
    assert bool((slopes >= alpha - eps).all())
    assert bool((slopes <= beta + eps).all())
    rounding = eps * (1 + x.abs())
    least, most = layer.value_range(low, high)
    assert bool((y >= least - rounding).all())
    assert bool((y <= most + rounding).all())
    lines = layer.lines(low.unsqueeze(0), high.unsqueeze(0))
    below = lines.below.values * x + lines.below_offset
    above = lines.above.values * x + lines.above_offset
    assert bool((below <= y + rounding).all())
    assert bool((above >= y - rounding).all())
    # Tightness: nothing is far wider than what the grid sees.
    seen = slopes.amax(0) - slopes.amin(0)
    kinks = layer.kinks if isinstance(layer, PiecewiseLinear) else (0.0,) if layer.kind == "ELU" else ()
    at_kink = torch.zeros_like(low, dtype=torch.bool)
    for kink in kinks:
        at_kink |= (low <= kink) & (high >= kink)
    narrow = ~at_kink & (high - low < 1e-2)
    assert int(narrow.sum()) > 50
    assert float((beta - alpha - seen)[narrow].max()) <= 1e-4
    noise = TORCH_SWITCH if isinstance(layer, Softplus) else 0.0
    assert float((most - least - (y.amax(0) - y.amin(0)))[high - low < 1].max()) <= 0.05 + noise
    gap = (above - below).amax(0)
    assert float(gap[high - low < 1e-4].max()) <= 1.1e-4 * max(1.0, layer.constant(())) + 2 * noise


@pytest.mark.parametrize(("name", "near"), [("gelu", -0.75), ("gelu tanh", -0.75), ("silu", -1.28)])
def test_certified_minima(name: str, near: float) -> None:
    layer, _ = PAIRS[name]
    x = torch.linspace(near - 0.1, near + 0.1, 200_001, dtype=torch.float64)
    least = float(layer.forward(x).min())
    assert layer.minimum <= least <= layer.minimum + 2e-11 + 1e-12
    assert (
        float(layer.value_range(torch.tensor([-100.0]).double(), torch.tensor([3.0]).double())[0])
        == layer.minimum
    )


@given(max_pools(2), seeds(), st.sampled_from([1e-6, 0.1, 1.0, 5.0]))
@settings(max_examples=60)
def test_max_pooling_over_boxes(drawn: tuple[nn.Module, tuple[int, ...]], seed: int, width: float) -> None:
    (layer,) = import_lone(*drawn)
    assert isinstance(layer, MaxPool)
    generator = torch.Generator().manual_seed(seed)

    def random(*lead: int) -> Tensor:
        return torch.rand(*lead, *drawn[1], generator=generator, dtype=torch.float64)

    low = torch.randn(1, *drawn[1], generator=generator, dtype=torch.float64)
    high = low + width * random(1) * (random(1) < 0.7)
    share = random(40)
    share[::2] = share[::2].round()
    x = low + share * (high - low)
    y = layer.forward(x)
    least, most = layer.value_range(low, high)
    assert bool(((y >= least) & (y <= most)).all())
    lines = layer.lines(low, high)
    block = x.unsqueeze(0)
    assert bool((lines.below.apply(block)[0] + lines.below_offset <= y + 1e-12).all())
    assert bool((lines.above.apply(block)[0] + lines.above_offset >= y - 1e-12).all())
    hull = layer.slope_hull(low, high)
    # Whoever wins moves, or does not count; and a winner beyond doubt is known.
    moving = (low < high).to(torch.float64)
    one_hot = linearize_selector(layer, x)
    weights = one_hot * torch.stack(list(layer.windows.tap_views(layer.windows.pad(moving))))
    assert bool((weights >= hull[0].values).all())
    assert bool((weights <= hull[1].values).all())
    for norm in NORMS:
        local = layer.local_lipschitz(norm, hull, drawn[1])
        assert local <= layer.lipschitz_in(norm, [1.0], [drawn[1]])
        differences = (x[:, None] - x[None]).flatten(0, 1)
        changes = (y[:, None] - y[None]).flatten(0, 1)
        p = ORDERS[norm]
        change = torch.linalg.vector_norm(changes.flatten(1), p, dim=1)
        assert bool(
            (change <= local * torch.linalg.vector_norm(differences.flatten(1), p, dim=1) + 1e-12).all()
        )


def linearize_selector(layer: MaxPool, x: Tensor) -> Tensor:
    """Which tap wins, one-hot: shape (τ, B, C, *out)."""
    winner = layer.windows.tap_of(layer._pool(x)[1])
    return torch.stack([(winner == tap).to(x.dtype) for tap in range(layer.windows.taps)])


# ---- linear layers ----------------------------------------------------------------------------------


def lone_linear() -> st.SearchStrategy[tuple[nn.Module, tuple[int, ...]]]:
    families = [denses()]
    for dims in (1, 2, 3):
        families += [convolutions(dims), transposed_convolutions(dims), average_pools(dims)]
        families += [adaptive_pools(dims), batch_norms(dims)]
    return st.one_of(*families)


def dense_matrix(layer: LinearLayer, shape: Sequence[int]) -> Tensor:
    columns = math.prod(shape)
    return layer.apply(torch.eye(columns, dtype=torch.float64).reshape(columns, *shape)).flatten(1).T


@given(lone_linear(), seeds())
@settings(max_examples=120)
def test_norms_and_intervals_of_lone_linear_layers(
    drawn: tuple[nn.Module, tuple[int, ...]], seed: int
) -> None:
    module, shape = drawn
    (layer,) = (part.to(torch.float64, "cpu") for part in import_lone(module, shape))
    assert isinstance(layer, LinearLayer)
    matrix = dense_matrix(layer, shape)
    for power in (1, 2):
        found = dense_matrix(layer.magnitudes([shape], power), shape)
        torch.testing.assert_close(found, matrix.abs() ** power, rtol=1e-14, atol=0)
        # What a layer without magnitudes of its own gets.
        default = dense_matrix(LinearLayer.magnitudes(layer, [shape], power), shape)
        torch.testing.assert_close(default, matrix.abs() ** power, rtol=1e-14, atol=0)
    rows = layer.row_norms(shape).flatten()
    exact = matrix.norm(dim=1)
    assert bool((rows >= exact * ROUNDING).all())
    assert bool((rows <= exact * (1 + 1e-10) + 1e-100).all())
    for norm in NORMS:
        exact_norm = dense_norm(matrix, norm)
        found_norm = operator_norm_upper(layer, norm, [shape])
        assert exact_norm * ROUNDING <= found_norm <= exact_norm * (1 + 1e-9) + 1e-100
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.rand(matrix.shape[0], generator=generator, dtype=torch.float64).round(decimals=1)
    inputs = torch.rand(matrix.shape[1], generator=generator, dtype=torch.float64).round(decimals=1)
    scaled = outputs[:, None] * matrix * inputs
    target = layer.forward(torch.zeros(1, *shape, dtype=torch.float64)).shape
    for norm in NORMS:
        exact_norm = dense_norm(scaled, norm)
        found_norm = layer.scaled_norm(norm, [shape], outputs.reshape(target), inputs.reshape(1, *shape))
        assert exact_norm * ROUNDING <= found_norm <= exact_norm * (1 + 1e-9) + 1e-100
    # The image of a box: corners of the box attain it.
    middle = torch.randn(shape, generator=generator, dtype=torch.float64)
    low, high = middle - inputs.reshape(shape), middle + inputs.reshape(shape)
    least, most = layer.interval([low[None]], [high[None]])
    corners = torch.where(matrix > 0, high.flatten(), low.flatten())
    offset = layer.forward(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    attained = (matrix * corners).sum(1) + offset
    slack = 1e-13 * (1 + attained.abs())
    assert bool((most.flatten() >= attained - slack).all())
    assert bool((most.flatten() <= attained + 1e-11 * (1 + attained.abs())).all())
    assert bool(
        (
            least.flatten()
            <= (matrix * torch.where(matrix > 0, low.flatten(), high.flatten())).sum(1) + offset + slack
        ).all()
    )


def test_interval_bounds_cover_their_rounding() -> None:
    """Cancellation of large terms: the exact value of a float64 sum is in the bounds, though the float sum is not it."""
    layer = Dense(torch.tensor([[1e16, 1.0, -1e16]], dtype=torch.float64))
    x = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
    low, high = layer.interval([x], [x])
    assert float(low) <= 1.0 <= float(high)
    assert float(high - low) < 1e5
    graph = Graph.chain((3,), [layer, PAIRS["relu"][0], Dense(torch.ones(1, 1, dtype=torch.float64))])
    alpha, beta = slope_intervals(graph, x[0], 0.0, "2", 1e10)[2]
    assert (float(alpha), float(beta)) == (0.0, 1.0)


def test_relu_lines_are_those_of_crown() -> None:
    """Above the chord, below the adaptive slope 0 or 1: the least area."""
    low, high = torch.tensor([[-1.0, -3.0, 1.0, -2.0]]), torch.tensor([[3.0, 1.0, 2.0, -1.0]])
    lines = PAIRS["relu"][0].lines(low.double(), high.double())
    torch.testing.assert_close(lines.below.values, torch.tensor([[1.0, 0.0, 1.0, 0.0]]).double())
    torch.testing.assert_close(lines.above.values, torch.tensor([[0.75, 0.25, 1.0, 0.0]]).double())
    torch.testing.assert_close(lines.above_offset, torch.tensor([[0.75, 0.75, 0.0, 0.0]]).double())
    torch.testing.assert_close(lines.below_offset, torch.zeros(1, 4).double())


def test_merges_and_pooling_in_the_other_norms_are_exact() -> None:
    shapes = [(3,), (3,)]
    assert Sum((1.0, -2.0)).lipschitz_in("inf", [1.0, 5.0], shapes) == pytest.approx(11.0, rel=1e-12)
    assert Concatenation(0, (3, 3)).lipschitz_in("inf", [1.0, 5.0], shapes) == 5.0
    assert Concatenation(0, (3, 3)).lipschitz_in("1", [1.0, 5.0], shapes) == pytest.approx(6.0, rel=1e-12)
    assert operator_norm_upper(Sum((1.0, -2.0)), "inf", shapes) == pytest.approx(3.0, rel=1e-12)
    assert operator_norm_upper(Sum((1.0, -2.0)), "1", shapes) == pytest.approx(2.0, rel=1e-12)
    assert operator_norm_upper(Concatenation(0, (3, 3)), "1", shapes) == pytest.approx(1.0, rel=1e-12)
    graph = from_torch(nn.MaxPool2d(3, 2, 1), (1, 8, 8))
    assert [product_bound(graph, norm) for norm in NORMS] == [4.0, 2.0, 1.0]


def test_weights_that_are_not_numbers_have_no_norm() -> None:
    weight = torch.ones(2, 2, dtype=torch.float64)
    weight[0, 1] = math.nan
    for norm in NORMS:
        with pytest.raises(CertificateError, match="NaN"):
            operator_norm_upper(Dense(weight), norm, [(2,)])


# ---- the ball ---------------------------------------------------------------------------------------


@given(networks(most=7), seeds())
@settings(max_examples=50)
def test_lower_is_at_most_the_ball_and_the_ball_at_most_the_global_bound(net: Network, seed: int) -> None:
    graph = net.graph
    center = net.points()
    constants = layer_constants(graph)
    choices = random.Random(seed)
    far = torch.cat([net.points(6), 10 * net.points(3, stream=1)])
    anywhere = linearize(graph, graph.linearize_at(far)[1], len(far)).dense()
    for norm in NORMS:
        bound = product_bound(graph, norm)
        assert dense_norm(anywhere, norm) * ROUNDING <= bound
        radius, ball_norm, budget = (
            choices.choice(RADII),
            choices.choice(BALL_NORMS),
            choices.choice((0.0, 1e10)),
        )
        found = ball(
            graph,
            center,
            radius,
            ball_norm=ball_norm,
            norm=norm,
            budget=budget,
            # Now and then also optimised multipliers.
            seconds=choices.choice((0.0, 0.0, 0.0, 0.2)),
            constants=constants,
        )
        assert found.kind == "upper"
        assert found.value == min(found.proofs.values()) <= found.global_bound == bound
        x = inside(center, radius, ball_norm, 24, seed)
        jacobians = linearize(graph, graph.linearize_at(x)[1], len(x)).dense()
        # Each proof is a bound by itself, not only the least.
        for proved in found.proofs.values():
            assert dense_norm(jacobians, norm) * ROUNDING <= proved
        check_ratios(graph, x, norm, found)
        for row in found.open_units:
            assert 0 <= row.open <= row.units


def check_ratios(graph: Graph, x: Tensor, norm: Norm, found: Ball) -> None:
    def length(v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v.flatten(1), ORDERS[norm], dim=1)

    y, other = graph.evaluate(x), x.roll(1, 0)
    change = length(y - y.roll(1, 0))
    # Rounding, and torch's jumps of softplus, stretched by what follows.
    softplus = any(isinstance(a, Softplus) for a in graph.nonlinear().values())
    slack = 1e-13 * length(1 + y.abs() + y.roll(1, 0).abs()) + (1e-7 if softplus else 0.0) * (
        1 + found.global_bound
    )
    assert bool((change - slack <= found.value * length(x - other)).all())


def smooth_at(graph: Graph, x: Tensor) -> bool:
    """Whether no kink and no tie of a pooling window is near x."""
    for index, a in graph.preactivations(x[None])[1].items():
        layer = graph.nodes[index].layer
        if isinstance(layer, MaxPool):
            padded = torch.where(layer.windows.pad(torch.ones_like(a)) == 1, layer.windows.pad(a), -math.inf)
            taps = torch.stack(list(layer.windows.tap_views(padded))).sort(0).values
            if len(taps) > 1 and float((taps[-1] - taps[-2]).min()) < 1e-5:
                return False
        kinks = layer.kinks if isinstance(layer, PiecewiseLinear) else (0.0,)
        if not isinstance(layer, MaxPool) and any(float((a - k).abs().min()) < 1e-5 for k in kinks):
            return False
    return True


@given(networks(most=5), st.sampled_from(BALL_NORMS))
@settings(max_examples=25)
def test_small_balls_give_the_local_norm_in_generated_networks(net: Network, ball_norm: BallNorm) -> None:
    graph = net.graph
    assume(not any(isinstance(a, Softplus) for a in graph.nonlinear().values()))
    center = net.points()
    assume(smooth_at(graph, center))
    jacobian = linearize(graph, graph.linearize_at(center[None])[1]).dense()[0]
    for norm in NORMS:
        found = ball(graph, center, 1e-9, ball_norm=ball_norm, norm=norm, seconds=0)
        exact = dense_norm(jacobian, norm)
        assert exact * ROUNDING <= found.value <= exact * (1 + 1e-6) + 1e-8 * found.global_bound


@pytest.mark.parametrize("radius", [0.0, 1e-9])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.Hardtanh])
def test_small_balls_give_the_local_norm(activation: type[nn.Module], radius: float) -> None:
    module = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), activation(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(36, 7), activation(), nn.Linear(7, 5)),
    )
    graph = from_torch(randomised(module, 2, gain=2.0), (2, 8, 8))
    center = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    jacobian = linearize(graph, graph.linearize_at(center[None])[1]).dense()[0]
    for norm in NORMS:
        exact = dense_norm(jacobian, norm)
        found = ball(graph, center, radius, norm=norm, seconds=0)
        assert exact * ROUNDING <= found.value <= exact * (1 + 1e-6)
        assert found.value < 0.5 * found.global_bound


def test_the_product_drops_units_that_are_off() -> None:
    """The scaled product of a two-layer network is the product of the matrices without the units that are off."""
    graph = mlp(5, 30, 6, seed=7)
    center = torch.linspace(-1, 1, 5, dtype=torch.float64)
    first, last = graph.nodes[1].layer, graph.nodes[3].layer
    assert isinstance(first, Dense)
    assert isinstance(last, Dense)
    on = graph.preactivations(center[None])[1][2][0] > 0
    assert 5 < int(on.sum()) < 25
    problem = LocalProblem(
        graph, local_slopes(graph, regions_of(graph, center, 1e-6, "2", 0)), "2", layer_constants(graph), 0
    )
    exact = dense_norm(first.weight[on], "2") * dense_norm(last.weight[:, on], "2")
    assert local_product(problem) == pytest.approx(exact, rel=1e-9)
    assert local_product(problem) < 0.9 * product_bound(graph, "2")
    assert interval_jacobian(problem) == math.inf, "no budget"


def test_a_kink_in_the_ball_is_seen() -> None:
    """|x| on a ball around 0: the slope is ±1, and a ball beside the kink is pinned."""
    graph = from_torch(nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).double(), (1,))
    graph.nodes[1].layer.weight.fill_(3.0)
    around = slope_intervals(graph, torch.zeros(1), 0.1, "2", 0)[2]
    assert (float(around[0]), float(around[1])) == (0.0, 1.0)
    assert ball(graph, torch.tensor([-1.0]), 0.9).value == pytest.approx(0.0, abs=1e-200)
    assert ball(graph, torch.tensor([-1.0]), 1.1).value == pytest.approx(3.0, rel=1e-12)
    assert ball(graph, torch.tensor([1.0]), 0.5).value == pytest.approx(3.0, rel=1e-12)


@pytest.mark.parametrize(
    ("center", "radius", "options", "message"),
    [
        (torch.zeros(3), math.nan, {}, "radius"),
        (torch.zeros(3), -1.0, {}, "radius"),
        (torch.zeros(4), 1.0, {}, "shape"),
        (torch.tensor([0.0, math.nan, 0.0]), 1.0, {}, "not finite"),
        (torch.zeros(3), 1.0, {"ball_norm": "1"}, "norm of a ball"),
        (torch.zeros(3), 1.0, {"norm": "fro"}, "norm is"),
    ],
)
def test_senseless_balls_are_refused(
    center: Tensor, radius: float, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ball(mlp(3, 4, 2), center, radius, **options)


def test_huge_weights_and_radii_do_not_break_the_bounds() -> None:
    """Overflow on the way leaves infinite boxes, never NaN or a bound that is too small."""
    graph = mlp(3, 6, 6, 2, seed=1)
    for radius in (1e300, 1.7e308):
        found = ball(graph, torch.ones(3), radius)
        assert 0 < found.value <= found.global_bound
        for alpha, beta in slope_intervals(graph, torch.ones(3), radius, "inf", 1e10).values():
            assert bool((alpha == 0).all())
            assert bool((beta == 1).all())
    graph.nodes[1].layer.weight.mul_(1e200)
    graph.nodes[3].layer.weight.mul_(1e200)
    assert ball(graph, torch.ones(3), 1.0).value > 1e290


def test_the_result_describes_the_ball() -> None:
    graph = mlp(3, 6, 2)
    found = ball(graph, torch.ones(3), 0.25, ball_norm="inf", norm="1")
    assert (found.radius, found.ball_norm, found.norm, found.name) == (0.25, "inf", "1", "ball")
    assert len(found.center) == 64
    assert ball(graph, torch.ones(1, 3), 0.5).center == found.center
    assert found.method in found.proofs
    assert [row.units for row in found.open_units] == [6]
    assert type(found).model_validate_json(found.model_dump_json()) == found
    assert graph.nodes[INPUT].layer is None
