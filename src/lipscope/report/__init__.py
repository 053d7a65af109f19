"""What people read: the terminal table and the HTML page. Both see a `Result` and nothing else."""

from __future__ import annotations

from .concentration import print_concentration
from .constrained import print_constrained
from .discriminant import print_discriminant
from .fisher import print_fisher
from .html import render_html, write_html
from .mean_field import print_mean_field
from .monitor import LiveView, print_log
from .terminal import print_bracket, print_checks, print_inspection, print_result

__all__ = [
    "LiveView",
    "print_bracket",
    "print_checks",
    "print_concentration",
    "print_constrained",
    "print_discriminant",
    "print_fisher",
    "print_inspection",
    "print_log",
    "print_mean_field",
    "print_result",
    "render_html",
    "write_html",
]
