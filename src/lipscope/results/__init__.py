"""The typed results: what `lipscope.analyze` returns and what `result.json` holds.

Every number carries its kind. `upper`: a proof exists, rounding included. `lower`: attained by a
stored witness that was re-evaluated in float64. `estimate`: anything else. All constants are
Euclidean-to-Euclidean Lipschitz constants (norm out per norm in); `squared` is their square,
since the source's tables print squared ratios.
"""

from .comparison import ComparedRun, Comparison
from .concentration import Concentration, ConcentrationReport, Tail, TailLevel, TailPoint
from .constrained import BoundedWeight, Constrained
from .discriminant import ClassCount, Discriminant, DiscriminantReport, LayerSeparation
from .fisher import FisherReport, FisherSpectrum, InputFisher, ParameterFisher
from .gate import Gate, Limited, Verdict
from .mean_field import (
    DepthScale,
    FieldMeasurement,
    FieldPrediction,
    LayerField,
    MeanField,
    MeanFieldReport,
    Measured,
    NotCovered,
)
from .monitor import Snapshot
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
from .sensitive import SensitiveInput

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
    "ClassCount",
    "ComparedRun",
    "Comparison",
    "Concentration",
    "ConcentrationReport",
    "Constrained",
    "Cost",
    "DataInfo",
    "DepthScale",
    "Discriminant",
    "DiscriminantReport",
    "Duplicate",
    "Effective",
    "Empirical",
    "Exact",
    "FieldMeasurement",
    "FieldPrediction",
    "FisherReport",
    "FisherSpectrum",
    "Gate",
    "InputFisher",
    "Inspection",
    "Kind",
    "LayerBound",
    "LayerField",
    "LayerSeparation",
    "LayerSlack",
    "LayerSlope",
    "Limited",
    "Local",
    "MeanField",
    "MeanFieldReport",
    "Measured",
    "MidRange",
    "ModelInfo",
    "NoBound",
    "Norm",
    "NotCovered",
    "OpenUnits",
    "OperatorProduct",
    "ParameterFisher",
    "Provenance",
    "Quantity",
    "Record",
    "Report",
    "Result",
    "SecondMoment",
    "SensitiveInput",
    "Slack",
    "Snapshot",
    "StretchBin",
    "StretchCurve",
    "Tail",
    "TailLevel",
    "TailPoint",
    "UnboundedLayer",
    "UpperBound",
    "Verdict",
    "Witness",
]
