"""The command line: `lipscope analyze MODEL --data DIR_OR_FILE`, and its sisters, one file each.

Heavy imports happen inside the commands, so that `lipscope --help` answers at once. To add a command, write its
file and name it below, in the order of `lipscope --help`.
"""

from . import analyze, certify, inspect, check, constrain, report, verify, models, schema  # isort: skip
from .app import app, main

__all__ = [
    "analyze",
    "app",
    "certify",
    "check",
    "constrain",
    "inspect",
    "main",
    "models",
    "report",
    "schema",
    "verify",
]
