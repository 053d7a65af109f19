"""Fisher information of a network's inputs and parameters, as JᵀJ of the network in an isometric embedding.

A network Φ whose output is the parameter of a distribution carries the Fisher information

    I = E_y[∇ log p(y) ∇ log p(y)ᵀ] = Jᵀ H J,   H = 1/σ² (Gaussian of mean Φ),   H = diag p − ppᵀ (softmax of Φ),

with J the derivative of Φ by the input, or by the parameters. Both H are DᵀD for the derivative D of an
embedding that is isometric for the Fisher metric: y ↦ y/σ, and z ↦ 2√softmax(z) = 2 exp(½ log softmax z), for
which D v = √p ⊙ (v − p·v). So I = JᵀJ of the embedded network, and what is known of Jacobians holds:
λ_max I(x) = Lip(x)² of the embedded network; for the Gaussian that is Lip(x)²/σ² of Φ, and for softmax at most
Lip(x)²/2, since ‖diag p − ppᵀ‖ ≤ ½ (Gershgorin: 2pᵢ(1 − pᵢ) ≤ ½).

Sources: C. R. Rao (1945); S. Amari, Information geometry and its applications (2016), sections 1 and 12 (the
embedding by roots); J. Martens, New insights and perspectives on the natural gradient method (JMLR 21, 2020:
true and empirical Fisher matrix, and its equality with the generalised Gauss–Newton matrix).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..certificates import norm_bounds
from ..eigen import leading_eigenpairs, trace_estimate
from ..engines import SERIAL, Engine
from ..errors import DataError, ModelError
from ..graph import Graph, GraphBuilder
from ..graph.torch_import import evaluation_mode, plain_attention
from ..jacobian import Jacobian, linearize
from ..layers.scaling import Scaling
from ..layers.softmax import LogSoftmax, Softmax
from ..layers.unbounded import Exponential
from ..progress import Progress, silent
from ..results import Cost, FisherSpectrum, InputFisher, ParameterFisher
from ..results.fisher import Likelihood
from ..rounding import up, up_product
from ..spectral import spectral_norm
from .local import norms_at, visited
from .sketch import second_moment

if TYPE_CHECKING:
    from ..data import Labels, Samples

EXACT_TRACE = 64
"""Networks with at most this many inputs or outputs have their traces computed exactly."""
_BLOCK = 8
_SETTLED = 0.1
_GAUSSIAN_SOURCE = "Amari 2016: Gaussian output, I = JᵀJ/σ²"
_SOFTMAX_SOURCE = "Amari 2016: softmax output, I = Jᵀ(diag p − ppᵀ)J"


def fisher_embedding(graph: Graph, likelihood: Likelihood, variance: float = 1.0) -> Graph:
    """The network followed by the embedding of its distributions: JᵀJ of the whole is the Fisher information.

    Args:
        graph: gives the mean of a Gaussian (any shape), or logits (classes,).
        likelihood: "gaussian" or "softmax".
        variance: σ² of the Gaussian.

    Raises:
        ModelError: for softmax, the output is not one vector of at least two logits.
        ValueError: the variance is not positive.
    """
    builder = GraphBuilder(graph.input_shape)
    for node in graph.nodes[1:]:
        assert node.layer is not None
        builder.append(node.layer, node.inputs, node.shape, node.place)
    if likelihood == "gaussian":
        if not 0 < variance < math.inf:
            raise ValueError("the variance must be positive")
        builder.add(_scaling(1 / math.sqrt(variance)), [builder.last], "1/σ")
        return builder.build()
    if len(graph.output_shape) != 1 or graph.output_shape[0] < 2:
        raise ModelError(
            f"the softmax likelihood takes a vector of logits, but the network's output has shape "
            f"{graph.output_shape}; give a classifier, or take the Gaussian likelihood"
        )
    last = graph.nodes[-1]
    if isinstance(last.layer, Softmax):
        raise ModelError(
            f"the network ends in a softmax, {last.place}, but the softmax likelihood takes logits; give the network "
            "without that layer"
        )
    log = builder.add(LogSoftmax(0), [builder.last], "log p")
    root = builder.add(Exponential(rate=0.5), [log], "√p")
    builder.add(_scaling(2.0), [root], "2√p")
    return builder.build()


def _scaling(factor: float) -> Scaling:
    return Scaling(torch.tensor(factor, dtype=torch.float64))


def fisher_bound(graph: Graph, likelihood: Likelihood, variance: float = 1.0) -> float:
    """Certified: no input has a Fisher information with a larger eigenvalue; L²/σ² or L²/2, rounding included.

    Infinite where the network has no certified constant.

    Raises:
        CertificateError: a layer's norm cannot be proved.
    """
    constant = norm_bounds(graph).value
    factor = 0.5 if likelihood == "softmax" else up(1 / variance)
    return up_product(constant, constant, factor)


def input_fisher(
    graph: Graph,
    samples: Samples,
    likelihood: Likelihood = "gaussian",
    *,
    variance: float = 1.0,
    directions: int = 4,
    limit: int | None = None,
    passes: int = 4,
    probes: int = 16,
    tolerance: float = 1e-3,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    engine: Engine = SERIAL,
    progress: Progress = silent,
) -> tuple[InputFisher, dict[str, Tensor]]:
    """Fisher information that the output carries about the input: I(x) at samples, and E[I(x)] over all of them.

    Estimates, but for the certified `bound`. In units of one over the input's units squared. 1/√λ_max is the
    smallest change of the input that shifts the distribution of outputs by about one standard deviation.

    Args:
        graph: the network; its output is the mean of a Gaussian or a vector of logits.
        samples: N ≥ 1 inputs.
        likelihood, variance: see `fisher_embedding`.
        directions: eigenvalues of the mean that are wanted.
        limit: take I(x) itself at so many samples at most, chosen at random (some 60 forward passes each).
        passes: passes over all data at most for the eigenvalues of the mean; see `second_moment`.
        probes: random vectors behind the trace at each sample, where it is not computed exactly: networks with
            at most `EXACT_TRACE` inputs or outputs.
        tolerance: relative accuracy of eigenvalues.
        batch_size: samples treated at once.
        dtype, device: of all products.
        seed: of the random starts, probes and choices.

    Returns:
        The result, and eigenvectors (*in): `mean.k` of E[I], and `steepest` at the sample of the largest λ_max.

    Raises:
        ModelError: the network does not fit the likelihood, or overflows in `dtype`.
        ValueError: a number that must be positive is not.
    """
    started = time.perf_counter()
    if probes < 2 or directions < 1:
        raise ValueError("directions must be positive, and probes at least two")
    embedded = fisher_embedding(graph, likelihood, variance)
    at = _at_samples(
        _Pointwise(graph, embedded, likelihood, variance, probes, tolerance, batch_size, dtype, device, seed),
        samples, visited(len(samples), limit, seed), progress,
    )  # fmt: skip
    pointwise = time.perf_counter() - started
    moment, vectors = second_moment(
        embedded, samples, "active", directions=directions, passes=passes, tolerance=tolerance,
        batch_size=batch_size, dtype=dtype, device=device, seed=seed, engine=engine, progress=progress,
    )  # fmt: skip
    vectors = vectors[:directions]
    traces = torch.tensor(at.traces, dtype=torch.float64)
    complete = len(at.traces) == len(samples)
    mean = FisherSpectrum(
        size=math.prod(graph.input_shape),
        leading=[root * root for root in moment.leading[:directions]],
        # Of √λ in the source: twice as much of λ.
        relative_error=2 * moment.relative_error,
        standard_error=None if moment.standard_error is None else 2 * moment.value * moment.standard_error,
        trace=float(traces.mean()),
        trace_error=math.hypot(*at.noise) / len(samples) if complete else _standard_error(traces),
        directions=[f"inputs.mean.{k}" for k in range(len(vectors))],
        method="leading eigenvalues of the mean of I(x) by block Lanczos in passes over the data; the trace as the "
        "mean over the samples at which I(x) itself was taken",
        source=_GAUSSIAN_SOURCE if likelihood == "gaussian" else _SOFTMAX_SOURCE,
        cost=Cost(
            seconds=time.perf_counter() - started - pointwise, forward_passes=moment.cost.forward_passes
        ),
    )
    result = InputFisher(
        likelihood=likelihood,
        variance=variance if likelihood == "gaussian" else None,
        mean=mean,
        samples=at.names,
        eigenvalues=at.eigenvalues,
        traces=at.traces,
        stretches=at.stretches,
        relative_error=at.error,
        probes=None if at.exact else probes,
        steepest="inputs.steepest",
        bound=fisher_bound(graph, likelihood, variance),
    )
    assert at.steepest is not None
    return result, {
        **{f"mean.{k}": vector for k, vector in enumerate(vectors)},
        "steepest": at.steepest,
    }


def _standard_error(values: Tensor) -> float:
    """Of the mean; infinite for one value, which says nothing of it."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf


# ---- at one sample after another ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Pointwise:
    graph: Graph
    embedded: Graph
    likelihood: Likelihood
    variance: float
    probes: int
    tolerance: float
    batch_size: int
    dtype: torch.dtype
    device: torch.device | str
    seed: int


@dataclass
class _AtSamples:
    names: list[str]
    eigenvalues: list[float]
    traces: list[float]
    stretches: list[float]
    noise: list[float] = field(default_factory=list)
    """Standard errors of the traces; 0 where they are exact."""
    error: float = 0.0
    steepest: Tensor | None = None

    @property
    def exact(self) -> bool:
        return not any(self.noise)


def _at_samples(task: _Pointwise, samples: Samples, indices: Sequence[int], progress: Progress) -> _AtSamples:
    """λ_max and trace of I(x), and Lip(x), at the samples of the indices."""
    embedded, plain = (g.to(task.dtype, task.device) for g in (task.embedded, task.graph))
    found = _AtSamples([samples.names[i] for i in indices], [], [], [])
    generator = torch.Generator().manual_seed(task.seed)
    parts = [indices[i : i + task.batch_size] for i in range(0, len(indices), task.batch_size)]
    for part, x in zip(parts, samples.batches(parts), strict=True):
        x = x.to(task.device, task.dtype)
        _, slopes = embedded.linearize_at(x)
        operator = linearize(embedded, slopes, len(x))
        norms = spectral_norm(
            operator, tolerance=task.tolerance / 2, seed=task.seed, dtype=x.dtype, device=x.device
        )
        values = norms.value.cpu().double()
        if not bool(values.isfinite().all()):
            name = samples.names[part[int(values.isfinite().logical_not().int().argmax())]]
            raise ModelError(f"the network overflows at {name} in {str(task.dtype).removeprefix('torch.')}")
        if task.likelihood == "gaussian":
            stretches = values * math.sqrt(task.variance)
        else:
            stretches = norms_at(plain, x, task.tolerance, task.seed)[1].value.cpu().double()
        traces, noise = _traces(operator, task.probes, generator)
        if float(values.max()) ** 2 > max(found.eigenvalues, default=-1.0):
            found.steepest = norms.right[int(values.argmax())].cpu().double()
        relative = norms.error.cpu().double() / values.clamp_min(1e-300)
        found.error = max(found.error, 2 * float(relative.max()))
        found.eigenvalues += values.square().tolist()
        found.traces += traces.tolist()
        found.noise += noise.tolist()
        found.stretches += stretches.tolist()
        progress("fisher", len(found.traces), len(indices))
    return found


def _traces(operator: Jacobian, probes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """‖J‖_F² of each operator (B,), float64, and its standard error by random output vectors; 0 where it is exact."""
    rows, columns = math.prod(operator.output_shape), math.prod(operator.input_shape)
    if min(rows, columns) <= EXACT_TRACE:
        by_rows = rows <= columns
        shape = operator.output_shape if by_rows else operator.input_shape
        units = torch.eye(min(rows, columns)).reshape(-1, 1, *shape).expand(-1, operator.batch, *shape)
        return _energies(operator, units, by_rows).sum(0), torch.zeros(operator.batch, dtype=torch.float64)
    shape = (probes, operator.batch, *operator.output_shape)
    signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1
    energies = _energies(operator, signs, by_rows=True)
    return energies.mean(0), energies.std(0) / math.sqrt(probes)


def _energies(operator: Jacobian, vectors: Tensor, by_rows: bool) -> Tensor:
    """‖Jᵀu‖² (or ‖J v‖²) of vectors (P, B, ·), as (P, B) in float64."""
    multiply = operator.rmatvec if by_rows else operator.matvec
    found = []
    for block in vectors.split(_BLOCK):
        products = multiply(block.to(operator.graph.device, operator.graph.dtype))
        found.append(products.flatten(2).square().sum(2).cpu().double())
    return torch.cat(found)


# ---- parameters ---------------------------------------------------------------------------------------


def parameter_fisher(
    module: nn.Module,
    samples: Samples,
    likelihood: Likelihood = "gaussian",
    *,
    labels: Labels | None = None,
    variance: float = 1.0,
    directions: int = 4,
    tolerance: float = 1e-2,
    max_products: int = 100,
    probes: int = 8,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[ParameterFisher, dict[str, Tensor]]:
    """Fisher information F = E[∇_θ log p ∇_θ log pᵀ] about the parameters θ: leading eigenvalues and trace; estimates.

    Without labels the *true* Fisher information: the expectation over labels is under the model, in closed form
    (F = E[J_θᵀ H J_θ], the generalised Gauss–Newton matrix). With labels the *empirical* one, gradients at the given
    labels, which agrees only where the model's distribution is that of the labels. A mean over samples, in
    evaluation mode (dropout off, running statistics fixed), by all floating-point parameters in the units they have.

    One product takes a forward-mode and a reverse-mode derivative of each sample. Memory: some 50 vectors of the
    size of the parameters.

    Args:
        module: from (batch, *in) to the mean of a Gaussian, or to logits (batch, classes).
        samples: N ≥ 1 inputs.
        likelihood: "gaussian" or "softmax" (labels need softmax).
        labels: of the samples; a class is the network's output of that number.
        variance: σ² of the Gaussian.
        directions: eigenvalues that are wanted; those of which `max_products` did not settle 10 % are left out.
        tolerance: accuracy of the eigenpairs, see `leading_eigenpairs`.
        max_products: products with F at most for the eigenvalues.
        probes: random vectors, at least two, behind the part of the trace that the eigenvalues leave.
        batch_size: samples treated at once.
        dtype, device: of all products.
        seed: of the random start and the probes.

    Returns:
        The result, and unit eigenvectors `k.NAME`, shaped as the parameter of that name.

    Raises:
        ModelError: the module has no parameters, does not fit the likelihood, or cannot be differentiated.
        DataError: the labels are not those of the samples, or name an output that there is not.
    """
    started = time.perf_counter()
    if labels is not None and likelihood != "softmax":
        raise DataError(
            "labels make the empirical Fisher information of the softmax likelihood; take that one"
        )
    if labels is not None and len(labels) != len(samples):
        raise DataError(f"{len(labels)} labels for {len(samples)} samples of {samples.name}")
    embed = _empirical(labels) if labels is not None else _EMBEDDINGS[likelihood](variance)
    with _evaluating(module):
        expected = max_products // 2 + probes + 1
        factor = _Factor(module, samples, embed, batch_size, dtype, device, expected, progress)
        found = leading_eigenpairs(
            factor.products, factor.size, directions, tolerance=tolerance, max_products=max_products,
            seed=seed, dtype=dtype, device=device,
        )  # fmt: skip
        trace, trace_error = trace_estimate(
            lambda v: factor.energies(v).mean(1), factor.size, found, probes=probes, seed=seed
        )
        sampling = _standard_error(factor.energies(found.vectors[:1])[0])
    settled = max(1, int((found.residuals <= _SETTLED * found.values).sum()))
    value, stage = float(found.values[0]), "parameters" if labels is None else "empirical"
    result = ParameterFisher(
        which="true" if labels is None else "empirical",
        likelihood=likelihood,
        variance=variance if likelihood == "gaussian" else None,
        samples=len(samples),
        size=factor.size,
        leading=found.values[:settled].tolist(),
        relative_error=float(found.residuals[0]) / value if value > 0 else 0.0,
        standard_error=sampling if math.isfinite(sampling) else None,
        trace=trace,
        trace_error=trace_error,
        directions=[f"{stage}.{k}" for k in range(settled)],
        method="leading eigenvalues by block Lanczos with forward- and reverse-mode derivatives by the parameters; "
        "the trace by random vectors beside the leading eigenvectors",
        source="Martens 2020: " + (
            "empirical Fisher matrix" if labels is not None else "Fisher matrix, expectation under the model"
        ),
        cost=Cost(seconds=time.perf_counter() - started, forward_passes=float(factor.passes)),
    )  # fmt: skip
    tensors = {
        f"{k}.{name}": part
        for k, vector in enumerate(found.vectors[:settled].cpu())
        for name, part in factor.split(vector).items()
    }
    return result, tensors


Embedding = Callable[[Tensor, range], Tensor]
"""From outputs (B, *out) of the samples at the indices to what JᵀJ is taken of."""


def _gaussian(variance: float) -> Embedding:
    if not 0 < variance < math.inf:
        raise ValueError("the variance must be positive")
    return lambda y, _: y / math.sqrt(variance)


def _softmax(_: float) -> Embedding:
    def embed(z: Tensor, _: range) -> Tensor:
        _check_logits(z)
        return 2 * torch.exp(0.5 * z.log_softmax(1))

    return embed


_EMBEDDINGS: Mapping[Likelihood, Callable[[float], Embedding]] = {"gaussian": _gaussian, "softmax": _softmax}


def _empirical(labels: Labels) -> Embedding:
    outputs = torch.from_numpy(labels.outputs)

    def embed(z: Tensor, indices: range) -> Tensor:
        _check_logits(z)
        if not 0 <= int(outputs.min()) <= int(outputs.max()) < z.shape[1]:
            raise DataError(
                f"the labels name outputs {int(outputs.min())} to {int(outputs.max())}, but the network has "
                f"{z.shape[1]}; whole numbers are taken as places of outputs, texts in their sorted order"
            )
        chosen = outputs[indices.start : indices.stop].to(z.device)
        return z.log_softmax(1).gather(1, chosen[:, None])

    return embed


def _check_logits(z: Tensor) -> None:
    if z.dim() != 2 or z.shape[1] < 2:
        raise ModelError(
            f"the softmax likelihood takes a vector of logits, but the network's output has shape "
            f"{tuple(z.shape[1:])}; give a classifier, or take the Gaussian likelihood"
        )


class _Factor:
    """A with F = AᵀA/N: the derivative by the parameters of the embedded outputs of all N samples.

    Vectors are flat, the parameters one after another; blocks of them are rows (P, n).
    """

    def __init__(
        self,
        module: nn.Module,
        samples: Samples,
        embed: Embedding,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        expected: int,
        progress: Progress,
    ) -> None:
        def placed(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
            return {
                name: t.detach().to(device, dtype if t.is_floating_point() else None) for name, t in tensors
            }

        held = placed(module.named_parameters())
        self.parameters = {name: t for name, t in held.items() if t.is_floating_point()}
        if not self.parameters:
            raise ModelError(
                "the network has no parameters to take the Fisher information of (a network read from a file has "
                "constants); give it as code, or ask for the inputs alone: --space inputs"
            )
        self.rest = {
            **placed(module.named_buffers()),
            **{n: t for n, t in held.items() if n not in self.parameters},
        }
        self.module, self.samples, self.embed = module, samples, embed
        self.batch_size, self.dtype, self.device, self.progress = batch_size, dtype, device, progress
        self.size = sum(t.numel() for t in self.parameters.values())
        self.passes, self.rounds, self.expected = 0, 0, expected

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector as one tensor a parameter."""
        parts = vector.split([t.numel() for t in self.parameters.values()])
        return {n: p.reshape(t.shape) for (n, t), p in zip(self.parameters.items(), parts, strict=True)}

    def products(self, block: Tensor) -> Tensor:
        """F v of each row."""
        total = torch.zeros_like(block)
        for function in self._batches(5 * len(block)):
            pull = vjp(function, self.parameters)[1]
            for row, v in enumerate(block):
                image = jvp(function, (self.parameters,), (self.split(v),))[1]
                (back,) = pull(image)
                total[row] += torch.cat([t.flatten() for t in back.values()])
        return total / len(self.samples)

    def energies(self, block: Tensor) -> Tensor:
        """‖A_x v‖² of each row and sample, (P, N), float64: vᵀFv is their mean."""
        found = []
        for function in self._batches(2 * len(block)):
            images = [jvp(function, (self.parameters,), (self.split(v),))[1] for v in block]
            found.append(torch.stack([i.flatten(1).square().sum(1).cpu().double() for i in images]))
        return torch.cat(found, 1)

    def _batches(self, cost: int) -> Iterator[Callable[[dict[str, Tensor]], Tensor]]:
        """The embedded outputs of each batch as a function of the parameters."""
        count = len(self.samples)
        parts = [range(i, min(i + self.batch_size, count)) for i in range(0, count, self.batch_size)]
        self.passes += cost * count
        self.rounds += 1
        for part, x in zip(parts, self.samples.batches(parts), strict=True):
            x = x.to(self.device, self.dtype)

            def function(parameters: dict[str, Tensor], x: Tensor = x, part: range = part) -> Tensor:
                y: Tensor = functional_call(self.module, {**self.rest, **parameters}, (x,))
                return self.embed(y, part)

            yield function
        self.progress("parameters", self.rounds, max(self.rounds, self.expected))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode, with attention in forms that have forward-mode derivatives; the mode comes back."""
    try:
        with evaluation_mode(module), plain_attention(), sdpa_kernel(SDPBackend.MATH):
            yield
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the network cannot be differentiated by its parameters: {reason}") from error
