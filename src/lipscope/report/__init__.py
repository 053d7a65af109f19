"""What people read: the terminal table and the HTML page. Both see a `Result` and nothing else."""

from __future__ import annotations

from .constrained import print_constrained
from .html import render_html, write_html
from .terminal import print_bracket, print_checks, print_gate, print_inspection, print_result

__all__ = [
    "print_bracket",
    "print_checks",
    "print_constrained",
    "print_gate",
    "print_inspection",
    "print_result",
    "render_html",
    "write_html",
]
