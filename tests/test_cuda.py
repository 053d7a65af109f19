"""The estimates on a CUDA device against those on the CPU; certificates and witnesses stay on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipscope
from helpers import real_command

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 5),
        nn.LayerNorm(5), nn.Softmax(-1),
    ).eval()  # fmt: skip


def samples() -> Tensor:
    return torch.randn(24, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_quantities_agree(dtype: torch.dtype, tolerance: float) -> None:
    graph, data = lipscope.from_torch(network(), (1, 12, 12)), lipscope.load_samples(samples())
    found: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        where: dict[str, Any] = {"dtype": dtype, "device": device}
        local, _ = lipscope.local(graph, data, tolerance=1e-10, **where)
        pairwise = lipscope.empirical(graph, data, device=device)
        assert pairwise is not None
        means = lipscope.mean_slopes(graph, data, pairs=60, **where)
        levels = [
            lipscope.effective(means, level, reading)[0].value
            for level in ("scalar", "channel", "unit")
            for reading in ("active", "secant")
        ]
        full = lipscope.mean_jacobian_norm(means, data, "secant", pairs=60, **where)
        moment, _ = lipscope.second_moment(graph, data, "active", **where)
        found[device] = [*local.estimates, local.value, pairwise[0].value, *levels, full.value, moment.value]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=tolerance)


def test_command_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))\n"
    )
    np.save(tmp_path / "x.npy", samples().numpy())
    numbers = []
    for device in ("cpu", "cuda"):
        run = tmp_path / device
        done = real_command(
            "analyze", f"{tmp_path / 'net.py'}:build", "--data", str(tmp_path / "x.npy"), "--effort", "none",
            "--jacobians", "8", "--pairs", "50", "--device", device, "--output", str(run),
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result = json.loads((run / "result.json").read_text())
        numbers.append([result["lower"], result["upper"], *(level["value"] for level in result["effective"])])
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-4)
