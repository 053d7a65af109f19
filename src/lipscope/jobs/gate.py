"""A gate: limits on Lipschitz constants that a network must keep, proved over all inputs or measured on data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from ..data import ImagePreprocessing, Samples
from ..errors import DataError, LipscopeError
from ..graph import Graph
from ..progress import Progress, silent
from ..quantities import ascent, effective, empirical, local, mean_slopes
from ..results import (
    Analytical,
    Attained,
    Bracket,
    Certified,
    Effective,
    Empirical,
    Gate,
    Limited,
    Local,
    Quantity,
    Result,
    Verdict,
)
from .analysis import Options
from .folder import CHECK, read_report
from .stages import (
    ASCENT_STEPS,
    AnyEffort,
    Kept,
    Stages,
    Start,
    analytical_in,
    certify_in,
    check_device,
    completed,
    data_info,
    identity,
    model_info,
    network_and_data,
    provenance,
)

_STARTS = 4
_LEVEL: Literal["unit"] = "unit"
_READING: Literal["active"] = "active"
_BATCH = 16

Q = TypeVar("Q", bound=Quantity)


@dataclass(frozen=True)
class _Limit:
    """The largest value that is allowed, and who says so."""

    quantity: Limited
    value: float
    origin: str


def check(
    module: nn.Module | Graph,
    input_shape: tuple[int, ...] | None = None,
    data: Any = None,
    *,
    max_upper: float | None = None,
    max_local: float | None = None,
    max_empirical: float | None = None,
    max_effective: float | None = None,
    baseline: str | Path | Result | Bracket | None = None,
    tolerance: float = 0.1,
    preprocess: ImagePreprocessing | None = None,
    effort: AnyEffort = "balanced",
    seconds: float | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> Gate:
    """Whether a network keeps limits on its Lipschitz constants; all constants are Euclidean.

    Args:
        module: a torch module from one tensor (batch, *input_shape) to one tensor, or a `Graph`.
        input_shape: per-sample shape; not needed for a `Graph`, nor with data.
        data: samples, as for `analyze`; needed for the limits on them.
        max_upper: of the Lipschitz constant over all inputs. It holds only if a certificate proves it, and the
            search for one ends with the first that does. It is exceeded if a pair of inputs attains more, and
            otherwise not proved.
        max_local: of Lip(x), the norm of the Jacobian, at the samples (1,000 of them at random if there are
            more). A statement about these samples, computed by iteration; not about inputs beside them.
        max_empirical: of the stretch between any two of the samples.
        max_effective: of L_eff with mean slopes of each unit at the samples; an estimate.
        baseline: a run folder of `analyze` or `certify`, or its result. Each of the four that it states is limited
            to its value there times 1 + tolerance; those on data only if data are given, which must be the same.
        tolerance: by which fraction the baseline may be exceeded.
        preprocess: how images become inputs.
        effort, seconds: time for the certificate, as for `analyze`; "none" leaves only the product of norms.
        output: run folder for check.json, the certificate and the witnesses.
        name: the model's name in the result.
        seed: of all random choices.
        device: where estimates are computed; certificates and witnesses are always float64 on the CPU.
        progress: called with (stage, done, total).

    Returns:
        A verdict on each limit; `passed` if all hold.

    Raises:
        LipscopeError: no limit is given, one is negative or not a number, or the baseline cannot be compared with.
        ModelError: the model cannot be imported (`UnsupportedLayerError` names the layer).
        DataError: the data or the baseline cannot be read, do not fit, or are missing.
        RunFolderError: the folder cannot be used.
        CertificateError: a layer's norm cannot be proved.
    """
    start = Start.now()
    check_device(device)
    graph, samples = network_and_data(module, input_shape, data, preprocess)
    given = {"upper": max_upper, "local": max_local, "empirical": max_empirical, "effective": max_effective}
    limits = list(_limits(given, baseline, tolerance, samples))
    asked = Options(effort=effort, seconds=seconds, seed=seed, device=device, batch_size=_BATCH)

    def key() -> dict[str, Any]:
        return identity(graph, samples, ("check", limits, asked))

    def run(stages: Stages) -> Gate:
        job = _Job(graph, samples, limits, asked, stages)
        verdicts = [job.verdict(limit) for limit in limits]
        return Gate(
            model=model_info(graph, name or type(module).__name__),
            data=samples and data_info(samples),
            verdicts=verdicts,
            measured=[stages.filed(quantity) for quantity in job.measured],
            provenance=provenance(start, seed, device),
        )

    return completed(output, key, Gate, CHECK, run, progress)


# ---- limits -----------------------------------------------------------------------------------------


def _limits(
    given: Mapping[str, float | None],
    baseline: str | Path | Result | Bracket | None,
    tolerance: float,
    samples: Samples | None,
) -> Iterator[_Limit]:
    """Every limit, those that are given first."""
    if not (tolerance >= 0 and math.isfinite(tolerance)):
        raise LipscopeError(f"the tolerance is {tolerance}; it must be finite and not negative")
    if baseline is None and all(value is None for value in given.values()):
        raise LipscopeError(
            "no limit is given: name one of upper, local, empirical and effective (--max-upper 5), or a --baseline"
        )
    quantity: Limited
    for quantity in ("upper", "local", "empirical", "effective"):
        if (value := given[quantity]) is None:
            continue
        if not value >= 0:
            raise LipscopeError(f"the limit of {quantity} is {value}; it must not be negative")
        if samples is None and quantity != "upper":
            raise DataError(f"the limit of {quantity} is about samples: give --data")
        yield _Limit(quantity, value, "given")
    if baseline is not None:
        yield from _from_baseline(baseline, tolerance, samples)


def _from_baseline(
    baseline: str | Path | Result | Bracket, tolerance: float, samples: Samples | None
) -> Iterator[_Limit]:
    """What an earlier run found, times 1 + tolerance."""
    place = f"baseline {baseline}" if isinstance(baseline, (str, Path)) else "baseline"
    record = read_report(Path(baseline)) if isinstance(baseline, (str, Path)) else baseline
    if not isinstance(record, (Result, Bracket)):
        # A search of check ends at its limit, so what it found is no measure of the network.
        raise LipscopeError(f"{place} is no run of analyze or certify; compare with one of these")
    if isinstance(record, Bracket) and (record.norm != "2" or record.ball is not None):
        raise LipscopeError(
            f"{place} is a bracket in another norm or over a ball; compare with a Euclidean one over all inputs"
        )
    found: dict[Limited, float] = {"upper": record.upper}
    if isinstance(record, Result) and samples is not None:
        if record.data.fingerprint != samples.fingerprint():
            raise DataError(
                f"{place} was measured on other data ({record.data.name}, {record.data.samples} samples); "
                "give the same, prepared in the same way, or none to compare the upper bound alone"
            )
        found["local"] = max(record.local.estimates)
        if record.empirical is not None:
            found["empirical"] = record.empirical.value
        for each in record.effective:
            if (each.level, each.reading) == (_LEVEL, _READING):
                found["effective"] = each.value
    for quantity, value in found.items():
        yield _Limit(quantity, value * (1 + tolerance), f"{place}: {value:.4g} + {100 * tolerance:g} %")


# ---- verdicts ---------------------------------------------------------------------------------------


class _Job:
    """One network and its limits: what they need is measured once, when it is first needed."""

    def __init__(
        self, graph: Graph, samples: Samples | None, limits: list[_Limit], options: Options, stages: Stages
    ) -> None:
        self.graph, self.limits, self.options, self.stages = graph, limits, options, stages
        self.given = samples
        self.measured: list[Analytical | Certified | Attained | Local | Empirical | Effective] = []

    def verdict(self, limit: _Limit) -> Verdict:
        """Whether a limit holds."""
        rules: dict[Limited, Callable[[_Limit], Verdict]] = {
            "upper": self._upper,
            "local": self._local_limit,
            "empirical": self._empirical_limit,
            "effective": self._effective_limit,
        }
        return rules[limit.quantity](limit)

    def _upper(self, limit: _Limit) -> Verdict:
        best: Analytical | Certified = self._analytical
        if best.value > limit.value and self._lower.value <= limit.value:
            best = min(best, self._certified or best, key=lambda bound: bound.value)
        verdict = Verdict(
            quantity="upper", limit=limit.value, origin=limit.origin, measured=best.value, kind="upper",
            scope="all inputs", outcome="holds",
        )  # fmt: skip
        if best.value <= limit.value:
            return verdict
        if self._lower.value > limit.value:
            refuted = {"outcome": "exceeded", "measured": self._lower.value, "kind": "lower"}
            return verdict.model_copy(update={**refuted, "note": "a pair of inputs attains it"})
        note = f"a pair of inputs attains {self._lower.value:.4g}"
        if best.no_bound is not None:
            note = f"no finite bound: {best.no_bound.reason}; {note}"
        elif self.options.effort != "tight":
            note += "; more effort may prove it"
        return verdict.model_copy(update={"outcome": "not proved", "note": note})

    def _local_limit(self, limit: _Limit) -> Verdict:
        found = self._local
        place, visited = found.steepest, len(found.estimates)
        of = "" if visited == len(self._samples) else f" of {len(self._samples):,}"
        return _measured(
            limit, found.estimates[place], "estimate", f"at {visited:,}{of} samples", found.samples[place]
        )

    def _empirical_limit(self, limit: _Limit) -> Verdict:
        found = self._empirical
        return _measured(
            limit,
            found.value,
            found.kind,
            f"{found.pairs:,} pairs of samples",
            " – ".join(found.witness.samples),
        )

    def _effective_limit(self, limit: _Limit) -> Verdict:
        found = self._effective
        error = "" if found.standard_error is None else f"standard error {found.standard_error:.2g}"
        return _measured(
            limit, found.value, found.kind, f"mean slopes at {len(self._samples):,} samples", error
        )

    def _once(self, name: str, kind: type[Q], compute: Callable[[], tuple[Q, Kept]]) -> Q:
        return self._noted(self.stages.once(name, kind, compute))

    def _noted(self, found: Q) -> Q:
        self.measured.append(found)  # type: ignore[arg-type]
        return found

    @property
    def _samples(self) -> Samples:
        assert self.given is not None  # limits on samples are refused without them
        return self.given

    @property
    def _numerics(self) -> dict[str, Any]:
        options = self.options
        return {
            "batch_size": options.batch_size,
            "device": options.device,
            "progress": self.stages.progress,
            "checkpoint": self.stages.checkpoint,
        }

    @cached_property
    def _analytical(self) -> Analytical:
        return self._noted(analytical_in(self.stages, self.graph))

    @cached_property
    def _certified(self) -> Certified | None:
        """The first certificate below the least of the limits that are not refuted."""
        effort, seconds = self.options.effort, self.options.seconds
        if effort == "none":
            return None
        uppers = [limit.value for limit in self.limits if limit.quantity == "upper"]
        enough = min(value for value in uppers if value >= self._lower.value)
        return self._noted(certify_in(self.stages, self.graph, effort, seconds, enough))

    @cached_property
    def _lower(self) -> Attained:
        """What a short ascent attains; a limit below it needs no search for a certificate."""
        starts = None
        if self.given is not None:
            some = self.given.take(_STARTS, self.options.seed)
            starts = some.batch(range(len(some)))
        return self._once(
            "ascent",
            Attained,
            lambda: ascent(
                self.graph,
                starts,
                steps=ASCENT_STEPS["fast"],
                seed=self.options.seed,
                device=self.options.device,
                progress=self.stages.progress,
            ),
        )

    @cached_property
    def _local(self) -> Local:
        limit, tolerance = self.options.local_samples, self.options.tolerance
        return self._once(
            "local",
            Local,
            lambda: local(
                self.graph, self._samples, limit=limit, tolerance=tolerance, seed=self.options.seed,
                **self._numerics,
            ),
        )  # fmt: skip

    @cached_property
    def _empirical(self) -> Empirical:
        def compute() -> tuple[Empirical, Kept]:
            found = empirical(self.graph, self._samples, **self._numerics)
            if found is None:
                raise DataError(
                    f"{self._samples.name}: a limit of empirical needs at least two distinct samples"
                )
            return found

        return self._once("empirical", Empirical, compute)

    @cached_property
    def _effective(self) -> Effective:
        def compute() -> tuple[Effective, Kept]:
            means = mean_slopes(self.graph, self._samples, seed=self.options.seed, **self._numerics)
            return effective(means, _LEVEL, _READING, seed=self.options.seed)[0], None

        return self._once("effective", Effective, compute)


def _measured(limit: _Limit, value: float, kind: Any, scope: str, note: str) -> Verdict:
    """The verdict on a number that is known, however it was found."""
    return Verdict(
        quantity=limit.quantity, limit=limit.value, origin=limit.origin, measured=value, kind=kind, scope=scope,
        outcome="holds" if value <= limit.value else "exceeded", note=note,
    )  # fmt: skip
