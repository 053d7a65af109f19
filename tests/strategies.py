"""Hypothesis strategies of random torch networks and lone layers, small enough for dense linear algebra.

Modules come in float64 and evaluation mode. Structure is drawn, so that Hypothesis can shrink it;
weights come from a drawn seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor, nn

from lipscope.graph import Graph, from_torch
from lipscope.layers import Layer
from lipscope.layers.base import TORCH_RULES, Reference, TracedCall

Shape = tuple[int, ...]

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AVERAGE = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
MAXIMUM = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
LARGEST = 240
"""Networks are grown only while no layer has more numbers than this."""


class Apply(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor], name: str) -> None:
        super().__init__()
        self.function, self.name = function, name

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class Residual(nn.Module):
    """skip + alpha·body, or skip − alpha·body; the skip branch may share the body's in-place input."""

    def __init__(self, body: nn.Module, alpha: float, subtract: bool) -> None:
        super().__init__()
        self.body, self.alpha, self.subtract = body, alpha, subtract

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.sub(x, y, alpha=self.alpha) if self.subtract else torch.add(x, y, alpha=self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, subtract={self.subtract}"


class Branches(nn.Module):
    """Branches side by side along dimension 1."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Affine(nn.Module):
    """Arithmetic with constants."""

    def __init__(self, form: str, constant: float | Tensor) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("constant", torch.as_tensor(constant, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        c = self.constant
        return {
            "c*x": lambda: c * x,
            "x/c": lambda: x / c,
            "x+c": lambda: x + c,
            "c-x": lambda: c - x,
            "-x": lambda: -x,
            "2*x": lambda: 2 * x,
            "3-x": lambda: 3 - x,
        }[self.form]()

    def extra_repr(self) -> str:
        return f"{self.form}, c of shape {tuple(self.constant.shape)}"


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu inplace": lambda: nn.ReLU(inplace=True),
    "leaky": nn.LeakyReLU,
    "leaky steep": lambda: nn.LeakyReLU(1.5),
    "leaky negative": lambda: nn.LeakyReLU(-0.3),
    "abs": lambda: Apply(torch.abs, "abs"),
    "hardtanh": nn.Hardtanh,
    "hardtanh narrow": lambda: nn.Hardtanh(-0.2, 0.1),
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "softplus sharp": lambda: nn.Softplus(beta=2.5),
    "elu": nn.ELU,
    "elu deep": lambda: nn.ELU(1.7),
    "elu shallow": lambda: nn.ELU(0.3),
    "selu": nn.SELU,
    # torch's own gradient of CELU rounds 1/alpha to float32, so a power of two keeps the comparison exact.
    "celu": lambda: nn.CELU(0.5),
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
}


def seeds() -> SearchStrategy[int]:
    return st.integers(0, 2**31 - 1)


def randomised(module: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """The module in float64 and evaluation mode with random weights and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval().requires_grad_(False)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.running_mean.copy_(torch.randn(part.num_features, generator=generator))
                part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.1)
                if part.affine:
                    part.weight.copy_(torch.randn(part.num_features, generator=generator))
                    part.bias.copy_(torch.randn(part.num_features, generator=generator))
            elif isinstance(part, (nn.Linear, nn.modules.conv._ConvNd)):
                fan = max(1, part.weight[0].numel())
                weight = torch.randn(part.weight.shape, generator=generator, dtype=torch.float64)
                part.weight.copy_(gain * weight / math.sqrt(fan))
                if part.bias is not None:
                    part.bias.copy_(0.5 * torch.randn(part.bias.shape, generator=generator))
    return module


@dataclass(frozen=True)
class Network:
    """A drawn module, the per-sample shape it takes, and the seed of points drawn for it."""

    module: nn.Module
    shape: Shape
    seed: int

    @functools.cached_property
    def graph(self) -> Graph:
        """Its import."""
        return from_torch(self.module, self.shape)

    def points(self, *lead: int, stream: int = 0) -> Tensor:
        """Random inputs (*lead, *shape) in float64."""
        generator = torch.Generator().manual_seed(self.seed + 7919 * stream)
        return torch.randn(*lead, *self.shape, generator=generator, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.module(x.clone())


def output_shape(module: nn.Module, shape: Shape) -> Shape:
    with torch.no_grad():
        return tuple(module.double().eval()(torch.zeros(2, *shape, dtype=torch.float64)).shape[1:])


# ---- lone layers: (module, per-sample input shape) --------------------------------------------------


@st.composite
def convolutions(
    draw: DrawFn, dims: int, channels: int | None = None, size: Shape | None = None, bias: bool = True
) -> tuple[nn.Module, Shape]:
    """Any stride, padding (also beyond half the kernel, and 'same'), dilation and grouping."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3])) if channels is None else 1
    if channels is not None and draw(st.booleans()):
        groups = channels
    c_in = channels or groups * draw(st.integers(1, 3))
    c_out = groups * draw(st.integers(1, 3))
    largest = {1: 5, 2: 4, 3: 3}[dims]
    kernel = [draw(st.integers(1, largest)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 3)) for _ in range(dims)]
    stride = [draw(st.integers(1, 3)) for _ in range(dims)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding: list[int] | str = [draw(st.integers(0, k + 1)) for k in kernel]
    if size is None:
        limit = {1: 14, 2: 7, 3: 4}[dims]
        least = [max(1, r - 2 * p) for r, p in zip(reach, padding, strict=True)]
        size = tuple(draw(st.integers(n, max(n, limit))) for n in least)
    if draw(st.integers(0, 3)) == 0:
        padding, stride = "same", [1] * dims
    elif any(n + 2 * p < r for n, p, r in zip(size, padding, reach, strict=True)):
        padding = [max(p, -(-(r - n) // 2)) for n, p, r in zip(size, padding, reach, strict=True)]
    module = CONV[dims](c_in, c_out, kernel, stride, padding, dilation, groups, bias=bias)
    return randomised(module, draw(seeds())), (c_in, *size)


@st.composite
def transposed_convolutions(
    draw: DrawFn, dims: int, channels: int | None = None, size: Shape | None = None, bias: bool = True
) -> tuple[nn.Module, Shape]:
    """Any stride, padding, output padding, dilation and grouping."""
    groups = draw(st.sampled_from([1, 1, 2])) if channels is None else 1
    c_in = channels or groups * draw(st.integers(1, 3))
    c_out = groups * draw(st.integers(1, 2))
    if size is None:
        size = tuple(draw(st.integers(1, {1: 8, 2: 4, 3: 3}[dims])) for _ in range(dims))
    kernel, stride, padding, output_padding, dilation = [], [], [], [], []
    for n in size:
        k, d, s = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
        extra = draw(st.integers(0, max(s, d) - 1))
        full = (n - 1) * s + d * (k - 1) + extra + 1
        kernel.append(k)
        dilation.append(d)
        stride.append(s)
        output_padding.append(extra)
        padding.append(draw(st.integers(0, min(k, (full - 1) // 2))))
    module = CONV_TRANSPOSED[dims](
        c_in, c_out, kernel, stride, padding, output_padding, groups, bias, dilation
    )
    return randomised(module, draw(seeds())), (c_in, *size)


@st.composite
def denses(draw: DrawFn, bias: bool = True) -> tuple[nn.Module, Shape]:
    """Tall, wide and square; also along the last dimension of tokens."""
    module = nn.Linear(draw(st.integers(1, 40)), draw(st.integers(1, 40)), bias=bias)
    tokens = draw(st.sampled_from([(), (), (3,)]))
    return randomised(module, draw(seeds())), (*tokens, module.in_features)


@st.composite
def batch_norms(draw: DrawFn, dims: int) -> tuple[nn.Module, Shape]:
    channels = draw(st.integers(1, 5))
    module = BATCH_NORM[dims](channels, affine=draw(st.booleans()))
    return randomised(module, draw(seeds())), (channels, *(draw(st.integers(1, 3)) for _ in range(dims)))


@st.composite
def average_pools(draw: DrawFn, dims: int, shape: Shape | None = None) -> tuple[nn.Module, Shape]:
    """Overlapping, padded, rounded up, with or without padding in the count, with another divisor."""
    kernel = [draw(st.integers(1, 4)) for _ in range(dims)]
    if shape is None:
        size = tuple(draw(st.integers(k, 6)) for k in kernel)
        shape = (draw(st.integers(1, 2)), *size)
    kernel = [min(k, n) for k, n in zip(kernel, shape[1:], strict=True)]
    settings = {
        "kernel_size": kernel,
        "stride": [draw(st.integers(1, 4)) for _ in range(dims)],
        "padding": [draw(st.integers(0, k // 2)) for k in kernel],
        "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()),
    }
    if dims > 1 and draw(st.booleans()):
        settings["divisor_override"] = draw(st.integers(1, 9))
    return AVERAGE[dims](**settings), shape


@st.composite
def adaptive_pools(draw: DrawFn, dims: int, shape: Shape | None = None) -> tuple[nn.Module, Shape]:
    """Down and also up: an adaptive pool may have more outputs than inputs."""
    if shape is None:
        shape = (draw(st.integers(1, 2)), *(draw(st.integers(1, 6)) for _ in range(dims)))
    return ADAPTIVE[dims]([draw(st.integers(1, 6 - dims)) for _ in range(dims)]), shape


@st.composite
def max_pools(draw: DrawFn, dims: int, shape: Shape | None = None) -> tuple[nn.Module, Shape]:
    """Overlapping, padded, dilated, rounded up."""
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 2)) for _ in range(dims)]
    if shape is None:
        shape = (draw(st.integers(1, 2)), *(draw(st.integers(3, 7)) for _ in range(dims)))
    for i, n in enumerate(shape[1:]):
        if (kernel[i] - 1) * dilation[i] + 1 > n:
            kernel[i] = dilation[i] = 1
    module = MAXIMUM[dims](
        kernel,
        stride=[draw(st.integers(1, 3)) for _ in range(dims)],
        padding=[draw(st.integers(0, k // 2)) for k in kernel],
        dilation=dilation,
        ceil_mode=draw(st.booleans()),
    )
    return module, shape


def import_lone(module: nn.Module, shape: Shape) -> Sequence[Layer]:
    """The layers of one torch module, through its import rule but without tracing."""
    ref, out = Reference(0, shape), output_shape(module, shape)
    if isinstance(module, nn.Linear):
        op, args = "aten.linear.default", (ref, module.weight, module.bias)
    elif isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        dims = len(shape) - 1
        op = f"aten.conv_transpose{dims}d.{'default' if dims == 1 else 'input'}"
        m = module
        args = (ref, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)
    elif isinstance(module, nn.modules.conv._ConvNd):
        op = f"aten.conv{len(shape) - 1}d." + ("padding" if isinstance(module.padding, str) else "default")
        m = module
        args = (ref, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        op, m = "aten.batch_norm.default", module
        args = (ref, m.weight, m.bias, m.running_mean, m.running_var, False, m.momentum, m.eps, True)
    elif isinstance(module, nn.modules.pooling._AvgPoolNd):
        op, m = f"aten.avg_pool{len(shape) - 1}d.default", module
        args = (ref, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)
        args += (getattr(m, "divisor_override", None),)
    elif isinstance(module, nn.modules.pooling._AdaptiveAvgPoolNd):
        op, args = f"aten.adaptive_avg_pool{len(shape) - 1}d.default", (ref, module.output_size)
    elif isinstance(module, nn.modules.pooling._MaxPoolNd):
        op, m = f"aten.max_pool{len(shape) - 1}d.default", module
        args = (ref, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)
    else:
        raise NotImplementedError(type(module).__name__)
    return TORCH_RULES[op](TracedCall(op, args, {}, out, "here"))


# ---- networks ---------------------------------------------------------------------------------------


def activations() -> SearchStrategy[nn.Module]:
    return st.sampled_from(sorted(ACTIVATIONS)).map(lambda name: ACTIVATIONS[name]())


@st.composite
def _same_shape(draw: DrawFn, shape: Shape) -> nn.Module:
    """A module that keeps the shape: a dense or 'same' convolution layer and an activation."""
    if len(shape) == 1 or draw(st.integers(0, 4)) == 0:
        linear: nn.Module = nn.Linear(shape[-1], shape[-1])
    else:
        kernel = draw(st.sampled_from([1, 3, 3, 2]))
        linear = CONV[len(shape) - 1](
            shape[0], shape[0], kernel, padding="same", dilation=draw(st.integers(1, 2))
        )
    parts = [linear, draw(activations())]
    if draw(st.booleans()):
        parts.reverse()
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, 2)), draw(_pointwise(shape)))
    return nn.Sequential(*parts)


@st.composite
def _pointwise(draw: DrawFn, shape: Shape) -> nn.Module:
    """Batch norm, arithmetic with constants, or nothing at all."""
    kind = draw(st.sampled_from(["norm", "norm", "affine", "dropout", "identity"]))
    if kind == "norm" and len(shape) <= 4:
        return BATCH_NORM[len(shape) - 1](shape[0], affine=draw(st.booleans()))
    if kind == "dropout":
        return nn.Dropout(0.5)
    if kind == "identity":
        return nn.Identity()
    form = draw(st.sampled_from(["c*x", "x/c", "x+c", "c-x", "-x", "2*x", "3-x"]))
    extent = draw(st.sampled_from([(), shape[-1:], (shape[0], *[1] * (len(shape) - 1)), (1, *shape)]))
    generator = torch.Generator().manual_seed(draw(seeds()))
    constant = (0.5 + torch.rand(extent, generator=generator)) * torch.where(
        torch.rand(extent, generator=generator) < 0.5, -1.0, 1.0
    )
    return Affine(form, constant)


@st.composite
def _step(draw: DrawFn, shape: Shape) -> nn.Module:
    dims = len(shape) - 1
    kinds = ["activation", "activation", "pointwise", "residual", "branches", "linear", "linear"]
    if dims >= 1:
        kinds += ["transposed", "average", "adaptive", "maximum", "maximum", "flatten", "permute"]
    kind = draw(st.sampled_from(kinds))
    if kind == "activation":
        return draw(activations())
    if kind == "pointwise":
        return draw(_pointwise(shape))
    if kind == "residual":
        alpha = draw(st.sampled_from([1.0, 1.0, 0.5, -2.0]))
        return Residual(draw(_same_shape(shape)), alpha, draw(st.booleans()))
    if kind == "branches":
        width = draw(st.integers(1, 3))
        branches = [draw(_same_shape(shape)) for _ in range(width)]
        return Branches(*branches, nn.Identity()) if draw(st.booleans()) else Branches(*branches)
    if kind == "linear":
        if dims == 0 or draw(st.integers(0, 4)) == 0:
            return nn.Linear(shape[-1], draw(st.integers(1, 12)), bias=draw(st.booleans()))
        return draw(convolutions(dims, shape[0], shape[1:], bias=draw(st.booleans())))[0]
    if kind == "transposed":
        return draw(transposed_convolutions(dims, shape[0], shape[1:]))[0]
    if kind == "average":
        return draw(average_pools(dims, shape))[0]
    if kind == "adaptive":
        return draw(adaptive_pools(dims, shape))[0]
    if kind == "maximum":
        return draw(max_pools(dims, shape))[0]
    if kind == "flatten":
        return nn.Flatten()
    order = draw(st.permutations(range(1, dims + 2)))
    return Apply(lambda x: x.permute(0, *order), f"permute {order}")


@st.composite
def new_networks(draw: DrawFn, most: int = 6) -> Network:
    """A random network; one of dense, 1d, 2d and 3d families, with every supported layer in any order."""
    dims = draw(st.sampled_from([0, 1, 2, 2, 3]))
    if dims == 0:
        shape: Shape = (draw(st.integers(1, 12)),)
    else:
        limit = {1: 9, 2: 6, 3: 4}[dims]
        shape = (draw(st.integers(1, 3)), *(draw(st.integers(2, limit)) for _ in range(dims)))
    parts: list[nn.Module] = []
    current = shape
    for _ in range(draw(st.integers(1, most))):
        step = draw(_step(current))
        following = output_shape(step, current)
        if math.prod(following) <= LARGEST:
            parts.append(step)
            current = following
    if not parts:
        parts.append(draw(activations()))
    return Network(randomised(nn.Sequential(*parts), draw(seeds())), shape, draw(seeds()))


_POOL = 96
_LONGEST = 7


def networks(most: int = 6) -> SearchStrategy[Network]:
    """One of a fixed set of random networks with at most so many parts, the smallest first.

    Most of a property's time goes into tracing, so tests of what follows an import share a set whose members
    are imported once. They must leave the module as it is; those that change it, or test the import, draw
    `new_networks`.
    """
    return st.deferred(lambda: st.sampled_from([net for net in _pool() if len(_parts(net)) <= most]))


@functools.cache
def _pool() -> list[Network]:
    found: list[Network] = []

    # Drawn within a test, when one first asks, which a health check would mind.
    @settings(max_examples=_POOL, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(new_networks(most=_LONGEST))
    def draw(net: Network) -> None:
        found.append(net)

    draw()
    return sorted(found, key=lambda net: (len(_parts(net)), sum(p.numel() for p in net.module.parameters())))


def _parts(net: Network) -> list[nn.Module]:
    return list(net.module.children())
