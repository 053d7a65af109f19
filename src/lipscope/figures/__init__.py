"""Figures for papers and documentation, drawn with matplotlib (the extra `figures`), one file a result.

Each file has one function from a result to a matplotlib figure; `save` writes it by its suffix.
"""

from .bracket import bracket_figure
from .canvas import blank, save
from .comparison import comparison_figure
from .layers import layers_figure
from .local import local_figure
from .of_report import figures_of
from .slopes import slopes_figure
from .stretch import stretch_figure

__all__ = [
    "blank",
    "bracket_figure",
    "comparison_figure",
    "figures_of",
    "layers_figure",
    "local_figure",
    "save",
    "slopes_figure",
    "stretch_figure",
]
