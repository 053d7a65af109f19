"""Reading torch modules: what is refused and how it is said; what is imported is the same function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional

from lipscope.errors import ModelError, UnsupportedLayerError
from lipscope.graph import Graph, GraphBuilder, from_torch, fuse_scalings
from lipscope.layers.activation import ReLU
from lipscope.layers.convolution import Convolution
from lipscope.layers.dense import Dense
from lipscope.layers.merge import Concatenation, Sum
from lipscope.layers.scaling import Scaling
from strategies import Affine, Apply, Network, new_networks, randomised


def kinds(graph: Graph) -> list[str]:
    return [type(node.layer).__name__ for node in graph.nodes[1:]]


def assert_same(module: nn.Module, graph: Graph, seed: int = 0) -> None:
    x = torch.randn(5, *graph.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        expected = module.eval()(x.clone())
    torch.testing.assert_close(
        graph.evaluate(x), expected, rtol=1e-11, atol=1e-11 * float(expected.abs().max())
    )


# ---- refusals ---------------------------------------------------------------------------------------

UNSUPPORTED: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...], str]] = {
    "softmax": (lambda x: functional.softmax(x, 0), (3,), "over the batch"),
    "attention": (
        lambda x: functional.scaled_dot_product_attention(x, x, x, attn_mask=x),
        (3, 3),
        "mask depends on the input",
    ),
    "batch statistics": (lambda x: functional.batch_norm(x, None, None, training=True), (3,), "batch_norm"),
    "mean of everything": (lambda x: x - x.mean(), (3,), "batch"),
    "sum of everything": (lambda x: x * 0 + x.sum(), (3,), "batch"),
    "batch mean": (lambda x: x - x.mean(0), (3,), "batch"),
    "batch mixing": (lambda x: x.reshape(3, -1), (9,), "mixes the batch"),
    "batch concatenated": (lambda x: torch.cat([x, x], 0), (3,), "batch"),
    "rounding": (lambda x: torch.div(x, 2, rounding_mode="floor"), (3,), "aten.div.Tensor_mode"),
    "unbatched pooling": (lambda x: functional.max_pool1d(x, 2), (4,), "must have 3 dimensions"),
    "unbatched pooling 2d": (lambda x: functional.max_pool2d(x, 2), (4, 4), "must have 4 dimensions"),
    "unbatched average": (lambda x: functional.avg_pool1d(x, 2), (4,), "must have 3 dimensions"),
    "unbatched adaptive": (lambda x: functional.adaptive_avg_pool1d(x, 2), (4,), "must have 3 dimensions"),
    "unbatched convolution": (
        lambda x: functional.conv1d(x, torch.ones(2, 2, 3)),
        (5,),
        "must have 3 dimensions",
    ),
    "second result": (lambda x: functional.max_pool2d(x, 2, return_indices=True)[1], (1, 4, 4), "indices"),
    "dropout that is on": (lambda x: functional.dropout(x, 0.5), (3,), "dropout"),
    "noise of its shape": (lambda x: x + torch.rand_like(x), (3,), "aten.rand_like"),
}


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_unsupported_operations_are_named_with_place_and_remedy(name: str) -> None:
    function, shape, said = UNSUPPORTED[name]
    module = nn.Sequential(Affine("2*x", 0.0).float(), Apply(function, name))
    with pytest.raises(UnsupportedLayerError, match=said) as caught:
        from_torch(module, shape)
    message = str(caught.value)
    assert message.startswith("unsupported operation ")
    assert "(Apply)" in message
    assert "Replace it by a supported layer, or add a rule for it" in message


def test_the_place_is_the_innermost_module() -> None:
    class Gamma(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.lgamma(x)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = Gamma()

        def forward(self, x: Tensor) -> Tensor:
            return self.gamma(x)

    with pytest.raises(UnsupportedLayerError, match=r"at 1\.gamma \(Gamma\)"):
        from_torch(nn.Sequential(nn.Linear(3, 3), Block()), (3,))
    with pytest.raises(UnsupportedLayerError, match=r"at 1 \(Gamma\)"):
        from_torch(nn.Sequential(nn.Linear(3, 3), Gamma()), (3,))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x if x.sum() > 0 else -x, "no control flow that depends on their values"),
        (lambda x: (x, 2 * x), "returns 2 tensors"),
        (lambda x: {"a": 2 * x}, "returns a dict"),
        (lambda x: torch.ones(x.shape[0], 2), "does not depend on its input"),
        (lambda x: x.reshape(-1), "does not keep the batch"),
        (lambda x: x.reshape(-1, 1, 3).transpose(0, 1), "does not keep the batch"),
        (lambda x: x + torch.randn(3), "disagree on random inputs"),
        (lambda x: x * x.shape[0], "disagree on random inputs"),
        (lambda x: x.reshape(3, 2).T.reshape(2, 3) if x.shape[0] == 2 else x, "disagree|mixes the batch"),
        (lambda x: x.reshape(2, 3), "a batch of 2 but not of 3"),
    ],
    ids=[
        "control flow",
        "two outputs",
        "dict",
        "constant",
        "folded",
        "moved",
        "random",
        "batch size",
        "batch code",
        "fixed batch",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_other_models_are_refused(function: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        from_torch(Apply(function, "odd"), (3,))


def test_a_reshape_that_only_looks_harmless_in_the_traced_batch_is_refused() -> None:
    """With a batch of 2 and 2 channels, swapping them by reshape is the identity on shapes."""
    with pytest.raises(ModelError):
        from_torch(Apply(lambda x: x.reshape(2, x.shape[0], 3), "swap"), (2, 3))


def test_wrong_input_shape_is_refused() -> None:
    with pytest.raises(ModelError, match=r"cannot be traced on an input of shape \(4,\)"):
        from_torch(nn.Linear(3, 3), (4,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unsound_weights_are_refused(bad: float) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with torch.no_grad():
        model[2].bias[1] = bad
    with pytest.raises(ModelError, match=r"2 \(Linear\): a weight is NaN or infinite"):
        from_torch(model, (3,))


def test_variance_that_makes_no_sense_is_refused() -> None:
    model = nn.BatchNorm1d(3)
    model.running_var[0] = -1.0
    with pytest.raises(ModelError, match="NaN or infinite"):
        from_torch(model, (3,))


def test_two_inputs_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot be traced"):
        from_torch(nn.Bilinear(3, 3, 2), (3,))


class Windows(nn.Module):
    """Windows become further samples, tokens come before the batch, and a class token stands beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)
        self.register_buffer("mask", torch.linspace(-1, 1, 48).reshape(4, 4, 3))
        self.register_buffer("token", torch.ones(1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        y = x.view(count, 2, 2, 2, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 3)
        y = self.mix(y).transpose(1, 2).relu().transpose(1, 2)
        y = (y.view(-1, 4, 4, 3) + self.mask).view(-1, 4, 3)
        first, second, third = y.reshape(y.shape[0], 4, 3, 1).permute(2, 0, 1, 3)
        y = torch.cat([first + 0.5 * second, third, second], -1)
        y = y.unsqueeze(0).transpose(0, -1).squeeze(-1).permute(1, 2, 0).reshape(count, 16, 3)
        y = torch.cat([self.token.expand(count, -1, -1), y], 1).transpose(0, 1)
        return torch.roll(y, 1, 0).add(self.mask.reshape(16, 1, 3)[:1]).transpose(0, 1)


def test_windows_in_the_batch_and_tokens_before_it() -> None:
    model = Windows()
    graph = from_torch(model, (4, 4, 3))
    assert graph.output_shape == (17, 3)
    assert_same(model.double(), graph)


def test_samples_folded_behind_tokens() -> None:
    weight = torch.arange(9.0).reshape(3, 3).double()

    def function(x: Tensor) -> Tensor:
        rows = x.transpose(0, 1).reshape(-1, 3)
        return (rows @ weight.to(x.dtype)).relu().view(5, x.shape[0], 3).transpose(0, 1)

    assert_same(Apply(function, "rows"), from_torch(Apply(function, "rows"), (5, 3)))


def test_images_folded_into_the_batch_are_refused_by_what_counts_channels() -> None:
    frames = Apply(lambda x: functional.batch_norm(x.view(-1, 2, 3), torch.zeros(2), torch.ones(2)), "frames")
    with pytest.raises(UnsupportedLayerError, match="folded into the batch"):
        from_torch(frames, (4, 2, 3))


# ---- the module is left as it was -------------------------------------------------------------------


def test_training_mode_is_restored_part_by_part() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.9), nn.ReLU())
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = from_torch(model, (3,))
    assert [part.training for part in model] == [True, False, True, True]
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert kinds(graph) == ["Dense", "ReLU"]
    assert_same(model.double(), graph)


def test_training_mode_is_restored_after_a_refusal() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Softmax(0)).train()
    with pytest.raises(UnsupportedLayerError):
        from_torch(model, (3,))
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_copied(dtype: torch.dtype) -> None:
    """Training goes on after the import; the graph stays."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
    graph = from_torch(model, (3,))
    x = torch.randn(4, 3, dtype=torch.float64)
    before = graph.evaluate(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-3)
    assert torch.equal(graph.evaluate(x), before)
    assert not any(p.requires_grad for p in graph.parameters())


def test_an_in_place_first_layer_and_buffers_that_count() -> None:
    """What a module writes into its input or buffers is not its output."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.register_buffer("calls", torch.zeros(()))
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(self.relu(x))

    model = Counting()
    graph = from_torch(model, (3,))
    assert kinds(graph) == ["ReLU", "Dense"]
    assert_same(model.double(), graph)


# ---- architectures ----------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """As in ResNet-18: batch norm, in-place ReLU, and a strided projection on the skip branch."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += skip
        return self.relu(out)


def test_residual_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        BasicBlock(4, 4, 1),
        BasicBlock(4, 6, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )
    randomised(model, 1)
    graph = from_torch(model, (3, 20, 20))
    assert_same(model, graph)
    assert kinds(graph).count("Sum") == 2
    assert "Scaling" not in kinds(graph)
    assert kinds(graph).count("Convolution") == 6


def test_dense_network() -> None:
    class DenseLayer(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(c), nn.Conv2d(c, 2, 3, padding=1)

        def forward(self, *xs: Tensor) -> Tensor:
            return self.conv(functional.relu(self.norm(torch.cat(xs, 1)), inplace=True))

    class DenseBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([DenseLayer(3), DenseLayer(5), DenseLayer(7)])

        def forward(self, x: Tensor) -> Tensor:
            features = [x]
            for layer in self.layers:
                features.append(layer(*features))
            return torch.cat(features, 1)

    model = randomised(nn.Sequential(DenseBlock(), nn.BatchNorm2d(9), nn.ReLU(), nn.AvgPool2d(2)), 2)
    graph = from_torch(model, (3, 6, 6))
    assert_same(model, graph)
    assert kinds(graph).count("Concatenation") >= 3
    assert kinds(graph).count("Scaling") == 4  # batch norm after a concatenation has nothing to join


def test_inception_branches() -> None:
    class Inception(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 2, 1)
            self.three = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, (1, 3), padding=(0, 1)))
            self.pool = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            pooled = self.pool(functional.avg_pool2d(x, 3, stride=1, padding=1))
            reduced = functional.max_pool2d(x, kernel_size=3, stride=1, padding=1)
            return functional.relu(torch.cat([self.one(x), self.three(x), pooled, reduced], dim=-3))

    model = randomised(Inception(), 3)
    graph = from_torch(model, (3, 5, 5))
    assert_same(model, graph)
    (cat,) = [n.layer for n in graph.nodes if isinstance(n.layer, Concatenation)]
    assert cat.widths == (2, 3, 2, 3)


def test_many_ways_to_write_arithmetic() -> None:
    c = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        y = 2 * x - 1
        y = (c - y) + y.mul(0.5) * c
        y = torch.rsub(y, 3, alpha=2) / 4
        y = torch.add(c, y, alpha=-3)
        y = -y + 1.5
        y = torch.sub(y, c, alpha=0.25)
        z = torch.add(y, x, alpha=0.5)
        return (z - x).div(c)

    graph = from_torch(Apply(function, "arithmetic").double(), (3,))
    assert_same(Apply(function, "arithmetic"), graph)


def test_many_ways_to_write_products_and_reshapes() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 5)

    def function(x: Tensor) -> Tensor:
        y = x.view(x.shape[0], 3, 4).transpose(1, 2).reshape(-1, 4, 3).permute(0, 2, 1)
        y = torch.matmul(y, w).flatten(2).unsqueeze(1).squeeze(1).contiguous()
        y = y.mean(-1).unflatten(1, (1, 3)).flatten(1)
        return torch.addmm(torch.ones(2), y, w[:3, :2])

    graph = from_torch(Apply(function, "reshapes"), (12,))
    x = torch.randn(5, 12)
    torch.testing.assert_close(graph.evaluate(x.double()).float(), function(x), rtol=1e-4, atol=1e-5)


def test_half_precision_models_are_imported() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    graph = from_torch(model, (3,))
    assert graph.dtype == torch.float64


def test_non_persistent_buffers_and_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("shift", torch.randn(3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.tanh(self.linear(x)) + self.shift)

    model = Tied().double()
    graph = from_torch(model, (3,))
    assert kinds(graph) == ["Dense", "Tanh", "Scaling", "Dense"]
    assert_same(model, graph)


# ---- fusion -----------------------------------------------------------------------------------------


@given(new_networks())
@settings(max_examples=15)
def test_fusion_keeps_the_function(net: Network) -> None:
    graph = from_torch(net.module, net.shape)
    again = fuse_scalings(graph)
    x = net.points(4)
    torch.testing.assert_close(again.evaluate(x), graph.evaluate(x), rtol=1e-12, atol=1e-12)
    assert [n.shape for n in again.nodes] == [n.shape for n in graph.nodes]


def test_fusion_joins_what_it_may_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def joined(before: list[Any], scaling: Scaling, shape: tuple[int, ...]) -> bool:
        graph = Graph.chain(shape, [*before, scaling])
        fused = fuse_scalings(graph)
        x = random(3, *shape)
        torch.testing.assert_close(fused.evaluate(x), graph.evaluate(x), rtol=1e-12, atol=1e-12)
        return len(fused.nodes) < len(graph.nodes)

    windows = from_torch(nn.Conv2d(2, 3, 3), (2, 5, 5)).nodes[1].layer.windows
    conv, dense = Convolution(random(3, 2, 3, 3), windows), Dense(random(3, 4), random(3))
    assert joined([dense], Scaling(random(3), random(3)), (4,))
    assert joined([dense], Scaling(random(3)), (4,))
    assert joined([dense], Scaling(random(1), random(())), (4,))
    assert joined([dense], Scaling(random(3), random(3)), (2, 4))
    assert not joined([dense], Scaling(random(2, 1)), (2, 4))
    assert joined([conv], Scaling(random(3, 1, 1), random(3, 1, 1)), (2, 5, 5))
    assert joined([conv], Scaling(random(()), random(3, 1, 1)), (2, 5, 5))
    assert not joined([conv], Scaling(random(3), random(3)), (2, 5, 5))  # varies along the width
    assert not joined([conv], Scaling(random(3, 1, 1), random(3, 3, 3)), (2, 5, 5))
    assert not joined([dense, ReLU()], Scaling(random(3)), (4,))
    assert not joined([], Scaling(random(4)), (4,))


def test_fusion_leaves_a_layer_that_others_read() -> None:
    builder = GraphBuilder((3,))
    dense = builder.add(Dense(torch.randn(3, 3, dtype=torch.float64)), (0,))
    scaled = builder.add(Scaling(torch.tensor(2.0)), (dense,))
    builder.add(Sum((1.0, 1.0)), (dense, scaled))
    graph = builder.build()
    assert len(fuse_scalings(graph).nodes) == len(graph.nodes)


def test_fusion_of_a_chain_of_scalings_covers_its_rounding() -> None:
    module = randomised(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)), 4)
    graph = from_torch(module, (3,))
    assert kinds(graph) == ["Dense"]
    assert graph.nodes[1].place == "0 (Linear) + 1 (BatchNorm1d) + 2 (BatchNorm1d)"
    assert 1e-16 < graph.nodes[1].layer.entry_error < 1e-13
    assert_same(module, graph)


# ---- fingerprints -----------------------------------------------------------------------------------


def test_fingerprints_tell_functions_apart() -> None:
    torch.manual_seed(0)

    def deconvolution(padding: int, dilation: int) -> nn.Module:
        torch.manual_seed(1)
        return nn.ConvTranspose1d(1, 1, 3, padding=padding, dilation=dilation)

    models: list[tuple[nn.Module, tuple[int, ...]]] = [
        (nn.Linear(3, 3), (3,)),
        (nn.Linear(3, 3), (3,)),
        (nn.Sequential(nn.Identity(), nn.ReLU()), (3,)),
        (nn.LeakyReLU(0.1), (3,)),
        (nn.LeakyReLU(0.2), (3,)),
        (deconvolution(1, 1), (1, 8)),
        (deconvolution(2, 2), (1, 8)),
        (Affine("c*x", torch.ones(3, 1, 1) * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)), (3, 3, 3)),
        (Affine("c*x", torch.tensor([1.0, 2.0, 3.0])), (3, 3, 3)),
    ]
    prints = [from_torch(model, shape).fingerprint() for model, shape in models]
    assert len(set(prints)) == len(prints)
    assert from_torch(models[0][0], (3,)).fingerprint() == prints[0]


def test_a_module_that_amplifies_its_own_rounding_is_compared_in_float64() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[layer for _ in range(30) for layer in (nn.Linear(32, 32), nn.Tanh())])
    for dense in net[::2]:
        nn.init.normal_(dense.weight, std=3 / 32**0.5)
    x = torch.randn(3, 32)
    graph = from_torch(net, (32,))
    with torch.no_grad():
        assert (graph.evaluate(x.double()) - net(x)).abs().max() > 1e-3  # float32 alone is that far off
        torch.testing.assert_close(graph.evaluate(x.double()), net.double()(x.double()), rtol=0, atol=1e-8)
