"""A device beside the CPU: the same estimates of AlexNet's trunk on both, and what the device makes possible.

Usage: python benchmarks/devices.py --device cuda [--data FOLDER] [--state WEIGHTS] [--samples 48] [--full 10000]

Every quantity is computed on the CPU and on the device in one process, from the same samples and seed: both values,
their relative difference, both times. Then, on the device alone, the level `full` and the second moment over --full
pairs of samples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shared import row

import lipscope

WIDTHS = (26, 12, 12, 12, 10, 10, 8)


def timed(job: Callable[[], Any], device: str) -> tuple[Any, float]:
    clock = time.perf_counter()
    found = job()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return found, time.perf_counter() - clock


def quantities(graph: lipscope.Graph, samples: lipscope.Samples) -> dict[str, Callable[[str], float]]:
    """By name, the estimate as a function of the device."""

    def slopes(device: str) -> lipscope.MeanSlopes:
        return lipscope.mean_slopes(graph, samples, pairs=200, seed=1, device=device)

    return {
        "max Lip(x), float32": lambda device: lipscope.local(graph, samples, device=device)[0].value,
        "mean Lip(x), float64": lambda device: (
            lipscope.local(graph, samples, limit=8, dtype=torch.float64, device=device)[0].mean
        ),
        "L_emp": lambda device: pairwise(graph, samples, device),
        "L_eff unit, active": lambda device: lipscope.effective(slopes(device), "unit", "active")[0].value,
        "L_eff scalar, secant": lambda device: (
            lipscope.effective(slopes(device), "scalar", "secant")[0].value
        ),
    }


def pairwise(graph: lipscope.Graph, samples: lipscope.Samples, device: str) -> float:
    found = lipscope.empirical(graph, samples, device=device)
    assert found is not None
    return found[0].value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", default="demo")
    parser.add_argument(
        "--state", type=Path, help="the trunk's weights; by default those that lipscope fetches"
    )
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument(
        "--full", type=int, default=10_000, help="Jacobians of the level full; 0 leaves it out"
    )
    arguments = parser.parse_args()
    loaded = lipscope.load_model("alexnet-trunk", arguments.state)
    everything = lipscope.load_samples(arguments.data, loaded.input_shape, loaded.preprocessing)
    samples = everything.take(min(arguments.samples, len(everything)), 0)
    graph = lipscope.from_torch(loaded.module, samples.shape)
    where = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else arguments.device
    print(f"AlexNet's trunk, {len(samples)} samples; cpu ({torch.get_num_threads()} threads) beside {where}")
    row(WIDTHS, "", "cpu", where[:12], "difference", "cpu s", "device s", "cpu/dev")
    for name, job in quantities(graph, samples).items():
        timed(lambda: job(arguments.device), arguments.device)  # noqa: B023 (called at once; the first call warms up)
        mine, mine_seconds = timed(lambda: job(arguments.device), arguments.device)  # noqa: B023
        theirs, seconds = timed(lambda: job("cpu"), "cpu")  # noqa: B023
        difference = abs(mine - theirs) / theirs
        row(WIDTHS, name, theirs, mine, f"{difference:.1e}", seconds, mine_seconds, seconds / mine_seconds)
    if not arguments.full:
        return
    print(f"\nlevel full and second moment over {arguments.full} pairs of {len(everything)} samples, {where}")
    held = lipscope.load_samples(everything.batch(range(len(everything))))  # decoded once, not at every pass
    means = lipscope.mean_slopes(graph, held, pairs=200, batch_size=128, device=arguments.device)
    options: dict[str, Any] = {"pairs": arguments.full, "batch_size": 256, "device": arguments.device}
    for name, job in {
        "‖E[J]‖": lambda: lipscope.mean_jacobian_norm(means, held, "secant", **options),
        "√λ_max E[JᵀJ]": lambda: lipscope.second_moment(graph, held, "secant", **options)[0],
    }.items():
        found, seconds = timed(job, arguments.device)
        print(
            f"  {name:16s} {found.value:.4f} ± {found.standard_error or 0:.4f}, relative error "
            f"{found.relative_error:.1e}, {found.cost.forward_passes:,.0f} passes, {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
