"""The copy layer: values as torch has them, the adjoint, the norm, boxes; constants beside the entries."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lipscope.graph import from_torch
from lipscope.layers import LinearLayer
from strategies import Apply

MASK = torch.arange(12).reshape(3, 4) % 3 == 0


def overwritten(x: Tensor) -> Tensor:
    """Rows 0 and 2 of every sample replaced by constants, in place."""
    y = x.clone()
    y[:, torch.tensor([0, 2])] = 0.5
    return y


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda x: x[:, 1:, ::2],
    "select": lambda x: x[:, -1],
    "chunk": lambda x: x.chunk(2, 2)[1],
    "index": lambda x: x[:, torch.tensor([0, 2, 0])],
    "masked": lambda x: x.masked_fill(MASK, 7.0),
    "where of two": lambda x: torch.where(MASK, x, x.flip(1)),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "roll": lambda x: torch.roll(x, (1, -1), (1, 2)),
    "constant pad": lambda x: functional.pad(x, (1, 2), value=-2.0),
    "reflection pad": lambda x: functional.pad(x, (2, 1), mode="reflect"),
    "nearest": lambda x: functional.interpolate(x, scale_factor=2),
    "unfold": lambda x: x.unfold(2, 2, 1),
    "index put": overwritten,
    "gather": lambda x: x.gather(2, torch.tensor([3, 0, 0]).expand(x.shape[0], 3, 3)),
    "im2col": lambda x: functional.unfold(x.unsqueeze(1), 2),
    "im2col padded": lambda x: functional.unfold(x.unsqueeze(1), 3, padding=1, stride=2),
    "index select": lambda x: x.index_select(2, torch.tensor([3, 3, 1])),
    "split": lambda x: x.split([1, 3], 2)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "diagonal": lambda x: x.diagonal(0, 1, 2),
    "interleave": lambda x: x.repeat_interleave(2, 2),
    "flip": lambda x: x.flip(1, 2),
    "rotation": lambda x: x.rot90(1, (1, 2)),
    "replication pad": lambda x: functional.pad(x, (2, 1), mode="replicate"),
    "circular pad": lambda x: functional.pad(x, (2, 1), mode="circular"),
    "pixel shuffle": lambda x: functional.pixel_shuffle(x.reshape(-1, 12, 1, 1), 2),
    "nearest exact": lambda x: functional.interpolate(x, size=7, mode="nearest-exact"),
    "triu": lambda x: x.triu(1),
    "select scatter": lambda x: torch.select_scatter(x, x[:, 0], 1, 2),
    "movedim": lambda x: x.unsqueeze(1).movedim(1, 3),
    "tril": lambda x: x.tril(),
    "scatter": lambda x: torch.slice_scatter(x, x[:, :1], 1, 2, 3),
    "class token": lambda x: torch.cat([torch.ones(1, 1, 4).expand(x.shape[0], -1, -1), x], 1),
}


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_copies(name: str) -> None:
    function = OPERATIONS[name]
    graph = from_torch(Apply(function, name), (3, 4))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    assert torch.equal(graph.evaluate(x), function(x))
    for index, node in enumerate(graph.nodes):
        if not isinstance(node.layer, LinearLayer) or len(node.inputs) != 1 or node.layer.kind != "copy":
            continue
        (shape,) = graph.shapes_into(index)
        v = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        u = torch.randn(2, *node.shape, generator=generator, dtype=torch.float64)
        (back,) = node.layer.transpose(u)
        torch.testing.assert_close((node.layer.apply(v) * u).sum(), (v * back).sum(), rtol=1e-12, atol=1e-12)
        matrix = node.layer.matrix(shape)
        for norm, order in (("1", 1), ("2", 2), ("inf", torch.inf)):
            exact = float(torch.linalg.matrix_norm(matrix, order))
            assert exact * (1 - 1e-14) <= node.layer.scaled_norm(norm, [shape]) <= exact * (1 + 1e-14)
        low, high = node.layer.interval([v[:1]], [v[:1] + 1])
        assert torch.equal(low, node.layer.apply(v[:1]))
        assert torch.equal(high, node.layer.apply(v[:1] + 1))


def test_a_large_copy_is_never_written_out() -> None:
    graph = from_torch(Apply(lambda x: torch.cat([functional.pad(x, (2, 2))] * 3, 2), "tiles"), (3, 200, 200))
    (layer,) = [node.layer for node in graph.nodes if isinstance(node.layer, LinearLayer)][:1]
    shape = graph.input_shape
    assert isinstance(layer, LinearLayer)
    before = graph.fingerprint()
    assert layer.matrix(shape) is None
    ones = torch.ones(1, *shape, dtype=torch.float64)
    for power in (1, 2):
        assert torch.equal(layer.magnitudes([shape], power).apply(ones), layer.apply(ones))
    assert torch.equal(layer.row_norms(shape), layer.apply(ones))
    assert graph.fingerprint() == before


def test_sums_of_many_copies_cover_their_rounding() -> None:
    """The adjoint of a repetition adds 10⁵ inexact numbers; the certified column sum is above the exact one."""
    copies, scale = 100_000, 0.1
    graph = from_torch(Apply(lambda x: x.repeat(1, copies), "repeat"), (1,))
    layer = graph.nodes[-1].layer
    assert isinstance(layer, LinearLayer)
    rows = torch.full((1, copies), scale, dtype=torch.float64)
    found = layer.scaled_norm("1", [(1,)], rows=rows)
    assert copies * Fraction(scale) <= Fraction(found) <= copies * Fraction(scale) * (1 + Fraction(1, 10**9))
