"""What starting imports: by modules, not by the clock (benchmarks/startup.py measures that)."""

from __future__ import annotations

import subprocess
import sys

import pytest

# pydantic is not among them: typer imports it.
HEAVY = {"torch", "numpy", "scipy", "plotly", "jinja2", "safetensors", "PIL"}
OPTIONAL = {
    "matplotlib",
    "pandas",
    "sklearn",
    "tensorboard",
    "pytorch_lightning",
    "transformers",
    "datasets",
    "ray",
    "onnx",
}


def imported(code: str) -> set[str]:
    """The top-level modules that are there when the code has run, in an interpreter of its own."""
    ending = "; import sys; sys.stderr.write(' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    ["import lipscope; lipscope.__version__; dir(lipscope)", "import lipscope.cli",
     "import lipscope.cli\ntry: lipscope.cli.app(['analyze', '--help'])\nexcept SystemExit: pass\nprint()"],
    ids=["import", "command line", "help"],
)  # fmt: skip
def test_what_computes_is_imported_when_it_is_needed(code: str) -> None:
    assert not imported(code) & (HEAVY | OPTIONAL)


def test_analyze_adds_to_torch_no_drawing_and_no_optional_package() -> None:
    assert not imported("import lipscope; lipscope.analyze") & (OPTIONAL | {"plotly", "jinja2"})
