"""Print the lowest versions of the runtime dependencies that pyproject.toml allows, one requirement a line."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
for dependency in project["dependencies"]:
    found = re.fullmatch(r"([\w.-]+)>=([\w.]+)", dependency)
    if found is None:
        raise SystemExit(f"{dependency}: write a lower bound alone, as in name>=1.2")
    print(f"{found[1]}=={found[2]}")
