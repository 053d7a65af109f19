"""The most sensitive samples with the directions that are stretched most there, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..graph import Graph
from ..results import SensitiveInput
from .local import norms_at

if TYPE_CHECKING:
    from ..data import Samples

_TOLERANCE = 1e-3
_KEPT_IN = torch.float32


def sensitive(
    graph: Graph,
    samples: Samples,
    indices: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[list[SensitiveInput], dict[str, Tensor]]:
    """Lip(x) and the most stretched direction at chosen samples.

    Args:
        graph: the network.
        samples: the data.
        indices: which of them, such as those of the largest Lip(x) that `local` found.
        dtype, device: of the estimates.
        seed: of the solver's random start.

    Returns:
        One record a sample, in the order given, and the tensors `{k}.x` and `{k}.v`, shapes (*in), of the k-th:
        the sample and the unit vector that ‖J(x) v‖ = σ_max(J(x)) holds for (Euclidean norms).

    Source: Zou, Balan, Singh (2020), local Lipschitz constant.
    """
    working = graph.to(dtype, device)
    found: list[SensitiveInput] = []
    tensors: dict[str, Tensor] = {}
    for k, index in enumerate(indices):
        x = samples.batch([index])
        _, norms = norms_at(working, x.to(device, dtype), _TOLERANCE, seed)
        value, direction = float(norms.value[0]), norms.right[0].cpu()
        found.append(SensitiveInput(key=f"sensitive.{k}", sample=samples.names[index], value=value))
        tensors |= {f"{k}.x": x[0].cpu().to(_KEPT_IN), f"{k}.v": direction.to(_KEPT_IN)}
    return found, tensors
