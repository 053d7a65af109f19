"""Softmax, products of signals, attention and recurrent layers: values, slopes, constants, bounds over balls."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from helpers import PRECISE, gaussian
from lipscope.errors import ModelError, UnsupportedLayerError
from lipscope.graph import Graph, from_torch
from lipscope.jacobian import linearize
from lipscope.layers.base import NonlinearLayer, Norm
from lipscope.layers.matrix_product import MatrixProduct
from lipscope.layers.merge import Join
from lipscope.layers.softmax import LogSoftmax, LogSumExp, Softmax
from lipscope.propagation import InputBall, propagate
from lipscope.quantities.effective import effective, mean_slopes
from lipscope.quantities.local import local
from lipscope.quantities.operator_product import product_bound
from lipscope.slopes import Slope
from strategies import Apply, seeds

ORDERS: dict[Norm, float] = {"1": 1, "2": 2, "inf": math.inf}
ROUNDING = 1 - 1e-12
"""Dense norms of slopes are themselves computed in float64."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- models -----------------------------------------------------------------------------------------

SEEN = torch.ones(3, 3, dtype=torch.bool).tril()
MASK = torch.zeros(3, 3).masked_fill(~SEEN, -math.inf)
attend = functional.scaled_dot_product_attention

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "log-softmax": lambda x: x.log_softmax(-1),
    "log-sum-exp": lambda x: x.logsumexp((1, 2)).unsqueeze(1),
    "log-sum-exp kept": lambda x: x.logsumexp(2, keepdim=True),
    "softmin": lambda x: functional.softmin(x, 1),
    "gram matrix": lambda x: x @ x.mT,
    "bmm": lambda x: torch.bmm(x[:, :, :2], x[:, :2]),
    "broadcast product": lambda x: x.unsqueeze(1) @ x.unflatten(1, (3, 1)).mT,
    "constant left": lambda x: MASK.exp().to(x) @ x,
    "constant right": lambda x: x @ MASK.exp().to(x),
    "einsum": lambda x: torch.einsum("bqd,bkd->bqk", x, x.sin()),
    "glu": lambda x: functional.glu(x.flatten(1)[:, 1:], 1),
    "mask added": lambda x: (x + MASK).softmax(-1),
    "mask subtracted": lambda x: (x - (-MASK)).softmax(-1),
    "mask reflected": lambda x: (MASK - x).softmax(-1),
    "mask filled": lambda x: x.masked_fill(~SEEN, -math.inf).log_softmax(-1).exp(),
    "mask chosen": lambda x: torch.where(SEEN, x, -math.inf).softmax(-1),
    "attention": lambda x: attend(x, 2 * x, x.flip(1)),
    "causal": lambda x: attend(x, x, x, is_causal=True, scale=0.7),
    "boolean mask": lambda x: attend(x, x, x, attn_mask=SEEN),
    "float mask": lambda x: attend(x, x, x, attn_mask=MASK.to(x) + 0.3),
    "grouped queries": lambda x: attend(
        x.view(-1, 1, 3, 3).expand(-1, 4, -1, -1),
        torch.stack([x, 2 * x], 1),
        torch.stack([x, -x], 1),
        enable_gqa=True,
    ),
}


class SelfAttention(nn.Module):
    """With `weights` it takes the way of torch that also returns the attention's weights."""

    def __init__(self, weights: bool = False, mask: Tensor | None = None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.weights, self.mask = weights, mask

    def forward(self, x: Tensor) -> Tensor:
        mask = None if self.mask is None else self.mask.to(x)
        return self.attention(x, x, x, need_weights=self.weights, attn_mask=mask)[0]


class Last(nn.Module):
    """A recurrent layer's output at the last step."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x)[0][:, -1]


class Unrolled(nn.Module):
    """A cell in a loop."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 2)
        memory = state
        for step in x.unbind(1):
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(step, (state, memory))
            else:
                state = self.cell(step, state)
        return state


MODULES: dict[str, Callable[[], nn.Module]] = {
    "multi-head attention": SelfAttention,
    "multi-head attention, masked": lambda: SelfAttention(False, MASK),
    "multi-head attention, weights": lambda: SelfAttention(True, MASK),
    "encoder layer": lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True),
    "encoder layer, norm first": lambda: nn.TransformerEncoderLayer(
        4, 2, 6, batch_first=True, norm_first=True, activation="gelu"
    ),
    "lstm": lambda: Last(nn.LSTM(4, 2, batch_first=True)),
    "lstm of layers": lambda: Last(nn.LSTM(4, 2, num_layers=2, bidirectional=True, batch_first=True)),
    "gru": lambda: Last(nn.GRU(4, 2, bidirectional=True, batch_first=True)),
    "rnn": lambda: Last(nn.RNN(4, 2, num_layers=2, batch_first=True)),
    "rnn with relu": lambda: Last(nn.RNN(4, 2, nonlinearity="relu", batch_first=True)),
    "lstm cell": lambda: Unrolled(nn.LSTMCell(4, 2)),
    "lstm cell without bias": lambda: Unrolled(nn.LSTMCell(4, 2, bias=False)),
    "gru cell": lambda: Unrolled(nn.GRUCell(4, 2)),
    "rnn cell": lambda: Unrolled(nn.RNNCell(4, 2)),
    "rnn cell with relu": lambda: Unrolled(nn.RNNCell(4, 2, nonlinearity="relu")),
}
WITH_CONSTANT = {name for name in MODULES if "attention" not in name} - {"encoder layer"}
"""Those in which every product is of bounded signals: by a layer norm, or by gates."""


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(5)
    if name in FUNCTIONS:
        return Apply(FUNCTIONS[name], name), (3, 3)
    return MODULES[name]().double().eval().requires_grad_(False), (3, 4)


@pytest.mark.parametrize("name", [*FUNCTIONS, *MODULES])
def test_values_jacobians_and_secants(name: str) -> None:
    module, shape = made(name)
    graph = from_torch(module, shape)
    x1, x2 = normal(6, *shape, seed=1), normal(6, *shape, seed=2)
    x2[:2] = x1[:2] + 1e-7 * x2[:2]
    with torch.no_grad():
        y1, y2 = module(x1), module(x2)
    found, slopes = graph.linearize_at(x1)
    torch.testing.assert_close(found, y1, rtol=1e-12, atol=1e-13)
    change = linearize(graph, graph.secant_slopes(x1, x2), 6).matvec((x1 - x2)[None])[0]
    torch.testing.assert_close(change, y1 - y2, rtol=1e-9, atol=1e-13)
    operator = linearize(graph, slopes, 6)
    rows = torch.stack([torch.autograd.functional.jacobian(lambda v: module(v[None])[0], x) for x in x1])
    exact = rows.reshape(6, -1, math.prod(shape))
    torch.testing.assert_close(operator.dense(), exact, rtol=1e-9, atol=1e-12)
    u = normal(2, *y1.shape, seed=3)
    back = torch.einsum("boi,pbo->pbi", exact, u.flatten(2))
    torch.testing.assert_close(operator.rmatvec(u).flatten(2), back, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*FUNCTIONS, *MODULES])
def test_balls_hold_values_and_changes(name: str) -> None:
    module, shape = made(name)
    graph = from_torch(module, shape)
    center, radius = normal(*shape, seed=4), 0.05
    step = normal(64, *shape, seed=5)
    inside = center + 0.999 * radius * step / step.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    with torch.no_grad():
        values, middle = module(inside), module(center[None])
    for budget in (0.0, 1e8):
        region = propagate(graph, InputBall.around(center, shape, radius, "2"), budget)[-1]
        assert bool((region.box.low <= values).all())
        assert bool((values <= region.box.high).all())
        assert math.isfinite(region.distance)
        assert float((values - middle).flatten(1).norm(dim=1).max()) <= region.distance


@pytest.mark.parametrize("name", sorted(MODULES))
def test_global_constants(name: str) -> None:
    module, shape = made(name)
    graph = from_torch(module, shape)
    upper = product_bound(graph, "2")
    assert math.isfinite(upper) == (name in WITH_CONSTANT)
    largest = max(float(torch.linalg.matrix_norm(jacobian(graph, s), 2).max()) for s in (0.1, 1, 10))
    assert largest <= upper


def jacobian(graph: Graph, scale: float) -> Tensor:
    x = scale * normal(30, *graph.input_shape, seed=6)
    return linearize(graph, graph.linearize_at(x)[1], len(x)).dense()


# ---- layers -----------------------------------------------------------------------------------------

JOIN = Join(((2, 2, 3), (2, 3, 1)))
LAYERS: dict[str, tuple[NonlinearLayer, tuple[int, ...]]] = {
    "softmax": (Softmax(1), (2, 4)),
    "softmax of two": (Softmax(0), (2,)),
    "log-softmax": (LogSoftmax(0), (4, 2)),
    "log-sum-exp": (LogSumExp(1), (2, 3)),
    "log-sum-exp kept": (LogSumExp(0, keep=True), (3,)),
    "matrix product": (MatrixProduct(JOIN, (math.inf, math.inf)), (18,)),
    "bounded matrix product": (MatrixProduct(JOIN, (40.0, 40.0)), (18,)),
}


def matrices(slope: Slope, shape: tuple[int, ...]) -> Tensor:
    """The slopes written out, (B, out, in)."""
    size = math.prod(shape)
    block = torch.eye(size, dtype=torch.float64).reshape(size, 1, *shape)
    return slope.apply(block.expand(size, slope.batch, *shape)).flatten(2).permute(1, 2, 0)


def operator_norms(matrix: Tensor) -> dict[Norm, float]:
    orders = {"1": 1, "2": 2, "inf": math.inf}
    return {norm: float(torch.linalg.matrix_norm(matrix, orders[norm]).max()) for norm in ORDERS}


@given(st.sampled_from(sorted(LAYERS)), st.sampled_from([1e-6, 0.1, 1.0, 6.0]), st.floats(0.1, 8), seeds())
@settings(max_examples=60)
def test_layers_over_boxes(name: str, width: float, scale: float, seed: int) -> None:
    layer, shape = LAYERS[name]
    middle = (scale * normal(1, *shape, seed=seed)).clamp(-30, 30)
    low, high = middle - width, middle + width
    share = torch.rand(40, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    share[::2] = share[::2].round()
    x = torch.minimum(torch.maximum(low + share * (high - low), low), high)
    y = layer.forward(x)
    size = 1e-14 * (1 + y.abs() + (x.abs().amax() ** 2 if name.endswith("product") else x.abs().amax()))
    least, most = layer.value_range(low, high)
    assert bool((least <= y + size).all())
    assert bool((y - size <= most).all())
    slopes = matrices(layer.secant(x[:20], x[20:]), shape), matrices(layer.linearize(x)[1], shape)
    hull = layer.slope_hull(low, high)
    ends = matrices(hull[0], shape), matrices(hull[1], shape)
    lines = layer.lines(low, high)
    below = lines.below.apply(x[None])[0] + lines.below_offset
    above = lines.above.apply(x[None])[0] + lines.above_offset
    assert bool((below <= y + size).all())
    assert bool((y - size <= above).all())
    for found in slopes:
        # Of a joined product only the slope's values are compared: its hull is a box of points.
        if not isinstance(layer, MatrixProduct):
            assert bool((ends[0] <= found + 1e-14).all())
            assert bool((found - 1e-14 <= ends[1]).all())
        for norm, value in operator_norms(found).items():
            assert ROUNDING * value <= layer.local_lipschitz(norm, hull, shape)
            assert ROUNDING * value <= layer.lipschitz_in(norm, [1.0], [shape])
    change = (slopes[0] @ (x[:20] - x[20:]).flatten(1).unsqueeze(2))[..., 0]
    torch.testing.assert_close(change, (y[:20] - y[20:]).flatten(1), rtol=1e-9, atol=50 * float(size.max()))


def test_constants_are_attained_at_equal_entries() -> None:
    half = matrices(Softmax(0).linearize(torch.zeros(1, 2, dtype=torch.float64))[1], (2,))
    for norm, value in operator_norms(half).items():
        assert value == pytest.approx(Softmax(0).lipschitz_in(norm, [1.0], [(2,)]), rel=1e-14)
    assert Softmax(0).constant((1,)) == 0.0
    # All weight on one entry: the longest projection.
    x = torch.tensor([[0.0, -900.0, -900.0, -900.0]], dtype=torch.float64)
    far = matrices(LogSoftmax(0).linearize(x)[1], (4,))
    for norm in ("1", "2"):
        found = operator_norms(far)[norm]
        assert found == pytest.approx(LogSoftmax(0).lipschitz_in(norm, [1.0], [(4,)]), rel=1e-12)


@pytest.mark.parametrize("gap", [0.0, 1e-300, 1e-12, 1.0, 40.0, 800.0, 5000.0])
def test_secants_where_values_agree_or_underflow(gap: float) -> None:
    x1 = torch.tensor([[0.0, 1.0, -2.0]], dtype=torch.float64)
    x2 = x1 + gap * torch.tensor([[-1.0, 1.0, 0.5]], dtype=torch.float64)
    for layer in (Softmax(0), LogSoftmax(0), LogSumExp(0)):
        change = layer.secant(x1, x2).apply((x1 - x2)[None])[0]
        torch.testing.assert_close(
            change, layer.forward(x1) - layer.forward(x2), rtol=1e-12, atol=1e-15 * (1 + gap)
        )


def test_matrix_product_holds_over_boxes_of_any_sign() -> None:
    layer, shape = MatrixProduct(Join(((1, 1), (1, 1))), (math.inf, math.inf)), (2,)
    ends = [(-2.0, -1.0), (-1.0, 3.0), (0.0, 0.0), (0.5, 4.0)]
    for first, second in itertools.product(ends, ends):
        low, high = (torch.tensor([[first[i], second[i]]], dtype=torch.float64) for i in (0, 1))
        least, most = layer.value_range(low, high)
        corners = [a * b for a in first for b in second]
        assert float(least) <= min(corners)
        assert max(corners) <= float(most)
    assert layer.constant(shape) == math.inf


# ---- whole networks ---------------------------------------------------------------------------------


def test_quantities_run_on_attention() -> None:
    module, shape = made("encoder layer, norm first")
    graph = from_torch(module, shape)
    samples = gaussian(8, shape)
    found, pair = local(graph, samples, **PRECISE)
    assert 0 < found.value <= product_bound(graph, "2")
    assert pair.bound == found.value
    slopes = mean_slopes(graph, samples, pairs=16, **PRECISE)
    for level in ("scalar", "channel", "unit"):
        for reading in ("active", "secant"):
            assert math.isfinite(effective(slopes, level, reading)[0].value)


def test_fast_path_is_restored() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    from_torch(*made("encoder layer"))
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("visible", [0, 1])
def test_infinite_outputs_are_refused(visible: int) -> None:
    """−∞ is imported as a finite number, which shows where no softmax follows."""
    mask = torch.full((3,), -math.inf)
    mask[:visible] = 0.0
    with pytest.raises(ModelError, match="disagree"):
        from_torch(Apply(lambda x: x + mask, "masked"), (3,))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.softmax(0), "over the batch"),
        (lambda x: attend(x, x, x, attn_mask=x), "mask depends on the input"),
        (lambda x: x.masked_fill(~SEEN, math.inf).softmax(-1), "infinities"),
    ],
)
def test_refusals(function: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=said):
        from_torch(Apply(function, "refused"), (3, 3))


def example() -> ModuleType:
    place = Path(__file__).parent.parent / "examples" / "gpt_block.py"
    spec = importlib.util.spec_from_file_location("gpt_block", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_decoder_of_the_example() -> None:
    torch.manual_seed(0)
    decoder = example().Decoder().double().requires_grad_(False)
    graph = from_torch(decoder, (4, 8))
    assert math.isfinite(product_bound(graph, "2"))
    x = normal(1, 4, 8)
    found = linearize(graph, graph.linearize_at(x)[1]).dense()[0].reshape(4, 8, 4, 8)
    exact = torch.autograd.functional.jacobian(lambda v: decoder(v[None])[0], x[0])
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
    # Causal: no token hears of a later one.
    assert all(bool((found[i, :, j] == 0).all()) for i in range(4) for j in range(i + 1, 4))
