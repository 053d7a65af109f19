"""Networks that overflow: their slopes are no longer those of the network, so no number is made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data import Samples
from ..errors import ModelError


def check_outputs(
    y: Tensor, samples: Samples, indices: Sequence[int], dtype: torch.dtype, sound: np.ndarray | bool = True
) -> None:
    """Raise a `ModelError` that names the first sample whose output is NaN or infinite.

    Args:
        y: outputs (B, *out) at the samples of the indices, computed in `dtype`.
        sound: whether what else was computed at each of them is finite, (B,).
    """
    finite = y.isfinite().flatten(1).all(1).cpu().numpy() & sound
    if not finite.all():
        raise overflow(samples.names[indices[int(finite.argmin())]], dtype)


def overflow(where: str, dtype: torch.dtype) -> ModelError:
    """The error of a network whose numbers exceed the range of `dtype`."""
    return ModelError(
        f"the network overflows at {where} in {str(dtype).removeprefix('torch.')}; take a dtype of wider range"
    )
