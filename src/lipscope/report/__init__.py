"""What people read: the terminal table and the HTML page. Both see a `Result` and nothing else."""

from __future__ import annotations

from .html import render_html, write_html
from .monitor import LiveView, print_log
from .terminal import print_bracket, print_checks, print_inspection, print_result

__all__ = [
    "LiveView",
    "print_bracket",
    "print_checks",
    "print_inspection",
    "print_log",
    "print_result",
    "render_html",
    "write_html",
]
