"""Every activation: value, derivative, certified range of slopes, and secant slopes."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipscope
from lipscope.errors import UnsupportedLayerError
from lipscope.graph import from_torch
from lipscope.layers.activation import (
    ELU,
    GELU,
    Activation,
    Arctangent,
    Clamp,
    ErrorFunction,
    Hardswish,
    LeakyReLU,
    LogSigmoid,
    Mish,
    PiecewiseLinear,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    SoftShrink,
    SoftSign,
    Tanh,
    TanhGELU,
    TanhShrink,
)
from strategies import ACTIVATIONS, Apply, seeds

SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)

PAIRS: dict[str, tuple[Activation, Callable[[], nn.Module]]] = {
    "relu": (ReLU(), ACTIVATIONS["relu"]),
    "leaky": (LeakyReLU(0.01), ACTIVATIONS["leaky"]),
    "leaky steep": (LeakyReLU(1.5), ACTIVATIONS["leaky steep"]),
    "leaky negative": (LeakyReLU(-0.3), ACTIVATIONS["leaky negative"]),
    "abs": (LeakyReLU(-1.0), ACTIVATIONS["abs"]),
    "hardtanh": (Clamp(-1.0, 1.0), ACTIVATIONS["hardtanh"]),
    "hardtanh narrow": (Clamp(-0.2, 0.1), ACTIVATIONS["hardtanh narrow"]),
    "relu6": (Clamp(0.0, 6.0), ACTIVATIONS["relu6"]),
    "sigmoid": (Sigmoid(), ACTIVATIONS["sigmoid"]),
    "tanh": (Tanh(), ACTIVATIONS["tanh"]),
    "softplus": (Softplus(), ACTIVATIONS["softplus"]),
    "softplus sharp": (Softplus(2.5), ACTIVATIONS["softplus sharp"]),
    "elu": (ELU(), ACTIVATIONS["elu"]),
    "elu deep": (ELU(1.7), ACTIVATIONS["elu deep"]),
    "elu shallow": (ELU(0.3), ACTIVATIONS["elu shallow"]),
    "elu negative": (ELU(-0.8), lambda: nn.ELU(-0.8)),
    "selu": (ELU(*SELU), ACTIVATIONS["selu"]),
    "celu": (ELU(0.5, 1.0, 2.0), ACTIVATIONS["celu"]),
    "gelu": (GELU(), ACTIVATIONS["gelu"]),
    "gelu tanh": (TanhGELU(), ACTIVATIONS["gelu tanh"]),
    "silu": (SiLU(), ACTIVATIONS["silu"]),
    "hardswish": (Hardswish(), nn.Hardswish),
    "logsigmoid": (LogSigmoid(), nn.LogSigmoid),
    "arctangent": (Arctangent(), lambda: Apply(torch.atan, "atan")),
    "error function": (ErrorFunction(), lambda: Apply(torch.erf, "erf")),
    "mish": (Mish(), nn.Mish),
    "softshrink": (SoftShrink(1.0), lambda: nn.Softshrink(1.0)),
    "tanhshrink": (TanhShrink(), nn.Tanhshrink),
    "softsign": (SoftSign(), nn.Softsign),
    "threshold": (Clamp(0.1, math.inf), lambda: nn.Threshold(0.1, 0.1)),
    "clamp from below": (Clamp(0.1, math.inf), lambda: Apply(lambda x: x.clamp_min(0.1), "clamp_min")),
}
KINKS = {"relu": [0], "relu6": [0, 6], "hardtanh": [-1, 1], "hardtanh narrow": [-0.2, 0.1]}
KINKS |= {"hardswish": [-3, 3], "clamp from below": [0.1], "threshold": [0.1], "softshrink": [-1, 1]}
SMOOTH = {
    "logsigmoid",
    "arctangent",
    "error function",
    "sigmoid",
    "tanh",
    "softplus",
    "softplus sharp",
    "gelu",
    "gelu tanh",
    "silu",
    "mish",
    "tanhshrink",
    "softsign",
}
TORCH_SWITCH = 2.1e-9
"""Softplus drops log1p(e⁻²⁰) beyond its threshold: torch's own jump, which no slope describes."""

every_activation = pytest.mark.parametrize("name", sorted(PAIRS))


def points(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(-50, 50, 20001, dtype=torch.float64)
    tails = torch.tensor([-1e4, -700.0, -100.0, 100.0, 700.0, 1e4], dtype=torch.float64)
    fine = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    random = 3 * torch.randn(10000, generator=generator, dtype=torch.float64)
    tiny = 1e-8 * torch.randn(1000, generator=generator, dtype=torch.float64)
    return torch.cat([grid, tails, fine, random, tiny])


def outward(layer: Activation, dtype: torch.dtype) -> tuple[float, float]:
    """The slope range as numbers of the dtype: a float32 slope may be the rounding of an end."""
    low, high = (torch.tensor(bound, dtype=dtype).item() for bound in layer.slope_range)
    return min(low, layer.slope_range[0]), max(high, layer.slope_range[1])


def test_every_activation_of_the_importer_is_tested() -> None:
    modules = {"relu inplace"} | set(PAIRS)
    assert set(ACTIVATIONS) <= modules
    for name, (layer, make) in PAIRS.items():
        (imported,) = [n.layer for n in from_torch(make(), (3,)).nodes[1:]]
        if name == "relu":
            assert isinstance(imported, ReLU)
        else:
            assert type(imported) is type(layer)
            assert vars(imported) == vars(layer)


@every_activation
def test_forward_equals_torch(name: str) -> None:
    layer, make = PAIRS[name]
    x = points()
    torch.testing.assert_close(layer.forward(x), make()(x), rtol=1e-14, atol=1e-300)
    torch.testing.assert_close(layer.forward(x.float()), make()(x.float()), rtol=1e-6, atol=1e-37)


@every_activation
def test_derivative_equals_autograd(name: str) -> None:
    layer, make = PAIRS[name]
    x = points()
    if name not in SMOOTH:
        for kink in KINKS.get(name, [0]):
            x = x[x != kink]
    x.requires_grad_(True)
    (expected,) = torch.autograd.grad(make()(x).sum(), x)
    derivative = layer.derivative(x.detach())
    if isinstance(layer, Softplus):
        # torch's gradient is 1 beyond the threshold; the derivative is within e⁻²⁰ of that.
        torch.testing.assert_close(derivative, expected, rtol=1e-12, atol=TORCH_SWITCH)
    else:
        torch.testing.assert_close(derivative, expected, rtol=1e-11, atol=1e-14)
    narrow = x.detach().float()
    if isinstance(layer, PiecewiseLinear):
        keep = torch.stack(
            [narrow != torch.tensor(k, dtype=torch.float32) for k in KINKS.get(name, [0])]
        ).all(0)
        narrow = narrow[keep]
    assert layer.derivative(narrow).dtype == torch.float32
    torch.testing.assert_close(
        layer.derivative(narrow).double(), layer.derivative(narrow.double()), rtol=1e-4, atol=2e-6
    )


@every_activation
def test_slope_range_contains_the_derivative(name: str) -> None:
    layer, _ = PAIRS[name]
    for seed in range(3):
        for dtype in (torch.float64, torch.float32):
            low, high = outward(layer, dtype)
            slopes = layer.derivative(points(seed).to(dtype)).double()
            # Beyond the range by rounding alone: a derivative is computed in a few operations.
            slack = 4 * torch.finfo(dtype).eps
            assert float(slopes.min()) >= low - slack
            assert float(slopes.max()) <= high + slack
    assert layer.constant((3,)) == max(abs(bound) for bound in layer.slope_range)


@every_activation
def test_slope_range_is_tight(name: str) -> None:
    layer, _ = PAIRS[name]
    slopes = layer.derivative(points())
    low, high = layer.slope_range
    assert float(slopes.min()) <= low + 1e-4
    assert float(slopes.max()) >= high - 1e-4


def pairs_of_points(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Far, near, nearly equal and equal points; around every kink and in the tails."""
    generator = torch.Generator().manual_seed(seed)
    base = 3 * torch.randn(400, generator=generator, dtype=torch.float64)
    kinks = torch.tensor([0.0, 6.0, -1.0, 1.0, -0.2, 0.1, 20.0, 8.0, 40.0, -40.0], dtype=torch.float64)
    base = torch.cat([base, kinks.repeat(40)])
    exponent = 18 * torch.rand(base.shape, generator=generator, dtype=torch.float64) - 16
    x1 = base + torch.randn(base.shape, generator=generator, dtype=torch.float64) * 10.0**exponent
    x2 = base + torch.randn(base.shape, generator=generator, dtype=torch.float64) * 10.0**exponent
    x2[::10] = x1[::10]
    return x1.to(dtype), x2.to(dtype)


@every_activation
@given(seed=seeds())
@settings(max_examples=15)
def test_secant_slopes(name: str, seed: int) -> None:
    layer, _ = PAIRS[name]
    for dtype in (torch.float64, torch.float32):
        x1, x2 = pairs_of_points(seed, dtype)
        slope = layer.secant(x1, x2).values
        assert slope.dtype == dtype
        low, high = outward(layer, dtype)
        assert bool(((slope >= low) & (slope <= high)).all())
        # D Δx = Δφ: to rounding of φ itself, plus that of the midpoint rule for near points.
        change = (layer.forward(x1) - layer.forward(x2)).double()
        gap = (x1 - x2).double()
        eps = torch.finfo(dtype).eps
        size = layer.forward(x1).abs().double() + layer.forward(x2).abs().double() + x1.abs().double()
        rounding = 8 * eps * size + 2 * eps ** (2 / 3) * gap.abs()
        if isinstance(layer, Softplus):
            rounding = rounding + TORCH_SWITCH
        assert bool(((slope.double() * gap - change).abs() <= rounding).all())
        back = layer.secant(x2, x1).values
        torch.testing.assert_close(back, slope, rtol=8 * eps ** (1 / 3), atol=8 * eps ** (2 / 3))


@every_activation
def test_secants_of_nearly_equal_points_in_float64_equal_the_derivative(name: str) -> None:
    """Where a divided difference has lost all digits, and no kink is between."""
    layer, _ = PAIRS[name]
    x = torch.linspace(-5, 5, 997, dtype=torch.float64)
    x = x[
        (x.abs() > 0.01) & ((x.abs() - 1).abs() > 0.01) & ((x + 0.2).abs() > 0.01) & ((x - 0.1).abs() > 0.01)
    ]
    for gap in (0.0, 1e-16, 1e-12, 1e-8, 1e-6):
        slope = layer.secant(x + gap, x).values
        torch.testing.assert_close(slope, layer.derivative(x), rtol=0, atol=2 * gap + 1e-9)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from(sorted(PAIRS)))
@settings(max_examples=300)
def test_secants_of_arbitrary_points_stay_in_range(first: float, second: float, name: str) -> None:
    layer, _ = PAIRS[name]
    for dtype in (torch.float64, torch.float32):
        x1, x2 = torch.tensor([[first]], dtype=dtype), torch.tensor([[second]], dtype=dtype)
        value = layer.secant(x1, x2).values.item()
        low, high = outward(layer, dtype)
        assert low <= value <= high


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0, -1.5])
def test_softplus_with_any_sharpness(beta: float) -> None:
    layer = Softplus(beta)
    x = points()
    torch.testing.assert_close(layer.forward(x), nn.Softplus(beta)(x), rtol=1e-14, atol=0)
    slopes = layer.derivative(x)
    assert 0 <= float(slopes.min()) < float(slopes.max()) <= 1


def test_hard_sigmoid_is_a_clamp_between_scalings() -> None:
    graph = from_torch(nn.Hardsigmoid(), (7,))
    x = torch.linspace(-5, 5, 7, dtype=torch.float64)[None]
    torch.testing.assert_close(graph.evaluate(x), nn.functional.hardsigmoid(x), rtol=1e-15, atol=1e-16)


def test_celu_of_negative_alpha_is_refused() -> None:
    """Its slope e^{x/α} grows without bound."""
    with pytest.raises(UnsupportedLayerError, match="without bound"):
        from_torch(nn.CELU(-1.0), (3,))


# ---- the constants in high precision ----------------------------------------------------------------


def true_maximum(derivative: Callable[[mpmath.mpf], mpmath.mpf], near: float) -> mpmath.mpf:
    """The maximum of φ' by its stationary point, checked on a dense grid."""
    top = mpmath.findroot(lambda t: mpmath.diff(derivative, t), near)
    value = derivative(top)
    assert all(derivative(mpmath.mpf(i) / 100) <= value for i in range(-1200, 1201))
    return value


def mish_slope(x: mpmath.mpf) -> mpmath.mpf:
    t = mpmath.tanh(mpmath.log1p(mpmath.exp(x)))
    return t + x * (1 - t**2) / (1 + mpmath.exp(-x))


def test_certified_slope_constants_of_mish() -> None:
    low, high = Mish().slope_range
    with mpmath.workdps(50):
        top = true_maximum(mish_slope, 1.49)
        bottom = -true_maximum(lambda x: -mish_slope(x), -2.26)
        assert bottom - 1e-10 <= low <= bottom
        assert top <= high <= top + 1e-10
        least = mpmath.findroot(mish_slope, -1.19)
        value = least * mpmath.tanh(mpmath.log1p(mpmath.exp(least)))
        assert value - 1e-10 <= Mish.minimum <= value
        for first, last, _ in Mish.bends:
            curvature = [mpmath.diff(mish_slope, at) for at in (first, last)]
            assert curvature[0] * curvature[1] < 0


def test_prelu_with_one_slope_is_a_leaky_relu() -> None:
    (layer,) = [node.layer for node in from_torch(nn.PReLU(init=-0.5), (3, 4)).nodes[1:]]
    assert isinstance(layer, LeakyReLU)
    assert layer.slope == -0.5


def test_slopes_of_prelu_are_each_channels_own() -> None:
    module = nn.PReLU(3).double().requires_grad_(False)
    module.weight.copy_(torch.tensor([0.25, -0.5, 2.0]))
    (layer,) = [node.layer for node in from_torch(module, (3, 4)).nodes[1:]]
    assert isinstance(layer, PReLU)
    assert layer.constant((3, 4)) == 2.0
    x, y = (torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(i)).double() for i in (0, 1))
    assert torch.equal(layer.forward(x), module(x))
    change = layer.secant(x, y).values * (x - y)
    torch.testing.assert_close(change, layer.forward(x) - layer.forward(y), rtol=1e-13, atol=1e-13)
    low, high = torch.minimum(x, y), torch.maximum(x, y)
    least, most = layer.slope_range_over(low, high)
    slope = layer.secant(x, y).values
    assert bool(((least - 1e-14 <= slope) & (slope <= most + 1e-14)).all())
    # Where the interval keeps off the kink, the slope is one number.
    assert torch.equal((least == most), (low > 0) | (high < 0))
    below, above = layer.value_range(low, high)
    for share in (0.0, 0.3, 1.0):
        values = layer.forward(low + share * (high - low))
        assert bool(((below <= values) & (values <= above)).all())


def test_a_network_with_prelu_of_several_slopes_is_bracketed() -> None:
    torch.manual_seed(0)
    found = lipscope.bracket(
        nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)), (3,), effort="fast", seconds=1.0
    )
    assert 0 < found.lower <= found.upper < math.inf


@pytest.mark.parametrize("module", [nn.Hardshrink(), nn.Threshold(0.1, 0.0)], ids=lambda m: type(m).__name__)
def test_functions_that_jump_are_refused(module: nn.Module) -> None:
    with pytest.raises(UnsupportedLayerError, match="jumps"):
        from_torch(module, (3,))


def gelu_slope(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.ncdf(x) + x * mpmath.npdf(x)


def tanh_gelu_slope(x: mpmath.mpf) -> mpmath.mpf:
    root, cubic = mpmath.sqrt(2 / mpmath.pi), mpmath.mpf("0.044715")
    t = mpmath.tanh(root * (x + cubic * x**3))
    return (1 + t) / 2 + x * (1 - t**2) * root * (1 + 3 * cubic * x**2) / 2


def silu_slope(x: mpmath.mpf) -> mpmath.mpf:
    s = 1 / (1 + mpmath.exp(-x))
    return s * (1 + x * (1 - s))


@pytest.mark.parametrize(
    ("layer", "derivative", "near", "looseness"),
    [
        (GELU(), gelu_slope, math.sqrt(2), 2e-15),
        (TanhGELU(), tanh_gelu_slope, 1.41, 1e-10),
        (SiLU(), silu_slope, 2.4, 1e-10),
    ],
    ids=["gelu", "gelu tanh", "silu"],
)
def test_certified_slope_constants(
    layer: Activation, derivative: Callable[[mpmath.mpf], mpmath.mpf], near: float, looseness: float
) -> None:
    with mpmath.workdps(50):
        top = true_maximum(derivative, near)
        low, high = (mpmath.mpf(bound) for bound in layer.slope_range)
        assert top <= high <= top + looseness
        # φ'(−x) = 1 − φ'(x), so the minimum is one minus the maximum.
        for t in (mpmath.mpf("0.3"), mpmath.mpf("1.7"), mpmath.mpf(5)):
            assert mpmath.almosteq(derivative(-t), 1 - derivative(t), abs_eps=mpmath.mpf(10) ** -45)
        assert 1 - top - looseness <= low <= 1 - top
