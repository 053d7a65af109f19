"""Nonlinear discriminant analysis: class separation in feature space, against what stretching alone could do.

For samples x_i with features f_i = Φ(x_i) and classes c of shares π_c, the scatter matrices are those of linear
discriminant analysis, S_t = S_w + S_b: within, S_w = Σ π_c Σ_c with Σ_c the covariance of class c, and between,
S_b = Σ π_c (μ_c − μ)(μ_c − μ)ᵀ. Their traces are half the mean squared distances of pairs: tr S_t of all pairs, tr Σ_c of
pairs of one class. So if no two of the samples are stretched by more than κ (which holds for every Lipschitz
constant L of Φ),

    (1)  tr S_t(f) ≤ κ² tr S_t(x),    (2)  tr Σ_c(f) ≤ κ² tr Σ_c(x), so tr S_w(f) ≤ κ² tr S_w(x).

tr S_b obeys no such inequality: x = ±1 in one class and 0 in the other have equal means, and |x| parts them. But
with independent X, X' of classes c ≠ d, ‖E f − E f'‖² ≤ E‖f − f'‖² ≤ κ² E‖X − X'‖² = κ²(‖μ_c − μ_d‖² + tr Σ_c + tr Σ_d),
and tr S_b = ½ Σ π_c π_d ‖μ_c − μ_d‖², so

    (3)  tr S_b(f) ≤ κ² (tr S_b(x) + Σ π_c (1 − π_c) tr Σ_c(x)),

with equality in the example. For the separation normalised by the stretch, s = tr S_b(f) / (κ² tr S_w(x)), that is

    (4)  s ≤ tr S_b(f)/tr S_w(f)  by (2),    s ≤ tr S_b(x)/tr S_w(x) + Σ π_c(1 − π_c) tr Σ_c(x) / tr S_w(x)  by (3):

s is a part of the separation that no noise stretched by κ could hide, and at most the separation in input space plus
a number below 1. The ratio tr S_b(f)/tr S_w(f) itself has no such limit, since Φ may contract classes at will. All of it
holds along a unit direction w too, for the map wᵀΦ.

Everything is computed from the N×N Gram matrix of centred features, summed over slices of coordinates, so layers
of any size are streamed: an eigendecomposition of it gives coordinates isometric to the features.

Sources: D. Zou, R. Balan, M. Singh (2020), section on discriminant analysis, for the separation normalised by the
Lipschitz constant; R. A. Fisher (1936); O. Ledoit, M. Wolf, A well-conditioned estimator for large-dimensional
covariance matrices (2004). The inequalities are derived here.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from torch import Tensor

from ..certificates import norm_bounds
from ..errors import DataError, LipscopeError
from ..graph import INPUT, Graph
from ..layers import LinearLayer
from ..progress import Progress, silent
from ..results import ClassCount, Cost, Discriminant, LayerSeparation

if TYPE_CHECKING:
    from ..data import Labels, Samples

Matrix = npt.NDArray[np.float64]

MEMORY = 2**30
"""Bytes of features that are held at once."""
_COLUMNS = 16384
_NEAR = 1e-9
"""Pairs nearer than this part of their squared norms have no ratio: their distance is rounding."""
_ROUNDING = 1e-12
"""Added to S_w, relative to its mean eigenvalue, where shrinkage leaves it singular."""
_FOLDS = 5
_LEAST_HELD_OUT = 4


def discriminant(
    graph: Graph,
    samples: Samples,
    labels: Labels,
    *,
    accuracy: bool = False,
    batch_size: int = 16,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> Discriminant:
    """Scatter between and within classes at every layer, and its relation to the stretch from the input to there.

    Layers that only move entries (reshapes) are left out: nothing changes there. Norms are Euclidean.

    Memory: `memory` bytes of features, and some N×N matrices; time grows with N²·(features of all layers), and for
    the eigendecompositions with N³.

    Args:
        graph: the network.
        samples: N inputs.
        labels: their classes: at least two, of two samples each.
        accuracy: also the cross-validated accuracy of scikit-learn's linear discriminant analysis on the features.
        batch_size: samples evaluated at once.
        memory: bytes of features held at once; the data are passed over as often as that needs.
        dtype, device: of the network's evaluation; scatters are float64.
        seed: of the halves and folds.
        progress: called with ("features", samples evaluated, all of them).

    Raises:
        DataError: the labels are not those of the samples, or there are too few classes or samples of one, or all
            samples of each class are equal.
        LipscopeError: `accuracy` without scikit-learn.
        CertificateError: a layer's norm cannot be proved.
    """
    started = time.perf_counter()
    _check(samples, labels)
    certified = norm_bounds(graph).cumulative
    analysis = _Analysis(labels, seed, accuracy, torch.finfo(dtype).eps)
    wanted = [i for i, node in enumerate(graph.nodes) if not _only_moves(node.layer)]
    passes = _passes(graph, wanted, max(1, memory // (len(samples) * torch.finfo(dtype).bits // 8)))
    working = graph.to(dtype, device)
    found: list[LayerSeparation] = []
    grams: dict[int, Matrix] = {}
    for number, slices in enumerate(passes):
        held = _features(working, samples, slices, batch_size, progress, number, len(passes))
        for part, features in zip(slices, held, strict=True):
            gram = _gram(features)
            grams[part.node] = grams[part.node] + gram if part.node in grams else gram
        for part in slices:
            if part.stop == math.prod(graph.nodes[part.node].shape):
                gram = grams.pop(part.node)
                scatter = _Scatter.of(gram, labels)
                if part.node == INPUT:
                    analysis.begin(samples, gram, scatter)
                found.append(analysis.layer(graph, part.node, certified[part.node], gram, scatter))
    held_out = found[0].held_out is not None
    classes = len(labels.classes)
    half = len(labels) / 2
    return Discriminant(
        classes=[
            ClassCount(name=name, samples=int(count))
            for name, count in zip(labels.classes, labels.counts, strict=True)
        ],
        layers=found,
        limit=analysis.limit,
        chance=(classes - 1) / (half - classes) if held_out else None,
        cost=Cost(seconds=time.perf_counter() - started, forward_passes=float(len(passes) * len(samples))),
    )


def _check(samples: Samples, labels: Labels) -> None:
    if len(labels) != len(samples):
        raise DataError(f"{len(labels)} labels for {len(samples)} samples of {samples.name}")
    if len(labels.classes) < 2:
        raise DataError(
            f"{samples.name}: all samples are of class {labels.classes[0]}; two classes are needed"
        )
    few = [name for name, count in zip(labels.classes, labels.counts, strict=True) if count < 2]
    if few:
        more = f" and {len(few) - 1} more" if len(few) > 1 else ""
        raise DataError(
            f"{samples.name}: class {few[0]}{more} has a single sample, which has no scatter; add samples or "
            "join classes"
        )


def _only_moves(layer: object) -> bool:
    return isinstance(layer, LinearLayer) and layer.moves_only


# ---- features, slice by slice ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slice:
    """Coordinates start … stop − 1 of the flattened value at a node."""

    node: int
    start: int
    stop: int


def _passes(graph: Graph, wanted: list[int], room: int) -> list[list[_Slice]]:
    """All coordinates of the wanted nodes, in passes of at most `room` coordinates; the input's come first."""
    passes: list[list[_Slice]] = [[]]
    left = room
    for node in wanted:
        size, start = math.prod(graph.nodes[node].shape), 0
        while start < size:
            if left == 0:
                passes.append([])
                left = room
            stop = min(size, start + left)
            passes[-1].append(_Slice(node, start, stop))
            left -= stop - start
            start = stop
    return passes


def _features(
    graph: Graph,
    samples: Samples,
    slices: list[_Slice],
    batch_size: int,
    progress: Progress,
    number: int,
    passes: int,
) -> list[Tensor]:
    """The slices for all samples, (N, stop − start) each, centred."""
    count = len(samples)
    held = [torch.empty(count, part.stop - part.start, dtype=graph.dtype) for part in slices]
    batches = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    for batch, x in zip(batches, samples.batches(batches), strict=True):

        def keep(index: int, value: Tensor, batch: range = batch) -> None:
            for part, rows in zip(slices, held, strict=True):
                if part.node == index:
                    rows[batch.start : batch.stop] = value.flatten(1)[:, part.start : part.stop]

        graph.evaluate(x.to(graph.device, graph.dtype), watch=keep)
        progress("features", number * count + batch.stop, passes * count)
    for rows in held:
        rows -= rows.mean(0, dtype=torch.float64).to(rows.dtype)
    return held


def _gram(features: Tensor) -> Matrix:
    """F Fᵀ in float64, for rows F."""
    gram = torch.zeros(len(features), len(features), dtype=torch.float64)
    for part in features.split(_COLUMNS, 1):
        wide = part.to(torch.float64)
        gram.addmm_(wide, wide.mT)
    return np.asarray(gram.numpy())


# ---- scatter --------------------------------------------------------------------------------------------


def _averaging(labels: Labels) -> Matrix:
    """(classes, N): row c averages over class c."""
    rows = np.zeros((len(labels.classes), len(labels)))
    rows[labels.index, np.arange(len(labels))] = 1
    return rows / labels.counts[:, None]


@dataclass(frozen=True)
class _Scatter:
    """Traces of the scatter matrices, from a Gram matrix of features less their mean."""

    between: float
    within: float
    classes: Matrix
    """tr Σ_c of each class."""

    @classmethod
    def of(cls, gram: Matrix, labels: Labels) -> _Scatter:
        averaging, shares = _averaging(labels), labels.counts / len(labels)
        means = np.einsum("ci,ij,cj->c", averaging, gram, averaging, optimize=True)
        classes = np.maximum(averaging @ np.diag(gram) - means, 0.0)
        return cls(float(shares @ means), float(shares @ classes), classes)

    @property
    def total(self) -> float:
        return self.between + self.within


class _Analysis:
    """What is the same for all layers: the classes, and the input that they are compared with."""

    def __init__(self, labels: Labels, seed: int, accuracy: bool, rounding: float) -> None:
        self.labels, self.seed, self.accuracy, self.rounding = labels, seed, accuracy, rounding
        self.halves = _halves(labels, seed)

    def begin(self, samples: Samples, gram: Matrix, scatter: _Scatter) -> None:
        """With the input's Gram matrix."""
        if scatter.within == 0:
            raise DataError(
                f"{samples.name}: all samples of a class are equal in every class; nothing scatters"
            )
        self.input = scatter
        self.distances = _squared_distances(gram)
        norms = np.diag(gram)
        self.apart = self.distances > _NEAR * (norms[:, None] + norms)
        shares = self.labels.counts / len(self.labels)
        spread = float(shares @ ((1 - shares) * scatter.classes))
        self.limit = (scatter.between + spread) / scatter.within

    def layer(
        self, graph: Graph, index: int, certified: float, gram: Matrix, scatter: _Scatter
    ) -> LayerSeparation:
        node = graph.nodes[index]
        ratios = _squared_distances(gram)[self.apart] / self.distances[self.apart]
        coordinates = _coordinates(gram, self.rounding)
        direction, shrinkage = _direction(coordinates, self.labels)
        between, within = _along(coordinates @ direction, self.labels)
        return LayerSeparation(
            node=index,
            place=node.place,
            layer="input" if node.layer is None else node.layer.kind,
            shape=list(node.shape),
            certified=certified,
            attained=math.sqrt(max(0.0, float(ratios.max()))),
            between=scatter.between,
            within=scatter.within,
            within_input=self.input.within,
            between_stretch=_root(scatter.between, self.input.between),
            within_stretch=_root(scatter.within, self.input.within),
            total_stretch=_root(scatter.total, self.input.total),
            rank=coordinates.shape[1],
            quotient=fisher_quotient(coordinates, self.labels),
            held_out=self._held_out(coordinates),
            shrinkage=shrinkage,
            direction_between=between,
            direction_within=within,
            accuracy=lda_accuracy(coordinates, self.labels, self.seed) if self.accuracy else None,
        )

    def _held_out(self, coordinates: Matrix) -> float | None:
        """The quotient on either half along the direction of the other."""
        if int(self.labels.counts.min()) < _LEAST_HELD_OUT:
            return None
        found = []
        for here, there in (self.halves, self.halves[::-1]):
            direction, _ = _direction(coordinates[here], self.labels.select(here))
            between, within = _along(coordinates[there] @ direction, self.labels.select(there))
            found.append(between / within if within > 0 else math.inf if between > 0 else 0.0)
        return float(np.mean(found))


def _halves(labels: Labels, seed: int) -> tuple[list[int], list[int]]:
    """Each class in two halves at random."""
    generator = np.random.default_rng(seed)
    halves: tuple[list[int], list[int]] = ([], [])
    for number in range(len(labels.classes)):
        members = generator.permutation(np.flatnonzero(labels.index == number)).tolist()
        halves[0].extend(members[::2])
        halves[1].extend(members[1::2])
    return sorted(halves[0]), sorted(halves[1])


def _squared_distances(gram: Matrix) -> Matrix:
    norms = np.diag(gram)
    return np.maximum(norms[:, None] + norms - 2 * gram, 0.0)


def _root(after: float, before: float) -> float:
    return math.sqrt(after / before) if before > 0 else (math.inf if after > 0 else 0.0)


def _along(values: Matrix, labels: Labels) -> tuple[float, float]:
    """Scatter of one feature (N,), between and within."""
    means = _averaging(labels) @ values
    shares = labels.counts / len(labels)
    between = float(shares @ np.square(means - values.mean()))
    return between, float(np.square(values - means[labels.index]).mean())


# ---- linear discriminant analysis, in coordinates isometric to the features --------------------------------


def _coordinates(gram: Matrix, rounding: float) -> Matrix:
    """(N, rank) with the same inner products, principal coordinates, the largest first."""
    values, vectors = scipy.linalg.eigh(gram)
    # Of features in their precision, and of the Gram matrix in float64.
    noise = max((len(gram) * rounding) ** 2, 10 * len(gram) * np.finfo(np.float64).eps)
    floor = noise * max(float(values[-1]), 0.0)
    kept = np.flatnonzero(values > floor)[::-1]
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _split(coordinates: Matrix, labels: Labels) -> tuple[Matrix, Matrix]:
    """Rows R (classes, rank) with S_b = RᵀR, and the samples less the means of their classes (N, rank)."""
    means = _averaging(labels) @ coordinates
    weights = np.sqrt(labels.counts / len(labels))[:, None]
    return weights * (means - coordinates.mean(0)), coordinates - means[labels.index]


def _maximised(rows: Matrix, within: Matrix) -> tuple[float, Matrix] | None:
    """The largest wᵀRᵀR w / wᵀS_w w, and the unit w that has it; None where S_w is not positive definite."""
    try:
        factor = scipy.linalg.cho_factor(within)
    except scipy.linalg.LinAlgError:
        return None
    solved = scipy.linalg.cho_solve(factor, rows.T)
    values, vectors = scipy.linalg.eigh(rows @ solved)
    direction = solved @ vectors[:, -1]
    length = float(np.linalg.norm(direction))
    return max(0.0, float(values[-1])), direction / length if length > 0 else direction


def fisher_quotient(features: Matrix, labels: Labels) -> float:
    """The largest eigenvalue of S_w⁻¹S_b for features (N, D); ∞ where S_w is singular, 0 without features."""
    size = features.shape[1]
    if size == 0:
        return 0.0
    if size > len(labels) - len(labels.classes):
        return math.inf
    rows, residuals = _split(features, labels)
    within = residuals.T @ residuals / len(labels)
    rounding = size * np.finfo(np.float64).eps * float(np.square(rows).sum() + np.trace(within))
    if _maximised(rows, within - rounding * np.eye(size)) is None:
        return math.inf
    found = _maximised(rows, within)
    return math.inf if found is None else found[0]


def _direction(coordinates: Matrix, labels: Labels) -> tuple[Matrix, float]:
    """The unit direction that maximises the quotient with S_w shrunk towards the identity, and the shrinkage."""
    size = coordinates.shape[1]
    if size == 0:
        return np.zeros(0), 0.0
    rows, residuals = _split(coordinates, labels)
    within, shrinkage = ledoit_wolf(residuals)
    scale = float(np.trace(within)) / size
    if scale == 0:  # the classes are points
        within, scale = np.eye(size), 1.0
    found = _maximised(rows, within + _ROUNDING * scale * np.eye(size))
    assert found is not None
    return found[1], shrinkage


def ledoit_wolf(centred: Matrix) -> tuple[Matrix, float]:
    """The Ledoit–Wolf covariance (1 − δ) S + δ (tr S/D) I of centred rows (N, D), and δ."""
    count, size = centred.shape
    covariance = centred.T @ centred / count
    mean = float(np.trace(covariance)) / size
    norm = float(np.square(covariance).sum())
    dispersion = norm - size * mean**2
    # The mean squared distance of the outer products x xᵀ to their mean S, over N: the error of S.
    fourth = float(np.square(np.square(centred).sum(1)).sum())
    error = (fourth / count - norm) / count
    shrinkage = min(1.0, max(0.0, error / dispersion)) if dispersion > 0 else 0.0
    return (1 - shrinkage) * covariance + shrinkage * mean * np.eye(size), shrinkage


def lda_accuracy(features: Matrix, labels: Labels, seed: int = 0) -> float:
    """Cross-validated accuracy of scikit-learn's linear discriminant analysis, Ledoit–Wolf covariances.

    It does not change where features are rotated, so the isometric coordinates stand for them. (Its
    shrinkage="auto" does: that standardises the features first, which whitens principal coordinates.)

    Raises:
        LipscopeError: scikit-learn is not installed.
    """
    try:
        from sklearn.covariance import LedoitWolf
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.model_selection import StratifiedKFold, cross_val_score
    except ImportError as error:
        raise LipscopeError(
            "the accuracy of linear discriminant analysis needs scikit-learn: pip install 'lipscope[discriminant]'"
        ) from error
    if features.shape[1] == 0:
        return float(labels.counts.max()) / len(labels)
    folds = StratifiedKFold(min(_FOLDS, int(labels.counts.min())), shuffle=True, random_state=seed)
    lda: Any = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=LedoitWolf())
    return float(cross_val_score(lda, features, labels.index, cv=folds).mean())
