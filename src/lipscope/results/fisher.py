"""What `lipscope fisher` finds: Fisher information of a network's inputs and of its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..errors import LipscopeError
from .frames import frame
from .record import Cost, Kind, Record
from .report import DataInfo, ModelInfo, Provenance, Report

if TYPE_CHECKING:
    import pandas

Likelihood = Literal["gaussian", "softmax"]
"""What the network's output is the parameter of: the mean of a Gaussian, or the logits of a class."""


class FisherSpectrum(Record):
    """The leading eigenvalues of a mean Fisher information matrix, and its trace; estimates."""

    kind: Kind = "estimate"
    size: int = Field(description="rows of the matrix")
    leading: list[float] = Field(description="largest eigenvalues, largest first")
    relative_error: float = Field(description="estimated relative error of the first, from its residual")
    standard_error: float | None = Field(
        None, description="sampling error of the first; None if it is not known"
    )
    trace: float
    trace_error: float = Field(description="standard error of the trace; 0 where it is exact for these data")
    directions: list[str] = Field(
        description="keys of the unit eigenvectors in `file`; of parameters, what the keys of their parts begin with"
    )
    file: str | None = Field(
        None, description="safetensors file in the run folder; None if no folder was given"
    )
    method: str = Field(description="how it was computed, in a sentence")
    source: str = Field(description="the definition it follows")
    cost: Cost

    @property
    def value(self) -> float:
        """λ_max."""
        return self.leading[0]

    @property
    def effective_dimension(self) -> float:
        """Trace / λ_max: about how many directions carry the information."""
        return self.trace / self.value if self.value > 0 else 0.0


class InputFisher(Record):
    """Fisher information I(x) that the network's output carries about its input, at samples and on average."""

    kind: Kind = "estimate"
    likelihood: Likelihood
    variance: float | None = Field(
        gt=0, allow_inf_nan=False, description="σ² of the Gaussian output; None for softmax"
    )
    mean: FisherSpectrum = Field(description="of E[I(x)] over all samples")
    samples: list[str] = Field(description="names of the samples at which I(x) itself was taken")
    eigenvalues: list[float] = Field(description="λ_max of I(x) at each of them")
    traces: list[float] = Field(description="trace of I(x) at each of them")
    stretches: list[float] = Field(description="Lip(x), the norm of the network's Jacobian, at each of them")
    relative_error: float = Field(description="largest estimated relative error of an entry of `eigenvalues`")
    probes: int | None = Field(description="random vectors behind each trace; None: traces are exact")
    steepest: str = Field(
        description="key in `mean.file` of the leading eigenvector at the sample of the largest λ_max"
    )
    bound: float = Field(
        description="certified: no I(x) has a larger eigenvalue; L²/σ², or L²/2 for softmax, with L the certified "
        "Lipschitz constant of the network; upper"
    )

    @property
    def largest(self) -> int:
        """The place of the sample with the largest λ_max."""
        return max(range(len(self.eigenvalues)), key=self.eigenvalues.__getitem__)


class ParameterFisher(FisherSpectrum):
    """Fisher information about the parameters: the true one, or the empirical one at given labels."""

    which: Literal["true", "empirical"] = Field(
        description="true: the expectation over labels is under the model; empirical: gradients at the given "
        "labels, which is no Fisher information unless the model is right"
    )
    likelihood: Likelihood
    variance: float | None = Field(description="σ² of the Gaussian output; None for softmax")
    samples: int = Field(description="samples behind the mean")


class FisherReport(Report):
    """Everything `lipscope fisher` found."""

    model: ModelInfo
    data: DataInfo
    inputs: InputFisher | None = Field(description="None if only parameters were asked for")
    parameters: list[ParameterFisher] = Field(
        description="the true one, then the empirical one if labels were given; empty if it was not asked for"
    )
    provenance: Provenance

    def to_frame(self) -> pandas.DataFrame:
        """One row a sample, as a pandas table (the extra `frames`): λ_max and trace of I(x), and Lip(x).

        Raises:
            LipscopeError: only parameters were asked for, which have no rows of samples.
        """
        found = self.inputs
        if found is None:
            raise LipscopeError("the information of the parameters is about all samples together: no rows")
        rows = zip(found.samples, found.eigenvalues, found.traces, found.stretches, strict=True)
        return frame({"sample": s, "lambda_max": e, "trace": t, "lip": lip} for s, e, t, lip in rows)
