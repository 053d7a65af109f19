"""The inputs at which a network reacts most strongly, kept to be looked at."""

from __future__ import annotations

from pydantic import Field

from .record import Kind, Record


class SensitiveInput(Record):
    """A sample of large Lip(x) with the direction that is stretched most there.

    The sample x and the unit vector v, the leading right singular vector of J(x), are stored as tensors
    `{key}.x` and `{key}.v` of `file`, in float32 and of the input's shape.
    """

    kind: Kind = "estimate"
    key: str
    file: str | None = Field(
        None, description="safetensors file in the run folder; None if no folder was given"
    )
    sample: str = Field(description="name of the sample x")
    value: float = Field(description="Lip(x) = ‖J(x) v‖")
