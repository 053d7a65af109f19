"""What `lipscope constrain` made of a trained network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .record import Record
from .report import Report


class BoundedWeight(Record):
    """One parameter, with the certified norm of the layer that it decides (the largest, if it is used in several)."""

    name: str
    bound: float = Field(description="its share of the network's bound")
    before: float = Field(description="certified norm before")
    after: float = Field(description="certified norm now, at most `bound`")
    scale: float = Field(description="what the parameter was multiplied by")


class Constrained(Report):
    """A network's weights rescaled so that its certified Lipschitz constant keeps a bound; Euclidean norms."""

    model: str
    input_shape: list[int]
    bound: float = Field(description="what was asked for")
    split: Literal["even", "proportional"]
    before: float = Field(description="certified constant before (`lipscope.analytical`)")
    after: float = Field(description="certified constant of the weights written, at most `bound`")
    weights: list[BoundedWeight]
    fingerprint: str = Field(description="SHA-256 of structure and weights, of the network written")
