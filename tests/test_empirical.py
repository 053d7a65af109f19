"""The empirical constant against brute force over all pairs, and what its search leaves out."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipscope
from helpers import Memory, gaussian, small_network
from lipscope.errors import LipscopeError
from lipscope.graph import Graph
from lipscope.jobs.folder import RunFolder
from lipscope.layers.activation import ReLU
from lipscope.layers.dense import Dense
from lipscope.quantities import all_pairs, features, scratch
from lipscope.quantities.all_pairs import Side, largest_ratios
from lipscope.quantities.checkpoint import no_checkpoint
from lipscope.quantities.features import Basis
from lipscope.quantities.witness import evaluate_pair
from strategies import networks, seeds

COST = {"cost"}
MODULE = importlib.import_module(
    "lipscope.quantities.empirical"
)  # the package has the function under its name


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch)


def make_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so small that a few dozen samples go through every path of the search."""
    for name, value in {
        "_BLOCK": 4,
        "_SUBSET": 3,
        "_SEEDS": 2,
        "_PIECE": 5,
        "_GATHERED": 900,
    }.items():
        monkeypatch.setattr(all_pairs, name, value)
    monkeypatch.setattr(all_pairs, "_CACHE", 2000)
    for name, value in {"DIRECTIONS": 2, "WHOLE": 4, "_FEWEST": 2, "_AVERAGES": 40}.items():
        monkeypatch.setattr(features, name, value)


def brute_force(graph: Graph, samples: lipscope.Samples) -> float:
    """The largest attained bound of all pairs, each evaluated as a witness is."""
    x = samples.batch(range(len(samples)))
    found = 0.0
    for i, j in itertools.combinations(range(len(x)), 2):
        if not torch.equal(x[i], x[j]):
            found = max(found, evaluate_pair(graph, x[i], x[j], ()).bound)
    return found


@st.composite
def data(draw: st.DrawFn, shape: tuple[int, ...], most: int = 24) -> torch.Tensor:
    """Clouds, clusters far apart, pairs very near each other, equal samples, a line; any scale."""
    count = draw(st.integers(2, most))
    generator = torch.Generator().manual_seed(draw(seeds()))
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["cloud", "clusters", "near", "line", "offset"]))
    far = 10.0 ** draw(st.integers(0, 8))
    if kind == "clusters":
        centres = far * torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        x += centres[torch.randint(3, (count,), generator=generator)]
    elif kind == "near":
        half = count // 2
        x[half : 2 * half] = x[:half] + x[half : 2 * half] / far
    elif kind == "line":
        x = x[:1] * torch.randn(count, *[1] * len(shape), generator=generator, dtype=torch.float64)
    elif kind == "offset":
        x += far
    for _ in range(draw(st.integers(0, 2))):
        x[draw(st.integers(0, count - 1))] = x[draw(st.integers(0, count - 1))].clone()
    return x * 10.0 ** draw(st.sampled_from([0, 0, -3, 4]))


@given(networks(), st.data())
@settings(max_examples=40)
def test_it_equals_brute_force_over_all_pairs(network, given_data) -> None:
    samples = lipscope.load_samples(given_data.draw(data(network.shape)))
    graph = network.graph
    with pytest.MonkeyPatch.context() as patch:
        if given_data.draw(st.booleans()):
            make_tiny(patch)
        if given_data.draw(st.booleans()):
            patch.setattr(all_pairs, "_DIRECT", given_data.draw(st.sampled_from([1e9, 4, 1e-9])))
        found = lipscope.empirical(graph, samples)
    expected = brute_force(graph, samples)
    if found is None:
        assert len(torch.unique(samples.batch(range(len(samples))), dim=0)) == 1
    else:
        # Outputs computed in another batch may differ by rounding, far less than the allowance.
        assert found[0].value == pytest.approx(expected, rel=1e-10, abs=1e-200)


@given(st.integers(-100, 100), st.integers(-100, 100), st.integers(1, 7), seeds())
@settings(max_examples=40)
def test_any_scale_of_inputs_and_outputs(inputs: int, outputs: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, width, generator=generator, dtype=torch.float64)
    graph = Graph.chain((width,), [Dense(weight * 2.0 ** (3 * (outputs - inputs) // 2)), ReLU()])
    x = torch.randn(20, width, generator=generator, dtype=torch.float64) * 2.0 ** (3 * inputs)
    samples = lipscope.load_samples(x)
    found = lipscope.empirical(graph, samples)
    assert found is not None
    assert found[0].value == pytest.approx(brute_force(graph, samples), rel=1e-10)


def structured(count: int, size: int, outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and outputs near subspaces of few dimensions, as features of a network over photographs are."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = draw(count, 8)
    x = hidden @ draw(8, size) + 0.1 * draw(count, size)
    y = (hidden @ draw(8, 20)).relu() @ draw(20, outputs) + 0.1 * draw(count, outputs)
    return x, y


def sides(x: torch.Tensor, y: torch.Tensor) -> tuple[Side, Side, torch.Tensor]:
    def side(v: torch.Tensor) -> Side:
        basis = Basis.fit(v[:100])
        return Side(basis, basis.features(v), lambda indices: v[list(indices)])

    return side(x), side(y), y.norm(dim=1)


def ratios(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """All ratios by direct differences, −1 on and below the diagonal."""
    found = torch.full((len(x), len(x)), -1.0, dtype=torch.float64)
    for i in range(len(x) - 1):
        found[i, i + 1 :] = (y[i] - y[i + 1 :]).norm(dim=1) / (x[i] - x[i + 1 :]).norm(dim=1)
    return found


def test_projections_rule_out_almost_all_pairs_of_structured_data() -> None:
    x, y = structured(1500, 400, 300)
    found = largest_ratios(*sides(x, y))
    expected = ratios(x, y)
    assert found.pairs[0][2] == pytest.approx(float(expected.max()), rel=1e-11)
    assert found.pairs[0][:2] == divmod(int(expected.argmax()), len(x))
    # Of 1,124,250 pairs.
    assert found.projected < 20_000
    assert found.bounded <= found.projected + 200
    assert found.compared < 1000


def test_where_projections_say_nothing_whole_products_do() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 500, generator=generator, dtype=torch.float64)
    y = torch.randn(1200, 300, generator=generator, dtype=torch.float64)
    found = largest_ratios(*sides(x, y))
    expected = ratios(x, y)
    assert found.pairs[0][:2] == divmod(int(expected.argmax()), len(x))
    assert found.projected > 300_000
    assert found.compared < 1000


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("direct", [1e9, 1e-9])
def test_near_ties_are_told_apart(monkeypatch: pytest.MonkeyPatch, whole: bool, direct: float) -> None:
    """All ratios agree within 1e-9, far below what products in float32 resolve; the steepest pair is found."""
    monkeypatch.setattr(all_pairs, "_DIRECT", direct)
    if not whole:
        monkeypatch.setattr(features, "DIRECTIONS", 3)
        monkeypatch.setattr(features, "WHOLE", 6)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 30, generator=generator, dtype=torch.float64)
    y = x * (1 + 1e-9 * torch.rand(30, generator=generator, dtype=torch.float64))
    expected = ratios(x, y)
    found = largest_ratios(*sides(x, y))
    assert found.pairs[0][:2] == divmod(int(expected.argmax()), len(x))


@pytest.mark.parametrize("stage", ["projections", "products"])
def test_the_margins_are_what_keeps_near_pairs(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """The steepest pairs are much nearer than float32 resolves; without a margin the search loses them."""
    monkeypatch.setattr(all_pairs, "_SUBSET", 2)
    if stage == "products":
        monkeypatch.setattr(all_pairs, "_DIRECT", 1e9)
        monkeypatch.setattr(features, "DIRECTIONS", 4)
        monkeypatch.setattr(features, "WHOLE", 8)

    def right(seed: int) -> bool:
        x, _ = structured(200, 40, 30, seed)
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(40, 30, generator=generator, dtype=torch.float64)
        steepest = torch.linalg.svd(weight).U[:, 0]
        noise = torch.randn(100, 40, generator=generator, dtype=torch.float64)
        x[100:] = x[:100] + 1e-6 * (steepest + 0.05 * noise)
        y = x @ weight
        best = divmod(int(ratios(x, y).argmax()), len(x))
        assert best[1] == best[0] + 100
        return largest_ratios(*sides(x, y)).pairs[0][:2] == best

    assert all(right(seed) for seed in range(8))

    class Careless(all_pairs._Search):
        def arrange(self, *prefix: int) -> None:
            super().arrange(*prefix)
            self.margin = self.lost = 0.0
            self.right[:] = self._vectors(slice(0, self.count)).to(self.dtype)

    distances = all_pairs._Blocks.squared_distances

    def careless(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        squares, error = distances(*arguments)
        return squares, 0 * error

    # The same search without a margin is wrong, so these data sets show one that is too small.
    if stage == "products":
        monkeypatch.setattr(all_pairs._Blocks, "squared_distances", careless)
    else:
        monkeypatch.setattr(all_pairs, "_Search", Careless)
    assert not all(right(seed) for seed in range(8))


@given(seeds(), st.integers(1, 300), st.integers(2, 12), st.floats(-4, 8))
@settings(max_examples=60)
def test_features_bound_distances(seed: int, size: int, count: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, size, generator=generator, dtype=torch.float64) + 10**offset
    x[0] = x[1] + 1e-9 * x[0]
    basis = Basis.fit(x[: max(1, count // 2)])
    found = basis.features(x)
    i, j = torch.triu_indices(count, count, 1)
    inside = (found[i, :-1] - found[j, :-1]).square().sum(1)
    low = (inside + (found[i, -1] - found[j, -1]).square()).sqrt()
    high = (inside + (found[i, -1] + found[j, -1]).square()).sqrt()
    distances = (x[i] - x[j]).norm(dim=1) * 2.0**basis.exponent
    slack = 1.01 * basis.error * (found[i].norm(dim=1) + found[j].norm(dim=1)) + 1e-13 * distances
    assert bool((low <= distances + slack).all())
    assert bool((high >= distances - slack).all())
    assert basis.error < 1e-5


@given(seeds(), st.integers(1, 3), st.integers(4, 40), st.integers(4, 40), st.floats(-4, 8))
@settings(max_examples=60)
def test_averages_and_features_of_images_bound_distances(
    seed: int, channels: int, height: int, width: int, offset: float
) -> None:
    """Squares of any side, and images that they do not fill."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, channels, height, width, generator=generator, dtype=torch.float64).cumsum(2).cumsum(3)
    x = x + 10**offset
    x[0] = x[1] + 1e-9 * x[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "WHOLE", 8)
        patch.setattr(features, "_AVERAGES", 30)
        basis = Basis.fit(x[:6], 4)
    averages = basis.averages(x)
    assert averages.shape[1] - 1 == basis.averaged or not basis.averaged
    found = basis.features(x)
    i, j = torch.triu_indices(12, 12, 1)
    distances = (x[i] - x[j]).flatten(1).norm(dim=1) * 2.0**basis.exponent
    slack = 1.01 * basis.error * (found[i].norm(dim=1) + found[j].norm(dim=1)) + 1e-13 * distances
    lows = []
    for bounds in (found, averages):
        inside = (bounds[i, :-1] - bounds[j, :-1]).square().sum(1)
        lows.append((inside + (bounds[i, -1] - bounds[j, -1]).square()).sqrt())
        high = (inside + (bounds[i, -1] + bounds[j, -1]).square()).sqrt()
        assert bool((lows[-1] <= distances + slack).all())
        assert bool((high >= distances - slack).all())
    # Averages say more than the directions among them.
    assert bool((lows[0] <= lows[1] + slack).all())
    assert basis.error < 1e-5


def test_smooth_images_are_told_apart_by_averages() -> None:
    """Of photographs, hardly a distance is left open by averages over squares of four pixels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, 96, 96, generator=generator)
    for axis in (2, 3):
        x = x.cumsum(axis) - x.cumsum(axis).mean(axis, keepdim=True)
    y = torch.stack([x[:, :, ::16, ::16], x[:, :, 5::16, 7::16]]).transpose(0, 1).flatten(1).double().relu()
    expected = ratios(x.flatten(1).double(), y)
    basis = Basis.fit(x[:100], 40)
    assert basis.side == 4
    assert basis.averaged == 3 * 24 * 24
    averages = basis.averages(x)
    for kept in (lambda i: averages[list(i)].float(), None):
        of_inputs = Side(basis, basis.features_of(averages), lambda i: x[list(i)], kept)
        found = largest_ratios(of_inputs, sides(y, y)[1], y.norm(dim=1))
        assert found.pairs[0][:2] == divmod(int(expected.argmax()), len(x))
        assert found.pairs[0][2] == pytest.approx(float(expected.max()), rel=1e-9)
        if kept is not None:
            assert found.bounded < 200
            assert found.compared < 60


def test_averages_within_a_block_rule_out_no_pair_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside products of outputs, whose error is wider than theirs, averages rule out most pairs of a block."""
    monkeypatch.setattr(all_pairs, "_SUBSET", 40)
    monkeypatch.setattr(all_pairs, "_DIRECT", 20)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, 16, 16, generator=generator).repeat_interleave(6, 2).repeat_interleave(6, 3)
    x += 0.1 * torch.randn(200, 3, 96, 96, generator=generator)
    y = torch.randn(200, 200, generator=generator, dtype=torch.float64)
    expected = divmod(int(ratios(x.flatten(1).double(), y).argmax()), len(x))
    basis = Basis.fit(x[:50], 20)
    averages = basis.averages(x)
    inputs = Side(
        basis, basis.features_of(averages), lambda i: x[list(i)], lambda i: averages[list(i)].float()
    )
    within, ruled_out = all_pairs._Search._compare_averages, []

    def counted(search, rows, columns, alive, *arguments):
        remaining = within(search, rows, columns, alive, *arguments)
        ruled_out.append(int(alive.sum()) - int(remaining.sum()))
        assert not bool((remaining & ~alive).any())
        return remaining

    monkeypatch.setattr(all_pairs._Search, "_compare_averages", counted)

    def found() -> tuple[int, int]:
        return largest_ratios(inputs, sides(y, y)[1], y.norm(dim=1)).pairs[0][:2]

    assert found() == expected
    assert sum(ruled_out) > 500
    # A bound that is somewhat too large there loses the pair.
    distances = all_pairs._Search._distances_of_averages
    monkeypatch.setattr(all_pairs._Search, "_distances_of_averages", lambda *a: 1.2 * distances(*a))
    assert found() != expected


def test_few_coordinates_are_multiplied_where_more_say_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3000, 500, generator=generator, dtype=torch.float64)
    search = all_pairs._Search(*sides(noise, noise.flip(1).relu()), "cpu")
    search.start()
    assert search.choose_prefix() == (8, 8)
    search = all_pairs._Search(*sides(*structured(300, 400, 300)), "cpu")
    search.start()
    assert max(search.choose_prefix()) < 64


@pytest.mark.parametrize("stage", ["features", "averages"])
def test_the_slack_of_bounds_is_what_keeps_near_pairs(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """The steepest pairs are nearer than what is left of an input, or an average in float32, resolves."""
    monkeypatch.setattr(all_pairs, "_SUBSET", 2)
    monkeypatch.setattr(features, "WHOLE", 6)
    monkeypatch.setattr(features, "_AVERAGES", 16)

    def right(seed: int, careless: bool) -> bool:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        hidden, basis_x, weight = draw(200, 8), torch.linalg.qr(draw(16, 8)).Q.T, draw(8, 6)
        steepest = torch.linalg.svd(weight).U[:, 0]
        hidden[100:] = hidden[:100] + 1e-7 * (steepest + 0.05 * draw(100, 8))
        # Images of constant squares: averages are all there is to them.
        x = (hidden @ basis_x).unflatten(1, (1, 4, 4)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = hidden @ weight
        expected = ratios(x.flatten(1), y)
        best = divmod(int(expected.argmax()), len(x))
        assert best[1] == best[0] + 100
        basis, of_outputs = Basis.fit(x[:100], 8), Basis.fit(y)
        assert basis.averaged == 16
        averages = basis.averages(x)
        kept = (lambda i: averages[list(i)].float()) if stage == "averages" else None
        if careless and stage == "features":
            basis = dataclasses.replace(basis, error=0.0)
        inputs = Side(basis, basis.features_of(averages), lambda indices: x[list(indices)], kept)
        outputs = Side(of_outputs, of_outputs.features(y), lambda indices: y[list(indices)])
        found = largest_ratios(inputs, outputs, torch.zeros(len(y), dtype=torch.float64))
        return found.pairs[0][:2] == best

    assert all(right(seed, False) for seed in range(8))

    def careless_distances(search, averages, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (
            all_pairs._direct(averages(i.tolist()), averages(j.tolist())) * 2.0**-search.inputs.basis.exponent
        )

    # The same search without the slack is wrong.
    if stage == "averages":
        monkeypatch.setattr(all_pairs._Search, "_distances_of_averages", careless_distances)
    assert not all(right(seed, True) for seed in range(8))


def test_averages_out_of_range_of_float32_bound_nothing() -> None:
    x = torch.randn(30, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x.mean((2, 3)).square()
    expected = divmod(int(ratios(x.flatten(1), y).argmax()), len(x))
    x = torch.cat([x, x[:2] * 1e60])
    y = torch.cat([y, torch.zeros(2, 3, dtype=torch.float64)])
    basis = Basis.fit(x[:30], 8)
    averages = basis.averages(x)
    assert not bool(averages.float().isfinite().all())
    inputs = Side(
        basis, basis.features_of(averages), lambda i: x[list(i)], lambda i: averages[list(i)].float()
    )
    found = largest_ratios(inputs, sides(y, y)[1], y.norm(dim=1))
    assert found.pairs[0][:2] == expected
    search = all_pairs._Search(inputs, sides(y, y)[1], y.norm(dim=1), "cpu")
    first, last = torch.tensor([30, 0, 0]), torch.tensor([31, 30, 1])
    bounds = search._distances_of_averages(inputs.averages, first, last)
    assert bool((bounds[:2] == 0).all())
    assert bool((bounds <= (x[first] - x[last]).flatten(1).norm(dim=1)).all())


@pytest.mark.parametrize("prefix", [(64, 64), (8, 16)])
def test_the_products_are_upper_bounds_of_what_pairs_could_gain(prefix: tuple[int, int]) -> None:
    """u·v ≥ U − b²L of exact arithmetic, and the margin is no wider than it has to be by orders."""
    x, y = structured(300, 200, 150)
    search = all_pairs._Search(*sides(x, y), "cpu")
    search.start()
    search.arrange(*prefix)
    rows = slice(0, 300)
    f = (search._left(rows) @ search.right.T).double()
    t, tb2 = search._factors()
    cx, cy = (
        torch.cat([v[:, :k], v[:, k:].norm(dim=1, keepdim=True)], 1)
        for v, k in zip((search.inputs.features, search.outputs.features), prefix, strict=True)
    )
    cx, cy = cx * 2.0**search.shift_x, cy * 2.0**search.shift_y
    far = (cy[:, None, :-1] - cy[None, :, :-1]).square().sum(2) + (cy[:, None, -1] + cy[None, :, -1]).square()
    near = (cx[:, None] - cx[None]).square().sum(2)
    exact = t * far - tb2 * near
    assert bool((f >= exact).all())
    assert float((f - exact).max()) < 1e-3


def test_float32_products_of_reduced_precision_are_not_used() -> None:
    x, y = structured(50, 20, 20)
    try:
        torch.set_float32_matmul_precision("medium")
        assert all_pairs._Search(*sides(x, y), "cpu").dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all_pairs._Search(*sides(x, y), "cpu").dtype == torch.float32


def test_numbers_out_of_range_rule_nothing_out() -> None:
    """Squares of the features of two samples overflow; the steepest pair is among the others."""
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x.square()
    expected = divmod(int(ratios(x, y).argmax()), len(x))
    x = torch.cat([x, torch.tensor([[1e200] * 5, [-1e250] * 5], dtype=torch.float64)])
    y = torch.cat([y, torch.zeros(2, 5, dtype=torch.float64)])
    basis = Basis.fit(x[:30])
    inputs, outputs, norms = sides(x, y)
    inputs = Side(basis, basis.features(x), inputs.read)
    assert largest_ratios(inputs, outputs, norms).pairs[0][:2] == expected


def test_a_ratio_of_rounding_alone_does_not_hide_the_constant() -> None:
    """Two samples one unit in the last place apart: their ratio is large and means nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    x[1] = x[0]
    x[1, 0] = math.nextafter(float(x[0, 0]), math.inf)
    graph = Graph.chain((3,), [Dense(torch.randn(4, 3, generator=generator, dtype=torch.float64) * 1e3)])
    shift = nn.Sequential(nn.Linear(3, 4), nn.Softplus()).double()
    for network in (graph, lipscope.from_torch(shift, (3,))):
        found = lipscope.empirical(network, lipscope.load_samples(x))
        assert found is not None
        assert found[0].value == pytest.approx(brute_force(network, lipscope.load_samples(x)), rel=1e-10)
        assert found[0].value > 0


# ---- interruptions and files ----


@pytest.mark.usefixtures("every_save")
@pytest.mark.parametrize("with_folder", [True, False])
def test_a_run_cut_off_at_any_checkpoint_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_blocks: None, with_folder: bool
) -> None:
    monkeypatch.setattr(MODULE, "CHUNK", 8)
    _, graph = small_network()
    samples = gaussian(29, (2, 8, 8))

    def run(checkpoint: Memory) -> dict[str, object]:
        found, pair = lipscope.empirical(graph, samples, batch_size=3, checkpoint=checkpoint)
        return {**found.model_dump(exclude=COST), "x1": pair.x1.tolist(), "x2": pair.x2.tolist()}

    def memory(name: str, saves: int) -> Memory:
        folder = tmp_path / name if with_folder else None
        if folder:
            folder.mkdir()
        return Memory(saves, folder)

    whole_memory = memory("whole", -1)
    whole = run(whole_memory)
    total = -1 - whole_memory.left
    assert total >= 11
    evaluated = []
    evaluate = Graph.evaluate
    monkeypatch.setattr(Graph, "evaluate", lambda *a, **k: evaluated.append(1) or evaluate(*a, **k))
    for saves in range(total):
        cut = memory(str(saves), saves)
        with pytest.raises(KeyboardInterrupt):
            run(cut)
        cut.left = -1
        evaluated.clear()
        assert run(cut) == whole
        if with_folder and saves >= 4:
            # Nothing is evaluated again but the best pair.
            assert len(evaluated) <= 2


def test_files_that_a_checkpoint_did_not_count_are_not_trusted(tmp_path: Path) -> None:
    _, graph = small_network()
    samples = gaussian(30, (2, 8, 8))
    whole, _ = lipscope.empirical(graph, samples, checkpoint=(memory := Memory(folder=tmp_path)))
    (tmp_path / "empirical" / "inputs.npy").unlink()
    outputs = np.load(tmp_path / "empirical" / "outputs.npy", mmap_mode="r+")
    outputs[:] = 7.0
    again, _ = lipscope.empirical(graph, samples, checkpoint=memory)
    assert again.model_dump(exclude=COST) == whole.model_dump(exclude=COST)


def test_files_give_what_memory_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph = small_network()
    samples = gaussian(60, (2, 8, 8))
    expected = lipscope.empirical(graph, samples)[0].model_dump(exclude=COST)
    monkeypatch.setattr(scratch, "IN_MEMORY", 10)
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    assert lipscope.empirical(graph, samples)[0].model_dump(exclude=COST) == expected
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_keeps_the_files_until_it_is_finished(tmp_path: Path) -> None:
    _, graph = small_network()
    with RunFolder(tmp_path / "run", {"a": 1}) as folder:
        lipscope.empirical(graph, gaussian(10, (2, 8, 8)), checkpoint=folder)
        assert (tmp_path / "run" / "state" / "empirical" / "outputs.npy").exists()
        folder.finish({}, {})
    assert not (tmp_path / "run" / "state").exists()


def test_a_full_disk_is_told_before_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(scratch, "IN_MEMORY", 10)
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda path: Full)
    _, graph = small_network()
    with pytest.raises(LipscopeError, match="GiB are needed"):
        lipscope.empirical(graph, gaussian(10, (2, 8, 8)), checkpoint=no_checkpoint)


def test_chunks_may_be_evaluated_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that sends tasks through pickles, as processes do."""
    import pickle

    class Sent:
        def map(self, task, shared, items):
            task, shared = pickle.loads(pickle.dumps((task, shared)))
            for item in items:
                yield pickle.loads(pickle.dumps(task(shared, item)))

    monkeypatch.setattr(MODULE, "CHUNK", 7)
    _, graph = small_network()
    x = torch.randn(25, 2, 8, 8, dtype=torch.float64)
    data_set = torch.utils.data.TensorDataset(x)
    samples = lipscope.Samples([str(i) for i in range(25)], (2, 8, 8), "", "x", Rows(data_set.tensors[0]))
    here = lipscope.empirical(graph, samples)[0].model_dump(exclude=COST)
    assert lipscope.empirical(graph, samples, engine=Sent())[0].model_dump(exclude=COST) == here


class Rows:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __call__(self, indices) -> torch.Tensor:
        return self.x[list(indices)]


# ---- units ----


def test_empirical_is_the_largest_ratio_of_all_pairs() -> None:
    module, graph = small_network()
    samples = gaussian(300, (2, 8, 8))
    result, pair = lipscope.empirical(graph, samples)
    x = samples.batch(range(300))
    y = module(x).detach()
    best = max(
        (float((y[i] - y[j]).norm() / (x[i] - x[j]).norm()), i, j)
        for i, j in itertools.combinations(range(300), 2)
    )
    assert result.value == pytest.approx(best[0], rel=1e-11)
    assert set(pair.samples) == {samples.names[best[1]], samples.names[best[2]]}
    assert result.pairs == 300 * 299 // 2
    assert result.duplicate_count == 0
    assert result.squared == pytest.approx(result.value**2)


def test_empirical_finds_a_near_pair_that_the_gram_trick_alone_would_lose() -> None:
    """Two points 1e-7 apart at norm 1e3 with the steepest ratio: their Gram distance is pure rounding."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    graph = Graph.chain((2,), [Dense(weight)])
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] *= 1e-3
    x[0] = torch.tensor([1e3, 0.0])
    x[1] = torch.tensor([1e3, 1e-7])
    result, pair = lipscope.empirical(graph, lipscope.load_samples(x))
    assert set(pair.samples) == {lipscope.load_samples(x).names[i] for i in (0, 1)}
    assert result.value == pytest.approx(5.0, rel=1e-2)
    assert result.value <= 5.0


def test_duplicates_are_reported_and_left_out() -> None:
    _, graph = small_network()
    x = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    x[4] = x[1]
    x[5] = x[1]
    samples = lipscope.load_samples(x)
    result, _ = lipscope.empirical(graph, samples)
    assert result.duplicate_count == 3
    assert result.pairs == 15 - 3
    assert [(d.first, d.second) for d in result.duplicates] == [
        (samples.names[1], samples.names[4]),
        (samples.names[1], samples.names[5]),
    ]
    assert math.isfinite(result.value)


def test_zero_and_minus_zero_are_the_same_sample() -> None:
    graph = Graph.chain((2,), [Dense(torch.eye(2, dtype=torch.float64))])
    samples = lipscope.load_samples(torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
    result, _ = lipscope.empirical(graph, samples)
    assert result.duplicate_count == 1


@pytest.mark.parametrize("x", [torch.ones(1, 2), torch.ones(5, 2)])
def test_no_pair_has_no_empirical_constant(x: torch.Tensor) -> None:
    graph = Graph.chain((2,), [Dense(torch.eye(2, dtype=torch.float64))])
    assert lipscope.empirical(graph, lipscope.load_samples(x.double())) is None
