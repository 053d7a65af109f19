"""Every classification network of torchvision, at full size: imported, bounded from both sides, measured.

    make zoo                                 # a model or two of each family, in an environment of its own
    python benchmarks/zoo.py --all --data FOLDER
    python benchmarks/zoo.py resnet50 vit_b_16
    python benchmarks/zoo.py --table         # writes docs/coverage.md from what has been run

Each model runs in a process of its own and leaves its result in runs/zoo/NAME; one that has finished is
not run again. Weights are torchvision's initialisation from a fixed seed, or its trained ones with --weights
(downloaded by torchvision). Running statistics of batch norm that nothing has trained are zeros and ones; they
are set to those of the samples.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lipscope.analysis import Options, analyze
from lipscope.data import ImagePreprocessing, Samples, load_samples
from lipscope.graph import from_torch
from lipscope.layers.base import TORCH_RULES
from lipscope.report.format import number
from lipscope.results import Result

DEFAULT = (
    "alexnet", "vgg11_bn", "vgg16", "resnet18", "resnet50", "resnext50_32x4d",
    "wide_resnet50_2", "squeezenet1_1", "densenet121", "googlenet", "inception_v3", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_v2_s", "mnasnet1_0",
    "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t",
    "maxvit_t",
)  # fmt: skip
_ROOT = Path(__file__).resolve().parent.parent
_FOLDER = Path("runs") / "zoo"
_TABLE = _ROOT / "docs" / "coverage.md"
_SIDES = {"inception_v3": 299, "swin_v2_t": 256, "swin_v2_s": 256, "swin_v2_b": 256}


def build(name: str, weights: bool) -> nn.Module:
    """The network in evaluation mode."""
    import torchvision

    torch.manual_seed(0)
    settings: dict[str, Any] = {"weights": "DEFAULT" if weights else None}
    if name in ("googlenet", "inception_v3") and not weights:
        settings["init_weights"] = True
    return torchvision.models.get_model(name, **settings).eval()


def calibrate(network: nn.Module, samples: Samples) -> None:
    """Set the running statistics of batch norm to those of the samples."""
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for part in norms:
        part.reset_running_stats()
        part.momentum = None
        part.train()
    with torch.no_grad():
        network(samples.batch(range(len(samples))))
    network.eval()


def run(name: str, arguments: argparse.Namespace) -> None:
    """Analyse one model; the result goes to its folder."""
    side = _SIDES.get(name, 224)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = ImagePreprocessing(size=(side, side), mean=mean, std=std, resize=round(side * 256 / 224))
    samples = load_samples(arguments.data, (3, side, side), images).take(arguments.samples, 0)
    network = build(name, arguments.weights)
    if not arguments.weights:
        calibrate(network, samples)
    clock = time.perf_counter()
    graph = from_torch(network, samples.shape)
    seconds = time.perf_counter() - clock
    del network
    options = Options(
        pairs=arguments.samples * (arguments.samples - 1) // 2,
        jacobians=0,
        effort="none",
        batch_size=2,
        tolerance=1e-2,
    )
    output = _FOLDER / name
    analyze(graph, samples, output=output, name=name, options=options)
    kinds = sorted({node.layer.kind for node in graph.nodes if node.layer is not None})
    about = {"weights": "trained" if arguments.weights else "random", "import": seconds, "kinds": kinds}
    (output / "zoo.json").write_text(json.dumps(about))


def run_all(names: list[str], arguments: argparse.Namespace) -> None:
    """One process a model, a line each."""
    for name in names:
        folder = _FOLDER / name
        if (folder / "zoo.json").exists() and not arguments.again:
            print(f"{name:22s} done before", flush=True)
            continue
        command = [sys.executable, __file__, "--child", name, "--data", arguments.data]
        command += ["--samples", str(arguments.samples)] + ["--weights"] * arguments.weights
        clock = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit)
            lines = (done.stderr.strip() or "no message").splitlines()
            failure = "" if done.returncode == 0 else lines[-1]
        except subprocess.TimeoutExpired:
            failure = f"stopped after {arguments.limit} seconds"
        outcome = failure or summary(folder)
        if failure:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "failure.txt").write_text(failure)
        print(f"{name:22s} {time.perf_counter() - clock:6.0f} s  {outcome}", flush=True)


def summary(folder: Path) -> str:
    """The bracket in a line."""
    result = Result.from_json((folder / "result.json").read_text())
    return f"{number(result.lower)} ≤ L ≤ {number(result.upper)}, mean Lip(x) {number(result.local.mean)}"


def effective(result: Result, level: str, reading: str) -> float:
    """L_eff at one level and reading."""
    return next(q.value for q in result.effective if (q.level, q.reading) == (level, reading))


def row(folder: Path) -> str:
    """A finished model's line of the table."""
    result = Result.from_json((folder / "result.json").read_text())
    about = json.loads((folder / "zoo.json").read_text())
    upper, local, run = number(result.upper, "upper"), result.local, result.provenance
    if math.isinf(result.upper) and result.no_bound is not None:
        upper = f"∞: {result.no_bound.reason}"
    cells = [
        result.model.name + (" *trained*" if about["weights"] == "trained" else ""),
        f"{result.model.parameters:,}",
        str(result.model.layers),
        upper,
        number(result.lower, "lower"),
        number(result.empirical.value, "lower") if result.empirical else "–",
        f"{number(local.mean)}, {number(max(local.estimates))}",
        f"{number(effective(result, 'unit', 'active'))}, {number(effective(result, 'unit', 'secant'))}",
        f"{about['import']:.0f}",
        f"{run.seconds:.0f}",
        f"{run.peak_memory_bytes / 1e9:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The page docs/coverage.md."""
    lines = [
        "# Coverage",
        "",
        "Written by `python benchmarks/zoo.py --table` from the runs of `make zoo`; not by hand.",
        "",
        "## Networks",
        "",
        "torchvision's classification networks at full size. Weights are random (torchvision's initialisation, seed 0, "
        "running statistics of batch norm set to those of the samples) unless marked *trained*, so the numbers say that "
        "the tool handles the architecture, not how steep a trained network is. `upper` is the analytical bound, "
        "certified; `lower` is attained. A network without a global constant has a bound over balls of inputs "
        "(`lipscope certify MODEL --ball CENTER RADIUS`). ∞ names the first layer without a constant.",
        "",
        "| network | parameters | layers | upper | lower | L_emp | Lip(x) mean, max | L_eff unit (active, secant) "
        "| import s | all s | GB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for folder in sorted(_FOLDER.iterdir()) if _FOLDER.exists() else []:
        if not (folder / "zoo.json").exists():
            if (folder / "failure.txt").exists():
                lines.append(f"| {folder.name} | {(folder / 'failure.txt').read_text()[:200]} |" + " |" * 9)
            continue
        lines.append(row(folder))
    lines += [
        "",
        "## Operations",
        "",
        "What `torch.export` calls them, by the file in `src/lipscope/layers/` that imports them.",
        "",
    ]
    files: dict[str, list[str]] = {}
    for op, rule in TORCH_RULES.items():
        files.setdefault(rule.__module__.rsplit(".", 1)[-1], []).append(
            op.removeprefix("aten.").removesuffix(".default")
        )
    lines += ["| file | operations |", "|---|---|"]
    lines += [
        f"| `{file}.py` | {', '.join(f'`{op}`' for op in sorted(ops))} |"
        for file, ops in sorted(files.items())
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="models; a selection by default")
    parser.add_argument("--all", action="store_true", help="all classification models of torchvision")
    parser.add_argument("--weights", action="store_true", help="trained weights, downloaded by torchvision")
    parser.add_argument("--data", default="demo", help="images, as for lipscope analyze")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--limit", type=float, default=1800, help="seconds a model may take")
    parser.add_argument("--again", action="store_true", help="run finished models again")
    parser.add_argument("--table", action="store_true", help="write docs/coverage.md and stop")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        _TABLE.write_text(table(), encoding="utf-8")
    elif arguments.child:
        run(arguments.names[0], arguments)
    else:
        names = arguments.names or list(DEFAULT)
        if arguments.all:
            import torchvision

            names = torchvision.models.list_models(module=torchvision.models)
        run_all(names, arguments)


if __name__ == "__main__":
    main()
