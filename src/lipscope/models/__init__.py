"""Where a model comes from: the user's Python, or the built-in zoo with real weights."""

from .load import LoadedModel, load_model
from .weights import weights_path
from .zoo import ZOO, ZooEntry

__all__ = ["ZOO", "LoadedModel", "ZooEntry", "load_model", "weights_path"]
