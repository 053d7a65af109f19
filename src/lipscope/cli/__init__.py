"""The command line: `lipscope analyze MODEL --data DIR_OR_FILE`, and its sisters, one file each.

Heavy imports happen inside the commands, so that `lipscope --help` answers at once. To add a command, write its
file and name it below, in the order of `lipscope --help`.
"""

from . import (  # isort: skip
    analyze,
    certify,
    inspect,
    compare,
    check,
    report,
    verify,
    constrain,
    monitor,
    fisher,
    mean_field,
    concentration,
    discriminant,
    models,
    schema,
)
from .app import app, main

__all__ = [
    "analyze",
    "app",
    "certify",
    "check",
    "compare",
    "concentration",
    "constrain",
    "discriminant",
    "fisher",
    "inspect",
    "main",
    "mean_field",
    "models",
    "monitor",
    "report",
    "schema",
    "verify",
]
