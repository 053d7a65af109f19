"""Re-checking a stored certificate against a network: every piece is proved again from its parameters."""

from __future__ import annotations

import math

import torch

from ..errors import CertificateError
from ..graph import INPUT, Graph
from ..progress import Progress, silent
from ..results import CertifiedPiece
from ..rounding import up, up_product
from .certificate import Certificate
from .norms import norm_bounds
from .problem import DenseProblem, FourierProblem, NoProblemError, Problem
from .verify import Parameters, prove


def verify(graph: Graph, certificate: Certificate, progress: Progress = silent) -> float:
    """Prove a stored certificate again, and return the bound that was proved.

    Args:
        graph: the network; its weights and structure must be those certified.
        certificate: pieces, multipliers and claims.

    Returns:
        A certified upper bound of the Euclidean Lipschitz constant. It may differ from the claim in
        the last digits, since matrix products round differently on other machines.

    Raises:
        CertificateError: the network is another one, the pieces do not cover it, or a proof fails.
    """
    if certificate.fingerprint != graph.fingerprint():
        raise CertificateError("the certificate is of another network (its fingerprint differs)")
    cuts = graph.cuts()
    ends = [piece.end for piece in certificate.pieces]
    starts = [piece.start for piece in certificate.pieces]
    # Were a piece to go back, the next would count a part twice, and a part that contracts must not be.
    forward = ends == sorted(set(ends))
    if starts != [INPUT, *ends[:-1]] or ends[-1:] != cuts[-1:] or not set(ends) <= set(cuts) or not forward:
        raise CertificateError("the pieces of the certificate do not cover the network")
    if len(certificate.parameters) != len(certificate.pieces):
        raise CertificateError("the certificate does not hold parameters for each of its pieces")
    bounds = []
    for number, piece in enumerate(certificate.pieces):
        bounds.append(_piece_bound(graph, piece, certificate.parameters[number], progress))
    return up_product(*bounds)


def _piece_bound(graph: Graph, piece: CertifiedPiece, parameters: Parameters, progress: Progress) -> float:
    part = graph.between(piece.start, piece.end)
    if piece.structure == "norms":
        return norm_bounds(part).value
    if piece.rho is None:
        raise CertificateError(f"the certificate of {piece.first} states no bound")
    rho = prove(
        problem_of(part, piece),
        parameters,
        piece.rho,
        lambda done, total: progress(f"verify: {piece.first}", done, total),
    )
    return constant(rho)


def problem_of(part: Graph, piece: CertifiedPiece) -> Problem:
    """The quadratic problem that a piece's record speaks of.

    Raises:
        CertificateError: the piece does not have that structure.
    """
    try:
        if piece.structure == "dense":
            problem: Problem = DenseProblem(part)
        else:
            problem = FourierProblem(part, None if piece.twist is None else tuple(piece.twist))
        # Whether every layer fits is seen as the maps are made.
        problem.maps(torch.arange(0))
        return problem
    except NoProblemError as error:
        raise CertificateError(f"{piece.first} has no certificate of structure {piece.structure}") from error


def constant(rho: float) -> float:
    """√ρ, rounded up."""
    return up(math.sqrt(rho), 2)
