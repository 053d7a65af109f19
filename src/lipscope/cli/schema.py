"""`lipscope schema`: the JSON schema of result.json."""

from __future__ import annotations

from .app import app


@app.command()
def schema() -> None:
    """Print the JSON schema of result.json."""
    import json

    from ..results import Result

    print(json.dumps(Result.json_schema(), indent=2))
