"""The example of a layer from outside of the package runs, and the documentation shows that very file."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_example_runs_and_is_what_the_documentation_shows() -> None:
    source = (ROOT / "examples" / "custom_layer.py").read_text()
    assert f"```python\n{source}```" in (ROOT / "docs" / "adding-a-layer.md").read_text()
    found = runpy.run_path(str(ROOT / "examples" / "custom_layer.py"))["main"]()
    assert 0 < found.lower <= found.upper
