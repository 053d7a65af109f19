"""Sixteen bits: estimates may be computed in them, certified numbers and witnesses never are."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import lipscope
from lipscope.spectral import spectral_norm, working_dtype
from strategies import new_networks
from test_spectral import Matrices, with_values

SHORT = (torch.bfloat16, torch.float16)


class Mixed(nn.Module):
    """Strided, transposed and batch-normalised, with both poolings, a residual sum and a smooth activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.up, self.pool, self.mean = (
            nn.ConvTranspose2d(8, 8, 3, 2),
            nn.MaxPool2d(3, 2),
            nn.AdaptiveAvgPool2d(3),
        )
        self.last = nn.Linear(72, 40)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(nn.functional.gelu(self.up(torch.relu(self.norm(self.first(x))))))
        return self.last(self.mean(y + 2 * torch.sigmoid(y)).flatten(1))


def short(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A module in 16 bits and the float64 copy of its rounded weights."""
    module = Mixed().eval().requires_grad_(False).to(dtype)
    return module, copy.deepcopy(module).double()


@pytest.mark.parametrize("dtype", SHORT)
def test_bounds_of_a_short_module_are_those_of_its_weights_in_float64(dtype: torch.dtype) -> None:
    module, wide = short(dtype)
    samples = lipscope.load_samples(torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    graphs = [lipscope.from_torch(m, (3, 16, 16)) for m in (module, wide)]
    assert graphs[0].fingerprint() == graphs[1].fingerprint()
    assert all(p.dtype == torch.float64 for p in graphs[0].parameters())
    assert next(module.parameters()).dtype is dtype
    assert lipscope.analytical(graphs[0]).value == lipscope.analytical(graphs[1]).value
    for quantity in (lipscope.local, lipscope.empirical):
        (first, _), (second, _) = (quantity(graph, samples) for graph in graphs)
        assert (first.value, first.witness) == (second.value, second.witness)


@pytest.mark.parametrize("dtype", SHORT)
def test_certificates_of_a_short_module_are_those_of_its_weights_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)
    options = lipscope.Options(pairs=20, effort="fast")
    samples = lipscope.load_samples(torch.randn(5, 4))
    first, second = (
        lipscope.analyze(m, samples, options=options) for m in (module, copy.deepcopy(module).double())
    )
    assert first.certified.value == second.certified.value
    assert first.ascent.value == second.ascent.value
    assert 0 < first.lower <= first.upper


@given(new_networks())
@settings(max_examples=15)
def test_generated_networks_import_from_sixteen_bits(network) -> None:
    module = copy.deepcopy(network.module).bfloat16()
    graph = lipscope.from_torch(module, network.shape)
    x = network.points(4)
    expected = copy.deepcopy(module).double()(x)
    torch.testing.assert_close(
        graph.evaluate(x), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
    )


class Wrong(nn.Module):
    """Computes something else by one percent outside of the batch that is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1.01 if len(x) == 3 else 1.0)


def test_a_short_module_is_compared_more_sharply_than_its_own_rounding() -> None:
    with pytest.raises(lipscope.ModelError, match="disagree"):
        lipscope.from_torch(Wrong().bfloat16(), (40,))


class NoKernel(nn.Module):
    """A layer that the CPU cannot run in float16, though it can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is torch.float16 and type(x) is Tensor:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")
        return torch.relu(self.linear(x))


class Insists(nn.Module):
    """Has a dtype of its own in its code, so that no float32 copy of it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x.to(torch.float16)))


@pytest.mark.parametrize("make", [NoKernel, Insists])
def test_half_modules_import_where_kernels_or_copies_are_missing(make: type[nn.Module]) -> None:
    module = make().half()
    graph = lipscope.from_torch(module, (5,))
    assert torch.equal(graph.nodes[1].layer.weight, module.linear.weight.detach().double())


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("rows", [40, 6])
def test_the_algebra_around_a_short_operator_is_float32(dtype: torch.dtype, rows: int) -> None:
    matrix = with_values(3, rows, 60, [3.0, 2.0, 1.0]).to(dtype)

    class Strict(Matrices):
        """Takes vectors in its own dtype only."""

        def matvec(self, v: Tensor) -> Tensor:
            assert v.dtype is dtype
            return super().matvec(v)

        def rmatvec(self, u: Tensor) -> Tensor:
            assert u.dtype is dtype
            return super().rmatvec(u)

    found = spectral_norm(Strict(matrix), dtype=dtype, tolerance=1e-6)
    assert {x.dtype for x in (found.value, found.error, found.left, found.right)} == {torch.float32}
    exact = torch.linalg.matrix_norm(matrix.double(), 2)
    assert abs(float(found.value) - float(exact)) <= float(found.error)
    assert float(found.error) <= 4 * torch.finfo(dtype).eps * float(exact)
    for unit in (found.left, found.right):
        assert float(unit.norm()) == pytest.approx(1, abs=1e-5)
    assert found.steps < 20


def test_working_dtypes() -> None:
    assert [working_dtype(d) for d in (*SHORT, torch.float32, torch.float64)] == [
        torch.float32, torch.float32, torch.float32, torch.float64,
    ]  # fmt: skip


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_estimates_in_sixteen_bits_are_near(dtype: torch.dtype, accuracy: float) -> None:
    graph = lipscope.from_torch(Mixed().eval(), (3, 16, 16))
    samples = lipscope.load_samples(torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    exact, _ = lipscope.local(graph, samples, dtype=torch.float64, tolerance=1e-7)
    found, _ = lipscope.local(graph, samples, dtype=dtype)
    assert found.value == pytest.approx(exact.value, rel=1e-6)
    assert found.estimates != exact.estimates
    assert found.mean == pytest.approx(exact.mean, rel=accuracy)
    assert found.relative_error >= torch.finfo(dtype).eps


def test_a_network_that_overflows_is_named_with_the_sample() -> None:
    graph = lipscope.from_torch(nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2)), (3,))
    x = torch.ones(5, 3)
    x[3] = 1e6
    with pytest.raises(lipscope.ModelError, match=r"overflows at .*\[3\] in float16; take a dtype"):
        lipscope.local(graph, lipscope.load_samples(x), dtype=torch.float16)
    assert lipscope.local(graph, lipscope.load_samples(x), dtype=torch.bfloat16)[0].value > 0


# ---- Lip(x) over a data set, whatever the precision -------------------------------------------------


def test_local_visits_a_random_choice_of_samples() -> None:
    graph = lipscope.from_torch(nn.Sequential(nn.Linear(3, 40), nn.GELU(), nn.Linear(40, 40)).double(), (3,))
    samples = lipscope.load_samples(torch.randn(90, 3, dtype=torch.float64))
    whole, _ = lipscope.local(graph, samples, dtype=torch.float64, batch_size=1)
    some, _ = lipscope.local(graph, samples, dtype=torch.float64, batch_size=1, limit=17, seed=4)
    by_name = dict(zip(whole.samples, whole.estimates, strict=True))
    assert (whole.population, some.population) == (90, 90)
    assert len(some.samples) == len(set(some.samples)) == 17
    assert some.samples == [name for name in whole.samples if name in some.samples]
    assert some.estimates == pytest.approx([by_name[name] for name in some.samples], rel=1e-6)
    assert some.samples != whole.samples[:17]
    again, _ = lipscope.local(graph, samples, dtype=torch.float64, batch_size=1, limit=17, seed=5)
    assert again.samples != some.samples
    assert lipscope.local(graph, samples, limit=90)[0].samples == whole.samples
    with pytest.raises(ValueError, match="positive"):
        lipscope.local(graph, samples, limit=0)
