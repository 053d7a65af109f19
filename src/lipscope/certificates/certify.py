"""From a network to a certificate: cut it into pieces, choose a structure for each, optimise, prove.

A piece is a part between two nodes through which every path goes, so the constants of pieces
multiply. Longer pieces give tighter bounds and cost more: starting at the output, each piece is
extended towards the input as far as the budget allows.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import CertificateError
from ..graph import Graph
from ..layers import LinearLayer, NonlinearLayer
from ..layers.activation import Activation
from ..layers.base import can_be_written_out
from ..layers.max_pool import MaxPool
from ..progress import Progress, silent
from ..results import CertifiedPiece
from .certificate import Certificate
from .check import constant, problem_of
from .elimination import operations
from .norms import norm_bounds
from .optimise import Found, finish_frequency, optimise_dense, optimise_frequency
from .problem import MOVES, DenseProblem, FourierProblem, NoProblemError, Problem, X
from .pullback import PullBack, Raw, realised
from .verify import prove

Effort = Literal["fast", "balanced", "tight"]


@dataclass(frozen=True)
class Budget:
    """What an effort may cost: floating-point operations of one proof of a piece, and seconds in all."""

    operations: float
    seconds: float


BUDGETS: dict[Effort, Budget] = {
    "fast": Budget(1e11, 20.0),
    "balanced": Budget(5e12, 240.0),
    "tight": Budget(2e13, 1200.0),
}


@dataclass(frozen=True)
class Plan:
    """A piece before it is optimised."""

    start: int
    end: int
    structure: Literal["norms", "dense", "frequency"]
    operations: float


def certify(
    graph: Graph,
    effort: Effort = "balanced",
    seconds: float | None = None,
    progress: Progress = silent,
) -> Certificate:
    """The best certified upper bound of the Euclidean Lipschitz constant within the effort.

    Args:
        graph: the network.
        effort: how long pieces may be, and how long is spent on them.
        seconds: time for optimisation instead of the effort's own; proofs come on top.

    Raises:
        CertificateError: not even the layers' norms can be proved.
        ValueError: the time is negative or infinite.

    Source: docs/design/quadratic-certificates.md; M. Fazlyab et al. (2019) for the semidefinite program that the dense
    structure solves.
    """
    best: Certificate | None = None
    for found in improve(graph, effort, seconds, progress):
        best = found
    assert best is not None
    return best


def improve(
    graph: Graph,
    effort: Effort = "balanced",
    seconds: float | None = None,
    progress: Progress = silent,
    *,
    enough: float = 0.0,
) -> Iterator[Certificate]:
    """Certificates of decreasing value, each a proof: first the layers' norms, then piece by piece.

    The search ends with the first one of a value ≤ `enough`, which is then not the best there is.
    """
    budget = BUDGETS[effort]
    available = budget.seconds if seconds is None else seconds
    if not 0 <= available < math.inf:
        raise ValueError(f"the time is {available} seconds; it must be finite and not negative")
    whole = norm_bounds(graph)
    last = len(graph.nodes) - 1
    fingerprint = graph.fingerprint()
    record = CertifiedPiece(
        start=0, end=last, first=graph.nodes[min(1, last)].place, last=graph.nodes[last].place,
        structure="norms", bound=whole.value, product=whole.value,
    )  # fmt: skip
    best = Certificate(fingerprint, [record], [{}])
    yield best
    if whole.value <= enough or not math.isfinite(whole.value):
        return
    plans = plan(graph, budget.operations)
    pieces = [record] if len(plans) == 1 else [_by_norms(graph, each) for each in plans]
    parameters: list[dict[str, Tensor]] = [{} for _ in plans]
    quadratic = [number for number, each in enumerate(plans) if each.structure != "norms"]
    weights = [math.sqrt(plans[number].operations) for number in quadratic]
    for number, weight in zip(quadratic, weights, strict=True):
        share = available * weight / sum(weights)
        others = math.prod(piece.bound for other, piece in enumerate(pieces) if other != number)
        goal = enough / others if others > 0 else 0.0
        for piece, held in _by_multipliers(graph, plans[number], pieces[number], share, progress, goal):
            if piece.bound < pieces[number].bound:
                pieces[number], parameters[number] = piece, held
                found = Certificate(fingerprint, list(pieces), list(parameters))
                if found.value < best.value:
                    best = found
                    yield best
                    if best.value <= enough:
                        return


def certify_slopes(
    graph: Graph, slopes: Mapping[int, tuple[Tensor, Tensor]], operations: float, seconds: float = math.inf
) -> float:
    """Certified Euclidean Lipschitz constant while every activation's slopes stay in the given [α, β].

    Args:
        graph: the network.
        slopes: by node, tensors of the node's shape; the activation's own range where none is given.
        operations: what one proof may cost.
        seconds: for optimisation.

    Returns:
        The bound by the dense structure; infinite if it is not affordable or proves nothing.
    """
    cost = _dense_operations(graph)
    if cost is None or cost > operations:
        return math.inf
    best = math.inf
    try:
        problem = DenseProblem(graph, slopes)
        for found in _optimised(problem, seconds, silent, ""):
            best = min(best, _proved(problem, found, best)[0])
    except (CertificateError, NoProblemError):
        return best
    return best


def plan(graph: Graph, most: float) -> list[Plan]:
    """Cut a network into pieces whose proofs cost at most so many operations each, from the output back."""
    cuts = graph.cuts()
    plans: list[Plan] = []
    end = len(cuts) - 1
    while end > 0:
        chosen = Plan(cuts[end - 1], cuts[end], "norms", 0.0)
        reach = end - 1
        # All that is left, if that fits, and else as far as it does.
        for start in (0, *range(end - 1, 0, -1)):
            found = _cheapest(graph, cuts[start], cuts[end])
            if found is not None and found.operations <= most:
                chosen, reach = found, start
                if start == 0:
                    break
            elif start > 0:
                break
        plans.append(chosen)
        end = reach
    return plans[::-1]


def _cheapest(graph: Graph, start: int, end: int) -> Plan | None:
    """The dense structure while it is affordable, since it is tighter; else by frequency; else none."""
    part = graph.between(start, end)
    dense = _dense_operations(part)
    if dense is not None and dense <= _DENSE_PREFERRED:
        return Plan(start, end, "dense", dense)
    try:
        problem = FourierProblem(part)
        frequency = 8.0 * problem.count * problem.block_size**3 / 3
    except NoProblemError:
        frequency = math.inf
    if dense is not None and dense < frequency:
        return Plan(start, end, "dense", dense)
    return Plan(start, end, "frequency", frequency) if math.isfinite(frequency) else None


_FIRST_ROUND_WITHIN = 500.0
"""Seconds within which a frequency piece has a first proof. A restart costs about a fifth of what a short run gains."""
_DENSE_PREFERRED = 2e10
"""That of about 4,000 rows without zeros."""
_DENSE_ENTRIES = 2.5e8
"""Numbers in the matrix of a dense proof that are not zero; 2 GB."""


def _dense_operations(part: Graph) -> float | None:
    """Operations of a dense proof from the shapes alone, or None if the matrices would be too large."""
    sizes = {X: math.prod(part.input_shape)}
    reads: list[set[str]] = [{X}]
    coupled: set[tuple[str, str]] = set()
    for k, node in enumerate(part.nodes[1:], 1):
        size = math.prod(node.shape)
        names = set[str]().union(*(reads[i] for i in node.inputs))
        if isinstance(node.layer, NonlinearLayer):
            if not isinstance(node.layer, (Activation, MaxPool)):
                return None  # no quadratic constraint is known of it
            coupled.update(itertools.combinations([str(k), *names], 2))
            sizes[str(k)] = size
            names = {str(k)}
        # Sums, concatenations and reshapes need no matrix of their own.
        moves = not isinstance(node.layer, LinearLayer) or isinstance(node.layer, MOVES)
        if not moves and not can_be_written_out(size, math.prod(part.nodes[node.inputs[0]].shape)):
            return None
        reads.append(names)
    coupled.update(itertools.combinations(reads[-1], 2))
    written = sum(n**2 for n in sizes.values()) + sum(sizes[a] * sizes[b] for a, b in coupled)
    return operations(dict(reversed(sizes.items())), coupled) if written <= _DENSE_ENTRIES else None


def _by_norms(graph: Graph, plan: Plan) -> CertifiedPiece:
    product = norm_bounds(graph.between(plan.start, plan.end)).value
    return CertifiedPiece(
        start=plan.start,
        end=plan.end,
        first=graph.nodes[plan.start + 1].place,
        last=graph.nodes[plan.end].place,
        structure="norms",
        bound=product,
        product=product,
    )


def _by_multipliers(
    graph: Graph, plan: Plan, norms: CertifiedPiece, seconds: float, progress: Progress, goal: float
) -> Iterator[tuple[CertifiedPiece, dict[str, Tensor]]]:
    """Proved records of a piece, better and better; if `goal` is not 0, with more of them on the way to it."""
    part = graph.between(plan.start, plan.end)
    dims = len(part.input_shape) - 1
    twist = [1] * dims if plan.structure == "frequency" else None
    record = norms.model_copy(update={"structure": plan.structure, "twist": twist})
    problem = problem_of(part, record)
    record = record.model_copy(update={"blocks": problem.count, "size": problem.block_size})
    best = norms.bound
    for found in _optimised(problem, seconds, progress, record.first, goal):

        def show(done: int, total: int) -> None:
            progress(f"prove: {record.first}", done, total)

        try:
            bound, rho, parameters = _proved(problem, found, best, show)
        except CertificateError:
            continue
        if bound < best:
            best = bound
            yield record.model_copy(update={"rho": rho, "bound": bound}), parameters


def _proved(
    problem: Problem,
    found: Found,
    worth: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, float, dict[str, Tensor]]:
    """The constant that is proved, its ρ and the parameters; the constant is infinite if not below `worth`.

    Raises:
        CertificateError: the parameters prove nothing.
    """
    # A linear network of zeros has ρ = 0, which no scaling can hold.
    if not (math.isfinite(found.rho) and found.rho > 0) or constant(found.rho) >= worth:
        return math.inf, math.inf, {}
    pooled = problem.maps(torch.arange(0)).pooled
    precision = torch.float64 if isinstance(problem, DenseProblem) else torch.complex128
    parameters = realised(PullBack(problem, precision), found.raw, pooled)
    rho = prove(problem, parameters, found.rho, progress)
    return constant(rho), rho, parameters


def _optimised(
    problem: Problem, seconds: float, progress: Progress, place: str, goal: float = 0.0
) -> Iterator[Found]:
    """Parameters worth a proof, better and better; the time that the caller takes for proofs is not counted.

    With a `goal`, a constant of the piece that is good enough, results come sooner.
    """
    total = math.floor(10 * seconds) if math.isfinite(seconds) else 0
    try:
        if isinstance(problem, DenseProblem):
            pull, deadline = PullBack(problem, torch.float64), time.monotonic() + seconds
            start = optimise_dense(pull, deadline, only_start=True)
            yield start
            if time.monotonic() < deadline and start.raw:
                yield optimise_dense(pull, deadline, enough=goal**2)
        else:
            raw: Raw | None = None
            spent = 0.0
            for end in _rounds(seconds, _FIRST_ROUND_WITHIN if goal == 0 else seconds / 8):
                begun, before = time.monotonic(), spent

                def show(rho: float, begun: float = begun, before: float = before) -> None:
                    passed = before + time.monotonic() - begun
                    progress(f"certify: {place}", min(total, math.floor(10 * passed)), total)

                pull = PullBack(problem, torch.complex64)
                found = optimise_frequency(pull, begun + end - spent, show, raw)
                spent = end
                finished = finish_frequency(PullBack(problem, torch.complex128), found.raw)
                raw = finished.raw
                yield finished
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # Weights so large or small that even float64 overflows: the norms stand.
        return
    if total:
        progress(f"certify: {place}", total, total)


def _rounds(seconds: float, first: float) -> list[float]:
    """When a round of the search ends and its result is proved: within `first`, then each time three times as late."""
    ends = [seconds]
    while ends[0] > first:
        ends.insert(0, ends[0] / 3)
    return ends
