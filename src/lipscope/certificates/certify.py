"""From a network to a certificate: cut it into pieces, choose a structure for each, optimise, prove.

A piece is a part between two nodes through which every path goes, so the constants of pieces
multiply. Longer pieces give tighter bounds and cost more: starting at the output, each piece is
extended towards the input as far as the budget allows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import CertificateError
from ..graph import Graph
from ..progress import Progress, silent
from ..quantities.analytical import analytical
from .certificate import Certificate, PieceRecord
from .check import constant, problem_of
from .optimise import Found, finish_frequency, optimise_dense, optimise_frequency
from .problem import DenseProblem, FourierProblem, NoProblemError, Problem
from .pullback import PullBack, realised
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

    Source: DESIGN section 3.3; M. Fazlyab et al. (2019) for the semidefinite program that the dense
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
) -> Iterator[Certificate]:
    """Certificates of decreasing value, each a proof: first the layers' norms, then piece by piece."""
    budget = BUDGETS[effort]
    available = budget.seconds if seconds is None else seconds
    whole = analytical(graph)
    last = len(graph.nodes) - 1
    fingerprint = graph.fingerprint()
    record = PieceRecord(
        start=0, end=last, first=graph.nodes[min(1, last)].place, last=graph.nodes[last].place,
        structure="norms", bound=whole.value, product=whole.value,
    )  # fmt: skip
    best = Certificate(fingerprint, [record], [{}])
    yield best
    if whole.value == 0 or not math.isfinite(whole.value):
        return
    plans = plan(graph, budget.operations)
    pieces = [_by_norms(graph, each) for each in plans]
    parameters: list[dict[str, Tensor]] = [{} for _ in plans]
    quadratic = [number for number, each in enumerate(plans) if each.structure != "norms"]
    weights = [math.sqrt(plans[number].operations) for number in quadratic]
    for number, weight in zip(quadratic, weights, strict=True):
        share = available * weight / sum(weights)
        for piece, held in _by_multipliers(graph, plans[number], pieces[number], share, progress):
            if piece.bound < pieces[number].bound:
                pieces[number], parameters[number] = piece, held
                found = Certificate(fingerprint, list(pieces), list(parameters))
                if found.value < best.value:
                    best = found
                    yield best


def plan(graph: Graph, operations: float) -> list[Plan]:
    """Cut a network into pieces whose proofs cost at most so many operations each, from the output back."""
    cuts = graph.cuts()
    plans: list[Plan] = []
    end = len(cuts) - 1
    while end > 0:
        chosen = Plan(cuts[end - 1], cuts[end], "norms", 0.0)
        reach = end - 1
        for start in range(end - 1, -1, -1):
            found = _cheapest(graph, cuts[start], cuts[end])
            if found is None or found.operations > operations:
                break
            chosen, reach = found, start
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
        operations = 8.0 * problem.count * problem.block_size**3 / 3
    except NoProblemError:
        operations = math.inf
    if dense is not None and dense < operations:
        return Plan(start, end, "dense", dense)
    return Plan(start, end, "frequency", operations) if math.isfinite(operations) else None


_DENSE_PREFERRED = 2e10
"""Below about 4,000 rows."""
_DENSE_LARGEST = 12_000


def _dense_operations(part: Graph) -> float | None:
    """Operations of a dense proof from the shapes alone, or None if the matrices would be too large."""
    sizes = [math.prod(node.shape) for node in part.nodes]
    rows = sizes[0] + sum(sizes[k] for k in part.nonlinear())
    if rows > _DENSE_LARGEST:
        return None
    try:
        DenseProblem(part).maps(torch.arange(0))
    except NoProblemError:
        return None
    return rows**3 / 3


def _by_norms(graph: Graph, plan: Plan) -> PieceRecord:
    product = analytical(graph.between(plan.start, plan.end)).value
    return PieceRecord(
        start=plan.start,
        end=plan.end,
        first=graph.nodes[plan.start + 1].place,
        last=graph.nodes[plan.end].place,
        structure="norms",
        bound=product,
        product=product,
    )


def _by_multipliers(
    graph: Graph, plan: Plan, norms: PieceRecord, seconds: float, progress: Progress
) -> Iterator[tuple[PieceRecord, dict[str, Tensor]]]:
    """Proved records of a piece, better and better."""
    part = graph.between(plan.start, plan.end)
    dims = len(part.input_shape) - 1
    twist = [1] * dims if plan.structure == "frequency" else None
    record = norms.model_copy(update={"structure": plan.structure, "twist": twist})
    problem = problem_of(part, record)
    record = record.model_copy(update={"blocks": problem.count, "size": problem.block_size})
    for found in _optimised(problem, seconds, progress, record.first):
        if not (math.isfinite(found.rho) and found.rho > 0):
            continue
        if constant(found.rho) >= norms.bound:
            # Worth no proof: the norms give more.
            continue
        pooled = problem.maps(torch.arange(0)).pooled
        precision = torch.complex128 if plan.structure == "frequency" else torch.float64
        parameters = realised(PullBack(problem, precision), found.raw, pooled)
        try:
            rho = prove(
                problem,
                parameters,
                found.rho,
                lambda done, total: progress(f"prove: {record.first}", done, total),
            )
        except CertificateError:
            continue
        yield record.model_copy(update={"rho": rho, "bound": constant(rho)}), parameters


def _optimised(problem: Problem, seconds: float, progress: Progress, place: str) -> Iterator[Found]:
    started = time.monotonic()
    deadline = started + seconds

    def show(rho: float) -> None:
        passed = min(seconds, time.monotonic() - started)
        progress(f"certify: {place}", math.floor(10 * passed), math.floor(10 * seconds))

    try:
        if isinstance(problem, DenseProblem):
            pull = PullBack(problem, torch.float64)
            start = optimise_dense(pull, deadline, only_start=True)
            yield start
            if time.monotonic() < deadline and start.raw:
                yield optimise_dense(pull, deadline)
        else:
            found = optimise_frequency(PullBack(problem, torch.complex64), deadline, show)
            yield finish_frequency(PullBack(problem, torch.complex128), found.raw)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # Numbers out of range, which no solver takes: nothing more is proposed.
        pass
    progress(f"certify: {place}", math.floor(10 * seconds), math.floor(10 * seconds))
