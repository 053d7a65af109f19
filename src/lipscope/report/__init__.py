"""What people read: tables in the terminal, the HTML page, tables for notebooks. All see a `Report` and its tensors."""

from __future__ import annotations

from .constrained import print_constrained
from .html import has_page, render_html, write_html
from .monitor import LiveView, print_log
from .terminal import (
    print_bracket,
    print_checks,
    print_comparison,
    print_gate,
    print_inspection,
    print_report,
    print_result,
)

__all__ = [
    "LiveView",
    "has_page",
    "print_bracket",
    "print_checks",
    "print_comparison",
    "print_constrained",
    "print_gate",
    "print_inspection",
    "print_log",
    "print_report",
    "print_result",
    "render_html",
    "write_html",
]
