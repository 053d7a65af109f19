"""Rows of results as a pandas table (the extra `frames`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import LipscopeError
from .record import Quantity

if TYPE_CHECKING:
    import pandas


def frame(rows: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """A table of one row a mapping.

    Raises:
        LipscopeError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise LipscopeError("tables need pandas: pip install 'lipscope[frames]'") from error
    return pandas.DataFrame(list(rows))


def quantity_row(quantity: Quantity) -> dict[str, Any]:
    """What every quantity has, flat; `variant` tells those apart that share a name."""
    parts = (getattr(quantity, "level", None), getattr(quantity, "reading", None))
    return {
        "quantity": quantity.name,
        "variant": ", ".join(part for part in parts if part),
        "kind": quantity.kind,
        "value": quantity.value,
        "standard_error": getattr(quantity, "standard_error", None),
        "squared": quantity.squared,
        "seconds": quantity.cost.seconds,
        "forward_passes": quantity.cost.forward_passes,
        "method": quantity.method,
    }
