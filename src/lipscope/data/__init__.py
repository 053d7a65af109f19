"""Samples as the network sees them, read from folders of images, arrays and torch data sets."""

from .images import ImagePreprocessing
from .labels import Labels, load_labels
from .load import Source, load_samples
from .samples import Samples

__all__ = ["ImagePreprocessing", "Labels", "Samples", "Source", "load_labels", "load_samples"]
