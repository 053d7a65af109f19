"""The linear program for L_c, its proof, the joint bounds it rests on, and the merge layers."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from scipy.optimize import linprog
from torch import Tensor, nn

import lipscope
from lipscope.certificates.program import EnergyProgram
from lipscope.certificates.stacks import joint_bounds, stacked_convolution
from lipscope.errors import UnsupportedLayerError
from lipscope.graph import INPUT, Graph, GraphBuilder, from_torch
from lipscope.jacobian import linearize
from lipscope.layers.activation import ReLU
from lipscope.layers.aggregation import Modulus, NormPool, Product
from lipscope.layers.base import UNBOUNDED
from lipscope.layers.dense import Dense
from lipscope.layers.merge import Concatenation
from lipscope.quantities import analytical, evaluate_pair
from strategies import (
    Apply,
    Branches,
    Network,
    Residual,
    import_lone,
    networks,
    output_shape,
    randomised,
    seeds,
)

ROUNDING = 1 - 1e-12
"""Dense norms and secant ratios are themselves computed in float64."""


def example(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def energy_program(graph: Graph) -> EnergyProgram:
    result = analytical(graph)
    constants = [1.0] + [layer.constant for layer in result.layers]
    bounds = [1.0] + [layer.cumulative for layer in result.layers]
    return EnergyProgram(graph, constants, bounds, joint_bounds(graph))


def attained(graph: Graph, net: Network) -> float:
    """The largest stretch seen: Jacobians at points, and secants over several lengths."""
    x = torch.cat([net.points(6), 0.1 * net.points(3, stream=1), 20 * net.points(3, stream=2)])
    norms = torch.linalg.matrix_norm(linearize(graph, graph.linearize_at(x)[1], len(x)).dense(), 2)
    pairs = [(x, x + scale * net.points(12, stream=3)) for scale in (1e-2, 1.0, 10.0)] + [(x, x.roll(1, 0))]
    ratios = [evaluate_pair(graph, a, b, ()).bound for x1, x2 in pairs for a, b in zip(x1, x2, strict=True)]
    # Secant slopes of the pairs are in the set of slopes that the bound ranges over.
    secant = linearize(graph, graph.secant_slopes(*pairs[-1]), len(x)).dense()
    return max(float(norms.max()), float(torch.linalg.matrix_norm(secant, 2).max()), *ratios) * ROUNDING


# ---- networks with filter banks, gates, moduli ------------------------------------------------------


class Gate(nn.Module):
    """sigmoid(a(x)) ⊙ tanh(b(x))."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.a(x)) * torch.tanh(self.b(x))


class Bank(nn.Module):
    """Several linear layers of one signal: some leave as output, some go on through a body, some are summed."""

    def __init__(self, filters: list[nn.Module], leave: int, summed: int, body: nn.Module) -> None:
        super().__init__()
        self.filters = nn.ModuleList(filters)
        self.leave, self.summed, self.body = leave, summed, body

    def forward(self, x: Tensor) -> Tensor:
        images = [layer(x) for layer in self.filters]
        total = self.body(images[-1])
        for image in images[len(images) - self.summed :]:
            total = total - 0.5 * image.relu()
        return torch.cat([*images[: self.leave], total, *map(torch.tanh, images[self.leave :])], 1)


@st.composite
def filter_bank_networks(draw: DrawFn) -> Network:
    """Networks made of `Bank`s, gates, norms over channels and windows: every row of the program occurs."""
    dims = draw(st.sampled_from([0, 0, 1, 2]))
    shape = (draw(st.integers(1, 4)), *(draw(st.integers(2, 4)) for _ in range(dims)))
    parts: list[nn.Module] = []
    current = shape

    def filters(count: int) -> list[nn.Module]:
        if dims == 0:
            return [nn.Linear(current[0], current[0]) for _ in range(count)]
        kernels = [draw(st.sampled_from([1, 3, 5])) for _ in range(count)]
        convolution = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
        return [convolution(current[0], current[0], k, padding=k // 2) for k in kernels]

    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["bank", "bank", "bank", "gate", "norm", "windows", "relu"]))
        if kind == "bank":
            count = draw(st.integers(2, 4))
            leave = draw(st.integers(0, count))
            body = draw(st.sampled_from([nn.ReLU(), nn.Identity(), nn.Sequential(*filters(1), nn.ReLU())]))
            step: nn.Module = Bank(filters(count), leave, draw(st.integers(0, 2)), body)
        elif kind == "gate":
            step = Gate(*filters(2))
        elif kind == "relu":
            step = nn.ReLU()
        else:
            p = draw(st.sampled_from([1.0, 1.5, 2.0, 3.0, math.inf]))
            if kind == "windows" and current[-1] >= 2:
                step = Apply(
                    lambda x, p=p: torch.linalg.vector_norm(x.unfold(-1, 2, 1), p, -1), f"windows {p}"
                )
            else:
                step = Apply(lambda x, p=p: torch.linalg.vector_norm(x, p, 1, keepdim=True), f"norm {p}")
        following = output_shape(step, current)
        if math.prod(following) <= 120:
            parts.append(step)
            current = following
    if not parts:
        parts.append(nn.ReLU())
    return Network(randomised(nn.Sequential(*parts), draw(seeds())), shape, draw(seeds()))


def assert_sound(net: Network) -> bool:
    graph = from_torch(net.module, net.shape)
    result = analytical(graph)
    assert result.product is not None
    assert result.product == result.layers[-1].cumulative
    assert result.value == min(result.product, math.inf if result.program is None else result.program)
    stretch = attained(graph, net)
    assert stretch <= result.value
    if result.program is None:
        return False
    assert stretch <= result.program <= result.product * (1 + 1e-12)
    return result.program < result.product * (1 - 1e-6)


@given(networks(most=6))
@settings(max_examples=12)
def test_the_program_lies_between_what_networks_do_and_the_product_rule(net: Network) -> None:
    assert_sound(net)


def test_the_program_on_filter_banks_and_merge_layers() -> None:
    improved = []

    @given(filter_bank_networks())
    @settings(max_examples=20)
    def check(net: Network) -> None:
        improved.append(assert_sound(net))

    check()
    # The program would pass the checks above if it never did better.
    assert sum(improved) > len(improved) / 3


@given(filter_bank_networks())
@settings(max_examples=12)
def test_joint_bounds_hold_and_are_tight(net: Network) -> None:
    """Each against the operator from the sources to the members, written out."""
    graph = from_torch(net.module, net.shape)
    for bound in joint_bounds(graph):
        sizes = [math.prod(graph.nodes[u].shape) for u in bound.sources]
        units = torch.eye(sum(sizes), dtype=torch.float64).split(sizes, 1)
        values = {
            u: unit.reshape(-1, *graph.nodes[u].shape) for u, unit in zip(bound.sources, units, strict=True)
        }

        def value(index: int, values: dict[int, Tensor] = values) -> Tensor:
            if index not in values:
                values[index] = graph.nodes[index].layer.apply(*map(value, graph.nodes[index].inputs))
            return values[index]

        operator = torch.cat([value(v).flatten(1) for v in bound.members], 1)
        exact = float(torch.linalg.matrix_norm(operator, 2))
        assert exact * ROUNDING <= bound.norm <= exact * (1 + 1e-8)


@given(st.data())
@settings(max_examples=8)
def test_stacked_convolutions_of_several_kernels(data: st.DataObject) -> None:
    """Kernels of several sizes on a signal too large for a dense matrix are stacked on the torus."""
    kernels = data.draw(st.lists(st.sampled_from([1, 3, 5]), min_size=2, max_size=3))
    stride, seed = data.draw(st.integers(1, 2)), data.draw(seeds())
    filters = [nn.Conv1d(1, 2, k, stride, padding=k // 2) for k in kernels]
    module = randomised(Branches(*filters), seed)
    (small,), (large,) = (
        [b.norm for b in joint_bounds(from_torch(module, (1, length))) if len(b.members) == len(kernels)]
        for length in (40, 4000)
    )
    # The norm of a Toeplitz operator grows with the signal, to the limit that the torus gives.
    assert small * (1 - 1e-9) <= large <= small * 1.02


@given(st.data())
@settings(max_examples=40)
def test_a_stacked_convolution_computes_what_its_parts_compute(data: st.DataObject) -> None:
    """Kernels and paddings that differ, also beyond the centre; groups keep their channels together."""
    stride, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    seed, size = data.draw(seeds()), data.draw(st.integers(6, 9))
    layers = []
    for kernel in data.draw(st.lists(st.sampled_from([1, 3, 5]), min_size=2, max_size=3)):
        module = nn.Conv2d(2 * groups, 2 * groups, kernel, stride, kernel // 2, groups=groups, bias=False)
        layers += import_lone(randomised(module, seed + kernel), (2 * groups, size, size))
    x = torch.randn(2, 2 * groups, size, size, dtype=torch.float64)
    # Channels of one group stand together: group by group, layer by layer.
    parts = torch.cat([layer.apply(x).unflatten(1, (groups, -1)) for layer in layers], 2).flatten(1, 2)
    torch.testing.assert_close(stacked_convolution(layers).apply(x), parts, rtol=1e-12, atol=1e-12)


# ---- the paper's program ----------------------------------------------------------------------------


def chain(passed: list[Tensor], output: list[Tensor]) -> Graph:
    """The paper's network: layer m splits the signal y into ReLU(P_m y), passed on, and Q_m y, which is output."""
    builder = GraphBuilder((output[0].shape[1],))
    signal, outputs = INPUT, []
    for p, q in itertools.zip_longest(passed, output):
        outputs.append(builder.add(Dense(q), [signal]))
        if p is not None:
            signal = builder.add(ReLU(), [builder.add(Dense(p), [signal])])
    builder.add(Concatenation(0, tuple(len(q) for q in output)), outputs)
    return builder.build()


def paper_program(passed: list[Tensor], output: list[Tensor]) -> float:
    """max Σ z_m, y_0 = 1, y_m + z_m ≤ B¹ y_{m−1}, y_m ≤ B² y_{m−1}, z_m ≤ B³ y_{m−1}; its root."""
    layers = len(output)
    rows = []
    for m, q in enumerate(output):
        p = passed[m] if m < len(passed) else torch.zeros(0, q.shape[1], dtype=torch.float64)
        for keep_y, keep_z, operator in ((1, 1, torch.cat([p, q])), (1, 0, p), (0, 1, q)):
            norm = float(torch.linalg.svdvals(operator).max()) if len(operator) else 0.0
            row = np.zeros(2 * layers + 1)
            row[m] = -(norm**2)
            row[m + 1] = keep_y
            row[layers + 1 + m] = keep_z
            rows.append(row)
    objective = np.concatenate([np.zeros(layers + 1), -np.ones(layers)])
    limits = [(1, 1)] + [(0, None)] * (2 * layers)
    solution = linprog(
        objective, A_ub=np.array(rows), b_ub=np.zeros(len(rows)), bounds=limits, method="highs"
    )
    return math.sqrt(-solution.fun)


def random_chain(seed: int, layers: int, width: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        scale = torch.rand((), generator=generator) + 0.2
        return torch.randn(rows, width, generator=generator, dtype=torch.float64) * scale

    return [draw(width) for _ in range(layers - 1)], [draw(width // 2) for _ in range(layers)]


@given(seeds(), st.integers(1, 4))
@settings(max_examples=25)
def test_the_papers_program_on_random_chains(seed: int, layers: int) -> None:
    passed, output = random_chain(seed, layers, 6)
    value = analytical(chain(passed, output)).value
    assert value == pytest.approx(paper_program(passed, output), rel=1e-8)


def frame(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """P and Q with PᵀP + QᵀQ = I, each of norm near 1: B¹ = 1 < B² + B³."""
    generator = torch.Generator().manual_seed(seed)
    isometry = torch.linalg.qr(torch.randn(3 * size, size, generator=generator, dtype=torch.float64))[0]
    return isometry[:size], isometry[size:]


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_tight_frames_stretch_nothing(layers: int) -> None:
    frames = [frame(seed, 4) for seed in range(layers)]
    passed, output = [p for p, _ in frames[:-1]], [q for _, q in frames]
    result = analytical(chain(passed, output))
    if layers == 1:
        # Nothing is passed on: one layer, of norm below 1, and no joint bound.
        assert result.program is None
        assert result.value < 1
    else:
        assert result.value == pytest.approx(paper_program(passed, output), rel=1e-9)
        assert result.value <= 1 + 1e-9
        assert result.product is not None
        assert result.product > 1.05 * result.value


def test_a_sum_of_the_parts_of_a_frame() -> None:
    """‖a·relu(Px) + b·relu(Qx)‖ with ‖Px‖² + ‖Qx‖² = ‖x‖²: the program's optimum is √(a² + b²), not a + b."""
    eye = torch.eye(4, dtype=torch.float64)
    for a, b in ((1.0, 1.0), (3.0, 0.5), (1.0, -2.0), (1e-3, 1e3)):
        first, second = nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)
        first.weight.data, second.weight.data = eye[:2], eye[2:]
        module = Apply(lambda x: a * first(x).relu() + b * second(x).relu(), "parts")  # noqa: B023
        module.parts = nn.ModuleList([first, second])
        result = analytical(from_torch(module.double(), (4,)))
        assert result.product == pytest.approx(abs(a) + abs(b), rel=1e-9)
        assert math.hypot(a, b) * ROUNDING <= result.value <= math.hypot(a, b) * (1 + 1e-6)


def test_a_sum_of_linear_images_is_one_operator() -> None:
    body = randomised(nn.Linear(5, 5), 3)
    module = Residual(body, 1.0, False)
    exact = float(torch.linalg.matrix_norm(torch.eye(5, dtype=torch.float64) + body.weight, 2))
    result = analytical(from_torch(module, (5,)))
    assert exact * ROUNDING <= result.value <= exact * (1 + 1e-9)
    assert result.product is not None
    assert result.value < 0.99 * result.product
    # What cancels cancels, up to the rounding that is allowed for.
    cancelled = Apply(lambda x: torch.sub(2 * x, x, alpha=2), "nothing")
    assert analytical(from_torch(cancelled, (5,))).value <= 1e-13


# ---- the proof --------------------------------------------------------------------------------------


@given(seeds(), st.integers(2, 4), st.data())
@settings(max_examples=20)
def test_no_multipliers_prove_less_than_the_optimum(seed: int, layers: int, data: st.DataObject) -> None:
    passed, output = random_chain(seed, layers, 4)
    program = energy_program(chain(passed, output))
    optimum = paper_program(passed, output)
    solved = program.solve()
    assert optimum * (1 - 1e-8) <= program.prove(solved) <= optimum * (1 + 1e-8)
    wrong = st.one_of(
        st.floats(-1.0, 3.0).map(lambda factor: lambda m: factor * m),
        st.floats(0.0, 10.0).map(lambda shift: lambda m: m + shift),
        st.sampled_from([0.0, -1.0, math.nan, math.inf, 1e-300, 1e30]).map(lambda value: lambda m: value),
    )
    perturbed = [data.draw(wrong)(m) for m in solved]
    assert program.prove(perturbed) >= optimum * (1 - 1e-8)


@given(filter_bank_networks(), st.data())
@settings(max_examples=10)
def test_any_multipliers_prove_a_bound(net: Network, data: st.DataObject) -> None:
    """Soundness does not rest on the solver: random multipliers, in number and size, against the network."""
    graph = from_torch(net.module, net.shape)
    program = energy_program(graph)
    generator = np.random.default_rng(data.draw(seeds()))
    stretch = attained(graph, net)
    for scale in (1e-3, 1.0, 1e3):
        assert program.prove((scale * generator.exponential(size=40)).tolist()) >= stretch
    product = analytical(graph).product
    assert program.prove([]) == pytest.approx(product, rel=1e-11)


def test_the_program_is_scaled() -> None:
    """Bounds whose squares overflow, or vanish, are no trouble: energies are kept relative to the product rule's."""
    for gain in (1e-70, 1e70):
        passed, output = random_chain(0, 4, 4)
        reference = analytical(chain(passed, output))
        passed[0] = passed[0] * gain
        passed[1] = passed[1] * gain
        passed[2] = passed[2] * gain
        output[:3] = [q * 0 for q in output[:3]]
        large = analytical(chain(passed, output))
        assert reference.program is not None
        assert large.program is not None
        norms = [float(torch.linalg.matrix_norm(m, 2)) for m in (*passed, output[3])]
        assert large.program == pytest.approx(math.prod(norms), rel=1e-8)


def test_a_chain_needs_no_program() -> None:
    result = analytical(from_torch(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,)))
    assert result.program is None
    assert result.value == result.product
    zero = nn.Linear(3, 3)
    zero.weight.data.zero_()
    assert analytical(from_torch(Branches(zero, zero), (3,))).value == 0.0


# ---- examples ---------------------------------------------------------------------------------------


def test_scattering_stretches_nothing() -> None:
    scattering = example("scattering")
    low, high = scattering.filter_bank(64, 5)
    total = low.square() + sum((h.square() + h.roll(-1).flip(0).square()) / 2 for h in high)
    torch.testing.assert_close(total, torch.ones(64, dtype=torch.float64), rtol=0, atol=1e-14)
    graph = from_torch(scattering.build(), (64,))
    result = analytical(graph)
    assert result.product is not None
    assert result.product > 3.99
    assert result.value <= 1 + 1e-9
    # Attained: a constant signal passes the low pass unchanged.
    constant = torch.ones(64, dtype=torch.float64)
    pair = evaluate_pair(graph, constant, 2 * constant, ())
    assert 1 - 1e-9 <= pair.bound <= result.value


def test_googlenet_at_reduced_width() -> None:
    module = example("googlenet").build(width=1 / 8, classes=4)
    graph = from_torch(module, (3, 33, 33))
    result = analytical(graph)
    assert result.program is not None
    assert result.product is not None
    assert result.program < 0.8 * result.product
    x = torch.randn(2, 3, 33, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = lipscope.spectral_norm(linearize(graph, graph.linearize_at(x)[1], 2))
    assert 0 < float(found.value.max()) * ROUNDING <= result.value


# ---- merge layers -----------------------------------------------------------------------------------

POWERS = st.sampled_from([1.0, 1.3, 2.0, 3.0, 7.0, math.inf])


@st.composite
def merges(draw: DrawFn) -> Network:
    """One merge layer: norms over any axes, over windows, hypot, products of bounded signals."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(2, 6)), draw(st.integers(2, 4)))
    p, keep = draw(POWERS), draw(st.booleans())
    dims = draw(st.sampled_from([1, 2, 3, (1, 2), (2, 3), (1, 3), (1, 2, 3), -1]))
    size = draw(st.integers(1, shape[1]))
    step = draw(st.integers(1, 3))
    module = draw(
        st.sampled_from(
            [
                Apply(lambda x: torch.linalg.vector_norm(x, p, dims, keepdim=keep), f"p={p}, {dims}, {keep}"),
                Apply(lambda x: x.unfold(2, size, step).norm(p, -1), f"p={p}, windows {size} by {step}"),
                Apply(lambda x: x.unfold(3, 2, 1).unfold(2, size, step).norm(p, (-1, -2)), "windows in 2d"),
                Apply(lambda x: torch.hypot(x, 0.5 * x + 1), "hypot"),
                Apply(lambda x: torch.stack([x, -2 * x, x.relu()], 2), "stack"),
                Apply(lambda x: torch.sigmoid(x) * torch.tanh(2 * x), "gate"),
                Apply(lambda x: (1 - torch.sigmoid(x)) * x.clamp(-3, 0.5), "update"),
                Apply(
                    lambda x: torch.tanh(x).permute(0, 2, 1, 3) * x.permute(0, 2, 1, 3).clamp(0, 2),
                    "permuted",
                ),
                Apply(lambda x: torch.sigmoid(x) * torch.sigmoid(x) * torch.tanh(x), "of three"),
            ]
        )
    )
    return Network(module, shape, draw(seeds()))


def reverse_mode(net: Network, x: Tensor) -> Tensor:
    rows = [torch.func.jacrev(lambda v: net.module(v[None])[0])(one) for one in x]
    return torch.stack([row.reshape(-1, one.numel()) for row, one in zip(rows, x, strict=True)])


@given(merges())
@settings(max_examples=20)
def test_merge_layers_have_the_jacobian_of_autograd_and_exact_secants(net: Network) -> None:
    graph = from_torch(net.module, net.shape)
    x1, x2 = (
        net.points(4),
        net.points(4, stream=1) * torch.tensor([0.01, 1.0, 1.0, 30.0])[:, None, None, None],
    )
    value, slopes = graph.linearize_at(x1)
    torch.testing.assert_close(value, net(x1), rtol=1e-12, atol=1e-12)
    operator = linearize(graph, slopes, 4)
    torch.testing.assert_close(operator.dense(), reverse_mode(net, x1), rtol=1e-9, atol=1e-11)
    u, v = net.points(3, 4, stream=2), torch.randn(3, 4, *graph.output_shape, dtype=torch.float64)
    left, right = (operator.matvec(u) * v).sum(), (u * operator.rmatvec(v)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-10, abs=1e-10)
    secant = linearize(graph, graph.secant_slopes(x1, x2), 4)
    torch.testing.assert_close(secant.matvec((x1 - x2)[None])[0], net(x1) - net(x2), rtol=1e-10, atol=1e-10)
    # Between the same points the secant slopes are slopes still.
    same = linearize(graph, graph.secant_slopes(x1, x1), 4).dense()
    assert bool(torch.isfinite(same).all())
    bound = analytical(graph).value
    for matrices in (operator.dense(), secant.dense(), same):
        assert float(torch.linalg.matrix_norm(matrices, 2).max()) * ROUNDING <= bound
    assert attained(graph, net) <= bound


@given(merges())
@settings(max_examples=10)
def test_merge_layers_where_the_gradient_does_not_exist(net: Network) -> None:
    """At 0, at ties and beside overflow: finite slopes within the bound."""
    graph = from_torch(net.module, net.shape)
    bound = analytical(graph).value
    zero = torch.zeros(1, *net.shape, dtype=torch.float64)
    for x in (zero, zero + 1, zero + 1e200, zero + 1e-200):
        matrix = linearize(graph, graph.linearize_at(x)[1]).dense()
        assert bool(torch.isfinite(matrix).all())
        assert float(torch.linalg.matrix_norm(matrix, 2)) * ROUNDING <= bound


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0, math.inf])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_constant_of_a_norm_is_attained(p: float, size: int) -> None:
    graph = Graph.chain((size, 3), [NormPool(p, (0,))])
    bound = analytical(graph).value
    zero = torch.zeros(size, 3, dtype=torch.float64)
    spike = zero.clone()
    spike[0] = 1.0
    best = max(evaluate_pair(graph, zero, zero + 1, ()).ratio, evaluate_pair(graph, zero, spike, ()).ratio)
    assert best * ROUNDING <= bound <= best * (1 + 1e-12)


def test_overlapping_windows_count_once_each() -> None:
    """Where an entry is the largest of three windows, pooling stretches it by √3."""
    module = Apply(lambda x: x.unfold(1, 3, 1).norm(math.inf, -1), "maximum")
    graph = from_torch(module, (9,))
    x = torch.zeros(9, dtype=torch.float64)
    y = x.clone()
    y[4] = 1.0
    assert evaluate_pair(graph, x, y, ()).ratio == pytest.approx(math.sqrt(3), rel=1e-12)
    assert analytical(graph).value == pytest.approx(math.sqrt(3), rel=1e-12)


def test_the_modulus_is_recognised() -> None:
    pair = from_torch(Apply(lambda x: torch.linalg.vector_norm(x, dim=1), "pair"), (2, 5))
    assert isinstance(pair.nodes[-1].layer, Modulus)
    assert isinstance(from_torch(Apply(lambda x: torch.hypot(x, x), "hypot"), (4,)).nodes[-1].layer, Modulus)
    triple = from_torch(Apply(lambda x: torch.linalg.vector_norm(x, dim=1), "triple"), (3, 5))
    assert not isinstance(triple.nodes[-1].layer, Modulus)


def test_a_product_of_bounded_signals_is_bounded_by_its_factors() -> None:
    """The bounds found are those of the producing layers; the constant is B·L_a + A·L_b by the program."""
    a, b = (randomised(nn.Linear(4, 4), seed) for seed in (1, 2))
    cases = [
        (lambda x: torch.sigmoid(a(x)) * torch.tanh(b(x)), (1.0, 1.0), 0.25, 1.0),
        (lambda x: a(x).clamp(-0.5, 3.0) * torch.tanh(b(x)), (3.0, 1.0), 1.0, 1.0),
        (lambda x: a(x).clamp(-0.5, 3.0).relu() * (2 - 4 * torch.sigmoid(b(x))), (3.0, 2.0), 1.0, 1.0),
    ]
    for function, bounds, first, second in cases:
        module = Apply(function, "gate")
        module.parts = nn.ModuleList([a, b])
        graph = from_torch(module, (4,))
        layer = graph.nodes[-1].layer
        assert isinstance(layer, Product)
        assert layer.bounds == pytest.approx(bounds, rel=1e-12)
        norms = [float(torch.linalg.matrix_norm(m.weight, 2)) for m in (a, b)]
        apart = bounds[1] * first * norms[0] + bounds[0] * second * norms[1]
        value = analytical(graph).value
        assert value <= apart * (1 + 1e-9)
        # Aligned, two equal factors attain the rule.
    square = from_torch(Apply(lambda x: x.clamp(-1, 2) * x.clamp(-1, 2), "square"), (3,))
    assert analytical(square).value == pytest.approx(4.0, rel=1e-12)
    steepest = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    assert evaluate_pair(square, steepest, steepest - 1e-4, ()).bound > 3.9 / math.sqrt(3)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x,
        lambda x: x * torch.sigmoid(x),
        lambda x: torch.sigmoid(x) * (x + 1).relu(),
        lambda x: torch.sigmoid(x) * x.norm(dim=-1, keepdim=True),
    ],
)
def test_a_product_with_an_unbounded_factor_has_no_bound_and_says_so(function) -> None:
    found = analytical(from_torch(Apply(function, "product"), (3,)))
    assert found.value == found.product == math.inf
    assert found.no_bound is not None
    (layer,) = found.no_bound.layers
    assert layer.layer == "product"
    assert "(Apply)" in layer.place
    assert "of which one is unbounded" in found.no_bound.reason


def test_a_product_of_broadcast_bounded_signals_has_a_bound() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for function in (
        lambda x: torch.sigmoid(x) * torch.sigmoid(x[..., :1].expand(-1, 3)),
        lambda x: torch.sigmoid(x) * torch.sigmoid(x.norm(dim=-1, keepdim=True)),
    ):
        graph = from_torch(Apply(function, "broadcast"), (3,))
        found = analytical(graph)
        assert found.no_bound is None
        steepest = max(evaluate_pair(graph, a, b, ()).bound for a, b in itertools.pairwise(x))
        assert 0 < steepest <= found.value < math.inf


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: torch.linalg.vector_norm(x, 0.5, 1), "not a norm"),
        (lambda x: torch.linalg.vector_norm(x, 2, 0, keepdim=True) * x, "batch"),
    ],
)
def test_what_has_no_bound_is_refused(function, why: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=why):
        from_torch(Apply(function, "refused"), (3,))


@given(st.one_of(networks(most=5), filter_bank_networks(), merges()))
@settings(max_examples=15)
def test_output_ranges_hold(net: Network) -> None:
    """Propagated from a finite range of the input, and from none."""
    graph = net.graph
    x = torch.cat([net.points(4), 30 * net.points(4, stream=1)])
    for start in (UNBOUNDED, (float(x.min()), float(x.max()))):
        ranges, values = [start], [x]
        for index, node in enumerate(graph.nodes):
            if index != INPUT:
                assert node.layer is not None
                shapes = graph.shapes_into(index)
                ranges.append(node.layer.output_range([ranges[i] for i in node.inputs], shapes))
                values.append(node.layer.forward(*(values[i] for i in node.inputs)))
            low, high = ranges[-1]
            slack = 1e-12 * max(1.0, float(values[-1].abs().max()))
            assert low - slack <= float(values[-1].min())
            assert float(values[-1].max()) <= high + slack


def test_effective_constants_of_networks_with_merge_layers() -> None:
    """Averaged weights of norms and products: over one sample, at level unit, they are its own."""
    module = randomised(
        nn.Sequential(
            nn.Linear(6, 8),
            Apply(lambda x: torch.linalg.vector_norm(x.unflatten(1, (2, 4)), dim=1), "modulus"),
            Gate(nn.Linear(4, 4), nn.Linear(4, 4)),
        ),
        4,
    )
    graph = from_torch(module, (6,))
    x = Network(module, (6,), 5).points(7)
    _, slopes = graph.linearize_at(x[:1])
    unit = {i: slope.mean("unit") for i, slope in slopes.items()}
    exact, averaged = linearize(graph, slopes).dense(), linearize(graph, unit).dense()
    torch.testing.assert_close(averaged, exact)
    means = lipscope.mean_slopes(graph, lipscope.load_samples(x), pairs=5, batch_size=3)
    for level, reading in (
        ("scalar", "active"),
        ("scalar", "paper"),
        ("channel", "active"),
        ("channel", "secant"),
    ):
        found, _ = lipscope.effective(means, level, reading)
        assert 0 < found.value < 10
        dense = linearize(graph, means.at(level, reading)).dense()
        assert found.value == pytest.approx(float(torch.linalg.matrix_norm(dense[0], 2)), rel=1e-5)
    scalar = means.at("scalar", "active")
    by_hand = lipscope.scalar_slopes(graph, means.fractions("active"))
    torch.testing.assert_close(linearize(graph, scalar).dense(), linearize(graph, by_hand).dense())
    assert len(means.table()) == len(graph.nonlinear())
