"""Samples as the network sees them, read from folders of images, arrays and torch data sets."""

from .images import ImagePreprocessing
from .load import Source, load_samples
from .samples import Samples

__all__ = ["ImagePreprocessing", "Samples", "Source", "load_samples"]
