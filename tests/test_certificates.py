"""Quadratic certificates: the proof piece by piece against real-space references, and what it must refuse.

A bound holds if (1) the matrices are the quadratic form they claim to be, for any variables; (2) what
a network really does satisfies every constraint; (3) errors are enclosed; (4) positivity is proved.
The first two are tested on generated networks against arithmetic in real space, where a torus with
a twist is an array that repeats up to a sign. The rest tests wrong certificates, and whole runs
against an adversary who picks slopes and selectors freely.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor, nn

from lipscope.certificates import Certificate, certify, improve, verify
from lipscope.certificates.certify import _optimised
from lipscope.certificates.check import constant, problem_of
from lipscope.certificates.elimination import BlockMatrix
from lipscope.certificates.enclosure import Enclosure, frobenius, regroup
from lipscope.certificates.lattice import Lattice
from lipscope.certificates.optimise import Found
from lipscope.certificates.problem import (
    DenseProblem,
    FourierProblem,
    NoProblemError,
    PooledOutput,
    Problem,
    Reading,
    Variable,
)
from lipscope.certificates.pullback import PullBack, realised
from lipscope.certificates.verify import _assemble, _pooled_weights, _power_of_two, prove
from lipscope.errors import CertificateError
from lipscope.graph import INPUT, Graph
from lipscope.graph.graph import GraphBuilder, Node
from lipscope.jacobian import linearize
from lipscope.layers import LinearLayer
from lipscope.layers.activation import Activation, LeakyReLU, ReLU, SiLU, Tanh
from lipscope.layers.base import Filter
from lipscope.layers.dense import Dense
from lipscope.layers.max_pool import MaxPool
from lipscope.layers.merge import Concatenation, Sum
from lipscope.progress import silent
from lipscope.quantities.analytical import analytical
from lipscope.results import CertifiedPiece
from lipscope.slopes import Diagonal, Selector, Slope
from strategies import (
    AVERAGE,
    BATCH_NORM,
    CONV,
    CONV_TRANSPOSED,
    MAXIMUM,
    Network,
    import_lone,
    networks,
    randomised,
    seeds,
)

Arrays = dict[str, Tensor]
Parameters = dict[str, Tensor]

ACTIVATIONS = [ReLU(), LeakyReLU(0.1), LeakyReLU(1.5), LeakyReLU(-0.3), LeakyReLU(-1.0), Tanh(), SiLU()]
"""Slopes from 0, above 0, above 1, below 0, below 0 by as much as above, and smooth."""


# ---- generated convolutional networks ---------------------------------------------------------------


@st.composite
def conv_graphs(draw: DrawFn, most: int = 5) -> Graph:
    """Layers with a frequency form, 1d to 3d: strides, dilations, groups, padding, pools, branches, up and down."""
    dims = draw(st.sampled_from([1, 1, 1, 2, 2, 3]))
    limit = {1: 9, 2: 5, 3: 3}[dims]
    builder = GraphBuilder((draw(st.integers(1, 2)), *(draw(st.integers(1, limit)) for _ in range(dims))))
    for _ in range(draw(st.integers(1, most))):
        _grow(draw, builder)
    return builder.build()


def _grow(draw: DrawFn, builder: GraphBuilder) -> None:
    """Append a random step, if its output is small."""
    channels, *size = builder.nodes[-1].shape
    dims, last = len(size), builder.last
    largest = {1: 4, 2: 3, 3: 2}[dims]
    kernel = [draw(st.integers(1, min(largest, n + 1))) for n in size]
    dilation = [draw(st.integers(1, 2)) if dims < 3 else 1 for _ in size]
    stride = [draw(st.sampled_from([1, 1, 2, 3] if dims == 1 else [1, 1, 2])) for _ in size]
    padding = [draw(st.integers(0, k)) for k in kernel]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    kinds = ["activation", "conv", "pool", "pooled activation"] * 2
    kinds += ["average", "transposed", "norm", "residual", "branches"]
    kind = draw(st.sampled_from(kinds))
    if kind in ("activation", "pooled activation"):
        builder.add(draw(st.sampled_from(ACTIVATIONS)), (last,))
    if kind == "conv":
        padding = [max(p, -(-(r - n) // 2)) for p, r, n in zip(padding, reach, size, strict=True)]
        groups = draw(st.sampled_from([1, 1, channels]))
        out = groups * draw(st.integers(1, 2))
        _add(builder, CONV[dims](channels, out, kernel, stride, padding, dilation, groups), draw(seeds()))
    if kind == "transposed":
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        full = [(n - 1) * s + r + e for n, s, r, e in zip(size, stride, reach, extra, strict=True)]
        padding = [min(p, (n - 1) // 2) for p, n in zip(padding, full, strict=True)]
        groups = draw(st.sampled_from([1, channels]))
        form = CONV_TRANSPOSED[dims]
        _add(
            builder,
            form(channels, groups, kernel, stride, padding, extra, groups, True, dilation),
            draw(seeds()),
        )
    if kind in ("pool", "pooled activation", "average"):
        kernel = [min(k, n) for k, n in zip(kernel, size, strict=True)]
        padding = [draw(st.integers(0, k // 2)) for k in kernel]
        rounded_up = draw(st.booleans())
        if kind == "average":
            _add(builder, AVERAGE[dims](kernel, stride, padding, rounded_up), 0)
        else:
            _add(builder, MAXIMUM[dims](kernel, stride, padding, 1, False, rounded_up), 0)
    if kind == "norm":
        _add(builder, BATCH_NORM[dims](channels), draw(seeds()))
    if kind in ("residual", "branches"):
        # The convolution keeps the size, so that the branch meets the skip.
        same = CONV[dims](channels, channels, [k | 1 for k in kernel], padding=[k // 2 for k in kernel])
        first = draw(st.booleans())
        if first:
            builder.add(draw(st.sampled_from(ACTIVATIONS)), (last,))
        _add(builder, same, draw(seeds()))
        if not first or draw(st.booleans()):
            builder.add(draw(st.sampled_from(ACTIVATIONS)), (builder.last,))
        if kind == "residual":
            builder.add(Sum((1.0, draw(st.sampled_from([1.0, 0.5, -2.0])))), (last, builder.last))
        else:
            ends = draw(st.permutations([last, builder.last, builder.last]))[: draw(st.integers(2, 3))]
            builder.add(Concatenation(0, (channels,) * len(ends)), ends)
    if math.prod(builder.nodes[-1].shape) > 100:
        del builder.nodes[last + 1 :]


def _add(builder: GraphBuilder, module: nn.Module, seed: int) -> None:
    shape = builder.nodes[-1].shape
    for layer in import_lone(randomised(module, seed), shape):
        builder.add(layer, (builder.last,))


def frequency_problem(graph: Graph, twists: Sequence[int], entries: float = 2e5) -> FourierProblem:
    """The frequency problem of a generated network with the first twists, or no example."""
    try:
        problem = FourierProblem(graph, tuple(twists[: len(graph.input_shape) - 1]))
    except NoProblemError:
        assume(False)
        raise
    assume(problem.count * problem.block_size**2 <= entries)
    return problem


TWISTS = st.tuples(*[st.integers(0, 1)] * 3)


# ---- real-space references --------------------------------------------------------------------------


def written_out(blocks: BlockMatrix, variables: Sequence[Variable]) -> tuple[Tensor, Tensor]:
    """A block matrix as whole matrices (F, n, n), variables in the order given, and its radius."""
    ends = list(itertools.accumulate((v.size for v in variables), initial=0))
    rows = {v.name: slice(a, b) for v, a, b in zip(variables, ends, ends[1:], strict=False)}
    whole = torch.zeros(blocks.batch, ends[-1], ends[-1], dtype=blocks.dtype)
    for (a, b), block in blocks.blocks.items():
        dense = regroup(block, 1)[:, 0]
        whole[:, rows[a], rows[b]] = dense
        if a != b:
            whole[:, rows[b], rows[a]] = dense.mH
    return whole, blocks.radius


class Reference:
    """A problem in real space: `walk` computes what every variable reads, given any values of the variables."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.graph = problem, problem.graph
        self.maps = problem.maps(torch.arange(problem.count))
        self.variables = {v.name: v for v in problem.variables}
        self.pooled = self.maps.pooled

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the array of a variable."""
        raise NotImplementedError

    def linear(self, k: int, u: Tensor) -> Tensor:
        raise NotImplementedError

    def taps(self, k: int, u: Tensor) -> Tensor:
        """The taps of every window, first dimension."""
        raise NotImplementedError

    def blocks(self, name: str, a: Tensor) -> Tensor:
        """The array as the rows of every block (F, size)."""
        raise NotImplementedError

    def multiplicity(self) -> Tensor:
        """How often each block stands in the whole form."""
        raise NotImplementedError

    def merged(self, k: int) -> bool:
        readers = [node.layer for node in self.graph.nodes if k in node.inputs]
        return len(readers) == 1 and isinstance(readers[0], MaxPool)

    def walk(self, z: Arrays) -> tuple[dict[int, Tensor], Arrays]:
        """Values of all nodes, and what is read: an array, or taps first; the last node's under "output"."""
        values, read = {INPUT: z["x"]}, {}
        for k, node in enumerate(self.graph.nodes[1:], 1):
            layer, inputs = node.layer, [values[i] for i in node.inputs]
            if isinstance(layer, Activation) and self.merged(k):
                values[k] = inputs[0]
            elif isinstance(layer, Activation):
                read[str(k)], values[k] = inputs[0], z[str(k)]
            elif isinstance(layer, MaxPool) and self.pooled is not None and node is self.graph.nodes[-1]:
                read["output"] = values[k] = self.taps(k, inputs[0])
            elif isinstance(layer, MaxPool):
                read[str(k)], values[k] = self.taps(k, inputs[0]), z[str(k)]
            elif isinstance(layer, (Sum, Concatenation)):
                values[k] = layer.apply(*(v.unsqueeze(0) for v in inputs))[0]
            else:
                name = f"{node.inputs[0]}.box"
                if name in self.variables and not self.pointwise(k):
                    read[name], inputs[0] = inputs[0], z[name]
                values[k] = self.linear(k, inputs[0])
        read.setdefault("output", values[len(self.graph.nodes) - 1])
        return values, read

    def pointwise(self, k: int) -> bool:
        return True

    def constraint(self, v: Variable, z: Tensor, u: Tensor, held: Parameters) -> Tensor:
        """−q_k entry by entry: not positive for anything a network does."""
        z = z.reshape(v.width, -1)
        t = held[f"{v.name}.t"].unsqueeze(1)
        if v.taps:
            h, r = held[f"{v.name}.h"], held[f"{v.name}.r"]
            u = u.reshape(v.taps, v.width, -1)
            centre = torch.einsum("ct,tcn->cn", h, u)
            return t * ((z - centre).square() - torch.einsum("cst,tcn->csn", r, u).square().sum(1))
        u = u.reshape(v.width, -1)
        return 2 * t * (z - v.alpha.unsqueeze(1) * u) * (z - v.beta.unsqueeze(1) * u)

    def energy(self, read: Arrays, held: Parameters) -> float:
        """‖y‖², or the form that stands for it where the output is pooled."""
        if self.pooled is None:
            return float(read["output"].square().sum())
        taps = read["output"].reshape(self.pooled.taps, self.pooled.width, -1)
        return float(torch.einsum("cst,tcn->csn", held["output.r"], taps).square().sum())

    def assembled(self, z: Arrays, held: Parameters, scales: Arrays) -> tuple[float, float]:
        """The quadratic form of M (less its ρ term) at z, and a scale of its rounding."""
        variables = list(self.variables.values())
        matrix, radius = written_out(_assemble(self.maps, variables, scales, held), variables)
        parts = [self.blocks(v.name, z[v.name]) / scales[v.name].repeat(v.copies) for v in variables]
        w = torch.cat(parts, 1).to(matrix.dtype)
        values = (w.conj() * (matrix @ w.unsqueeze(-1))[..., 0]).sum(1).real
        noise = (w.abs().square().sum(1) * (radius + 1e-14 * matrix.abs().sum((1, 2)))).sum()
        assert float((matrix - matrix.mH).abs().max()) <= 1e-9 * float(matrix.abs().max())
        return float((values * self.multiplicity()).sum()), 2 * float(noise)


class Written(Reference):
    """Of a dense problem: the layers themselves."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.nodes[0 if name == "x" else int(name)].shape

    def linear(self, k: int, u: Tensor) -> Tensor:
        layer = self.graph.nodes[k].layer
        assert isinstance(layer, LinearLayer)
        return layer.apply(u.unsqueeze(0))[0]

    def taps(self, k: int, u: Tensor) -> Tensor:
        layer = self.graph.nodes[k].layer
        assert isinstance(layer, MaxPool)
        return torch.stack(list(layer.windows.tap_views(layer.windows.pad(u))))

    def blocks(self, name: str, a: Tensor) -> Tensor:
        return a.reshape(1, -1)

    def multiplicity(self) -> Tensor:
        return torch.ones(1)


class Torus(Reference):
    """Of a frequency problem: arrays (channels, *cells) that repeat with the sign (−1)^twist in each dimension."""

    problem: FourierProblem

    def cells(self, k: int) -> tuple[int, ...]:
        lattice = self.problem.lattice
        return tuple(n * m for n, m in zip(lattice.base, self.problem.levels[k], strict=True))

    def node(self, name: str) -> int:
        return 0 if name == "x" else int(name.removesuffix(".box"))

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.variables[name].width, *self.cells(self.node(name)))

    def shifted(self, u: Tensor, stride: Sequence[int], offset: Sequence[int]) -> Tensor:
        """u[s·o + offset] for all o, with the sign of every turn around the torus."""
        for dim, (s, off, t) in enumerate(zip(stride, offset, self.problem.lattice.twist, strict=True), 1):
            n = u.shape[dim]
            place = torch.arange(n // s) * s + off
            sign = (1 - 2 * (t * torch.div(place, n, rounding_mode="floor") % 2)).to(u.dtype)
            u = u.index_select(dim, place % n) * sign.reshape(-1, *[1] * (u.ndim - 1 - dim))
        return u

    def filtered(self, filter: Filter, u: Tensor) -> Tensor:
        parts = [
            torch.tensordot(w, self.shifted(u, filter.stride, offset), 1)
            for w, offset in zip(filter.taps, filter.offsets, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def linear(self, k: int, u: Tensor) -> Tensor:
        filter = self.problem.filters[k]
        if not filter.transposed:
            return self.filtered(filter, u)
        probe = torch.zeros(self.graph.nodes[k].shape[0], *self.cells(k), dtype=u.dtype, requires_grad=True)
        (found,) = torch.autograd.grad(self.filtered(filter, probe), probe, u)
        return found

    def taps(self, k: int, u: Tensor) -> Tensor:
        layer = self.graph.nodes[k].layer
        assert isinstance(layer, MaxPool)
        w = layer.windows
        taps = itertools.product(*(range(n) for n in w.kernel))
        offsets = [[j * d - p for j, d, p in zip(tap, w.dilation, w.padding, strict=True)] for tap in taps]
        return torch.stack([self.shifted(u, w.stride, offset) for offset in offsets])

    def pointwise(self, k: int) -> bool:
        return self.problem.filters[k].pointwise

    def blocks(self, name: str, a: Tensor) -> Tensor:
        """The unitary transform at the (doubled) frequencies of every block."""
        level = self.problem.levels[self.node(name)]
        doubled = self.problem.lattice.at_level(self.problem._frequencies, level)
        found = a.to(torch.complex128).unsqueeze(0).unsqueeze(0).expand(*doubled.shape[:2], *a.shape)
        for dim, n in enumerate(a.shape[1:]):
            turns = doubled[..., dim].unsqueeze(-1) * torch.arange(n) % (2 * n)
            phase = torch.exp(-1j * math.pi * turns.to(torch.float64) / n) / math.sqrt(n)
            found = torch.einsum("fac...n,fan->fac...", found.movedim(3, -1), phase)
        return found.flatten(1)

    def multiplicity(self) -> Tensor:
        doubled = self.problem._frequencies
        period = 2 * torch.tensor(self.problem.lattice.base)
        own = ((doubled + doubled) % period == 0).all(1)
        return torch.where(own, 1.0, 2.0)

    def boxed(self, k: int, a: Tensor) -> Tensor:
        """A per-sample array on its torus, zero outside its box."""
        whole = torch.zeros(a.shape[0], *self.cells(k), dtype=a.dtype)
        whole[(..., *(slice(0, n) for n in a.shape[1:]))] = a
        return whole


def random_parameters(reference: Reference, seed: int) -> tuple[Parameters, Arrays]:
    """Any multipliers and ellipsoids, feasible or not, and scales of the variables."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    held: Parameters = {}
    for v in list(reference.variables.values())[1:]:
        held[f"{v.name}.t"] = normal(v.width).exp()
        if v.taps:
            held[f"{v.name}.h"] = normal(v.width, v.taps)
            held[f"{v.name}.r"] = normal(v.width, v.taps, v.taps)
    if (pooled := reference.pooled) is not None:
        held["output.r"] = normal(pooled.width, pooled.taps, pooled.taps)
        held["output.q"] = (0.5 * normal(pooled.width, pooled.cells)).exp()
    scales = {v.name: torch.exp2(normal(v.width).round()) for v in reference.variables.values()}
    scales["x"] = scales["x"][:1].expand(reference.variables["x"].width)
    return held, scales


def agrees_with_real_space(reference: Reference, seed: int) -> None:
    held, scales = random_parameters(reference, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    z = {
        name: torch.randn(reference.shape(name), generator=generator, dtype=torch.float64)
        for name in reference.variables
    }
    _, read = reference.walk(z)
    constraints = [
        reference.constraint(v, z[v.name], read[v.name], held).sum()
        for v in list(reference.variables.values())[1:]
    ]
    expected = float(sum(constraints, torch.zeros(()))) - reference.energy(read, held)
    found, noise = reference.assembled(z, held, scales)
    if reference.pooled is None:
        assert abs(found - expected) <= noise
    else:
        assert found <= expected + noise


@given(conv_graphs(), TWISTS, seeds())
@settings(max_examples=120)
def test_frequency_blocks_are_the_form_on_the_torus(graph: Graph, twists: tuple[int, ...], seed: int) -> None:
    agrees_with_real_space(Torus(frequency_problem(graph, twists)), seed)


@given(conv_graphs(), seeds())
@settings(max_examples=60)
def test_the_dense_block_is_the_form_of_the_layers(graph: Graph, seed: int) -> None:
    agrees_with_real_space(Written(DenseProblem(graph)), seed)


def test_a_twist_repeats_the_array_up_to_its_sign() -> None:
    """The transform used above, against its definition on one dimension."""
    graph = GraphBuilder((1, 4))
    _add(graph, nn.Conv1d(1, 1, 1), 0)
    reference = Torus(FourierProblem(graph.build(), (1,)))
    a = torch.arange(1.0, 5.0, dtype=torch.float64)
    moved = reference.shifted(a[None], (1,), (2,))
    assert moved.tolist() == [[3, 4, -1, -2]]
    frequencies = reference.problem._frequencies[:, 0].double() / 2
    for before, after, f in zip(
        reference.blocks("x", a[None]), reference.blocks("x", moved), frequencies, strict=True
    ):
        assert abs(after - before * torch.exp(2j * math.pi * f * 2 / 4)) < 1e-14


# ---- what networks do satisfies the constraints -----------------------------------------------------


def started(problem: Problem) -> tuple[PullBack, Found]:
    """The multipliers that an optimiser starts from, with no time to improve them."""
    return optimised(problem, 0.0)


def optimised(problem: Problem, seconds: float) -> tuple[PullBack, Found]:
    """The last proposal of the optimiser, as it is proved."""
    found = list(_optimised(problem, seconds, silent, ""))
    precision = torch.float64 if isinstance(problem, DenseProblem) else torch.complex128
    return PullBack(problem, precision), found[-1] if found else Found({}, math.inf)


def parameters_of(problem: Problem, pull: PullBack, found: Found) -> Parameters:
    return realised(pull, found.raw, problem.maps(torch.arange(0)).pooled)


def satisfies_the_constraints(reference: Reference, seed: int) -> None:
    graph, problem = reference.graph, reference.problem
    held = parameters_of(problem, *started(problem))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *graph.input_shape, generator=generator, dtype=torch.float64)
    true = differences(graph, x)
    z = {}
    for name, v in reference.variables.items():
        k = 0 if name == "x" else int(name.removesuffix(".box"))
        z[name] = reference.boxed(k, true[k]) if isinstance(reference, Torus) else true[k]
        assert v.name == name
    values, read = reference.walk(z)
    for k, value in values.items():
        pooled_output = reference.pooled is not None and k == len(graph.nodes) - 1
        if pooled_output or isinstance(graph.nodes[k].layer, Activation):
            continue
        inside = value[(..., *(slice(0, n) for n in true[k].shape[1:]))]
        assert torch.allclose(inside, true[k], rtol=1e-9, atol=1e-10), graph.nodes[k]
    for v in list(reference.variables.values())[1:]:
        if v.corners is not None and isinstance(reference, Torus):
            # A window outside the box selects nothing.
            assert (v.corners == 0).all(1).any()
        broken = reference.constraint(v, z[v.name], read[v.name], held)
        size = 1 + float(held[f"{v.name}.t"].max()) * (1 + float(read[v.name].abs().max())) ** 2
        assert float(broken.max()) <= 1e-9 * size, v.name
    reached = float(true[len(graph.nodes) - 1].square().sum())
    assert reached <= reference.energy(read, held) * (1 + 1e-9) + 1e-12


def differences(graph: Graph, x: Tensor) -> dict[int, Tensor]:
    """Of a pair (2, *in), at every node."""
    values = {INPUT: x}
    for k, node in enumerate(graph.nodes[1:], 1):
        assert node.layer is not None
        values[k] = node.layer.forward(*(values[i] for i in node.inputs))
    return {k: value[0] - value[1] for k, value in values.items()}


@given(conv_graphs(), TWISTS, seeds())
@settings(max_examples=60)
def test_pairs_satisfy_the_constraints_on_the_torus(graph: Graph, twists: tuple[int, ...], seed: int) -> None:
    satisfies_the_constraints(Torus(frequency_problem(graph, twists, entries=1e5)), seed)


@given(conv_graphs(), seeds())
@settings(max_examples=40)
def test_pairs_satisfy_the_constraints_of_dense_problems(graph: Graph, seed: int) -> None:
    satisfies_the_constraints(Written(DenseProblem(graph)), seed)


# ---- whole bounds against an adversary --------------------------------------------------------------


def adversary(graph: Graph, seed: int, rounds: int = 3) -> float:
    """The largest ‖J‖ found by free slopes in [α, β] and free selectors: each in turn raises |uᵀJv|."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *graph.input_shape, generator=generator, dtype=torch.float64)
    slopes = {k: _at(s, 0) for k, s in graph.linearize_at(x)[1].items()}
    best = 0.0
    for _ in range(rounds):
        matrix = linearize(graph, slopes).dense()[0]
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        best = max(best, float(s[0]))
        right, left = v[0].reshape(graph.input_shape), u[:, 0].reshape(graph.output_shape)
        for k, layer in graph.nonlinear().items():
            before, after = _passes(graph, slopes, right, left, k)
            if isinstance(layer, Activation):
                alpha, beta = torch.tensor(layer.slope_range, dtype=torch.float64)
                slopes[k] = Diagonal(torch.where(before * after > 0, beta, alpha).unsqueeze(0))
            else:
                assert isinstance(layer, MaxPool)
                w = layer.windows
                numbers = torch.arange(1.0, 1 + math.prod(w.size), dtype=torch.float64).reshape(w.size)
                cells = torch.stack(list(w.tap_views(w.pad(numbers)))).long() - 1
                cells = cells.unsqueeze(1).expand(-1, before.shape[0], *cells.shape[1:])
                taps = torch.stack(list(w.tap_views(w.pad(before)))) * after
                choice = torch.where(cells >= 0, taps, -math.inf).argmax(0, keepdim=True)
                slopes[k] = Selector(cells.gather(0, choice), w)
    return max(best, float(torch.linalg.matrix_norm(linearize(graph, slopes).dense()[0], 2)))


def _at(slope: Slope, index: int) -> Slope:
    if isinstance(slope, Selector):
        return Selector(slope.cells[index : index + 1], slope.windows)
    assert isinstance(slope, Diagonal)
    return Diagonal(slope.values[index : index + 1])


def _passes(
    graph: Graph, slopes: dict[int, Slope], right: Tensor, left: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """What node k reads of `right`, and what its output adds to `left`."""
    values = {INPUT: right.reshape(1, 1, *right.shape)}
    for index, node in enumerate(graph.nodes[1:], 1):
        inputs = [values[i] for i in node.inputs]
        if isinstance(node.layer, LinearLayer):
            values[index] = node.layer.apply(*(v.flatten(0, 1) for v in inputs)).unsqueeze(0)
        else:
            values[index] = slopes[index].apply(inputs[0])
    adjoints = {len(graph.nodes) - 1: left.reshape(1, 1, *left.shape)}
    for index in range(len(graph.nodes) - 1, k, -1):
        node, adjoint = graph.nodes[index], adjoints.get(index)
        if adjoint is None:
            continue
        if isinstance(node.layer, LinearLayer):
            parts = node.layer.transpose(adjoint.flatten(0, 1))
        else:
            parts = (slopes[index].transpose(adjoint).flatten(0, 1),)
        for i, part in zip(node.inputs, parts, strict=True):
            adjoints[i] = adjoints[i] + part.unsqueeze(0) if i in adjoints else part.unsqueeze(0)
    missing = torch.zeros(1, 1, *graph.nodes[k].shape, dtype=torch.float64)
    return values[graph.nodes[k].inputs[0]][0, 0], adjoints.get(k, missing)[0, 0]


def reached(graph: Graph, seed: int) -> float:
    """A lower bound: at random points, along random pairs, and by the adversary."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, *graph.input_shape, generator=generator, dtype=torch.float64)
    slopes = graph.linearize_at(x)[1], graph.secant_slopes(x, x.roll(1, 0))
    norms = [torch.linalg.matrix_norm(linearize(graph, s, batch=len(x)).dense(), 2).max() for s in slopes]
    return max(*(float(n) for n in norms), adversary(graph, seed), adversary(graph, seed + 1))


def proved(problem: Problem, seconds: float) -> float:
    """The certified constant of the multipliers found, infinite if none could be proved."""
    pull, found = optimised(problem, seconds)
    if not (math.isfinite(found.rho) and found.rho > 0):
        return math.inf
    try:
        return constant(prove(problem, parameters_of(problem, pull, found), found.rho))
    except CertificateError:
        return math.inf


@given(conv_graphs(), TWISTS, seeds())
@settings(max_examples=40)
def test_no_choice_of_slopes_exceeds_what_is_proved(graph: Graph, twists: tuple[int, ...], seed: int) -> None:
    lower = reached(graph, seed)
    bounds = [proved(DenseProblem(graph), 0.02)]
    try:
        problem = FourierProblem(graph, twists[: len(graph.input_shape) - 1])
        if problem.count * problem.block_size**2 <= 1e5:
            bounds.append(proved(problem, 0.05))
    except NoProblemError:
        pass
    assert lower * (1 - 1e-12) <= min(bounds), (lower, bounds)


@given(networks())
@settings(max_examples=6)
def test_certificates_of_imported_networks(net: Network) -> None:
    graph = net.graph
    product = analytical(graph).value
    values = [found.value for found in improve(graph, "fast", 0.1)]
    assert values[0] == product
    assert all(after < before for before, after in itertools.pairwise(values))
    assert reached(graph, net.seed) * (1 - 1e-12) <= values[-1]


def test_the_certificate_is_tight_where_the_constant_is_known() -> None:
    """A bound that is too large by much would pass all tests above."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(n, m, generator=generator, dtype=torch.float64) for n, m in ((6, 4), (3, 6))]
    # Non-negative weights: the linear network attains the bound.
    dense = Graph.chain((4,), [Dense(weights[0].abs()), ReLU(), Dense(weights[1].abs())])
    exact = float(torch.linalg.matrix_norm(weights[1].abs() @ weights[0].abs(), 2))
    assert exact <= proved(DenseProblem(dense), 1.0) <= exact * (1 + 1e-4)
    builder = GraphBuilder((1, 24))
    for channels in ((1, 2), (2, 1)):
        module = randomised(nn.Conv1d(*channels, 3, padding=1), 1)
        module.weight.abs_()
        builder.add(import_lone(module, builder.nodes[-1].shape)[0], (builder.last,))
        builder.add(ReLU(), (builder.last,))
    graph = builder.build()
    ones = {k: Diagonal(torch.ones(1, *graph.nodes[k].shape, dtype=torch.float64)) for k in graph.nonlinear()}
    exact = float(torch.linalg.matrix_norm(linearize(graph, ones).dense()[0], 2))
    for twist in ((0,), (1,)):
        assert exact <= proved(FourierProblem(graph, twist), 1.0) <= exact * 1.03


# ---- filters and frequencies ------------------------------------------------------------------------


@given(conv_graphs(most=2), seeds())
@settings(max_examples=60)
def test_filters_and_matrices_are_the_layers(graph: Graph, seed: int) -> None:
    """Wrapped around any torus from `period` on, the filter is the layer inside the box."""
    generator = torch.Generator().manual_seed(seed)
    for k, node in enumerate(graph.nodes):
        if not isinstance(node.layer, LinearLayer) or len(node.inputs) > 1:
            continue
        (shape,) = graph.shapes_into(k)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        y = node.layer.apply(x.unsqueeze(0))[0]
        matrix = node.layer.matrix(shape)
        assert matrix is not None
        assert torch.allclose((matrix @ x.flatten()).reshape(y.shape), y, rtol=1e-11, atol=1e-12)
        filter = node.layer.filter(shape)
        if filter is None:
            continue
        alone = Graph([Node(None, (), shape, "input"), Node(node.layer, (0,), node.shape, node.place)])
        torus = Torus(FourierProblem(alone))
        inside = torus.linear(1, torus.boxed(0, x))[(..., *(slice(0, n) for n in y.shape[1:]))]
        assert torch.allclose(inside, y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("base", [(1,), (2,), (5,), (4, 3), (2, 2), (3, 1, 2)])
def test_one_of_every_pair_of_frequencies_is_kept(base: tuple[int, ...]) -> None:
    for twist in itertools.product((0, 1), repeat=len(base)):
        kept = [tuple(f) for f in Lattice(base, ((1,) * len(base),), twist).frequencies().tolist()]
        period = [2 * n for n in base]
        opposite = [tuple(-f % p for f, p in zip(k, period, strict=True)) for k in kept]
        every = {
            tuple(2 * m + t for m, t in zip(k, twist, strict=True))
            for k in itertools.product(*(range(n) for n in base))
        }
        assert len(set(kept)) == len(kept)
        assert set(kept) | set(opposite) == every
        assert all(k == o or o not in kept for k, o in zip(kept, opposite, strict=True))


@given(conv_graphs(most=3), TWISTS)
@settings(max_examples=40)
def test_opposite_frequencies_give_conjugate_maps(graph: Graph, twists: tuple[int, ...]) -> None:
    """What is left out would prove nothing new."""
    problem = frequency_problem(graph, twists, 3e4)
    doubled = problem._frequencies
    spectra = []
    for frequencies in (doubled, (-doubled) % (2 * torch.tensor(problem.lattice.base))):
        problem._frequencies = frequencies
        maps = problem.maps(torch.arange(len(frequencies)))
        parts = [p for r in [*(r.form for r in maps.readings), maps.output] for p in r.parts.values()]
        spectra.append([torch.linalg.svdvals(regroup(p.mid, 1)[:, 0]) for p in parts if p is not None])
    for here, there in zip(*spectra, strict=True):
        assert torch.allclose(here, there, atol=1e-10)


def test_pooling_of_disjoint_windows_keeps_the_energy() -> None:
    """B = 1 over windows that tile the torus is the identity: all weights are one, and no more."""
    builder = GraphBuilder((2, 6, 4))
    builder.add(import_lone(nn.MaxPool2d((3, 2)), (2, 6, 4))[0], (0,))
    for twist in ((0, 0), (1, 0), (1, 1)):
        problem = FourierProblem(builder.build(), twist)
        pooled = problem.maps(torch.arange(problem.count)).pooled
        assert isinstance(pooled, PooledOutput)
        held = {
            "output.r": torch.eye(6, dtype=torch.float64).expand(2, 6, 6),
            "output.q": torch.ones(2, pooled.cells, dtype=torch.float64),
        }
        weights = _pooled_weights(pooled, held)
        assert 1.0 <= float(weights.min()) <= float(weights.max()) <= 1 + 1e-11


@given(conv_graphs(), TWISTS, seeds())
@settings(max_examples=40)
def test_readers_agree_with_themselves(graph: Graph, twists: tuple[int, ...], seed: int) -> None:
    """`mean` and `spread`, which the optimiser uses, are those of the taps that the proof reads."""
    generator = torch.Generator().manual_seed(seed)
    problem = frequency_problem(graph, twists, 1e5)
    for reading in problem.maps(torch.arange(problem.count)).readings:
        v, reader = reading.variable, reading.reader
        if reader is None:
            continue
        assert isinstance(reading, Reading)
        h = torch.randn(v.width, v.taps, generator=generator, dtype=torch.float64)
        r = torch.randn(v.width, v.taps, v.taps, generator=generator, dtype=torch.float64)
        for part in reading.form.parts.values():
            if part is None:
                continue
            taps = reader.read(part.mid)
            inner = taps.shape[3] // v.width
            mean = torch.einsum("ct,fgtcn->fgcn", h.repeat(inner, 1).to(taps.dtype), taps)
            assert torch.allclose(reader.mean(h, part.mid), mean, atol=1e-10)
            mixed = torch.einsum("cst,fgtcn->fgscn", r.repeat(inner, 1, 1).to(taps.dtype), taps).flatten(2, 3)
            rows = reader.spread(r, part.mid)
            assert torch.allclose(rows.mH @ rows, mixed.mH @ mixed, rtol=1e-8, atol=1e-8)


# ---- enclosures -------------------------------------------------------------------------------------


def fractions(x: Tensor) -> np.ndarray:
    """A real matrix as exact rationals."""
    return np.vectorize(Fraction, otypes=[object])(x.numpy())


def within(enclosed: Enclosure, exact: np.ndarray) -> bool:
    """Whether one real block differs from the exact matrix by at most the radius."""
    difference = fractions(regroup(enclosed.mid, 1)[0, 0]) - exact
    return sum((d * d for d in difference.flat), Fraction(0)) <= Fraction(float(enclosed.radius[0])) ** 2


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), seeds(), st.sampled_from([0, -400, 150]))
@settings(max_examples=60)
def test_radii_enclose_exact_arithmetic(
    rows: int, inner: int, columns: int, seed: int, exponent: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        sizes = torch.exp2(torch.randint(-30, 30, shape, generator=generator).double())
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * sizes * 2.0**exponent

    a, b, c = random(1, 1, rows, inner), random(1, 1, inner, columns), random(1, 1, rows, inner)
    one, other, third = Enclosure.exact(a), Enclosure.exact(b), Enclosure.exact(c)
    fa, fb, fc = (fractions(t[0, 0]) for t in (a, b, c))
    factors = torch.randn(rows, generator=generator, dtype=torch.float64)
    # A factor that is itself rounded twice stays within the radius.
    rounded = factors / 3 * 7
    exact_factors = np.vectorize(Fraction, otypes=[object])(factors.numpy()) / 3 * 7
    assert within(one @ other, fa @ fb)
    assert within(one + third, fa + fc)
    assert within((one + third) @ other, (fa + fc) @ fb)
    assert within(((one + third) @ other).adjoint, ((fa + fc) @ fb).T)
    assert within(one.scaled(0.1), fa * Fraction(0.1))
    assert within((one @ other).scaled_rows(rounded), exact_factors[:, None] * (fa @ fb))
    assert within(other.adjoint.scaled_columns(torch.ones(inner)), fb.T)
    norm = Fraction(float(frobenius(a)[0]))
    assert sum((f * f for f in fa.flat), Fraction(0)) <= norm**2
    assert float((one @ other).radius[0]) <= 1e-12 * float(a.norm() * b.norm()) + 1e-190


def test_block_diagonal_products_are_those_of_the_whole_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 6, 2, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(2, 2, 9, 4, generator=generator, dtype=torch.float64)
    whole = regroup(a, 1)[:, 0] @ regroup(b, 1)[:, 0]
    product = Enclosure.exact(a) @ Enclosure.exact(b)
    assert torch.allclose(regroup(product.mid, 1)[:, 0], whole)
    blocks = [torch.block_diag(*matrix) for matrix in a]
    assert torch.equal(regroup(a, 1)[:, 0], torch.stack(blocks))
    rows = torch.randn(12, generator=generator, dtype=torch.float64)
    scaled = Enclosure.exact(a).scaled_rows(rows).mid
    assert torch.equal(regroup(scaled, 1)[:, 0], rows[:, None] * torch.stack(blocks))
    columns = torch.randn(18, generator=generator, dtype=torch.float64)
    scaled = Enclosure.exact(a).scaled_columns(columns).mid
    assert torch.equal(regroup(scaled, 1)[:, 0], torch.stack(blocks) * columns)


@given(conv_graphs(most=2), TWISTS)
@settings(max_examples=40)
def test_symbols_enclose_those_in_extended_precision(graph: Graph, twists: tuple[int, ...]) -> None:
    problem = frequency_problem(graph, twists, 3e4)
    assert np.finfo(np.longdouble).nmant > 60
    for k, filter in problem.filters.items():
        fine, coarse = problem.levels[graph.nodes[k].inputs[0]], problem.levels[k]
        if filter.transposed:
            fine, coarse = coarse, fine
        doubled = problem.lattice.at_level(problem._frequencies, fine)
        cells = [n * m for n, m in zip(problem.lattice.base, fine, strict=True)]
        turns = sum(
            doubled[..., None, d].numpy() * np.array([o[d] for o in filter.offsets]).astype(np.longdouble) / n
            for d, n in enumerate(cells)
        )
        pi = np.longdouble("3.14159265358979323846264338327950288")
        angle = turns % 2 * pi
        taps = filter.taps.numpy().astype(np.longdouble)
        phased = np.tensordot(np.cos(angle) + 1j * np.sin(angle), taps, 1)
        folded = math.prod(filter.stride)
        exact = phased / np.sqrt(np.longdouble(folded))
        count, groups = len(doubled), problem.lattice.aliases(coarse)
        exact = exact.reshape(count, groups, folded, *taps.shape[1:]).swapaxes(2, 3)
        exact = exact.reshape(count, groups, taps.shape[1], -1)
        symbol = problem.lattice.symbol(filter, problem._frequencies, fine, coarse)
        found = (symbol.adjoint if filter.transposed else symbol).mid.numpy()
        error = np.sqrt((abs(found - exact) ** 2).sum((1, 2, 3)))
        assert (error <= symbol.radius.numpy()).all()
        # And no more than a few dozen roundings are allowed for.
        size = np.sqrt((abs(exact) ** 2).sum((1, 2, 3)).max())
        assert symbol.radius.max() <= 1e-10 * (size + float(filter.taps.abs().sum()))


def test_scales_are_exact_powers_of_two() -> None:
    exponents = torch.arange(-250, 251)
    found = _power_of_two(torch.exp2(exponents.double()) * 1.3)
    assert found.tolist() == [math.ldexp(1.0, int(e)) for e in exponents]
    for wrong in (0.0, math.inf, math.nan, 1e-200, 1e200):
        with pytest.raises(CertificateError):
            _power_of_two(torch.tensor([wrong], dtype=torch.float64))


# ---- wrong certificates -----------------------------------------------------------------------------


def small_nets() -> dict[str, Graph]:
    """One network for each kind of constraint."""
    found = {}
    for name, last in (("windows", [ReLU()]), ("pooled output", [])):
        builder = GraphBuilder((1, 9))
        _add(builder, nn.Conv1d(1, 2, 3, padding=1), 1)
        builder.add(LeakyReLU(-0.2), (builder.last,))
        _add(builder, nn.Conv1d(2, 2, 3, padding=1), 2)
        builder.add(ReLU(), (builder.last,))
        _add(builder, nn.MaxPool1d(3, 2, 1), 0)
        for layer in last:
            builder.add(layer, (builder.last,))
        found[name] = builder.build()
    return found


NETS = small_nets()
STRUCTURES: dict[str, Callable[[Graph], Problem]] = {
    "dense": DenseProblem,
    "frequency": lambda graph: FourierProblem(graph, (1,)),
}
PROVED: dict[tuple[str, str], tuple[Problem, Parameters, float]] = {}


def proof(net: str, structure: str) -> tuple[Problem, Parameters, float]:
    """A problem with parameters that prove its ρ."""
    if (net, structure) not in PROVED:
        problem = STRUCTURES[structure](NETS[net])
        pull, found = optimised(problem, 0.4)
        held = parameters_of(problem, pull, found)
        PROVED[net, structure] = problem, held, prove(problem, held, found.rho)
    return PROVED[net, structure]


CASES = list(itertools.product(NETS, STRUCTURES))


@pytest.mark.parametrize(("net", "structure"), CASES)
def test_what_is_proved_is_nearly_all_that_the_multipliers_prove(net: str, structure: str) -> None:
    """Below it M has a negative eigenvalue, so the refusal is right; rounding costs next to nothing."""
    problem, held, rho = proof(net, structure)
    assert prove(problem, held, rho) == rho
    assert rho * (1 - 1e-3) <= prove(problem, held, rho * 0.995) <= rho * (1 + 1e-2)
    for factor in (0.9, 0.97):
        with pytest.raises(CertificateError):
            prove(problem, held, rho * factor)
    scales = {v.name: torch.ones(v.width, dtype=torch.float64) for v in problem.variables}
    maps = problem.maps(torch.arange(problem.count))
    matrix, radius = written_out(_assemble(maps, problem.variables, scales, held), problem.variables)
    assert float(radius.max()) <= 1e-10 * float(matrix.abs().max())
    inputs = range(problem.input.size)
    matrix[:, inputs, inputs] += rho
    assert float(torch.linalg.eigvalsh(matrix).min()) >= 0
    matrix[:, inputs, inputs] -= 0.03 * rho
    assert float(torch.linalg.eigvalsh(matrix).min()) < 0


@pytest.mark.parametrize(("net", "structure"), CASES)
def test_wrong_parameters_are_refused(net: str, structure: str) -> None:
    problem, held, rho = proof(net, structure)
    names = {v.name: v for v in problem.variables[1:]}
    wrong: list[Parameters] = []

    def change(key: str, value: Tensor) -> None:
        wrong.append(held | {key: value})

    for name, v in names.items():
        t = held[f"{name}.t"]
        for value in (0.0, -1.0, math.nan, math.inf, 1e-170, 1e170):
            one = t.clone()
            one[0] = value
            change(f"{name}.t", one)
        # So small that the constraint no longer holds the form behind it, or so large that it swamps it.
        change(f"{name}.t", t * 1e-3)
        change(f"{name}.t", t * 1e4)
        change(f"{name}.t", t[:-1])
        change(f"{name}.t", torch.cat([t, t]))
        change(f"{name}.t", t[None])
        change(f"{name}.t", t.to(torch.complex128))
        if v.taps:
            h, r = held[f"{name}.h"], held[f"{name}.r"]
            change(f"{name}.h", torch.ones_like(h))
            change(f"{name}.h", -h - 0.2)
            change(f"{name}.h", torch.full_like(h, math.nan))
            change(f"{name}.h", h[:, :1])
            change(f"{name}.h", h[:1])
            change(f"{name}.h", h.flatten())
            change(f"{name}.r", r * 0.99)
            change(f"{name}.r", r * math.nan)
            change(f"{name}.r", r * 1e200)
            change(f"{name}.r", r[:1])
            change(f"{name}.r", r[:, :1])
    if "output.q" in held:
        q, r = held["output.q"], held["output.r"]
        for value in (0.0, -1.0, math.nan, math.inf):
            one = q.clone()
            one[0, 0] = value
            change("output.q", one)
        change("output.q", q[:, :-1])
        change("output.q", q[0])
        change("output.q", q * torch.linspace(1, 1e3, q.shape[1], dtype=torch.float64))
        change("output.r", r * 0.99)
        change("output.r", r[:, :, :1])
    wrong += [{k: t for k, t in held.items() if k != key} for key in held]
    wrong += [held | {"9.t": torch.ones(1, dtype=torch.float64)}, {}]
    for parameters in wrong:
        with pytest.raises(CertificateError):
            prove(problem, parameters, rho)
    for value in (0.0, -rho, math.nan, math.inf, 1e-310, 1e310):
        with pytest.raises(CertificateError):
            prove(problem, held, value)


@given(st.sampled_from(CASES), seeds(), st.floats(0.1, 3.0))
@settings(max_examples=60)
def test_any_parameters_prove_a_true_bound_or_nothing(case: tuple[str, str], seed: int, size: float) -> None:
    """Random multipliers and ellipsoids: whatever ρ is proved, no choice of slopes exceeds it."""
    problem, held, rho = proof(*case)
    generator = torch.Generator().manual_seed(seed)
    changed = {}
    for key, value in held.items():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        kind = key.rpartition(".")[2]
        changed[key] = value * (size * noise).exp() if kind in ("t", "q") else value + 0.1 * size * noise
    lower = adversary(problem.graph, 0) ** 2
    for proposal in (lower * 0.98, rho, 10 * rho, 1e3 * rho):
        try:
            assert prove(problem, changed, proposal) >= lower * (1 - 1e-12)
        except CertificateError:
            continue


# ---- certificates as files --------------------------------------------------------------------------


def certificate_of(net: str, structure: str) -> Certificate:
    """A whole certificate of one quadratic piece, made by hand."""
    _, held, rho = proof(net, structure)
    graph = NETS[net]
    piece = CertifiedPiece(
        start=0, end=len(graph.nodes) - 1, first="a", last="b", structure=structure,
        bound=constant(rho), product=9.0, rho=rho, twist=[1] if structure == "frequency" else None,
    )  # fmt: skip
    return Certificate(graph.fingerprint(), [piece], [dict(held)])


@pytest.mark.parametrize(("net", "structure"), CASES)
def test_a_stored_certificate_proves_what_it_claims(net: str, structure: str, tmp_path: Path) -> None:
    made = certificate_of(net, structure)
    made.save(tmp_path / "c.safetensors")
    read = Certificate.load(tmp_path / "c.safetensors")
    assert read.value == made.value
    assert read.pieces == made.pieces
    assert verify(NETS[net], read) == made.value
    assert reached(NETS[net], 5) <= made.value


@pytest.mark.parametrize(("net", "structure"), CASES)
def test_a_wrong_record_is_refused(net: str, structure: str) -> None:
    graph, made = NETS[net], certificate_of(net, structure)
    other = NETS["windows" if net == "pooled output" else "pooled output"]
    last = len(graph.nodes) - 1
    (piece,), held = made.pieces, made.parameters
    rho = piece.rho
    assert rho is not None
    changes: list[dict[str, object]] = [
        {"rho": rho * 0.9}, {"rho": -1.0}, {"rho": math.nan}, {"rho": math.inf}, {"rho": 0.0}, {"rho": None},
        {"start": 1}, {"start": -1}, {"end": last - 1}, {"end": last + 1}, {"end": 0}, {"end": -1},
        {"structure": "frequency" if structure == "dense" else "dense"},
    ]  # fmt: skip
    if structure == "frequency":
        changes += [{"twist": t} for t in ([1, 1], [], [2], [-1], [10**30])]
    for change in changes:
        wrong = Certificate(made.fingerprint, [piece.model_copy(update=change)], held)
        with pytest.raises(CertificateError):
            verify(graph, wrong)
    for wrong, network in (
        (Certificate("0" * 64, [piece], held), graph),
        (made, other),
        (Certificate(made.fingerprint, [], []), graph),
        (Certificate(made.fingerprint, [piece], []), graph),
        (Certificate(made.fingerprint, [piece, piece], held * 2), graph),
        (Certificate(made.fingerprint, [piece], [{}]), graph),
    ):
        with pytest.raises(CertificateError):
            verify(network, wrong)


def test_pieces_must_go_forward() -> None:
    """A part that contracts, counted twice, would lower the product below the constant."""
    shrink = 0.1 * torch.eye(2, dtype=torch.float64)
    graph = Graph.chain((2,), [Dense(10 * shrink), ReLU(), Dense(shrink), ReLU()])
    exact = analytical(graph).value

    def by_norms(*ends: int) -> Certificate:
        pieces = [
            CertifiedPiece(start=a, end=b, first="", last="", structure="norms", bound=1.0, product=1.0)
            for a, b in itertools.pairwise(ends)
        ]
        return Certificate(graph.fingerprint(), pieces, [{} for _ in pieces])

    for right in ((0, 4), (0, 1, 4), (0, 1, 2, 3, 4)):
        assert exact <= verify(graph, by_norms(*right)) <= exact * (1 + 1e-12)
    for wrong in ((0, 4, 2, 4), (0, 3, 1, 4), (0, 4, 4), (0, 2), (1, 4), (0, 2, 2, 4), (4,), (0, 9, 4)):
        with pytest.raises(CertificateError):
            verify(graph, by_norms(*wrong))


def test_ends_that_are_no_cuts_are_refused() -> None:
    """Half a residual block is no piece: the skip passes it by."""
    graph = GraphBuilder((2,))
    graph.add(Dense(torch.eye(2, dtype=torch.float64)), (0,))
    graph.add(ReLU(), (1,))
    graph.add(Sum((1.0, 1.0)), (0, 2))
    built = graph.build()
    assert built.cuts() == [0, 3]
    pieces = [
        CertifiedPiece(start=a, end=b, first="", last="", structure="norms", bound=1.0, product=1.0)
        for a, b in ((0, 1), (1, 3))
    ]
    with pytest.raises(CertificateError):
        verify(built, Certificate(built.fingerprint(), pieces, [{}, {}]))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    made = certificate_of("windows", "dense")
    content, path = made.to_bytes(), tmp_path / "c.safetensors"
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    damaged = [content[:n] for n in (0, 3, 8, 50, length, len(content) - 1)] + [content + b"0", b"\xff" * 300]

    def rewritten(change: Callable[[dict[str, dict[str, object]]], object]) -> None:
        copy = json.loads(json.dumps(header))
        change(copy)
        text = json.dumps(copy).encode()
        damaged.append(struct.pack("<Q", len(text)) + text + content[8 + length :])

    def metadata(text: str | None) -> Callable[[dict[str, dict[str, object]]], object]:
        return lambda h: h.update({"__metadata__": {} if text is None else {"lipscope": text}})

    stored = json.loads(header["__metadata__"]["lipscope"])
    for text in (None, "", "[]", "{}", "nonsense", json.dumps(stored | {"format": 2})):
        rewritten(metadata(text))
    for change in ({"structure": "faith"}, {"start": "a"}, {"twist": [0.5]}, {"rho": "a"}):
        rewritten(metadata(json.dumps(stored | {"pieces": [stored["pieces"][0] | change]})))
    rewritten(metadata(json.dumps(stored | {"pieces": []})))
    for name in ("1.2.t", "-1.2.t", "a.t", "\u00b2.t", "t", ""):
        rewritten(lambda h, name=name: h.update({name: h.pop("0.2.t")}))
    rewritten(lambda h: h["0.2.t"].update(dtype="I64"))
    rewritten(lambda h: h["0.2.t"].update(dtype="F8_E4M3"))
    for wrong in damaged:
        path.write_bytes(wrong)
        with pytest.raises(CertificateError):
            verify(NETS["windows"], Certificate.load(path))
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CertificateError):
            Certificate.load(missing)


# ---- edges ------------------------------------------------------------------------------------------


def edge_networks() -> dict[str, Graph]:
    """Small, degenerate and badly scaled."""

    def pool(size: int, *settings: int) -> MaxPool:
        (layer,) = import_lone(nn.MaxPool1d(*settings), (1, size))
        assert isinstance(layer, MaxPool)
        return layer

    def chain(shape: tuple[int, ...], *modules: nn.Module | ReLU | MaxPool | Dense) -> Graph:
        builder = GraphBuilder(shape)
        for module in modules:
            if isinstance(module, nn.Module):
                _add(builder, module, 4)
            else:
                builder.add(module, (builder.last,))
        return builder.build()

    def dense(size: float, seed: int = 0) -> Dense:
        generator = torch.Generator().manual_seed(seed)
        return Dense(size * torch.randn(3, 3, generator=generator, dtype=torch.float64))

    dead = dense(1.0)
    dead.weight[0] = 0
    dead.weight[:, 1] = 0
    return {
        "identity": chain((3,)),
        "activation": chain((3,), ReLU()),
        "activation on a map": chain((2, 3), ReLU()),
        "pooling": chain((1, 7), pool(7, 3, 2, 1)),
        "pooling of stride one": chain((1, 7), pool(7, 3, 1, 1)),
        "pooling of one cell": chain((1, 1), pool(1, 1, 1)),
        "convolution": chain((2, 8), nn.Conv1d(2, 3, 3)),
        "one cell": chain((1, 1), nn.Conv1d(1, 2, 3, padding=1), ReLU(), nn.Conv1d(2, 1, 1)),
        "one number": chain((1,), Dense(torch.full((1, 1), 2.0)), ReLU(), Dense(torch.full((1, 1), -3.0))),
        "dead units": chain((3,), dense(1.0), ReLU(), dead, ReLU(), dense(1.0, 2)),
        "zero": chain((3,), dense(1.0), ReLU(), dense(0.0), ReLU(), dense(1.0)),
        "tiny": chain((3,), dense(1e-150), ReLU(), dense(1.0)),
        "huge": chain((3,), dense(1e150), ReLU(), dense(1.0)),
        "huge and tiny": chain((3,), dense(1e-160), ReLU(), dense(1e160), ReLU(), dense(1.0)),
        "subnormal": chain((3,), dense(1e-315), ReLU(), dense(1.0)),
        "beyond range": chain((3,), dense(1e200), ReLU(), dense(1e200)),
        "linear": chain((3,), dense(1.0), dense(1.0, 1), dense(1.0, 2)),
        "deep": chain((3,), *(layer for n in range(60) for layer in (dense(0.7, n), ReLU()))),
    }


@pytest.mark.parametrize("name", edge_networks())
def test_edges(name: str) -> None:
    graph = edge_networks()[name]
    product = analytical(graph).value
    for seconds in (0.0, 0.2):
        found = certify(graph, "fast", seconds)
        assert found.value <= product
        assert verify(graph, found) == found.value
    lower = reached(graph, 0) if math.isfinite(product) else 0.0
    assert lower * (1 - 1e-12) <= found.value
    if name in ("linear", "activation", "one number", "identity"):
        assert found.value == pytest.approx(lower, rel=1e-6)


@pytest.mark.parametrize("name", edge_networks())
def test_both_structures_end_on_every_edge(name: str) -> None:
    """Nothing but a proof, or none: no other error, and no proof of what is not so."""
    graph = edge_networks()[name]
    lower = reached(graph, 0) if math.isfinite(analytical(graph).value) else 0.0
    assert lower * (1 - 1e-12) <= proved(DenseProblem(graph), 0.0)
    if len(graph.input_shape) == 2:
        for twist in ((0,), (1,)):
            assert lower * (1 - 1e-12) <= proved(FourierProblem(graph, twist), 0.1)


def test_strides_that_do_not_divide_have_no_frequency_problem() -> None:
    """Up by four, then down by six: no lattice holds both in whole steps."""
    builder = GraphBuilder((1, 6))
    _add(builder, nn.ConvTranspose1d(1, 1, 4, 4), 0)
    _add(builder, nn.Conv1d(1, 1, 6, 6), 1)
    with pytest.raises(NoProblemError):
        FourierProblem(builder.build())


def test_a_not_a_number_in_a_weight_proves_nothing() -> None:
    weight = torch.eye(3, dtype=torch.float64)
    weight[2, 0] = math.nan
    graph = Graph.chain((3,), [Dense(torch.eye(3, dtype=torch.float64)), ReLU(), Dense(weight)])
    with pytest.raises(CertificateError):
        certify(graph, "fast", 0.1)
    clean = Graph.chain((3,), [Dense(torch.eye(3, dtype=torch.float64)), ReLU(), Dense(weight.nan_to_num())])
    problem = DenseProblem(clean)
    held = parameters_of(problem, *optimised(problem, 0.1))
    for rho in (1.0, 10.0, 1e6):
        with pytest.raises(CertificateError):
            prove(DenseProblem(graph), held, rho)


def test_a_record_of_a_piece_that_does_not_fit_is_refused() -> None:
    graph = Graph.chain((3,), [Dense(torch.eye(3, dtype=torch.float64)), ReLU()])
    record = CertifiedPiece(start=0, end=2, first="", last="", structure="frequency", bound=1.0, product=1.0)
    with pytest.raises(CertificateError):
        problem_of(graph, record)
