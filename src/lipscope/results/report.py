"""What a run writes as JSON: of which model, on which data, how; versioned and checked when it is read."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import FloatSchema

from ..errors import LipscopeError
from .record import Record

SCHEMA_VERSION = 1


class ModelInfo(Record):
    """What was analysed."""

    name: str
    fingerprint: str = Field(description="SHA-256 of structure and weights")
    input_shape: list[int]
    output_shape: list[int]
    parameters: int
    layers: int


class DataInfo(Record):
    """On which data."""

    name: str
    fingerprint: str = Field(description="SHA-256 of the samples as the network sees them")
    samples: int
    preprocessing: str


class Provenance(Record):
    """How to get the same result again."""

    lipscope: str
    torch: str
    python: str
    platform: str
    threads: int
    device: str
    dtype: str = Field(
        description="precision of the estimates; certificates and witnesses are always float64"
    )
    seed: int
    command: str
    started: str = Field(description="UTC, ISO 8601")
    seconds: float
    peak_memory_bytes: int


class _Schema(GenerateJsonSchema):
    """JSON schemas in which a number may be one of the strings that stand for what JSON has no number for."""

    def float_schema(self, schema: FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), {"enum": ["Infinity", "-Infinity", "NaN"]}]}


R = TypeVar("R", bound="Report")


class Report(Record):
    """What a run writes as JSON."""

    schema_version: int = SCHEMA_VERSION

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of the file."""
        return cls.model_json_schema(mode="serialization", schema_generator=_Schema)

    def to_json(self) -> str:
        """The content of the file."""
        return self.model_dump_json(indent=2)

    def _repr_html_(self) -> str | None:
        """A small self-contained table for notebooks; None for a report that has none."""
        from ..report.notebook import notebook_html

        return notebook_html(self)

    @classmethod
    def from_json(cls: type[R], text: str | bytes) -> R:
        """Read a file that `to_json` wrote.

        Raises:
            LipscopeError: it is something else, or of a newer schema.
        """
        try:
            raw: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LipscopeError(f"not a result file: {error}") from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise LipscopeError(f"result of schema {version}, newer than {SCHEMA_VERSION}: upgrade lipscope")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise LipscopeError(f"not a result file: {where}: {first['msg']}") from error
