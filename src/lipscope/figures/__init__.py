"""Figures for papers and documentation, drawn with matplotlib (the extra `figures`), one file a result.

Each file has one function from a result to a matplotlib figure; `save` writes it by its suffix.
"""

from .canvas import blank, save

__all__ = ["blank", "save"]
