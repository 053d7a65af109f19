"""The training monitor: bounds that hold at every step, what is computed again, what it costs, where it is shown."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import prune

import lipscope
from helpers import gaussian
from lipscope import cli
from lipscope.certificates import moved_norm
from lipscope.errors import DataError, LipscopeError, ModelError
from lipscope.graph import Graph, TracedModule
from lipscope.layers import LinearLayer
from lipscope.layers.base import Layer
from lipscope.quantities.slope_sums import slope_totals
from lipscope.report import LiveView
from lipscope.report.monitor import sparkline
from lipscope.results import Snapshot
from lipscope.train import CsvLog, Monitor, TensorBoardLog, read_log
from lipscope.train.budget import Account
from lipscope.train.running import RunningSlopes
from strategies import convolutions, denses, import_lone, seeds, transposed_convolutions


def perceptron(width: int = 12, out: int = 36) -> nn.Sequential:
    """With more than 32 inputs and outputs, so that norms are found by iteration."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(40, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out)
    ).double()  # fmt: skip


class SmallResidual(nn.Module):
    """Convolutions with batch norm, a strided and a grouped one, a residual sum, pooling."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4), nn.Dropout(0.3))
        self.head = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.body(x))


def steps(module: nn.Module, shape: tuple[int, ...], count: int, lr: float = 0.02):
    """Training steps on random data: yields the batch of each."""
    generator = torch.Generator().manual_seed(3)
    dtype = next(module.parameters()).dtype
    optimiser = torch.optim.SGD(module.parameters(), lr, momentum=0.9)
    for _ in range(count):
        x = torch.randn(16, *shape, generator=generator, dtype=dtype)
        optimiser.zero_grad()
        module(x).square().mean().backward()
        optimiser.step()
        yield x


def dense_norm(layer: Layer, shape: tuple[int, ...]) -> float:
    """The spectral norm by an SVD of the layer's matrix, from its values at unit vectors."""
    assert isinstance(layer, LinearLayer)
    size = math.prod(shape)
    images = layer.apply(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1)
    return float(torch.linalg.matrix_norm(images.detach(), 2))


# ---- the bound of a change ----------------------------------------------------------------------------


@given(
    st.one_of(
        denses(), *(layers(dims) for dims in (1, 2, 3) for layers in (convolutions, transposed_convolutions))
    )
)
@settings(max_examples=80)
def test_quick_norm_is_above_the_norm_and_below_cruder_bounds(case) -> None:
    module, shape = case
    (layer,) = import_lone(module, shape)
    quick = layer.kernel().quick_norm()
    assert dense_norm(layer, shape) <= quick * (1 + 1e-14)
    # The Frobenius norm of a matrix, and the sum of those of the taps' matrices.
    taps = module.weight.flatten(2) if module.weight.ndim > 2 else module.weight.unsqueeze(2)
    assert quick <= float(taps.norm(dim=(0, 1)).sum()) * (1 + 1e-9)


def test_quick_norm_of_a_kernel_does_not_grow_with_the_image() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 8, 3, padding=1, bias=False).double().requires_grad_(False)
    (small,), (large,) = (import_lone(convolution, (8, n, n)) for n in (4, 12))
    assert small.kernel().quick_norm() == large.kernel().quick_norm()
    matrix = large.matrix((8, 12, 12))
    assert matrix is not None
    # The change of a layer would otherwise be bounded by the Frobenius norm of its operator.
    assert large.kernel().quick_norm() <= 0.2 * float(matrix.norm())


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (nn.Linear(7, 5), (7,)),
    "grouped": (nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=1), (4, 6, 6)),
    "transposed": (nn.ConvTranspose1d(3, 2, 4, stride=2, dilation=2), (3, 6)),
    "with batch norm": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_norm_of_a_moved_layer_is_above_the_truth_whatever_the_move(name) -> None:
    module, shape = LAYERS[name][0].double(), LAYERS[name][1]
    traced = TracedModule(module, shape)
    before = traced.read().nodes[-1].layer
    constant = before.alone([shape])
    for exponent in range(-17, 3):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1 + torch.randn_like(parameter) * 10.0**exponent)
        layer = traced.read().nodes[-1].layer
        bound = moved_norm(layer.kernel(), before.kernel(), constant)
        assert dense_norm(layer, shape) <= bound
        if exponent < -15:
            assert bound <= constant * (1 + 1e-9)
    assert traced.traces == 1


def test_rescaled_channels_are_no_change_but_of_scale() -> None:
    module = nn.Conv2d(3, 5, 3, padding=1).double().requires_grad_(False)
    (before,) = import_lone(module, (3, 6, 6))
    kernel = before.kernel()
    constant = before.alone([(3, 6, 6)])
    scales = torch.tensor([1.5, 0.7, 0.0, -1.2, 1.0], dtype=torch.float64)
    scaled = replace(kernel, weight=scales.reshape(-1, 1, 1, 1) * kernel.weight)
    assert moved_norm(scaled, kernel, constant) == pytest.approx(1.5 * constant, rel=1e-9)
    with pytest.raises(ValueError, match="two forms"):
        moved_norm(scaled, replace(kernel, weight=kernel.weight[:4]), constant)


@pytest.mark.parametrize("network", ["perceptron", "residual"])
def test_the_bound_holds_at_every_step_of_a_training(network) -> None:
    module, shape = (perceptron(), (40,)) if network == "perceptron" else (SmallResidual(), (2, 8, 8))
    monitor = Monitor(module, gaussian(8, shape), probes=2, batch_size=8, levels=())
    for number, _ in enumerate(steps(module.train(), shape, 12, 0.05)):
        bound = monitor.upper()
        # Dense SVDs in the place of proofs, composed by the product rule.
        graph = monitor.graph
        truth = [1.0]
        for index, node in enumerate(graph.nodes[1:], 1):
            before, shapes = [truth[i] for i in node.inputs], graph.shapes_into(index)
            if isinstance(node.layer, LinearLayer) and len(shapes) == 1:
                truth.append(before[0] * dense_norm(node.layer, shapes[0]))
            else:
                truth.append(node.layer.lipschitz(before, shapes))
        assert truth[-1] <= bound
        if number % 4 == 3:
            fresh = lipscope.from_torch(module, shape)
            attained, _ = lipscope.local(fresh, gaussian(8, shape))
            assert attained.value <= lipscope.analytical(fresh).product <= bound * (1 + 1e-12)
            found = monitor.update()
            assert found.upper == lipscope.analytical(fresh).product
            assert found.lower <= found.upper
            assert found.drift == 1.0
    assert module.training


def test_training_is_the_same_with_a_monitor() -> None:
    def trained(watched: bool) -> dict[str, Tensor]:
        module = SmallResidual().train()
        torch.manual_seed(5)  # dropout draws from torch's generator
        monitor = Monitor(module, gaussian(8, (2, 8, 8)), budget=1.0, batch_size=4) if watched else None
        torch.manual_seed(6)
        for x in steps(module, (2, 8, 8), 4):
            if monitor is not None:
                assert monitor.step(x) is not None
        return module.state_dict()

    plain, watched = trained(False), trained(True)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


# ---- what is measured ---------------------------------------------------------------------------------


def test_snapshots_are_what_the_quantities_find() -> None:
    module = perceptron()
    data = gaussian(30, (40,))
    monitor = Monitor(
        module, data, probes=30, batch_size=30, forgetting=0.0, tolerance=1e-6, budget=1.0,
        levels=("scalar", "channel", "unit"), readings=("active", "secant"),
    )  # fmt: skip
    for _ in steps(module, (40,), 5):
        found = monitor.step(data.batch(range(30)))
    graph = lipscope.from_torch(module, (40,))
    local, _ = lipscope.local(graph, data, dtype=torch.float64, tolerance=1e-9)
    assert found.local_max == pytest.approx(max(local.estimates), rel=1e-4)
    assert found.local_mean == pytest.approx(local.mean, rel=1e-4)
    assert found.lower == pytest.approx(local.value, rel=1e-3)
    assert found.lower == monitor.pair.bound == lipscope.evaluate_pair(
        graph, monitor.pair.x1, monitor.pair.x2, ("pair",)
    ).bound  # fmt: skip
    slopes = lipscope.mean_slopes(graph, data, pairs=0, dtype=torch.float64)
    for level in ("scalar", "channel", "unit"):
        expected, _ = lipscope.effective(slopes, level, "active")
        assert found.effective[f"{level}_active"] == pytest.approx(expected.value, rel=1e-4)
    first, second = data.batch(range(15)), data.batch(range(15, 30))
    secant = {i: slope.mean("unit") for i, slope in graph.secant_slopes(first, second).items()}
    jacobian = lipscope.linearize(graph, secant).dense()[0]
    assert found.effective["unit_secant"] == pytest.approx(
        float(torch.linalg.matrix_norm(jacobian, 2)), rel=1e-4
    )
    assert list(found.slopes.values()) == pytest.approx(slopes.fractions("active"), rel=1e-6)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.floats(0, 1), seeds())
@settings(max_examples=20)
def test_running_means_weigh_the_past_by_powers(counts, forgetting, seed) -> None:
    graph = activation_graph()
    generator = torch.Generator().manual_seed(seed)
    running = RunningSlopes(forgetting)
    batches = [torch.randn(count, 5, generator=generator, dtype=torch.float64) for count in counts]
    for batch in batches:
        running.add("active", slope_totals(graph, batch)[1], len(batch))
    powers = [forgetting**age for age in reversed(range(len(counts)))]
    masks = [power * (batch > 0).double().sum(0) for power, batch in zip(powers, batches, strict=True)]
    expected = sum(masks) / sum(p * n for p, n in zip(powers, counts, strict=True))
    assert torch.allclose(running.mean("active")[1].values[0], expected, rtol=1e-5, atol=1e-7)


def activation_graph() -> Graph:
    from lipscope.layers.activation import ReLU

    return Graph.chain((5,), [ReLU()])


class Shared(nn.Module):
    """Calls one activation after both of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.activation = nn.Linear(3, 4), nn.Linear(4, 2), nn.ReLU()
        nn.init.constant_(self.first.bias, 100.0)
        nn.init.constant_(self.second.weight, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.second(self.activation(self.first(x))))


def test_a_module_that_is_called_twice_has_two_mean_slopes() -> None:
    monitor = Monitor(Shared(), torch.zeros(4, 3), levels=())
    assert monitor.snapshot.slopes == {"activation (ReLU)": 1.0, "activation (ReLU) #2": 0.0}


def test_means_follow_data_that_move() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).double()
    nn.init.constant_(module[0].weight, 1.0)
    nn.init.zeros_(module[0].bias)
    monitor = Monitor(module, torch.ones(4, 3), budget=1.0, forgetting=0.5)
    (slope,) = monitor.snapshot.slopes.values()
    assert slope == 1.0
    found = [monitor.step(-torch.ones(4, 3)) for _ in range(5)]
    # 0.5ⁿ of the past is left, out of 2 − 0.5ⁿ in all.
    assert [next(iter(s.slopes.values())) for s in found] == pytest.approx(
        [0.5**n / (2 - 0.5**n) for n in range(1, 6)]
    )
    monitor.forget()
    assert next(iter(monitor.step(torch.ones(4, 3)).slopes.values())) == 1.0


# ---- networks that are changed ------------------------------------------------------------------------


def compare_with_fresh(monitor: Monitor, module: nn.Module, found: Snapshot) -> None:
    fresh = Monitor(module, DATA, **QUICK).snapshot
    assert found.upper == fresh.upper
    assert found.local_max == pytest.approx(fresh.local_max, rel=1e-6)
    assert found.lower == pytest.approx(fresh.lower, rel=1e-6)
    monitor.forget()
    assert monitor.update().effective == pytest.approx(fresh.effective, rel=1e-6)


DATA = gaussian(16, (40,))
QUICK = {"probes": 16, "batch_size": 16, "levels": ("unit",), "tolerance": 1e-9, "budget": 1.0}
NAMES = ["0 (Linear)", "1 (ReLU)", "2 (Linear)", "3 (ReLU)", "4 (Linear)"]


def test_only_what_depends_on_a_change_is_computed_again() -> None:
    module = perceptron()
    monitor = Monitor(module, DATA, **QUICK)
    assert monitor.snapshot.evaluated == NAMES
    idle = monitor.update()
    assert (idle.proved, idle.evaluated, idle.traced) == ([], [], False)

    # Frozen: only the last layer is trained.
    for layer in module[:4]:
        layer.requires_grad_(False)
    for _ in steps(module, (40,), 1):
        found = monitor.update()
    assert (found.proved, found.evaluated, found.traced) == (["4 (Linear)"], ["4 (Linear)"], False)

    # Pruned by magnitude, in place.
    with torch.no_grad():
        weight = module[2].weight
        weight.mul_(weight.abs() > weight.abs().median())
    found = monitor.update()
    assert (found.proved, found.evaluated, found.traced) == (["2 (Linear)"], NAMES[2:], False)
    compare_with_fresh(monitor, module, found)

    # Quantised to eight bits of its range, and back: the proof of the layer as it was is still known.
    kept = module[0].weight.detach().clone()
    with torch.no_grad():
        scale = kept.abs().max() / 127
        module[0].weight.copy_((kept / scale).round() * scale)
    found = monitor.update()
    assert (found.proved, found.evaluated, found.traced) == (["0 (Linear)"], NAMES, False)
    compare_with_fresh(monitor, module, found)
    with torch.no_grad():
        module[0].weight.copy_(kept)
    assert monitor.update().proved == []

    # Swapped for another layer of the same form, and for another activation.
    module[4] = nn.Linear(12, 36).double()
    module[3] = nn.Tanh()
    found = monitor.update()
    assert (found.proved, found.evaluated, found.traced) == (
        ["3 (Tanh)", "4 (Linear)"],
        ["3 (Tanh)", NAMES[4]],
        True,
    )
    compare_with_fresh(monitor, module, found)

    # Widened: what lies before is as it was.
    wide = nn.Linear(12, 20).double(), nn.Linear(20, 36).double()
    module[2], module[4] = wide
    found = monitor.update()
    assert set(found.proved) == {"2 (Linear)", "3 (Tanh)", "4 (Linear)"}
    assert (found.evaluated, found.traced) == (["2 (Linear)", "3 (Tanh)", "4 (Linear)"], True)
    compare_with_fresh(monitor, module, found)


def test_an_inserted_layer_moves_the_proofs_of_those_behind_it() -> None:
    module = perceptron()
    monitor = Monitor(module, DATA, **QUICK)
    module.insert(2, nn.Linear(12, 12).double())
    found = monitor.update()
    assert (found.proved, found.traced) == (["2 (Linear)"], True)
    assert found.evaluated == ["2 (Linear)", "3 (Linear)", "4 (ReLU)", "5 (Linear)"]
    compare_with_fresh(monitor, module, found)


def test_a_network_that_shrinks_is_proved_again_too() -> None:
    module = perceptron()
    monitor = Monitor(module, DATA, **QUICK)
    before = monitor.snapshot.upper
    with torch.no_grad():
        module[0].weight.mul_(0.5)
    assert monitor.upper() == pytest.approx(0.5 * before, rel=1e-9)
    with torch.no_grad():
        module[0].weight[1:].mul_(0.5)
    found = monitor.update()
    assert found.proved == ["0 (Linear)"]
    assert found.upper == lipscope.analytical(lipscope.from_torch(module, (40,))).product


def test_hooks_and_attributes_that_change_the_function_are_noticed() -> None:
    module = perceptron()
    monitor = Monitor(module, DATA, **QUICK)
    prune.l1_unstructured(module[2], "weight", 0.5)
    found = monitor.update()
    assert found.traced
    assert found.proved == ["2 (Linear)"]
    compare_with_fresh(monitor, module, found)
    # Nothing tells of this but the values.
    module[1].forward = torch.tanh
    found = monitor.update()
    assert found.traced
    assert found.upper == lipscope.analytical(lipscope.from_torch(module, (40,))).product


def test_a_budgeted_monitor_proves_the_layer_that_has_drifted_most() -> None:
    module = perceptron()
    monitor = Monitor(module, DATA, probes=2, levels=())
    with torch.no_grad():
        module[0].weight.mul_(1.02)
        module[2].weight.mul_(3.0)
        module[4].weight.mul_(1.001)
    account = monitor._proving
    account.credit, account.share = 1.5 * monitor._proofs.seconds(3), 0.0
    monitor._measuring.credit = 1e3
    found = monitor.step()
    assert found.proved == ["2 (Linear)"]
    account.credit, account.share = 1e9, 1.0
    # Within the slack of 1 % nothing is proved.
    assert monitor.step().proved == ["0 (Linear)"]


def test_a_training_that_diverges_is_named() -> None:
    module = perceptron()
    monitor = Monitor(module, DATA, probes=2)
    with torch.no_grad():
        module[2].weight[0, 0] = math.nan
    with pytest.raises(ModelError, match=r"2 \(Linear\): a weight is NaN"):
        monitor.update()


# ---- what it costs ------------------------------------------------------------------------------------


@given(st.floats(0.01, 0.5), st.lists(st.tuples(st.floats(0, 2), st.floats(0.001, 1)), max_size=60))
def test_an_account_spends_no_more_than_its_share_and_one_expense(share, passes) -> None:
    account = Account(share)
    elapsed = 0.0
    for seconds, cost in passes:
        account.earn(seconds)
        elapsed += seconds
        if account.affords(cost):
            account.spend(cost)
            account.earn(cost)
            elapsed += cost
    assert account.spent <= share * elapsed + 1e-9


def test_the_monitor_spaces_its_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    module = perceptron()
    monitor = Monitor(module, DATA, probes=2, budget=0.2, levels=("unit",))
    now = 0.0

    def taking(seconds: Callable[[Any], float], work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            nonlocal now
            found = work(*arguments)
            now += seconds(found)
            return found

        return slow

    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr(monitor._values, "evaluate", taking(lambda found: 0.2, monitor._values.evaluate))
    monkeypatch.setattr(
        monitor._proofs, "prove", taking(lambda nodes: 0.1 * len(nodes), monitor._proofs.prove)
    )
    monkeypatch.setattr(monitor._proofs, "seconds", lambda node: 0.1)
    monitor._last, taken = 0.0, []
    for _ in range(300):
        now += 0.05
        with torch.no_grad():
            module[0].weight.mul_(1.01)
        if (found := monitor.step()) is not None:
            taken.append(found)
    # 15 s of training and a fifth of all time for the monitor make 18.75 s; a tenth of it for snapshots of 0.2 s.
    assert 7 <= len(taken) <= 10
    assert 0.1 < monitor.snapshot.share <= 0.2
    assert 3 <= sum(len(found.proved) for found in taken) <= 18


# ---- to go on, to log, to warn ------------------------------------------------------------------------


def test_a_resumed_training_goes_on(tmp_path: Path) -> None:
    options = {**QUICK, "levels": ("scalar", "unit"), "readings": ("active", "secant")}

    def run(module: nn.Module, monitor: Monitor, count: int) -> None:
        for _ in range(count):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1.01)
            monitor.step()

    whole = perceptron()
    watching = Monitor(whole, DATA, logs=[CsvLog(tmp_path / "whole.csv")], **options)
    run(whole, watching, 6)

    first = perceptron()
    monitor = Monitor(first, DATA, logs=[CsvLog(tmp_path / "log.csv")], **options)
    run(first, monitor, 3)
    torch.save({"model": first.state_dict(), "monitor": monitor.state_dict()}, tmp_path / "saved.pt")
    run(first, monitor, 2)  # lost

    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    second = perceptron()
    second.load_state_dict(saved["model"])
    resumed = Monitor(second, DATA, logs=[CsvLog(tmp_path / "log.csv", append=True)], **options)
    resumed.load_state_dict(saved["monitor"])
    run(second, resumed, 3)

    expected, found = read_log(tmp_path / "whole.csv"), read_log(tmp_path / "log.csv")
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(expected, found, strict=True):
        timed = {"seconds", "share"}
        assert {k: v for k, v in other.items() if k not in timed} == pytest.approx(
            {k: v for k, v in one.items() if k not in timed}, rel=1e-9
        )
    with pytest.raises(ModelError, match="another network"):
        Monitor(perceptron(11), DATA, **options).load_state_dict(saved["monitor"])


def snapshot(step: int, upper: float = 2.0, **slopes: float) -> Snapshot:
    witness = {"key": "monitor", "samples": [], "distance": 1.0, "ratio": 1.0, "rounding": 0.0}
    return Snapshot(
        step=step, seconds=step / 2, upper=upper, drift=1.0, lower=1.0, witness=witness, local_max=1.25,
        local_mean=1.125, effective={"unit_active": 0.5}, slopes=slopes, share=0.03, proved=[], evaluated=[],
        traced=False, cost={"seconds": 0.1},
    )  # fmt: skip


def test_csv_logs_take_new_columns_and_leave_out_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.csv"
    log = CsvLog(path)
    log(snapshot(1, **{"a (ReLU)": 0.5}))
    log(snapshot(2, math.inf, **{"a (ReLU)": 0.25}))
    log(snapshot(3, **{'b, "c" (ReLU)': 0.75}))
    log(snapshot(4, **{"a (ReLU)": 0.125}))
    rows = read_log(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row.get("slope:a (ReLU)") for row in rows] == [0.5, 0.25, None, 0.125]
    assert [row.get('slope:b, "c" (ReLU)') for row in rows] == [None, None, 0.75, None]
    assert rows[1]["upper"] == math.inf
    with path.open("a") as file:
        file.write("5,2.5,2.")
    assert read_log(path) == rows
    CsvLog(path)(snapshot(9))
    assert [row["step"] for row in read_log(path)] == [9]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"other.csv: no columns step and seconds"):
        read_log(tmp_path / "other.csv")


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = TensorBoardLog(tmp_path)
    for step in (1, 2):
        log(snapshot(step, upper=1.5 * step, **{"a (ReLU)": 0.5}))
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("lipscope/upper")] == [(1, 1.5), (2, 3.0)]
    assert "lipscope/effective_unit_active" in events.Tags()["scalars"]
    assert any(tag.startswith("lipscope_slopes/") for tag in events.Tags()["scalars"])


def test_thresholds_warn_once_each_time_they_are_passed() -> None:
    module = perceptron()
    seen: list[tuple[str, int]] = []
    bound = lipscope.analytical(lipscope.from_torch(module, (40,))).product
    options = {
        "thresholds": {"upper": 1.5 * bound, "local_max": 1e9},
        "probes": 2,
        "levels": (),
        "budget": 1.0,
    }
    monitor = Monitor(module, DATA, on_exceed=lambda name, found: seen.append((name, found.step)), **options)
    factors = [1.0, 2.0, 1.0, 0.25, 4.0]
    for factor in factors:
        with torch.no_grad():
            module[0].weight.mul_(factor)
        monitor.step()
    assert seen == [("upper", 2), ("upper", 5)]
    with pytest.warns(UserWarning, match=r"step 1: upper is .*, above"):
        Monitor(module, DATA, **options).step()
    with pytest.raises(LipscopeError, match="no number is called uper"):
        Monitor(module, DATA, thresholds={"uper": 1.0}, probes=2)


def test_options_out_of_range_are_refused() -> None:
    module = perceptron()
    for options in ({"budget": 0.0}, {"budget": 1.5}, {"probes": 0}, {"every": 0}, {"forgetting": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Monitor(module, DATA, **options)
    with pytest.raises(LipscopeError, match="need pairs"):
        Monitor(module, DATA, readings=("secant",), batch_size=1)
    monitor = Monitor(module, DATA, probes=2)
    with pytest.raises(ValueError, match="shape"):
        monitor.update(torch.zeros(3, 41))


# ---- where it is shown --------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lipscope", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    log = CsvLog(tmp_path / "log.csv")
    for step in range(5):
        log(snapshot(step, upper=2.0 + step, **{"features[0] (ReLU)": 0.5}))
    return log.path


def test_the_command_shows_a_log_and_draws_it(log_file: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    figure = log_file.with_name("log.svg")
    assert command(monkeypatch, "monitor", str(log_file), "--figure", str(figure)) == 0
    out = capsys.readouterr().out
    assert "1 ≤ L ≤ 6" in out
    assert "features[0] (ReLU)" in out
    assert "L_eff unit, active" in out
    assert "▁▃▅▆█" in out
    assert "share of the time 3.0 %" in out
    drawn = figure.read_bytes()
    assert drawn.startswith(b"<?xml")
    assert command(monkeypatch, "monitor", str(log_file), "--figure", str(figure)) == 0
    assert figure.read_bytes() == drawn
    assert command(monkeypatch, "monitor", str(log_file.with_name("none.csv"))) == 5


def test_the_command_follows_a_log_until_it_is_interrupted(log_file: Path, monkeypatch, capsys) -> None:
    rounds = 0

    def sleep(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            CsvLog(log_file, append=True)(snapshot(5, upper=32.0))
        elif rounds == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert command(monkeypatch, "monitor", str(log_file), "--follow") == 0
    assert "1 ≤ L ≤ 32" in capsys.readouterr().out


def test_a_live_view_is_a_log() -> None:
    screen = io.StringIO()
    with LiveView("my training", Console(file=screen, width=100)) as view:
        view(snapshot(1))
        view(snapshot(2, upper=3.0))
    text = screen.getvalue()
    assert "my training step 2" in text
    assert "1 ≤ L ≤ 3" in text


def test_sparklines() -> None:
    assert sparkline([1.0, 2.0, 3.0], 10) == "▁▅█"
    assert sparkline([1.0, 10.0, 100.0], 10) == "▁▅█"
    assert sparkline([2.0, 2.0], 10) == "▁▁"
    assert sparkline([0.0, math.inf, 7.0], 10) == "▁██"
    assert sparkline(range(100), 4) == "▁▃▆█"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_a_device_is_followed_as_on_the_cpu() -> None:
    found = {}
    for device in ("cpu", "cuda"):
        module = SmallResidual().double().to(device)
        monitor = Monitor(
            module, gaussian(24, (2, 8, 8), 4), budget=1.0, tolerance=1e-8, levels=("scalar", "unit")
        )
        generator = torch.Generator().manual_seed(3)
        for _ in range(3):
            x = torch.randn(16, 2, 8, 8, generator=generator, dtype=torch.float64).to(device)
            module.eval()(x).square().mean().backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.02 * parameter.grad
                    parameter.grad = None
            snapshot = monitor.update(x)
        assert snapshot.lower <= snapshot.upper
        assert monitor.device.type == device
        found[device] = {name: value for name, value in snapshot.numbers.items() if name != "share"}
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-5)
