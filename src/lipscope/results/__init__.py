"""The typed results: what `lipscope.analyze` returns and what `result.json` holds.

Every number carries its kind. `upper`: a proof exists, rounding included. `lower`: attained by a
stored witness that was re-evaluated in float64. `estimate`: anything else. All constants are
Euclidean-to-Euclidean Lipschitz constants (norm out per norm in); `squared` is their square,
since the source's tables print squared ratios.
"""

from .constrained import BoundedWeight, Constrained
from .gate import Gate, Limited, Verdict
from .quantities import (
    Analytical,
    Attained,
    Ball,
    Certified,
    CertifiedPiece,
    Duplicate,
    Effective,
    Empirical,
    Exact,
    LayerBound,
    LayerSlack,
    LayerSlope,
    Local,
    MidRange,
    OpenUnits,
    OperatorProduct,
    SecondMoment,
    Slack,
    StretchBin,
    StretchCurve,
)
from .record import Check, Cost, Kind, NoBound, Norm, Quantity, Record, UnboundedLayer, UpperBound, Witness
from .report import SCHEMA_VERSION, DataInfo, ModelInfo, Provenance, Report
from .runs import BallInfo, Bracket, Inspection, Result

__all__ = [
    "SCHEMA_VERSION",
    "Analytical",
    "Attained",
    "Ball",
    "BallInfo",
    "BoundedWeight",
    "Bracket",
    "Certified",
    "CertifiedPiece",
    "Check",
    "Constrained",
    "Cost",
    "DataInfo",
    "Duplicate",
    "Effective",
    "Empirical",
    "Exact",
    "Gate",
    "Inspection",
    "Kind",
    "LayerBound",
    "LayerSlack",
    "LayerSlope",
    "Limited",
    "Local",
    "MidRange",
    "ModelInfo",
    "NoBound",
    "Norm",
    "OpenUnits",
    "OperatorProduct",
    "Provenance",
    "Quantity",
    "Record",
    "Report",
    "Result",
    "SecondMoment",
    "Slack",
    "StretchBin",
    "StretchCurve",
    "UnboundedLayer",
    "UpperBound",
    "Verdict",
    "Witness",
]
