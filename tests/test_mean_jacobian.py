"""The mean Jacobian and second moment, streamed, against the Jacobians written out."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipscope
from helpers import Memory
from lipscope.graph import Graph, from_torch
from lipscope.jacobian import linearize
from lipscope.quantities.draws import GROUPS
from lipscope.quantities.mean_jacobian import JacobianStream, MeanJacobian
from lipscope.quantities.sketch import _standard_error, mean_jacobian_norm, second_moment
from lipscope.spectral import spectral_norm
from strategies import Network, networks, randomised

READINGS = ("active", "secant")
NEVER_ABOVE = 1 + 1e-9
EXACT = {"dtype": torch.float64, "batch_size": 5}

readings = st.sampled_from(READINGS)


def full(graph: Graph, samples: lipscope.Samples, reading: str, **options: Any) -> lipscope.results.Effective:
    """The norm of the mean Jacobian, from mean slopes over the same data."""
    taken = {k: v for k, v in options.items() if k in ("pairs", "batch_size", "dtype")}
    return mean_jacobian_norm(lipscope.mean_slopes(graph, samples, **taken), samples, reading, **options)


def samples_of(net: Network, count: int) -> lipscope.Samples:
    return lipscope.load_samples(net.points(count))


def drawn_pairs(stream: JacobianStream) -> list[tuple[int, int]]:
    return [
        (batch.indices[run.first + k], batch.indices[run.second + k])
        for batch in stream.batches
        for run in batch.pairs
        for k in range(run.count)
    ]


def dense(graph: Graph, x: Tensor, stream: JacobianStream) -> Tensor:
    """All Jacobians of the stream, one by one (n, out, in)."""
    if stream.reading == "active":
        return linearize(graph, graph.linearize_at(x)[1], len(x)).dense()
    first, second = map(list, zip(*drawn_pairs(stream), strict=True))
    return linearize(graph, graph.secant_slopes(x[first], x[second]), len(first)).dense()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * (1 + float(b.abs().max())))


@given(networks(most=5), readings)
@settings(max_examples=25)
def test_products_are_those_of_the_mean(net: Network, reading: str) -> None:
    graph, x = net.graph, net.points(11)
    stream = JacobianStream.over(graph, samples_of(net, 11), reading, pairs=17, **EXACT)
    matrices = dense(graph, x, stream)
    assert len(stream) == len(matrices) == (11 if reading == "active" else 17)
    operator, mean = MeanJacobian(stream), matrices.mean(0)
    v = net.points(2, 1, stream=1)
    u = torch.randn(
        3, 1, *graph.output_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    image, back = operator.both(v, u)
    close(image.flatten(1), v.flatten(1) @ mean.T)
    close(back.flatten(1), u.flatten(1) @ mean)
    assert torch.equal(operator.matvec(v), image)
    assert torch.equal(operator.rmatvec(u), back)
    second, image = operator.gram(v)
    close(image.flatten(1), v.flatten(1) @ mean.T)
    close(second.flatten(1), v.flatten(1) @ (matrices.mT @ matrices).mean(0))


@given(networks(most=5), st.integers(2, 12), st.integers(1, 40))
@settings(max_examples=12)
def test_secant_jacobians_are_those_of_the_pairs_drawn(net: Network, count: int, pairs: int) -> None:
    """J Δx = Δy for each, and no other pair, none left out."""
    graph, x = net.graph, net.points(count)
    stream = JacobianStream.over(graph, samples_of(net, count), "secant", pairs=pairs, **EXACT)
    expected = iter(drawn_pairs(stream))
    seen = 0
    for jacobian, _ in stream.jacobians(stream.batches):
        members = list(itertools.islice(expected, jacobian.batch))
        first, second = map(list, zip(*members, strict=True))
        change = stream.tail.matvec(jacobian.matvec(stream.head.matvec((x[first] - x[second])[None])))
        y1, y2 = net(x[first]), net(x[second])
        noise = 1e-8 * (1 + float(y1.abs().max()) + float(y2.abs().max()))
        torch.testing.assert_close(change[0], y1 - y2, rtol=1e-6, atol=noise)
        seen += jacobian.batch
    assert seen == len(stream) == min(pairs, count * (count - 1) // 2)


@given(networks(most=4), readings)
@settings(max_examples=16)
def test_norm_and_second_moment_against_dense(net: Network, reading: str) -> None:
    """Never above; and the answer of many passes is the exact one."""
    graph, x = net.graph, net.points(14)
    samples = samples_of(net, 14)
    stream = JacobianStream.over(graph, samples, reading, pairs=20, **EXACT)
    matrices = dense(graph, x, stream)
    norm = float(torch.linalg.matrix_norm(matrices.mean(0), 2))
    tiny = 1e-13 * float(torch.linalg.matrix_norm(matrices, 2).max())
    one = full(graph, samples, reading, pairs=20, block=2, passes=1, **EXACT)
    many = full(graph, samples, reading, pairs=20, block=4, passes=40, tolerance=1e-7, **EXACT)
    assert one.level == "full"
    assert one.reading == reading
    assert one.value <= norm * NEVER_ABOVE + tiny
    assert many.value <= norm * NEVER_ABOVE + tiny
    assert many.value == pytest.approx(norm, rel=1e-5, abs=tiny)

    roots = torch.linalg.eigvalsh((matrices.mT @ matrices).mean(0)).flip(0).clamp_min(0).sqrt()
    tiny = 1e-7 * float(roots[0]) + 1e-300  # a root of rounding
    first, vectors = second_moment(graph, samples, reading, pairs=20, directions=2, **EXACT)
    exact, _ = second_moment(
        graph, samples, reading, pairs=20, directions=2, passes=40, tolerance=1e-8, **EXACT
    )
    assert exact.value == pytest.approx(float(roots[0]), rel=1e-5, abs=tiny)
    assert first.value == first.leading[0]
    assert vectors.shape == (len(first.leading), *net.shape)
    close(vectors.flatten(1) @ vectors.flatten(1).T, torch.eye(len(vectors), dtype=torch.float64))
    for k, value in enumerate(first.leading):
        assert value <= float(roots[k]) * NEVER_ABOVE + tiny
    # What the values say: the mean square stretch along each direction. And they never exceed the trace.
    stretch = (matrices @ vectors.flatten(1).T).square().sum(1).mean(0).sqrt()
    close(
        torch.tensor(first.leading, dtype=torch.float64) / (roots[0] + 1e-300), stretch / (roots[0] + 1e-300)
    )
    energy = float(matrices.square().sum((1, 2)).mean())
    assert sum(value**2 for value in first.leading) <= energy * NEVER_ABOVE + tiny**2
    # Jensen: ‖E[J]‖² ≤ ‖E[JᵀJ]‖.
    assert one.value <= exact.value * (1 + 1e-4) + tiny


def classifier(seed: int = 0) -> tuple[Graph, lipscope.Samples, Tensor]:
    module = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 45))
    graph = from_torch(randomised(module, seed, gain=1.5), (40,))
    generator = torch.Generator().manual_seed(seed + 1)
    spread = 3.0 * 0.9 ** torch.arange(40, dtype=torch.float64)
    x = spread * torch.randn(300, 40, generator=generator, dtype=torch.float64)
    return graph, lipscope.load_samples(x), x


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("seed", range(4))
def test_the_stated_error_covers_the_truth(reading: str, seed: int) -> None:
    graph, samples, x = classifier(seed)
    options: dict[str, Any] = {"pairs": 400, "batch_size": 16, "dtype": torch.float64}
    matrices = dense(graph, x, JacobianStream.over(graph, samples, reading, **options))
    norm = float(torch.linalg.matrix_norm(matrices.mean(0), 2))
    root = float(torch.linalg.eigvalsh((matrices.mT @ matrices).mean(0))[-1].sqrt())
    last = 0.0
    for passes, most in ((1, 0.05), (2, 0.01), (4, 1e-3)):
        found = full(graph, samples, reading, passes=passes, **options)
        assert last <= found.value * NEVER_ABOVE
        assert found.value <= norm * NEVER_ABOVE
        assert norm <= found.value * (1 + found.relative_error)
        assert found.value >= norm * (1 - most)
        last = found.value
        moment, _ = second_moment(graph, samples, reading, passes=passes, **options)
        assert moment.value <= root * NEVER_ABOVE
        assert root <= moment.value * (1 + moment.relative_error)
        assert moment.value >= root * (1 - most)
    operator = MeanJacobian(JacobianStream.over(graph, samples, reading, **options))
    assert float(spectral_norm(operator, block=2, tolerance=1e-9).value) == pytest.approx(norm, rel=1e-7)


def test_the_standard_error_is_the_spread_over_data_sets() -> None:
    """Points, and pairs that share their samples much (where pairs taken as independent would be far off)."""
    module = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))
    graph = from_torch(randomised(module, 3, gain=1.5), (12,))
    generator = torch.Generator().manual_seed(0)
    for reading, pairs in (("active", 0), ("secant", 30), ("secant", 600)):
        values, errors = [], []
        for _ in range(40):
            x = torch.randn(60, 12, generator=generator, dtype=torch.float64)
            options: dict[str, Any] = {"pairs": pairs, "batch_size": 60, "dtype": torch.float64}
            found = full(graph, lipscope.load_samples(x), reading, passes=2, **options)
            values.append(found.value)
            errors.append(found.standard_error or 0.0)
        assert 0.6 <= float(np.sqrt(np.mean(np.square(errors))) / np.std(values, ddof=1)) <= 1.6


def test_no_standard_error_where_nothing_would_be_left() -> None:
    graph, samples, _ = classifier()
    found = full(graph, samples.take(2), "secant", pairs=1, dtype=torch.float64)
    assert found.standard_error is None
    assert full(graph, samples.take(1), "active", dtype=torch.float64).standard_error is None
    # The mean of 1, 2, 3, one a group: the jackknife of a mean is the classical standard error.
    sums, counts = torch.zeros(GROUPS + 1, 1, 1, dtype=torch.float64), torch.zeros(GROUPS + 1)
    sums[[0, 1, 2, -1], 0, 0] = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    counts[[0, 1, 2, -1]] = torch.tensor([1.0, 1.0, 1.0, 3.0])
    error = _standard_error(sums, counts, lambda m: float(m[0, 0]))
    assert error == pytest.approx(1 / 3**0.5)


class Shuffling:
    """Like a pool of processes: everything is pickled, the work is done in another order, results come in order."""

    def map(self, task: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        order = np.random.default_rng(len(items)).permutation(len(items)).tolist()
        done = {i: pickle.dumps(task(pickle.loads(pickle.dumps(shared)), items[i])) for i in order}
        for i in range(len(items)):
            yield pickle.loads(done[i])


def comparable(found: Any) -> Any:
    """The result without its times."""
    if isinstance(found, tuple):
        return comparable(found[0]), found[1].tolist()
    return found.model_dump(exclude={"cost": {"seconds"}})


@pytest.fixture
def small_chunks(every_save: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipscope.quantities.draws.CHUNK", 64)


QUANTITIES = {"norm": full, "second moment": second_moment}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("reading", READINGS)
def test_every_engine_and_every_resumed_run_give_the_same(quantity: str, reading: str) -> None:
    graph, samples, _ = classifier()
    compute, options = QUANTITIES[quantity], {"pairs": 300, "batch_size": 16, "passes": 2}
    expected = comparable(compute(graph, samples, reading, **options))
    # One reader of a data set that lies in memory cannot be pickled; the graph and the tensors can.
    held = torch.stack([samples.batch([i])[0] for i in range(len(samples))])
    plain = lipscope.Samples(list(samples.names), samples.shape, "", "held", _Reader(held))
    assert comparable(compute(graph, plain, reading, engine=Shuffling(), **options)) == expected
    # Cut off after every single save, and gone on with, until it is through.
    store, kills = Memory(), 0
    while True:
        store.left = 1
        try:
            found = compute(graph, samples, reading, checkpoint=store, **options)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 8
    assert comparable(found) == expected


class _Reader:
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return self.x[list(indices)]


def test_float32_is_close_and_progress_is_told() -> None:
    graph, samples, _ = classifier()
    told: list[tuple[str, int, int]] = []
    single = full(graph, samples, "active", progress=lambda *a: told.append(a))
    double = full(graph, samples, "active", dtype=torch.float64)
    assert single.value == pytest.approx(double.value, rel=1e-5)
    assert all(stage == "mean Jacobian, active" and 0 < done <= total for stage, done, total in told)
    assert told[-1][1] == told[-1][2]


def test_a_linear_network_has_no_error() -> None:
    """Nothing to average: head and tail are the whole network, and one pass finds its norm."""
    weight = randomised(nn.Linear(9, 7), 0)
    graph = from_torch(weight, (9,))
    samples = lipscope.load_samples(torch.randn(20, 9, dtype=torch.float64))
    norm = float(torch.linalg.matrix_norm(weight.weight, 2))
    found = full(graph, samples, "active", block=7, passes=2, dtype=torch.float64)
    assert found.value == pytest.approx(norm, rel=1e-9)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("options", [{"block": 0}, {"passes": 0}, {"reading": "secant", "pairs": 0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    graph, samples, _ = classifier()
    with pytest.raises(ValueError, match=r"must be positive|at least two samples"):
        full(graph, samples, **{"reading": "active", **options})
