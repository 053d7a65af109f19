"""Penalties and constraints for training: values, gradients, certified bounds, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings
from strategies import Network, networks, randomised
from torch import Tensor, nn
from torch.nn.utils import parametrize

import lipscope
from lipscope.errors import LipscopeError, ModelError, UnsupportedLayerError
from lipscope.graph import LiveGraph
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
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), Block(3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)), (2, 4, 4)  # fmt: skip


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


@settings(max_examples=5, phases=[Phase.explicit, Phase.generate])
@given(networks())
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


def test_a_parameter_that_is_read_as_a_number_is_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.PReLU(), nn.Linear(3, 2))
    with pytest.raises(ModelError, match=r"1 \(PReLU\).*one entry a channel"):
        LiveGraph(module, (3,))


# ---- penalties --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", PENALTIES)
def test_gradients_are_those_of_finite_differences(kind: str, network: str) -> None:
    module, shape = made(network)
    penalty = PENALTIES[kind](module, shape)
    x = batch(shape)
    settled = penalty.settle(x, 1e-13)
    value = penalty(x)
    assert float(value) == pytest.approx(settled, rel=1e-9)
    assert float(penalty.last) == float(value)
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


@pytest.mark.parametrize("network", NETWORKS)
def test_settled_values_are_those_of_the_quantities(network: str) -> None:
    module, shape = made(network)
    x = batch(shape, 8)
    graph, samples = lipscope.from_torch(module, shape), lipscope.load_samples(x)
    estimates = lipscope.local(graph, samples, tolerance=1e-8, dtype=torch.float64)[0].estimates
    assert LocalPenalty(module, shape).settle(x, 1e-9) == pytest.approx(max(estimates), rel=1e-6)
    mean = LocalPenalty(module, shape, reduce="mean").settle(x, 1e-9)
    assert mean == pytest.approx(sum(estimates) / 8, rel=1e-6)
    slopes = lipscope.mean_slopes(graph, samples, dtype=torch.float64)
    for level in ("scalar", "channel", "unit"):
        expected = lipscope.effective(slopes, level, "active")[0].value
        assert EffectivePenalty(module, shape, level=level).settle(x, 1e-9) == pytest.approx(expected, rel=1e-5)
    two = lipscope.load_samples(x[:2])
    slopes = lipscope.mean_slopes(graph, two, dtype=torch.float64)
    for level in ("scalar", "channel", "unit"):
        penalty = EffectivePenalty(module, shape, level=level, reading="secant", samples=2)
        expected = lipscope.effective(slopes, level, "secant")[0].value
        assert penalty.settle(x, 1e-9) == pytest.approx(expected, rel=1e-5)
    full = lipscope.mean_jacobian_norm(lipscope.mean_slopes(graph, samples, dtype=torch.float64), samples, "active")
    assert EffectivePenalty(module, shape, level="full").settle(x, 1e-9) == pytest.approx(full.value, rel=1e-3)
    assert CertifiedPenalty(module, shape).settle(tolerance=1e-10) == pytest.approx(
        lipscope.analytical(graph).product, rel=1e-8
    )


@pytest.mark.parametrize("kind", PENALTIES)
def test_calls_approach_the_settled_value_from_below(kind: str) -> None:
    module, shape = made("convolutional")
    x = batch(shape)
    penalty = PENALTIES[kind](module, shape)
    values = [float(penalty(x).detach()) for _ in range(60)]
    settled = PENALTIES[kind](module, shape).settle(x, 1e-12)
    assert max(values) <= settled * (1 + 1e-9)
    assert values[-1] == pytest.approx(settled, rel=1e-3)
