"""Penalties and constraints for training: values, gradients, certified bounds, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typer.testing import CliRunner

import lipscope
from lipscope.cli import app
from lipscope.errors import LipscopeError, ModelError, UnsupportedLayerError
from lipscope.graph import LiveGraph
from lipscope.results import Constrained
from lipscope.train import (
    CertifiedPenalty,
    EffectivePenalty,
    Every,
    LocalPenalty,
    Penalty,
    bake,
    constrain,
    spectral,
)
from strategies import Network, new_networks, randomised

Made = tuple[nn.Module, tuple[int, ...]]


class Block(nn.Module):
    """A residual block with batch norm between its convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.norm(self.first(x)).relu())


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.RNN(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[0][:, -1]


def mlp(activation: Callable[[], nn.Module] = nn.ReLU) -> Made:
    return nn.Sequential(
        nn.Linear(6, 9), activation(), nn.Linear(9, 8), activation(), nn.Dropout(0.5), nn.Linear(8, 3)
    ), (6,)


def convolutional() -> Made:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3),
    ), (2, 8, 8)  # fmt: skip


def residual() -> Made:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), Block(3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    ), (2, 4, 4)  # fmt: skip


NETWORKS: dict[str, Callable[[], Made]] = {
    "mlp": mlp,
    "smooth mlp": lambda: mlp(nn.GELU),
    "convolutional": convolutional,
    "residual": residual,
}


def made(name: str) -> Made:
    module, shape = NETWORKS[name]()
    return randomised(module, 5).requires_grad_(True), shape


def batch(shape: tuple[int, ...], count: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PENALTIES: dict[str, Callable[[nn.Module, tuple[int, ...]], Penalty]] = {
    "local max": LocalPenalty,
    "local mean": lambda m, s: LocalPenalty(m, s, reduce="mean", samples=4),
    "scalar": EffectivePenalty,
    "channel": lambda m, s: EffectivePenalty(m, s, level="channel"),
    "unit secant": lambda m, s: EffectivePenalty(m, s, level="unit", reading="secant"),
    "scalar secant": lambda m, s: EffectivePenalty(m, s, level="scalar", reading="secant", samples=4),
    "full": lambda m, s: EffectivePenalty(m, s, level="full"),
    "full secant": lambda m, s: EffectivePenalty(m, s, level="full", reading="secant"),
    "certified": CertifiedPenalty,
}


# ---- the live graph ---------------------------------------------------------------------------------


@settings(max_examples=3, phases=[Phase.explicit, Phase.generate])
@given(new_networks())
def test_a_live_graph_is_a_new_import_of_the_module_with_other_weights(network: Network) -> None:
    module = network.module
    live = LiveGraph(module, network.shape)
    generator = torch.Generator().manual_seed(network.seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    imported = lipscope.from_torch(module, network.shape)
    x = network.points(3)
    torch.testing.assert_close(live.graph().evaluate(x), imported.evaluate(x), rtol=1e-10, atol=1e-10)


def test_a_live_graph_has_the_gradients_the_dtype_and_the_mode_of_its_module() -> None:
    module, shape = made("residual")
    module.float().train()
    live = LiveGraph(module, shape)
    assert module.training
    x = batch(shape).float()
    y = live.graph().evaluate(x)
    assert y.dtype == torch.float32
    module.eval()
    parameters = list(module.parameters())
    found = torch.autograd.grad(y.square().sum(), parameters)
    expected = torch.autograd.grad(module(x).square().sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_copied_live_graph_follows_the_copied_module() -> None:
    module, shape = made("convolutional")
    live = copy.deepcopy(LiveGraph(module, shape))
    with torch.no_grad():
        live.module[0].weight.mul_(2)
    x = batch(shape)
    torch.testing.assert_close(live.graph().evaluate(x), live.module(x))
    assert not torch.allclose(live.module(x), module(x))


@pytest.mark.parametrize("bias", [0.0, 50.0])
def test_a_parameter_that_is_read_as_a_number_is_refused(bias: float) -> None:
    """Also where the points at which networks are compared do not reach what it decides."""
    module = randomised(nn.Sequential(nn.Linear(3, 3), nn.PReLU(), nn.Linear(3, 2)), 1)
    with torch.no_grad():
        module[0].bias.fill_(bias)
    with pytest.raises(ModelError, match=r"1 \(PReLU\).*one entry a channel"):
        LiveGraph(module, (3,))


# ---- penalties --------------------------------------------------------------------------------------


DIFFERENTIATED = [
    *((kind, "convolutional") for kind in PENALTIES),
    *((kind, "residual") for kind in ("local max", "channel", "unit secant", "full", "certified")),
    *((kind, "mlp") for kind in ("local max", "full secant")),
    *((kind, "smooth mlp") for kind in ("local mean", "channel", "unit secant")),
]


@pytest.mark.parametrize(("kind", "network"), DIFFERENTIATED)
def test_gradients_are_those_of_finite_differences(kind: str, network: str) -> None:
    module, shape = made(network)
    penalty = PENALTIES[kind](module, shape)
    x = batch(shape)
    settled = penalty.settle(x, 1e-13)
    value = penalty(x)
    assert float(value.detach()) == pytest.approx(settled, rel=1e-9)
    assert float(penalty.last) == float(value.detach())
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
    step = 1e-6

    def moved(by: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(by * d)
        found = penalty.settle(x, 1e-13)
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(by * d)
        return found

    assert slope == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-5, abs=1e-7)
    assert slope != 0


@pytest.mark.parametrize("network", ["convolutional", "residual"])
def test_settled_values_are_those_of_the_quantities(network: str) -> None:
    module, shape = made(network)
    x = batch(shape, 8)
    graph, samples = lipscope.from_torch(module, shape), lipscope.load_samples(x)
    estimates = lipscope.local(graph, samples, tolerance=1e-8, dtype=torch.float64)[0].estimates
    local = LocalPenalty(module, shape)
    assert local.settle(x, 1e-9) == pytest.approx(max(estimates), rel=1e-6)
    local.reduce = "mean"
    assert local.settle(x, 1e-9) == pytest.approx(sum(estimates) / 8, rel=1e-6)
    # One import serves all levels and readings; two samples make one pair.
    penalty = EffectivePenalty(module, shape)
    for count, reading in ((8, "active"), (2, "secant")):
        penalty.reading, penalty.samples = reading, count  # type: ignore[assignment]
        slopes = lipscope.mean_slopes(graph, lipscope.load_samples(x[:count]), dtype=torch.float64)
        for level in ("scalar", "channel", "unit"):
            penalty.level = level  # type: ignore[assignment]
            expected = lipscope.effective(slopes, level, reading)[0].value  # type: ignore[arg-type]
            assert penalty.settle(x, 1e-9) == pytest.approx(expected, rel=1e-5)
        if reading == "active":
            penalty.level = "full"
            full = lipscope.mean_jacobian_norm(slopes, samples, "active")
            assert penalty.settle(x, 1e-9) == pytest.approx(full.value, rel=1e-3)
    assert CertifiedPenalty(module, shape).settle(tolerance=1e-10) == pytest.approx(
        lipscope.analytical(graph).product, rel=1e-8
    )


@pytest.mark.parametrize("kind", ["local max", "scalar", "full secant", "certified"])
def test_calls_approach_the_settled_value_from_below(kind: str) -> None:
    module, shape = made("convolutional")
    x = batch(shape)
    penalty = PENALTIES[kind](module, shape)
    values = [float(penalty(x).detach()) for _ in range(60)]
    settled = PENALTIES[kind](module, shape).settle(x, 1e-12)
    assert max(values) <= settled * (1 + 1e-9)
    assert values[-1] == pytest.approx(settled, rel=1e-3)


def test_every_fourth_call_costs_and_counts_four_times() -> None:
    module, shape = made("mlp")
    x = batch(shape)
    penalty = CertifiedPenalty(module, shape)
    penalty.settle()
    every = Every(penalty, 4)
    values = [float(every(x).detach()) for _ in range(8)]
    assert values == pytest.approx([0, 0, 0, 4 * float(penalty.last)] * 2)
    assert float(every.last) == float(penalty.last)


def test_penalties_see_the_module_in_evaluation_mode() -> None:
    module, shape = made("convolutional")
    x = batch(shape)
    penalty = LocalPenalty(module, shape)
    expected = penalty.settle(x, 1e-10)
    module.train()
    assert penalty.settle(x, 1e-10) == pytest.approx(expected, rel=1e-8)
    assert module.training


def test_a_network_that_stretches_nothing_has_penalty_zero_and_recovers() -> None:
    module, shape = made("mlp")
    penalty = LocalPenalty(module, shape)
    x = batch(shape)
    last = module[5]
    weight = last.weight.detach().clone()
    with torch.no_grad():
        last.weight.zero_()
    assert float(penalty(x).detach()) == 0.0
    with torch.no_grad():
        last.weight.copy_(weight)
    values = [float(penalty(x).detach()) for _ in range(40)]
    assert values[-1] == pytest.approx(LocalPenalty(module, shape).settle(x, 1e-10), rel=1e-4)


def test_a_layer_without_a_constant_is_named() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    module = nn.Sequential(nn.Linear(3, 3), Gate(), nn.Linear(3, 2))
    with pytest.raises(ModelError, match="Gate"):
        CertifiedPenalty(module, (3,))
    assert float(LocalPenalty(module, (3,))(torch.randn(4, 3)).detach()) > 0


# ---- constraints ------------------------------------------------------------------------------------


def trained(module: nn.Module, shape: tuple[int, ...], steps: int = 4) -> None:
    """A few steps that blow the weights up."""
    module.train()
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.5)
    for i in range(steps):
        x = batch(shape, 8, seed=i).to(next(module.parameters()).dtype)
        optimiser.zero_grad()
        (-module(x).square().sum().sqrt()).backward()
        optimiser.step()
    module.eval()


@pytest.mark.parametrize(
    ("network", "split", "dtype"),
    [
        ("smooth mlp", "even", torch.float32),
        ("convolutional", "even", torch.float32),
        ("convolutional", "proportional", torch.float64),
        ("residual", "even", torch.float64),
        ("residual", "proportional", torch.float32),
    ],
)
def test_the_certified_bound_of_a_constrained_network_keeps_its_budget(
    network: str, split: str, dtype: torch.dtype
) -> None:
    module, shape = made(network)
    module.to(dtype)
    bound = 0.7 if network != "residual" else 3.1
    budgets = constrain(module, shape, bound, split=split)  # type: ignore[arg-type]
    assert all(budget > 0 for budget in budgets.values())
    trained(module, shape)
    certified = lipscope.analytical(lipscope.from_torch(module, shape))
    # The blown-up weights fill their budgets, so the bound is kept and used.
    assert bound * 0.97 < certified.product <= bound
    x = batch(shape).to(dtype)
    before = module(x)
    bake(module)
    assert not any(parametrize.is_parametrized(part) for part in module.modules())
    assert torch.equal(module(x), before)
    assert lipscope.analytical(lipscope.from_torch(module, shape)).product == certified.product


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (nn.Linear(7, 5), (7,)),
    "dense on tokens": (nn.Linear(7, 5), (3, 7)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 9, 7)),
    "dilated": (nn.Conv1d(3, 4, 3, dilation=2, padding="same"), (3, 11)),
    "volume": (nn.Conv3d(2, 2, 2), (2, 4, 4, 3)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1), (3, 4, 4)),
    "by the torus": (nn.Conv2d(8, 8, 3, padding=1), (8, 17, 17)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_bounded_layer_holds_its_bound_and_uses_it(kind: str) -> None:
    layer, shape = CONVOLUTIONS[kind]
    layer = randomised(copy.deepcopy(layer), 3, gain=4.0).requires_grad_(True).float()
    spectral(layer, "weight", bound=0.8, input_shape=shape)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(1.7)
    layer.eval()
    norm = lipscope.analytical(lipscope.from_torch(layer, shape)).value
    assert 0.799 < norm <= 0.8
    assert layer.parametrizations.weight[0].norm == norm
    layer.train()
    weight = layer.weight
    # In training the power method stands for the proof.
    torch.testing.assert_close(weight.detach(), layer.eval().weight.detach(), rtol=5e-3, atol=1e-6)


def test_gradients_pass_through_the_norm_of_a_bounded_layer() -> None:
    layer = randomised(nn.Linear(5, 4), 3, gain=3.0).requires_grad_(True)
    spectral(layer, bound=1.0)
    layer.train()
    original = layer.parametrizations.weight.original
    (found,) = torch.autograd.grad(layer.weight[0].sum(), original)
    plain = original.detach().clone().requires_grad_(True)
    (expected,) = torch.autograd.grad((plain / torch.linalg.matrix_norm(plain, 2))[0].sum(), plain)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_weight_within_its_bound_is_left_alone() -> None:
    layer = randomised(nn.Linear(5, 4), 3)
    weight = layer.weight.clone()
    spectral(layer, bound=100.0)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.train().weight, weight)


def test_weights_that_change_in_evaluation_mode_are_certified_again() -> None:
    layer = randomised(nn.Linear(5, 4), 3, gain=3.0)
    spectral(layer, bound=1.0)
    state = copy.deepcopy(layer.state_dict())
    layer.eval()
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(3)
    assert float(torch.linalg.matrix_norm(layer.weight, 2)) == pytest.approx(1.0, rel=1e-3)
    layer.load_state_dict(state)
    assert lipscope.analytical(lipscope.from_torch(layer, (5,))).value <= 1.0
    copied = copy.deepcopy(layer)
    with torch.no_grad():
        copied.parametrizations.weight.original.mul_(5)
    assert lipscope.analytical(lipscope.from_torch(copied.train(), (5,))).value <= 1.0


def test_what_cannot_be_bounded_is_named() -> None:
    with pytest.raises(UnsupportedLayerError, match="Embedding"):
        spectral(nn.Embedding(3, 4))
    with pytest.raises(LipscopeError, match="input_shape"):
        spectral(nn.Conv2d(1, 1, 3))
    with pytest.raises(UnsupportedLayerError, match=r"1 \(PReLU\)"):
        constrain(nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)), (3,), 1.0)
    with pytest.raises(UnsupportedLayerError, match=r"0 \(Conv2d\).*affine=True"):
        constrain(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False)), (1, 5, 5), 1.0)
    with pytest.raises(UnsupportedLayerError, match=r"RNN.*cells"):
        constrain(Last(), (2, 3), 1.0)
    with pytest.raises(LipscopeError, match="passes no weight"):
        constrain(nn.Sequential(Block(2)), (2, 4, 4), 0.9)
    with pytest.raises(LipscopeError, match="positive"):
        constrain(nn.Linear(3, 3), (3,), 0.0)
    module = nn.Linear(3, 3)
    constrain(module, (3,), 1.0)
    with pytest.raises(UnsupportedLayerError, match="another parametrization"):
        constrain(module, (3,), 1.0)
    with pytest.raises(UnsupportedLayerError, match="no weights"):
        constrain(nn.ReLU(), (3,), 1.0)


def test_a_weight_used_at_two_sizes_is_bounded_at_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.pool = nn.Conv1d(2, 2, 3, padding=1), nn.MaxPool1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.pool(self.layer(x)))

    module = randomised(Twice(), 4, gain=3.0).requires_grad_(True)
    assert list(constrain(module, (2, 8), 2.0)) == ["layer.weight"]
    trained(module, (2, 8))
    certified = lipscope.analytical(lipscope.from_torch(module, (2, 8)))
    constants = [layer.constant for layer in certified.layers if layer.layer == "convolution"]
    # The norm at the larger size decides; that at the smaller one lies below.
    assert len(constants) == 2
    assert 0.999 * 2**0.5 < max(constants) <= 2**0.5
    assert certified.product <= 2.0


# ---- the command ------------------------------------------------------------------------------------


MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
"""


def test_the_command_writes_weights_that_keep_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    arguments = [
        "constrain",
        "net.py:build",
        "--input-shape",
        "1x6x6",
        "--max",
        "0.25",
        "--output",
        "out/w.safetensors",
    ]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert "L ≤ 0.25" in found.output
    result = Constrained.from_json((tmp_path / "out" / "w.json").read_text())
    module = lipscope.load_model("net.py:build", Path("out/w.safetensors")).module
    graph = lipscope.from_torch(module, (1, 6, 6))
    assert lipscope.analytical(graph).value == result.after <= 0.25 < result.before
    assert graph.fingerprint() == result.fingerprint
    assert [w.name for w in result.weights] == ["1.weight", "4.weight"]
    assert all(w.after <= w.bound and 0 < w.scale < 1 for w in result.weights)
    assert [w.before * w.scale for w in result.weights] == pytest.approx(
        [w.after for w in result.weights], rel=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max", "1", "--output", "w.pt", "--input-shape", "1x6x6"], "written as .safetensors"),
        (["--max", "1", "--output", "w.safetensors"], "--input-shape"),
        (["--max", "-1", "--output", "w.safetensors", "--input-shape", "1x6x6"], "positive number"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    found = CliRunner().invoke(app, ["constrain", "net.py:build", *options])
    assert found.exit_code in (2, 5)
    assert message in " ".join(found.output.split())
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", PENALTIES)
def test_penalties_and_constraints_on_a_device(kind: str) -> None:
    module, shape = made("residual")
    x = batch(shape)
    expected = PENALTIES[kind](module, shape).settle(x, 1e-8)
    module.to("cuda", torch.float32)
    penalty = PENALTIES[kind](module, shape)
    x = x.to("cuda", torch.float32)
    assert penalty.settle(x, 1e-5) == pytest.approx(expected, rel=1e-3)
    penalty(x).backward()
    assert module[0].weight.grad is not None
    assert module[0].weight.grad.is_cuda
    constrain(module, shape, 3.0)
    module.train()
    module(x).sum().backward()
    module.eval()
    assert lipscope.analytical(lipscope.from_torch(module, shape)).product <= 3.0


def test_autocast_leaves_penalties_and_norms_in_full_precision() -> None:
    module, shape = made("convolutional")
    module.float()
    x = batch(shape).float()
    penalty = LocalPenalty(module, shape)
    penalty.settle(x, 1e-6)
    expected = float(penalty(x).detach())
    layer = randomised(nn.Linear(5, 4), 3, gain=3.0).requires_grad_(True).float()
    spectral(layer, bound=1.0)
    weight = layer.train().weight.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(penalty(x).detach()) == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-4, atol=1e-6)
