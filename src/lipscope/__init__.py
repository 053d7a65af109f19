"""lipscope: how much a trained network can stretch its input.

Certified from above, attained from below, and effectively on your data:

    import lipscope
    result = lipscope.analyze(module, data)
    result.lower, result.upper

    bracket = lipscope.bracket(module, (3, 32, 32))      # without data; also over a ball, in other norms

The pieces alone: `from_torch` imports a module as a graph; `analytical`, `local`, `empirical`,
`mean_slopes` and `effective` compute one quantity each; `linearize` and `spectral_norm` give the
Jacobian operator and its norm; `lipscope.train` has penalties and constraints for training. Names are
imported on first use, so `import lipscope` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import train as train
    from .certificates import Certificate, certify, verify
    from .data import ImagePreprocessing, Labels, Samples, load_labels, load_samples
    from .engines import SERIAL, Engine, RayEngine
    from .errors import (
        CertificateError,
        DataError,
        LipscopeError,
        ModelError,
        RunFolderError,
        UnsupportedLayerError,
    )
    from .graph import Graph, GraphBuilder, from_torch
    from .jacobian import Jacobian, linearize
    from .jobs.analysis import Options, analyze
    from .jobs.brackets import BallOptions, bracket
    from .jobs.comparison import compare
    from .jobs.concentration import Noise, noise_tails
    from .jobs.discriminant import separate
    from .jobs.fisher import fisher
    from .jobs.gate import check
    from .jobs.inspection import inspect
    from .jobs.mean_field import compare_mean_field
    from .models import load_model
    from .quantities import (
        MeanSlopes,
        analytical,
        ascent,
        ball,
        concentration,
        discriminant,
        effective,
        empirical,
        evaluate_pair,
        exact,
        fisher_bound,
        fisher_embedding,
        input_fisher,
        input_moments,
        local,
        mean_field,
        mean_field_theory,
        mean_jacobian_norm,
        mean_slopes,
        mid_range,
        parameter_fisher,
        scalar_slopes,
        second_moment,
        slack,
    )
    from .results import (
        Bracket,
        Comparison,
        ConcentrationReport,
        DiscriminantReport,
        FisherReport,
        Gate,
        Inspection,
        MeanFieldReport,
        Result,
    )
    from .spectral import SpectralNorm, spectral_norm

_HOMES = {
    "jobs.analysis": ("Options", "analyze"),
    "jobs.brackets": ("BallOptions", "bracket"),
    "certificates": ("Certificate", "certify", "verify"),
    "jobs.comparison": ("compare",),
    "data": ("ImagePreprocessing", "Labels", "Samples", "load_labels", "load_samples"),
    "engines": ("SERIAL", "Engine", "RayEngine"),
    "errors": (
        "CertificateError",
        "DataError",
        "LipscopeError",
        "ModelError",
        "RunFolderError",
        "UnsupportedLayerError",
    ),
    "jobs.gate": ("check",),
    "graph": ("Graph", "GraphBuilder", "from_torch"),
    "jobs.fisher": ("fisher",),
    "jobs.inspection": ("inspect",),
    "jacobian": ("Jacobian", "linearize"),
    "models": ("load_model",),
    "quantities": (
        "MeanSlopes",
        "analytical",
        "ascent",
        "ball",
        "concentration",
        "discriminant",
        "effective",
        "empirical",
        "evaluate_pair",
        "exact",
        "fisher_bound",
        "fisher_embedding",
        "input_fisher",
        "input_moments",
        "local",
        "mean_field",
        "mean_field_theory",
        "mean_jacobian_norm",
        "mean_slopes",
        "mid_range",
        "parameter_fisher",
        "scalar_slopes",
        "second_moment",
        "slack",
    ),
    "results": (
        "Bracket",
        "Comparison",
        "ConcentrationReport",
        "DiscriminantReport",
        "FisherReport",
        "Gate",
        "Inspection",
        "MeanFieldReport",
        "Result",
    ),
    "jobs.discriminant": ("separate",),
    "spectral": ("SpectralNorm", "spectral_norm"),
    "jobs.concentration": ("Noise", "noise_tails"),
    "jobs.mean_field": ("compare_mean_field",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "SERIAL",
    "BallOptions",
    "Bracket",
    "Certificate",
    "CertificateError",
    "Comparison",
    "ConcentrationReport",
    "DataError",
    "DiscriminantReport",
    "Engine",
    "FisherReport",
    "Gate",
    "Graph",
    "GraphBuilder",
    "ImagePreprocessing",
    "Inspection",
    "Jacobian",
    "Labels",
    "LipscopeError",
    "MeanFieldReport",
    "MeanSlopes",
    "ModelError",
    "Noise",
    "Options",
    "RayEngine",
    "Result",
    "RunFolderError",
    "Samples",
    "SpectralNorm",
    "UnsupportedLayerError",
    "__version__",
    "analytical",
    "analyze",
    "ascent",
    "ball",
    "bracket",
    "certify",
    "check",
    "compare",
    "compare_mean_field",
    "concentration",
    "discriminant",
    "effective",
    "empirical",
    "evaluate_pair",
    "exact",
    "fisher",
    "fisher_bound",
    "fisher_embedding",
    "from_torch",
    "input_fisher",
    "input_moments",
    "inspect",
    "linearize",
    "load_labels",
    "load_model",
    "load_samples",
    "local",
    "mean_field",
    "mean_field_theory",
    "mean_jacobian_norm",
    "mean_slopes",
    "mid_range",
    "noise_tails",
    "parameter_fisher",
    "scalar_slopes",
    "second_moment",
    "separate",
    "slack",
    "spectral_norm",
    "verify",
]


_PACKAGES = ("train",)
"""Packages that are imported on first use too."""


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lipscope' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
