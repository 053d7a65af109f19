"""Layer types, one file a kind. Importing this package imports every file of it, which registers their import rules."""

from importlib import import_module
from pkgutil import iter_modules

from .base import Layer, LinearLayer, NonlinearLayer

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")

__all__ = ["Layer", "LinearLayer", "NonlinearLayer"]
