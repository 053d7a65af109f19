"""What a check works on: the folder of a run, what is stored in it, and the network the run is claimed of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ...certificates import Certificate
from ...graph import Graph
from ...progress import Progress
from ..folder import CERTIFICATE, WITNESS, check_plain, read_tensors

BALL_SECONDS = 60.0
"""For the search behind a bound over a ball, several times what it had: the machine may be slower."""


@dataclass(frozen=True)
class Run:
    """A run folder, and the network that the run is claimed of."""

    folder: Path
    graph: Graph
    progress: Progress

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The stored inputs.

        Raises:
            DataError: they cannot be read.
        """
        return read_tensors(self.folder / WITNESS)

    def center(self, key: str) -> Tensor | None:
        """The centre of a ball, stored in float64 under the key; None if there is none that fits the network."""
        found = self.tensors.get(key)
        if found is None or found.dtype != torch.float64 or tuple(found.shape) != self.graph.input_shape:
            return None
        return found if bool(found.isfinite().all()) else None

    def certificate(self) -> Certificate:
        """The stored certificate; it is yet to be verified.

        Raises:
            CertificateError: it is no certificate.
            DataError: there is none, or it is no plain file.
        """
        path = self.folder / CERTIFICATE
        check_plain(path)
        return Certificate.load(path)
