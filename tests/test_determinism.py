"""The same seed gives the same result: bit for bit on one machine and number of threads, else within a tolerance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import lipscope

# What varies from run to run.
CLOCK = {"seconds", "started", "peak_memory_bytes", "threads"}
# Of results with another number of threads: sums are rounded in another order.
TOLERANCE = {"upper": 1e-9, "lower": 1e-6, "estimate": 1e-4}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, 20),
        nn.GELU(), nn.Linear(20, 4),
    ).eval()  # fmt: skip


def results(threads: int, seed: int = 0) -> dict[str, Any]:
    """What `analyze` and `inspect` find, on so many threads."""
    x = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    options = lipscope.Options(pairs=10, jacobians=4, local_samples=4, effort="fast", seconds=0.0, seed=seed)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        graph = lipscope.from_torch(network(), (3, 10, 10))
        found = {
            "analyze": lipscope.analyze(graph, x, options=options),
            "inspect": lipscope.inspect(graph, data=x, seed=seed),
        }
    finally:
        torch.set_num_threads(before)
    return {name: without_clock(json.loads(record.to_json())) for name, record in found.items()}


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clock(held) for key, held in value.items() if key not in CLOCK}
    return [without_clock(held) for held in value] if isinstance(value, list) else value


def values(record: Any) -> Iterator[tuple[str, float]]:
    """The values of all quantities, each with its kind."""
    if isinstance(record, dict):
        if "kind" in record and "value" in record:
            yield record["kind"], float(record["value"])
        for held in record.values():
            yield from values(held)
    elif isinstance(record, list):
        for held in record:
            yield from values(held)


@pytest.fixture(scope="module")
def once() -> dict[str, Any]:
    return results(1)


def test_the_same_again_bit_for_bit(once: dict[str, Any]) -> None:
    assert results(1) == once


def test_another_number_of_threads_within_the_tolerance(once: dict[str, Any]) -> None:
    for (kind, value), (other, again) in zip(values(once), values(results(2)), strict=True):
        assert kind == other
        assert math.isclose(value, again, rel_tol=TOLERANCE[kind]), kind


def test_another_seed_changes_estimates_but_no_proof(once: dict[str, Any]) -> None:
    other = results(1, seed=7)
    assert other != once
    uppers = [[value for kind, value in values(found) if kind == "upper"] for found in (once, other)]
    assert uppers[0] == pytest.approx(uppers[1], rel=1e-9)
