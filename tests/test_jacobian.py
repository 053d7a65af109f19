"""The frozen-slope Jacobian on generated networks, against the module and torch.func."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from lipscope.graph import Graph, from_torch
from lipscope.jacobian import linearize
from lipscope.layers import LinearLayer, NonlinearLayer
from lipscope.layers.activation import Activation
from lipscope.layers.max_pool import MaxPool
from lipscope.slopes import Diagonal, SecantSelector, Selector, TapWeights, subsampling, uniform_taps
from strategies import Network, import_lone, max_pools, networks, new_networks, output_shape, seeds

LEVELS = ("scalar", "channel", "unit")


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))


def jacobians(net: Network, x: Tensor) -> Tensor:
    """Dense Jacobians (B, out, in) by reverse mode."""
    rows = [torch.func.jacrev(lambda v: net.module(v.clone()[None])[0])(one) for one in x]
    return torch.stack([row.reshape(-1, one.numel()) for row, one in zip(rows, x, strict=True)])


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(2).sum(-1)


def assert_adjoint(operator, seed: int = 0) -> None:
    """⟨Jv, u⟩ = ⟨v, Jᵀu⟩ relative to |J||v|·|u|, for a block of 3."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(3, operator.batch, *operator.input_shape, generator=generator, dtype=torch.float64)
    u = torch.randn(3, operator.batch, *operator.output_shape, generator=generator, dtype=torch.float64)
    image, back = operator.matvec(v), operator.rmatvec(u)
    assert image.shape == u.shape
    assert back.shape == v.shape
    size = inner(image, image).sqrt() * inner(u, u).sqrt() + inner(back, back).sqrt() * inner(v, v).sqrt()
    assert bool(((inner(image, u) - inner(v, back)).abs() <= 1e-12 * size + 1e-300).all())


@given(new_networks())
@settings(max_examples=40)
def test_graph_computes_what_the_module_computes(net: Network) -> None:
    graph = from_torch(net.module, net.shape)
    x = net.points(5)
    expected = net(x)
    assert graph.output_shape == expected.shape[1:]
    torch.testing.assert_close(
        graph.evaluate(x), expected, rtol=1e-11, atol=1e-11 * float(expected.abs().max())
    )
    narrow = graph.to(torch.float32)
    if narrow.parameters():
        assert narrow.dtype == torch.float32
    assert relative(narrow.evaluate(x.float()).double(), expected) < 1e-3


@given(networks())
@settings(max_examples=45)
def test_jacobian_equals_reverse_mode_and_has_its_adjoint(net: Network) -> None:
    graph = net.graph
    x = net.points(3)
    value, slopes = graph.linearize_at(x)
    operator = linearize(graph, slopes, batch=3)
    torch.testing.assert_close(value, graph.evaluate(x), rtol=0, atol=0)
    expected = jacobians(net, x)
    dense = operator.dense()
    assert dense.shape == expected.shape
    for ours, theirs in zip(dense, expected, strict=True):
        assert relative(ours, theirs) < 1e-10
    assert_adjoint(operator, net.seed)
    # The transpose as a matrix, and so J and Jᵀ independently of the inner products.
    size = expected.shape[1]
    eye = torch.eye(size, dtype=torch.float64).reshape(size, 1, *graph.output_shape)
    rows = operator.rmatvec(eye.expand(-1, 3, *graph.output_shape)).flatten(2).permute(1, 0, 2)
    torch.testing.assert_close(rows, dense, rtol=1e-11, atol=1e-12 * float(dense.abs().max()))


@given(networks(most=7))
@settings(max_examples=45)
def test_secant_slopes_map_a_difference_to_the_difference(net: Network) -> None:
    graph = net.graph
    x1 = net.points(4)
    scale = torch.tensor([1.0, 1.0, 1e-2, 30.0], dtype=torch.float64).reshape(4, *[1] * len(net.shape))
    x2 = torch.where(scale == 1, net.points(4, stream=1), x1 + scale * net.points(4, stream=1))
    slopes = graph.secant_slopes(x1, x2)
    operator = linearize(graph, slopes, batch=4)
    stretched = operator.matvec((x1 - x2)[None])[0]
    expected = net(x1) - net(x2)
    rounding = 1e-13 * float((net(x1).abs() + net(x2).abs()).max())
    for ours, theirs in zip(stretched, expected, strict=True):
        assert float((ours - theirs).norm()) <= 1e-9 * float(theirs.norm()) + rounding
    assert_adjoint(operator, net.seed)
    for index, layer in graph.nonlinear().items():
        if isinstance(layer, Activation):
            low, high = layer.slope_range
            slope = slopes[index]
            assert isinstance(slope, Diagonal)
            assert bool(((slope.values >= low) & (slope.values <= high)).all())
        else:
            slope = slopes[index]
            assert isinstance(slope, SecantSelector)
            assert bool(((slope.share >= 0) & (slope.share <= 1)).all())


@given(networks())
@settings(max_examples=20)
def test_averaged_slopes(net: Network) -> None:
    graph = net.graph
    x1, x2 = net.points(4), net.points(4, stream=1)
    for slopes in (graph.linearize_at(x1)[1], graph.secant_slopes(x1, x2)):
        for level in LEVELS:
            averaged = {i: slope.mean(level) for i, slope in slopes.items()}
            operator = linearize(graph, averaged)
            assert_adjoint(operator, net.seed)
            for i, slope in averaged.items():
                # Averaging an average changes nothing at the same level.
                again = slope.mean(level)
                torch.testing.assert_close(again.values, slope.values, rtol=1e-13, atol=0)
                original = slopes[i]
                if isinstance(original, Diagonal):
                    kept = {
                        "scalar": original.values.mean().expand(1, *original.values.shape[1:]),
                        "channel": original.values.transpose(0, 1)
                        .flatten(1)
                        .mean(1)[None]
                        .reshape(1, -1, *[1] * (original.values.ndim - 2)),
                        "unit": original.values.mean(0, keepdim=True),
                    }[level]
                    whole = slope.values.expand(1, *original.values.shape[1:])
                    torch.testing.assert_close(whole, kept.expand_as(whole), rtol=1e-13, atol=1e-15)
                else:
                    assert isinstance(slope, TapWeights)
                    # Every window selects exactly one cell: the weights of its taps sum to one.
                    total = slope.values.sum(0)
                    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)


@given(networks())
@settings(max_examples=15)
def test_unit_means_are_arithmetic_means_of_the_layers(net: Network) -> None:
    """At level `unit`, the averaged slope of each layer is the mean of the samples' linear maps."""
    graph = net.graph
    x = net.points(3)
    _, slopes = graph.linearize_at(x)
    for index, slope in slopes.items():
        (shape,) = graph.shapes_into(index)
        v = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        mean = slope.apply(v.expand(-1, 3, *shape)).mean(1, keepdim=True)
        torch.testing.assert_close(slope.mean("unit").apply(v), mean, rtol=1e-12, atol=1e-14)


@given(max_pools(1) | max_pools(2) | max_pools(3), seeds())
@settings(max_examples=60)
def test_tap_weights_of_one_sample_are_its_selector(
    drawn: tuple[nn.Module, tuple[int, ...]], seed: int
) -> None:
    module, shape = drawn
    layer = _pool_layer(module, shape)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    value, selector = layer.linearize(x)
    torch.testing.assert_close(value, module(x), rtol=0, atol=0)
    assert isinstance(selector, Selector)
    taps = selector.mean("unit")
    v = torch.randn(3, 1, *shape, generator=generator, dtype=torch.float64)
    image = selector.apply(v)
    u = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(taps.apply(v), image, rtol=0, atol=0)
    torch.testing.assert_close(taps.transpose(u), selector.transpose(u), rtol=1e-13, atol=1e-14)
    # At the point itself the selector returns the maxima.
    torch.testing.assert_close(selector.apply(x[None])[0], value, rtol=0, atol=0)
    # The largest number of windows on one cell bounds the norm, and some selection attains it or less.
    columns = selector.transpose(torch.ones_like(image)).amax()
    assert float(columns) <= layer.windows.largest_cover()
    assert layer.constant(shape) ** 2 >= layer.windows.largest_cover()


@given(max_pools(1) | max_pools(2) | max_pools(3), seeds())
@settings(max_examples=60)
def test_fixed_readings_of_pooling(drawn: tuple[nn.Module, tuple[int, ...]], seed: int) -> None:
    """1/τ at every tap, and 1/τ at the centre tap, act as they say and have their adjoints."""
    module, shape = drawn
    layer = _pool_layer(module, shape)
    windows = layer.windows
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(2, 1, *shape, generator=generator, dtype=torch.float64)
    u = torch.randn(2, 1, shape[0], *windows.out_size, generator=generator, dtype=torch.float64)
    for weights, factor in ((uniform_taps(windows), windows.taps), (subsampling(windows), 1)):
        image, back = weights.apply(v), weights.transpose(u)
        torch.testing.assert_close(inner(image, u), inner(v, back), rtol=1e-11, atol=1e-12)
        assert float(weights.values.sum()) == pytest.approx(factor / windows.taps)
    ones = torch.ones(1, 1, *shape, dtype=torch.float64)
    inside = subsampling(windows).apply(ones) * windows.taps
    if not layer.ceil_mode and all(2 * p < k for p, k in zip(windows.padding, windows.kernel, strict=True)):
        torch.testing.assert_close(inside, torch.ones_like(inside), rtol=1e-13, atol=0)


@given(max_pools(1) | max_pools(2) | max_pools(3), seeds())
@settings(max_examples=60)
def test_secant_of_max_pooling_with_ties(drawn: tuple[nn.Module, tuple[int, ...]], seed: int) -> None:
    """Integer inputs tie often; the secant selector still maps the difference to the difference."""
    module, shape = drawn
    layer = _pool_layer(module, shape)
    generator = torch.Generator().manual_seed(seed)
    x1, x2 = (torch.randint(-2, 3, (2, *shape), generator=generator).double() for _ in range(2))
    slope = layer.secant(x1, x2)
    actual = slope.apply((x1 - x2)[None])[0]
    torch.testing.assert_close(actual, module(x1) - module(x2), rtol=1e-14, atol=1e-14)


def _pool_layer(module: nn.Module, shape: tuple[int, ...]) -> MaxPool:
    (layer,) = import_lone(module, shape)
    assert isinstance(layer, MaxPool)
    return layer


@given(networks())
@settings(max_examples=25)
def test_batches_and_blocks_agree_with_one_at_a_time(net: Network) -> None:
    graph = net.graph
    x1, x2 = net.points(3), net.points(3, stream=1)
    at_once = (
        linearize(graph, graph.linearize_at(x1)[1], batch=3),
        linearize(graph, graph.secant_slopes(x1, x2), batch=3),
    )
    v = net.points(2, 3, stream=2)
    u = torch.randn(
        2, 3, *graph.output_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    images = [operator.matvec(v) for operator in at_once]
    backs = [operator.rmatvec(u) for operator in at_once]
    for b in range(3):
        a, c = x1[b : b + 1], x2[b : b + 1]
        alone = (linearize(graph, graph.linearize_at(a)[1]), linearize(graph, graph.secant_slopes(a, c)))
        for operator, image, back in zip(alone, images, backs, strict=True):
            for p in range(2):
                one = operator.matvec(v[p : p + 1, b : b + 1])
                torch.testing.assert_close(one[0, 0], image[p, b], rtol=1e-11, atol=1e-12)
                one = operator.rmatvec(u[p : p + 1, b : b + 1])
                torch.testing.assert_close(one[0, 0], back[p, b], rtol=1e-11, atol=1e-12)


@given(networks())
@settings(max_examples=25)
def test_every_layer_is_affine_or_acts_through_slopes(net: Network) -> None:
    graph = net.graph
    assert graph.output_shape == output_shape(net.module, net.shape)
    for index, node in enumerate(graph.nodes):
        layer = node.layer
        if layer is None:
            continue
        generator = torch.Generator().manual_seed(index)
        xs = [torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in graph.shapes_into(index)]
        ys = [torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in graph.shapes_into(index)]
        value = layer.forward(*xs)
        assert value.shape == (2, *node.shape)
        if isinstance(layer, LinearLayer):
            differences = [a - b for a, b in zip(xs, ys, strict=True)]
            image = layer.apply(*differences)
            torch.testing.assert_close(image, value - layer.forward(*ys), rtol=1e-10, atol=1e-10)
            u = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            backs = layer.transpose(u)
            assert len(backs) == len(xs)
            product = sum(float((d * back).sum()) for d, back in zip(differences, backs, strict=True))
            assert float((image * u).sum()) == pytest.approx(product, rel=1e-10, abs=1e-10)
        else:
            assert isinstance(layer, NonlinearLayer)
            linearised, slope = layer.linearize(xs[0])
            torch.testing.assert_close(linearised, value, rtol=0, atol=0)
            assert slope.apply(xs[0][None])[0].shape == value.shape


class SharedInPlace(nn.Module):
    """The ReLU overwrites what the second branch reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(self.relu(a))
        return b + a


def test_in_place_relu_shared_by_two_branches_imports_as_what_it_computes() -> None:
    torch.manual_seed(0)
    module = SharedInPlace().double()
    graph = from_torch(module, (4,))
    x = torch.randn(20, 4, dtype=torch.float64)
    a = module.first(x).relu()
    expected = module.second(a) + a
    torch.testing.assert_close(graph.evaluate(x), expected, rtol=1e-12, atol=1e-13)
    net = Network(module, (4,), 0)
    dense = linearize(graph, graph.linearize_at(x)[1], batch=20).dense()
    torch.testing.assert_close(dense, jacobians(net, x), rtol=1e-11, atol=1e-12)


def test_a_graph_without_slopes_is_refused() -> None:
    graph = from_torch(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), (3,))
    with pytest.raises(ValueError, match=r"no slope for 1 \(ReLU\)"):
        linearize(graph, {})


def test_the_identity_network() -> None:
    graph = from_torch(nn.Identity(), (2, 3))
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert torch.equal(graph.evaluate(x), x)
    operator = linearize(graph, {}, batch=4)
    assert torch.equal(operator.dense(), torch.eye(6, dtype=torch.float64).expand(4, 6, 6))
    assert torch.equal(operator.rmatvec(x[None]), x[None])


def test_one_input_used_twice_by_one_layer() -> None:
    """x + x and cat(x, x) name one node twice; its adjoint collects both."""

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.sigmoid(x)
            return torch.cat([y + y, y - 3 * y, y], 1)

    graph = from_torch(Twice(), (3,))
    x = torch.randn(2, 3, dtype=torch.float64)
    operator = linearize(graph, graph.linearize_at(x)[1], batch=2)
    net = Network(Twice(), (3,), 0)
    torch.testing.assert_close(operator.dense(), jacobians(net, x), rtol=1e-12, atol=1e-13)
    assert_adjoint(operator)


def test_chain_builds_the_same_graph_as_the_importer() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)
    ).double()
    graph = from_torch(module, (2, 6, 6))
    layers = [node.layer for node in graph.nodes[1:]]
    again = Graph.chain((2, 6, 6), layers)
    assert [n.shape for n in again.nodes] == [n.shape for n in graph.nodes]
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    assert torch.equal(again.evaluate(x), graph.evaluate(x))
    assert again.fingerprint() == graph.fingerprint()


def test_the_matrix_of_a_number_for_each_sample_is_a_row() -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.vector_norm(x, dim=1)

    graph = from_torch(Norm().double(), (3,))
    x = torch.randn(4, 3, dtype=torch.float64)
    dense = linearize(graph, graph.linearize_at(x)[1], batch=4).dense()
    torch.testing.assert_close(dense, (x / x.norm(dim=1, keepdim=True)).unsqueeze(1))
