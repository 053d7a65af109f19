"""Normalisation layers, functions kept whole while tracing, functions that are steep somewhere."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor, nn
from torch.nn import functional

from lipscope.errors import UnsupportedLayerError
from lipscope.graph import Graph, from_torch
from lipscope.graph.kept import kept_functions
from lipscope.jacobian import linearize
from lipscope.layers.activation import Activation
from lipscope.layers.normalisation import Center, DivisiveNormalisation, Pool
from lipscope.layers.unbounded import (
    Exponential,
    Logarithm,
    OnDomain,
    RealPower,
    Reciprocal,
    Sine,
    WholePower,
)
from lipscope.quantities import analytical
from strategies import Apply, Network, randomised, seeds

ROUNDING = 1 - 1e-12
NORMS = {"1": 1, "2": 2, "inf": math.inf}


def jacobians(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    rows = [torch.func.jacrev(lambda v: function(v[None])[0])(one) for one in x]
    return torch.stack([row.reshape(-1, one.numel()) for row, one in zip(rows, x, strict=True)])


def assert_slopes_are_exact(
    module: nn.Module, graph: Graph, x: Tensor, moved: Tensor, scale: float = 1.0
) -> None:
    """Jacobians as autograd has them, secants that map Δx to Δy, transposes that are adjoint.

    `scale` is the size of the slopes that a difference is made of.
    """
    value, slopes = graph.linearize_at(x)
    operator = linearize(graph, slopes, len(x))
    torch.testing.assert_close(value, module(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(operator.dense(), jacobians(module, x), rtol=1e-9, atol=1e-10)
    secant = linearize(graph, graph.secant_slopes(x, moved), len(x))
    # Up to rounding of the values, and of the terms that cancel in D(x − x'), each within L‖x − x'‖.
    expected, gap = module(x) - module(moved), (x - moved).flatten(1).norm(dim=1)
    error = (secant.matvec((x - moved)[None])[0] - expected).flatten(1).norm(dim=1)
    size = (module(x).abs() + module(moved).abs()).flatten(1).norm(dim=1)
    steepest = max(float(torch.linalg.matrix_norm(operator.dense(), 2).max()), scale)
    assert bool((error <= 1e-13 * (size + steepest * gap)).all())
    u = torch.randn(2, len(x), *graph.output_shape, dtype=torch.float64)
    v = torch.randn(2, len(x), *graph.input_shape, dtype=torch.float64)
    left, right = (secant.matvec(v) * u).sum(), (v * secant.rmatvec(u)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-9, abs=1e-9)


# ---- the layer --------------------------------------------------------------------------------------


@st.composite
def normalisations(draw: DrawFn) -> tuple[DivisiveNormalisation, tuple[int, ...]]:
    """Groups and windows, with an offset, a floor or both; every exponent regime."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 3)))
    if draw(st.booleans()):
        pool = Pool(draw(st.sampled_from([(0,), (1,), (0, 1)])))
    else:
        pool = Pool((0,), (draw(st.integers(0, 3)), draw(st.integers(0, 3))))
    offset, floor = draw(st.sampled_from([(0.3, 0.0), (1e-3, 0.0), (0.0, 0.4), (0.2, 1.0)]))
    beta = draw(st.sampled_from([0.25, 0.5, 0.5, 0.75, 1.0, 1.7]))
    return DivisiveNormalisation(pool, draw(st.sampled_from([0.2, 1.0, 3.0])), offset, beta, floor), shape


def points(shape: tuple[int, ...], seed: int, count: int = 24) -> Tensor:
    """Of sizes over many orders of magnitude, some with zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    x = x * 10 ** (3 * torch.rand(count, *[1] * len(shape), generator=generator, dtype=torch.float64) - 2)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.1, 0.0, x)


@given(normalisations(), seeds())
@settings(max_examples=20)
def test_slopes_of_normalisation(drawn: tuple[DivisiveNormalisation, tuple[int, ...]], seed: int) -> None:
    layer, shape = drawn
    x = points(shape, seed)
    gaps = 10 ** torch.linspace(-9, 1, len(x), dtype=torch.float64)[:, None, None]
    module = Apply(layer.forward, "normalisation")
    moved = x + gaps * points(shape, seed + 1)
    assert_slopes_are_exact(module, Graph.chain(shape, [layer]), x, moved, layer.constant(shape))


@given(normalisations(), seeds())
@settings(max_examples=25)
def test_constants_of_normalisation_hold(
    drawn: tuple[DivisiveNormalisation, tuple[int, ...]], seed: int
) -> None:
    """Against the steepest Jacobians that ascent finds, in three norms; the range against the values."""
    layer, shape = drawn
    for norm, order in NORMS.items():
        bound = layer.lipschitz_in(norm, [1.0], [shape])
        x = points(shape, seed).requires_grad_()
        optimiser = torch.optim.Adam([x], 0.05)
        for _ in range(25):
            matrices = linearize(Graph.chain(shape, [layer]), {1: layer.linearize(x)[1]}, len(x)).dense()
            steepest = torch.linalg.matrix_norm(matrices, order)
            assert float(steepest.detach().max()) * ROUNDING <= bound
            optimiser.zero_grad()
            (-steepest.sum()).backward()
            x.grad = torch.nan_to_num(x.grad)
            optimiser.step()
    low, high = layer.output_range([(-math.inf, math.inf)], [shape])
    x = x.detach()
    assert low <= float(layer.forward(x).min())
    assert float(layer.forward(x).max()) <= high


@given(normalisations(), seeds(), st.sampled_from([1e-3, 0.3, 5.0]))
@settings(max_examples=40)
def test_normalisation_over_boxes(
    drawn: tuple[DivisiveNormalisation, tuple[int, ...]], seed: int, radius: float
) -> None:
    layer, shape = drawn
    (center,) = points(shape, seed, 1)
    reach = radius * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = (center - reach)[None], (center + reach)[None]
    steps = torch.rand(60, *shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    x = torch.cat([low + steps * (high - low), torch.where(steps < 0.5, low, high)])
    values, (least, most) = layer.forward(x), layer.value_range(low, high)
    assert bool((least <= values).all())
    assert bool((values <= most).all())
    assert float((most - values.amax(0)).min()) <= 2 * float((most - least).max())
    lines = layer.lines(low, high)
    assert bool((lines.below.apply(x[None])[0] + lines.below_offset <= values).all())
    assert bool((values <= lines.above.apply(x[None])[0] + lines.above_offset).all())
    hull, graph = layer.slope_hull(low, high), Graph.chain(shape, [layer])
    ends = [linearize(graph, {1: side}).dense() for side in hull]
    slopes = {
        "points": layer.linearize(x)[1],
        "pairs": layer.secant(x, x.roll(1, 0)),
    }
    for kind, slope in slopes.items():
        dense = linearize(graph, {1: slope}, len(x)).dense()
        assert bool((ends[0] - 1e-12 <= dense).all()), kind
        assert bool((dense <= ends[1] + 1e-12).all()), kind
    pointwise = linearize(graph, {1: slopes["points"]}, len(x)).dense()
    for norm, order in NORMS.items():
        local = layer.local_lipschitz(norm, hull, shape)
        assert float(torch.linalg.matrix_norm(pointwise, order).max()) * ROUNDING <= local
        assert local <= layer.lipschitz_in(norm, [1.0], [shape])


def test_normalisation_over_everything() -> None:
    """An unbounded box: the global constant, values within the range, no NaN."""
    everywhere = torch.full((1, 4), math.inf, dtype=torch.float64)
    for pool in (Pool((0,)), Pool((0,), (1, 1))):
        layer = DivisiveNormalisation(pool, 0.25, 0.01)
        least, most = layer.value_range(-everywhere, everywhere)
        assert bool(((least >= -2 - 1e-9) & (most <= 2 + 1e-9)).all())
        local = layer.local_lipschitz("2", layer.slope_hull(-everywhere, everywhere), (4,))
        assert local == layer.constant((4,))


def test_without_offset_and_floor_there_is_no_constant() -> None:
    assert DivisiveNormalisation(Pool((0,)), 1.0, 0.0).constant((3,)) == math.inf


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([(0,), (1,), (0, 1)]))
@settings(max_examples=20)
def test_centring_is_a_projection(rows: int, columns: int, axes: tuple[int, ...]) -> None:
    shape = (rows, columns)
    layer = Center(axes, math.prod(shape[a] for a in axes))
    matrix = layer.matrix(shape)
    assert matrix is not None
    torch.testing.assert_close(matrix @ matrix, matrix)
    torch.testing.assert_close(matrix.T, matrix)
    assert layer.norm([shape]) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), abs=1e-12)
    for power in (1, 2):
        dense = layer.magnitudes([shape], power).matrix(shape)
        torch.testing.assert_close(dense, matrix.abs() ** power, rtol=1e-12, atol=1e-14)
    for norm in ("1", "inf"):
        exact = float(torch.linalg.matrix_norm(matrix, NORMS[norm]))
        assert exact * ROUNDING <= layer.scaled_norm(norm, [shape]) <= exact * (1 + 1e-9) + 1e-12


# ---- torch's layers ---------------------------------------------------------------------------------


class Block(nn.Module):
    """Depthwise convolution, layer norm over channels, two dense layers, residual: a block as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4, 1e-2)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: nn.LayerNorm((3, 4), 0.1), (2, 3, 4)),
    "layer norm, no affine": (lambda: nn.LayerNorm(5, elementwise_affine=False), (5,)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 3)),
    "group norm of a vector": (lambda: nn.GroupNorm(2, 6, affine=False), (6,)),
    "instance norm": (lambda: nn.InstanceNorm2d(3, affine=True), (3, 3, 2)),
    "instance norm, running": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (3, 4)),
    "RMS norm": (lambda: nn.RMSNorm(4, 1e-3), (2, 4)),
    "RMS norm, own epsilon": (lambda: nn.RMSNorm(4), (2, 4)),
    "local response, even": (lambda: nn.LocalResponseNorm(4, 1.0, 0.75, 0.5), (6, 2, 2)),
    "local response, odd": (lambda: nn.LocalResponseNorm(3, 2.0, 0.5, 1.0), (5, 3)),
    "power-average": (lambda: nn.LPPool2d(2, 2), (2, 4, 4)),
    "power-average, cut": (lambda: nn.LPPool2d(4, 3, 2, ceil_mode=True), (2, 6, 6)),
    "power-average, p = 1": (lambda: nn.LPPool1d(1, 2), (2, 6)),
    "power-average, odd": (lambda: nn.Sequential(nn.Sigmoid(), nn.LPPool1d(3, 3, 1)), (2, 6)),
    "power-average, 3d": (lambda: nn.LPPool3d(2, 2), (1, 2, 4, 2)),
    "power-average, p = ∞": (lambda: nn.LPPool2d(math.inf, 2), (1, 4, 4)),
    "normalize": (lambda: Apply(lambda x: functional.normalize(x, eps=1.5), "normalize"), (4,)),
    "normalize, axes": (lambda: Apply(lambda x: functional.normalize(x, dim=(1, -1)), "normalize"), (2, 3)),
    "normalize, p = 1": (lambda: Apply(lambda x: functional.normalize(x, 1.0), "normalize"), (4,)),
    "block": (Block, (4, 3, 3)),
    "powers": (lambda: Apply(lambda x: x**2 - x**3 + x**5, "powers"), (4,)),
    "quotient": (lambda: Apply(lambda x: x.sin() / (1 + x.exp()), "quotient"), (4,)),
    "of a constant": (lambda: Apply(lambda x: 2 / (1.5 + x.tanh()), "reciprocal"), (4,)),
    "negative power": (lambda: Apply(lambda x: (1.5 + x.tanh()) ** -2, "negative power"), (4,)),
    "roots": (lambda: Apply(lambda x: (1 + x.sigmoid()).sqrt() + (x.sigmoid() + 0.1).rsqrt(), "roots"), (4,)),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layers_of_torch(name: str) -> None:
    make, shape = LAYERS[name]
    module = randomised(make(), 3)
    for part in module.modules():
        if getattr(part, "bias", None) is not None and isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
            part.weight.copy_(torch.linspace(-1, 2, part.weight.numel()).reshape(part.weight.shape))
            part.bias.fill_(0.3)
    graph = from_torch(module, shape)
    net = Network(module, shape, 5)
    x = net.points(4)
    gaps = torch.tensor([1e-6, 1e-2, 1.0, 10.0], dtype=torch.float64).reshape(4, *[1] * len(shape))
    assert_slopes_are_exact(module, graph, x, x + gaps * net.points(4, stream=1))
    matrices = jacobians(module, x)
    assert float(torch.linalg.matrix_norm(matrices, 2).max()) * ROUNDING <= analytical(graph).value


def test_the_constant_of_layer_norm_is_attained_at_constants() -> None:
    """At a constant signal the Jacobian is the projection over √ε."""
    graph = from_torch(nn.LayerNorm(6, 1e-4, elementwise_affine=False), (6,))
    at = torch.full((1, 6), 2.0, dtype=torch.float64)
    steepest = float(torch.linalg.matrix_norm(linearize(graph, graph.linearize_at(at)[1]).dense(), 2))
    assert steepest == pytest.approx(100.0)
    assert steepest * ROUNDING <= analytical(graph).value <= steepest * (1 + 1e-9)


def test_normalize_stretches_by_its_epsilon() -> None:
    graph = from_torch(Apply(lambda x: functional.normalize(x, eps=0.25), "normalize"), (3,))
    assert 4.0 <= analytical(graph).value <= 4.0 * (1 + 1e-9)


def test_an_odd_power_average_of_signed_entries_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="signed"):
        from_torch(nn.LPPool1d(3, 2), (1, 4))


# ---- functions kept whole ---------------------------------------------------------------------------


def test_functions_are_kept_in_this_thread_and_only_inside() -> None:
    originals = (functional.normalize, functional.local_response_norm, functional.lp_pool2d)
    x, seen = torch.randn(2, 3), []

    def elsewhere() -> None:
        # Through the operator, a gradient would be missing.
        leaf = x.clone().requires_grad_()
        functional.normalize(leaf).sum().backward()
        seen.append(leaf.grad)

    def fails() -> None:
        with kept_functions():
            assert functional.normalize is not originals[0]
            torch.testing.assert_close(functional.normalize(x), originals[0](x))
            other = threading.Thread(target=elsewhere)
            other.start()
            other.join()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert seen[0] is not None
    assert (functional.normalize, functional.local_response_norm, functional.lp_pool2d) == originals


# ---- functions that are steep somewhere -------------------------------------------------------------

FUNCTIONS: dict[str, tuple[Activation, float, float]] = {
    "exp": (Exponential(), -4, 4),
    "expm1": (Exponential(shift=1.0), -4, 4),
    "base 1/2": (Exponential(rate=-math.log(2)), -4, 4),
    "log": (Logarithm.on((0.0, math.inf)), 0.001, 9),
    "log1p": (Logarithm.on((-1.0, math.inf), shift=1.0), -0.99, 9),
    "square": (WholePower(), -5, 5),
    "cube": (WholePower(exponent=3), -5, 5),
    "reciprocal": (Reciprocal(), 0.01, 9),
    "reciprocal below": (Reciprocal(), -9, -0.01),
    "sqrt": (RealPower.on((0.0, math.inf)), 0.001, 9),
    "rsqrt": (RealPower.on((0.0, math.inf), exponent=-0.5), 0.01, 9),
    "power 1.7": (RealPower.on((0.0, math.inf), exponent=1.7), 0.001, 9),
    "sin": (Sine(), -9, 9),
    "cos": (Sine(cosine=True), -9, 9),
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_steep_functions(name: str) -> None:
    """Derivatives, secants at all distances, and ranges of slopes and values over intervals."""
    layer, first, last = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(1)
    x = first + (last - first) * torch.rand(400, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        layer.linearize(x)[1].values, jacobians(layer.forward, x)[:, 0], rtol=1e-11, atol=0
    )
    gaps = 10 ** torch.linspace(-12, 1, len(x), dtype=torch.float64)[:, None]
    y = (x + gaps).clamp(max=last)
    secants, gap = layer.secant(x, y).values, layer.forward(x) - layer.forward(y)
    size = layer.forward(x).abs() + layer.forward(y).abs()
    assert bool(((secants * (x - y) - gap).abs() <= 1e-13 * size + 1e-15 * (secants * x).abs() + 1e-15).all())
    # Near points: not a noisy quotient but the derivative.
    torch.testing.assert_close(secants[:40], layer.linearize(x)[1].values[:40], rtol=1e-5, atol=1e-8)
    low, high = torch.minimum(x, x.roll(1, 0)), torch.maximum(x, x.roll(1, 0))
    alpha, beta = (side.values for side in layer.slope_hull(low, high))
    least, most = layer.value_range(low, high)
    lines = layer.lines(low, high)
    for share in torch.linspace(0, 1, 9, dtype=torch.float64):
        t = low + share * (high - low)
        value = layer.forward(t)
        for slope in (layer.linearize(t)[1].values, layer.secant(low, t).values):
            assert bool(
                ((alpha <= slope + 1e-14 * slope.abs()) & (slope <= beta + 1e-14 * slope.abs())).all()
            )
        assert bool(((least <= value) & (value <= most)).all())
        below, above = (
            lines.below.values * t + lines.below_offset,
            lines.above.values * t + lines.above_offset,
        )
        assert bool(((below <= value) & (value <= above)).all())


@pytest.mark.parametrize(
    ("layer", "low", "high"),
    [
        (Reciprocal(), -1.0, 2.0),
        (Reciprocal(), 0.0, 2.0),
        (Reciprocal(), -2.0, 0.0),
        (RealPower.on((0.0, math.inf), exponent=-0.5), 0.0, 2.0),
        (RealPower.on((0.0, math.inf)), 0.0, 2.0),
        (Logarithm.on((0.0, math.inf)), 0.0, 2.0),
        (WholePower(), -math.inf, math.inf),
        (WholePower(exponent=3), -math.inf, math.inf),
        (Exponential(), -math.inf, math.inf),
        (Exponential(), 0.0, 1e4),
    ],
)
def test_boxes_that_reach_where_a_function_is_infinitely_steep(
    layer: OnDomain, low: float, high: float
) -> None:
    """Infinite, never NaN; every secant slope and value is inside."""
    ends = torch.tensor([[low]], dtype=torch.float64), torch.tensor([[high]], dtype=torch.float64)
    alpha, beta = (side.values for side in layer.slope_hull(*ends))
    least, most = layer.value_range(*ends)
    for bound in (alpha, beta, least, most):
        assert not bool(bound.isnan().any())
    assert float(torch.maximum(alpha.abs(), beta.abs())) == math.inf
    lines = layer.lines(*ends)
    assert not bool(lines.below_offset.isnan().any() or lines.above_offset.isnan().any())
    inside = torch.linspace(max(low, -30.0), min(high, 30.0), 62, dtype=torch.float64)[1:-1, None]
    values, slopes = layer.forward(inside), layer.secant(inside, inside.roll(1, 0)).values
    assert bool(((least <= values) & (values <= most)).all())
    assert bool(((alpha <= slopes) & (slopes <= beta)).all())


@pytest.mark.parametrize(
    ("function", "constant"),
    [
        (lambda x: x.clamp(-1, 1).exp(), math.e),
        (lambda x: 1 / (1 + x.sigmoid()), 0.25),
        (lambda x: x.clamp(-2, 1) ** 2, 4.0),
        (lambda x: x.clamp(0.25, 4).sqrt(), 1.0),
        (lambda x: x.clamp(0.25, 4).log(), 4.0),
        (lambda x: x.clamp(0.25, 4).rsqrt(), 4.0),
        (lambda x: x.sin(), 1.0),
        (lambda x: x.exp(), math.inf),
        (lambda x: x**2, math.inf),
        (lambda x: 1 / x, math.inf),
        (lambda x: x / (1 + x.sigmoid()), math.inf),
    ],
)
def test_a_proved_range_of_the_input_makes_a_constant_finite(
    function: Callable[[Tensor], Tensor], constant: float
) -> None:
    found = analytical(from_torch(Apply(function, "function"), (3,))).value
    assert (
        found == constant if math.isinf(constant) else constant * ROUNDING <= found <= constant * (1 + 1e-9)
    )


def test_numbers_in_arithmetic_keep_their_digits() -> None:
    """0.7 in float32 is below 0.7: a bound made of it would be too small."""
    assert analytical(from_torch(Apply(lambda x: 0.7 * x, "factor"), (2,))).value == 0.7
    graph = from_torch(Apply(lambda x: x + 0.1, "offset"), (2,))
    assert float(graph.evaluate(torch.zeros(1, 2, dtype=torch.float64))[0, 0]) == 0.1


def test_powers_of_ten_lie_in_the_certified_range_up_to_overflow() -> None:
    layer = Exponential(rate=math.log(10))
    for k in range(0, 309):
        at = torch.tensor([float(k)], dtype=torch.float64)
        low, high = layer.value_range(at, at)
        assert Fraction(float(low)) <= Fraction(10) ** k <= Fraction(float(high))
