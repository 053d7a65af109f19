"""The monitor: brackets and estimates of the Lipschitz constant of a network while it is trained.

What is cheap is followed closely, what is dear is spaced, and nothing is stale without saying so:

* the certified upper bound is valid at every step it is asked for: between the proofs of a layer's norm,
  the bound of its change is added (`certificates.drift`);
* Lip(x) at a few probes and L_eff start from the singular vectors found before, so few products suffice;
* mean slopes are running means that forget, since both the weights and the data move;
* the monitor measures its own time, and spaces its work so that it stays within a share of all time.

All quantities refer to the network's map in evaluation mode: dropout off, batch norm with its running statistics at
that step. Training itself is left as it is: no random number is drawn from torch's generators, no
gradient, mode or statistic changes.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..certificates.drift import DriftBounds, LayerProofs
from ..data import load_samples
from ..data.load import Source
from ..errors import LipscopeError, ModelError
from ..graph import Graph, Slopes, TracedModule
from ..jacobian import linearize
from ..quantities.draws import PairRun
from ..quantities.slope_sums import Kind, slope_totals
from ..quantities.witness import Pair, pair_along
from ..results import Cost, Snapshot
from ..slopes import AveragedSlope, Level
from ..spectral import spectral_norm
from .budget import Account
from .probes import ProbeValues, same_form
from .running import RunningSlopes

Log = Callable[[Snapshot], None]
Alarm = Callable[[str, Snapshot], None]

_STATE_VERSION = 1
_STEP_LENGTH = 1e-3
_BLOCK = 2
"""Vectors an operator: the warm start, and a random one beside it that finds a singular value that has overtaken."""


class Monitor:
    """Follows a network in training.

        monitor = Monitor(model, train_set, logs=[CsvLog("training.csv")])
        for x, y in batches:
            ... one training step ...
            monitor.step(x)

    `step` does nothing until its time has come. `update` measures and proves all at once; `upper` is a certified
    bound of the network as it is now. Parts of the model may be swapped, frozen, pruned, quantised or widened
    at any time: only what depends on them is computed again, as the next snapshot says (`Snapshot.proved`,
    `evaluated`, `traced`).

    Args:
        model: as for `from_torch`: one tensor in, one out. Give the module itself, not its compiled or
            distributed wrapper.
        data: inputs, as for `load_samples`: the probes are drawn from them, and the samples behind the mean
            slopes where `step` gets no batch.
        input_shape: per-sample shape; that of the data by default.
        probes: inputs at which Lip(x) is followed; drawn once.
        batch_size: samples behind the mean slopes of one snapshot, at most.
        levels, readings: which L_eff are followed: "scalar", "channel", "unit"; "active", "secant".
        forgetting: factor of the past in the mean slopes, one power a snapshot; 1 forgets nothing.
        every: take snapshots at steps that are multiples of it only.
        budget: the share of all time that the monitor may take, in (0, 1]: half of it for snapshots, half for
            proofs. With 1, it is a snapshot at each of these steps with all proofs that `slack` asks for. The time
            to set up is not counted.
        slack: a layer's norm is proved again where its bound has moved by more than this share.
        tolerance: relative accuracy of Lip(x) and L_eff.
        logs: called with every snapshot of `step` and `update`.
        thresholds: numbers by their names in `Snapshot.numbers`, such as {"upper": 1e3, "local_max": 20}.
        on_exceed: called as on_exceed(name, snapshot) when a number has passed its threshold from below (or was
            above at first); a Python warning if it is not given.
        seed: of the choice of samples and of random starts.
        device, dtype: of the estimates; by default where the model is, in float64 for models in
            float64 and float32 else. Bounds are float64 on the CPU.

    Attributes:
        snapshot: the last one.
        pair: the inputs that attain its `lower`.
        graph: the network at that time.
        setup_seconds: what it took to trace the model, to prove all norms and to measure twice.

    Raises:
        LipscopeError: the network cannot be imported, the data do not fit, or a threshold is of no number known.
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Source,
        *,
        input_shape: Sequence[int] | None = None,
        probes: int = 8,
        batch_size: int = 64,
        levels: Sequence[Level] = ("scalar", "unit"),
        readings: Sequence[Kind] = ("active",),
        forgetting: float = 0.9,
        every: int = 1,
        budget: float = 0.05,
        slack: float = 0.01,
        tolerance: float = 1e-2,
        logs: Sequence[Log] = (),
        thresholds: Mapping[str, float] | None = None,
        on_exceed: Alarm | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0.0 < budget <= 1.0:
            raise ValueError("budget is a share of the time, above 0 and at most 1")
        if min(probes, batch_size, every) < 1:
            raise ValueError("probes, batch_size and every must be positive")
        started = time.perf_counter()
        samples = load_samples(data, input_shape)
        if "secant" in readings and min(batch_size, len(samples)) < 2:
            raise LipscopeError("mean secant slopes need pairs: give at least two samples and batch_size 2")
        first = next(model.parameters(), torch.empty(()))
        self.dtype = dtype or (torch.float64 if first.dtype is torch.float64 else torch.float32)
        self.device = torch.device(first.device if device is None else device)
        self.levels, self.readings = tuple(levels), tuple(readings)
        self.every, self.batch_size, self.slack, self.tolerance, self.seed = (
            every, batch_size, slack, tolerance, seed
        )  # fmt: skip
        self.logs, self.on_exceed = list(logs), on_exceed
        self.thresholds = dict(thresholds or {})

        self._samples = samples
        self._chosen = samples.take(probes, seed)
        self._probes = self._chosen.batch(range(len(self._chosen)))
        self._traced = TracedModule(model, samples.shape)
        self.graph = self._traced.read()
        self._proofs = LayerProofs()
        self._running = RunningSlopes(forgetting)
        self._values = self._new_values()
        self._directions: dict[str, Tensor] = {}
        self._local: tuple[Tensor, int] | None = None
        self._above: set[str] = set()

        share = 1.0 if budget == 1.0 else budget / 2
        self._measuring, self._proving = Account(share), Account(share)
        self._expected = 0.0
        self._elapsed, self._steps, self._snapshots = 0.0, 0, 0

        self._snapshot(None, "all")
        # What is slow the first time tells little about the next, so all but the proofs is done again.
        self._values = self._new_values()
        self.forget()
        self.snapshot = self._snapshot(None, "all")
        self._snapshots = 0
        unknown = self.thresholds.keys() - self.snapshot.numbers.keys()
        if unknown:
            known = ", ".join(self.snapshot.numbers)
            raise LipscopeError(
                f"no number is called {min(unknown)}, for which a threshold is given; there are {known}"
            )
        self._measuring, self._proving = Account(share), Account(share)
        # What all proofs take is saved for from the start.
        self._proving.affords(sum(self._proofs.seconds(i) for i in range(1, len(self.graph.nodes))))
        self.setup_seconds = time.perf_counter() - started
        self._last = time.perf_counter()

    def step(self, x: Tensor | None = None) -> Snapshot | None:
        """Note that a training step was made; take a snapshot if the budget has room for it.

        Args:
            x: inputs (B, *in), such as the batch of the step: the mean slopes take the first `batch_size`
                of them. None: samples drawn from the data.

        Returns:
            The snapshot, which the logs got too; None if none was taken.

        Raises:
            ModelError: a weight is NaN or infinite (training has diverged), or the network overflows.
        """
        self._pass_time()
        self._steps += 1
        if self._steps % self.every or not self._measuring.affords(self._expected):
            return None
        return self._publish(x, "affordable")

    def update(self, x: Tensor | None = None) -> Snapshot:
        """A snapshot now, whatever it costs, with the norms of all layers that have changed proved again.

        Args:
            x: as for `step`.

        Raises:
            ModelError: as `step`.
            CertificateError: a layer's norm cannot be proved.
        """
        self._pass_time()
        return self._publish(x, "all")

    def upper(self) -> float:
        """A certified upper bound of the Lipschitz constant of the network as it is now.

        By the norms proved last and the changes since, see `certificates.drift`: a pass over the weights. Only
        layers of another form than before are proved.

        Raises:
            ModelError: as `step`.
        """
        self._pass_time()
        with self._spending(self._measuring):
            graph, _ = self._read()
            return self._proofs.bounds(graph)[0].value

    def forget(self) -> None:
        """Drop the mean slopes, as after a change of the weights that was no training."""
        self._running.keep(set())

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs, for `torch.save`.

        Proofs are not in it: what is certified is proved again by whoever goes on.
        """
        return {
            "version": _STATE_VERSION,
            "form": _form(self.graph),
            "steps": self._steps,
            "snapshots": self._snapshots,
            "elapsed": self._elapsed,
            "expected": self._expected,
            "accounts": [[a.credit, a.spent, a.dearest] for a in (self._measuring, self._proving)],
            "above": sorted(self._above),
            "directions": {name: direction.cpu() for name, direction in self._directions.items()},
            "slopes": self._running.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Load the model's own state first, and make the monitor after that.

        Raises:
            ModelError: the state is that of a network of another form, or of a newer version.
        """
        if state["version"] > _STATE_VERSION:
            raise ModelError("the monitor's state was written by a newer version: upgrade lipscope")
        if state["form"] != _form(self.graph):
            raise ModelError(
                "the monitor's state is that of another network; load it for the one it was saved with"
            )
        self._steps, self._snapshots = state["steps"], state["snapshots"]
        self._elapsed, self._expected = state["elapsed"], state["expected"]
        for account, numbers in zip((self._measuring, self._proving), state["accounts"], strict=True):
            account.credit, account.spent, account.dearest = numbers
        self._above = set(state["above"])
        self._directions = {name: d.to(self.device, self.dtype) for name, d in state["directions"].items()}
        self._running.restore(self.graph, state["slopes"], self.device)
        self._last = time.perf_counter()

    def _publish(self, x: Tensor | None, proofs: Literal["all", "affordable"]) -> Snapshot:
        self.snapshot = found = self._snapshot(x, proofs)
        for log in self.logs:
            log(found)
        numbers = found.numbers
        above = {name for name, limit in self.thresholds.items() if numbers.get(name, 0.0) > limit}
        for name in sorted(above - self._above):
            if self.on_exceed is not None:
                self.on_exceed(name, found)
            else:
                warnings.warn(
                    f"step {found.step}: {name} is {numbers[name]:.4g}, above {self.thresholds[name]:g}",
                    stacklevel=3,
                )
        self._above = above
        return found

    def _snapshot(self, x: Tensor | None, proofs: Literal["all", "affordable"]) -> Snapshot:
        started = time.perf_counter()
        with torch.no_grad():
            with self._spending(self._measuring) as spent:
                graph, traced = self._read()
                working = graph.to(self.dtype, self.device)
                products, evaluated = self._measure_local(graph, working)
                assert self._local is not None
                values, worst = self._local
                pair = self._attain(graph, worst)
                self._add_slopes(working, x)
                slopes, effective, more = self._measure_effective(working)
                bounds, computed = self._proofs.bounds(graph)
            self._expected = spent()
            with self._spending(self._proving):
                nodes = self._due(bounds, everything=proofs == "all")
                if nodes:
                    computed += self._proofs.prove(graph, nodes)
                    bounds = self._proofs.with_proofs(graph, bounds, nodes)
        self.pair = pair
        self._snapshots += 1
        total = self._elapsed + time.perf_counter() - started
        own = self._measuring.spent + self._proving.spent
        places = [node.place for node in graph.nodes]
        return Snapshot(
            step=self._steps,
            seconds=total,
            upper=bounds.value,
            drift=bounds.drift,
            lower=pair.bound,
            witness=pair.witness("monitor"),
            local_max=float(values.max()),
            local_mean=float(values.mean()),
            effective=effective,
            slopes=_by_place(places, slopes),
            share=min(1.0, own / total),
            proved=[places[i] for i in computed],
            evaluated=[places[i] for i in evaluated],
            traced=traced,
            cost=Cost(
                seconds=time.perf_counter() - started,
                forward_passes=float(2 * (products * len(values) + more) + 6),
            ),
        )

    def _new_values(self) -> ProbeValues:
        """Nothing is known yet of the values at the probes."""
        return ProbeValues(self._probes.to(self.device, self.dtype))

    def _read(self) -> tuple[Graph, bool]:
        """The network as it is now, and whether it was traced for that."""
        before, traces = self.graph, self._traced.traces
        self.graph = graph = self._traced.read()
        if self._traced.traces == traces:
            return graph, False
        kept = same_form(before, graph)
        self._proofs.keep(kept)
        self._running.keep(kept)
        return graph, True

    def _measure_local(self, graph: Graph, working: Graph) -> tuple[int, list[int]]:
        """Lip(x) at the probes into `_local`, where anything has changed; products with J, and nodes evaluated."""
        y, slopes, evaluated = self._values.evaluate(graph, working)
        if not evaluated and self._local is not None:
            return 0, []
        if not bool(y.isfinite().all()):
            raise ModelError(f"the network overflows at a probe in {str(self.dtype).removeprefix('torch.')}")
        values, products = self._norm("local", working, slopes, len(y))
        self._local = values.cpu().double(), int(values.argmax())
        return products, evaluated

    def _attain(self, graph: Graph, worst: int) -> Pair:
        """A pair beside the steepest probe, re-evaluated in float64."""
        direction = self._directions["local"][worst]
        if not bool(direction.any()):
            direction = torch.ones_like(direction)  # nothing is stretched: any pair will do
        x, name = self._probes[worst], self._chosen.names[worst]
        return pair_along(graph, x, direction, name, lengths=(_STEP_LENGTH,))

    def _add_slopes(self, working: Graph, x: Tensor | None) -> None:
        if x is None:
            generator = np.random.default_rng([self.seed, self._snapshots])
            count = min(self.batch_size, len(self._samples))
            x = self._samples.batch(generator.choice(len(self._samples), count, replace=False).tolist())
        if tuple(x.shape[1:]) != working.input_shape:
            raise ValueError(
                f"inputs of shape {tuple(x.shape[1:])}, not {working.input_shape}, given to the monitor"
            )
        batch = x[: self.batch_size].detach().to(self.device, self.dtype)
        pairs = len(batch) // 2
        run = PairRun(0, pairs, pairs)
        runs = [run] if "secant" in self.readings and pairs else []
        _, active, secant = slope_totals(working, batch, runs, points="active" in self.readings)
        self._running.add("active", active, len(batch))
        if runs:
            self._running.add("secant", secant[run], pairs)

    def _measure_effective(self, working: Graph) -> tuple[dict[int, AveragedSlope], dict[str, float], int]:
        """The running means of the first reading, every L_eff, and the products with J."""
        means = {reading: self._running.mean(reading) for reading in self.readings}
        found, products = {}, 0
        for reading, slopes in means.items():
            if slopes.keys() != working.nonlinear().keys():
                continue  # no pair was seen since the network changed
            for level in self.levels:
                name = f"{level}_{reading}"
                coarse = {i: slope.coarsened(level) for i, slope in slopes.items()}
                cast: Slopes = {
                    i: slope.with_values(slope.values.to(self.device, self.dtype))
                    for i, slope in coarse.items()
                }
                value, count = self._norm(name, working, cast, 1)
                found[name] = float(value)
                products += count
        return means[self.readings[0]] if self.readings else {}, found, products

    def _norm(self, name: str, working: Graph, slopes: Slopes, batch: int) -> tuple[Tensor, int]:
        """The norms of Jacobians, from the directions found under that name before; products with J an operator."""
        known = self._directions.get(name)
        found = spectral_norm(
            linearize(working, slopes, batch),
            tolerance=self.tolerance,
            block=_BLOCK,
            start=None if known is None else known[None],
            seed=self.seed + self._snapshots,
            dtype=self.dtype,
            device=self.device,
        )
        self._directions[name] = found.right
        return found.value, found.steps * _BLOCK

    def _due(self, bounds: DriftBounds, everything: bool) -> list[int]:
        """The layers to prove now: those that have moved most, as far as the budget goes."""
        # A bound that has fallen with its layer may be as loose as one that has risen.
        moved = {i: max(d, 1 / d) if d > 0 else math.inf for i, d in bounds.drifts.items()}
        order = sorted(moved, key=lambda i: -moved[i])
        if everything:
            return [i for i in order if moved[i] > 1.0]
        due, cost = [], 0.0
        for index in order:
            cost += self._proofs.seconds(index)
            # The one that has moved most is waited for: the bound is a product.
            if moved[index] <= 1.0 + self.slack or not self._proving.affords(cost):
                break
            due.append(index)
        return due

    def _pass_time(self) -> None:
        """Book the time since the last call of the monitor."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        self._elapsed += passed
        for account in (self._measuring, self._proving):
            account.earn(passed)

    @contextmanager
    def _spending(self, account: Account) -> Iterator[Callable[[], float]]:
        """Charge an account with the time of the block; gives a function that tells it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what training still has to do is not the monitor's
        started = time.perf_counter()
        seconds = math.nan
        try:
            yield lambda: seconds
        finally:
            seconds = time.perf_counter() - started
            account.spend(seconds)


def _by_place(places: Sequence[str], slopes: Mapping[int, AveragedSlope]) -> dict[str, float]:
    """Mean slopes p_k by place, pooling left out; one that is used again (a module called twice) is numbered."""
    found: dict[str, float] = {}
    uses: Counter[str] = Counter()
    for index, slope in sorted(slopes.items()):
        place, fraction = places[index], slope.fraction
        if fraction is not None:
            uses[place] += 1
            found[place if uses[place] == 1 else f"{place} #{uses[place]}"] = fraction
    return found


def _form(graph: Graph) -> str:
    """SHA-256 of the types, shapes and connections of all layers."""
    parts = [(type(node.layer).__name__, node.inputs, node.shape) for node in graph.nodes]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
