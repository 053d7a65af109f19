"""The activation regions of a piecewise-linear network: written out, cut down, and proved empty.

`piecewise` writes a network as affine steps and units with finitely many linear pieces; `polyhedra`
finds points in a region or proves exactly that there are none; `free_slopes` bounds the Jacobian
where some units' slopes are still undecided. The search over them is `quantities/exact.py`.
"""

from .free_slopes import free_slope_bound, uncertainty_bound
from .piecewise import ExactForms, Form, Piecewise, Units
from .polyhedra import Ball, IntegerRow, Region, proved_empty

__all__ = [
    "Ball",
    "ExactForms",
    "Form",
    "IntegerRow",
    "Piecewise",
    "Region",
    "Units",
    "free_slope_bound",
    "proved_empty",
    "uncertainty_bound",
]
