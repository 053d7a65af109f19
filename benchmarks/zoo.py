"""Every classification network of torchvision, at full size: imported, bounded from both sides, measured.

    make zoo                                 # a model or two of each family, in an environment of its own
    python benchmarks/zoo.py --all --data FOLDER
    python benchmarks/zoo.py resnet50 vit_b_16
    python benchmarks/zoo.py --table         # writes docs/coverage.md from what has been run

Each model runs in a process of its own, --jobs of them at once, and leaves its result in runs/zoo/NAME.json; one
that has finished is not run again. Weights are torchvision's initialisation from a fixed seed, or its trained
ones with --weights (downloaded by torchvision). Running statistics of batch norm that nothing has trained are zeros
and ones; they are set to those of the samples.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

import lipscope
from lipscope.data import ImagePreprocessing, Samples, load_samples
from lipscope.graph import from_torch
from lipscope.layers.base import TORCH_RULES
from lipscope.report.format import number

DEFAULT = (
    "alexnet",
    "vgg11_bn",
    "vgg16",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "squeezenet1_1",
    "densenet121",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "mnasnet1_0",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "swin_v2_t",
    "maxvit_t",
)
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
    network = torchvision.models.get_model(name, **settings).eval()
    for head in ("aux1", "aux2", "AuxLogits"):  # of training alone
        if hasattr(network, head):
            setattr(network, head, None)
    for part in network.modules():
        if isinstance(part, nn.Linear) and not bool(part.weight.any()):
            nn.init.trunc_normal_(part.weight, std=0.02)  # vision transformers start with a head of zeros
    return network


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


class Record(BaseModel):
    """What is kept of a model: both ends of its bracket, and what lies between on the samples."""

    name: str
    weights: Literal["trained", "random"]
    parameters: int
    layers: int
    upper: float
    no_bound: str | None
    lower: float
    empirical: float
    mean_local: float
    max_local: float
    effective_active: float
    effective_secant: float
    import_seconds: float
    bound_seconds: float | None = None
    seconds: float
    gigabytes: float
    environment: str

    model_config = ConfigDict(ser_json_inf_nan="strings")

    def row(self) -> str:
        """The model's line of the table."""
        cells = [
            self.name + (" *trained*" if self.weights == "trained" else ""),
            f"{self.parameters:,}",
            str(self.layers),
            number(self.upper, "upper") if self.no_bound is None else f"∞: {self.no_bound}",
            number(self.lower, "lower"),
            number(self.empirical, "lower"),
            f"{number(self.mean_local)}, {number(self.max_local)}",
            f"{number(self.effective_active)}, {number(self.effective_secant)}",
            f"{self.import_seconds:.0f}",
            "–" if self.bound_seconds is None else f"{self.bound_seconds:.0f}",
            f"{self.seconds:.0f}",
            f"{self.gigabytes:.1f}",
            self.environment,
        ]
        return f"| {' | '.join(cells)} |"


def run(name: str, arguments: argparse.Namespace) -> Record:
    """Import and measure one model."""
    started = time.perf_counter()
    side = _SIDES.get(name, 224)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = ImagePreprocessing(size=(side, side), mean=mean, std=std, resize=round(side * 256 / 224))
    samples = load_samples(arguments.data, (3, side, side), images).take(arguments.samples, 0)
    network = build(name, arguments.weights)
    if not arguments.weights:
        calibrate(network, samples)
    clock = time.perf_counter()
    graph = from_torch(network, samples.shape)
    importing = time.perf_counter() - clock
    parameters = sum(p.numel() for p in network.parameters())
    del network
    clock = time.perf_counter()
    upper = lipscope.analytical(graph)
    bounding = time.perf_counter() - clock
    device = arguments.device
    local, _ = lipscope.local(graph, samples, tolerance=1e-2, batch_size=2, device=device)
    pairwise = lipscope.empirical(graph, samples, batch_size=2, device=device)
    assert pairwise is not None
    pairs = len(samples) * (len(samples) - 1) // 2
    means = lipscope.mean_slopes(graph, samples, pairs=pairs, batch_size=4, device=device)
    active, direction = lipscope.effective(means, "unit", "active")
    secant, _ = lipscope.effective(means, "unit", "secant", start=direction)
    return Record(
        name=name,
        weights="trained" if arguments.weights else "random",
        parameters=parameters,
        layers=len(graph.nodes) - 1,
        upper=upper.value,
        no_bound=None if upper.no_bound is None else upper.no_bound.reason,
        lower=max(local.value, pairwise[0].value),
        empirical=pairwise[0].value,
        mean_local=local.mean,
        max_local=max(local.estimates),
        effective_active=active.value,
        effective_secant=secant.value,
        import_seconds=importing,
        bound_seconds=bounding,
        seconds=time.perf_counter() - started,
        gigabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        environment=environment(arguments.device),
    )


def environment(device: str) -> str:
    """The versions and the device that a result is of."""
    import torchvision

    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}, {where}"


def run_all(names: list[str], arguments: argparse.Namespace) -> None:
    """One process a model, `arguments.jobs` at once, a line each."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for line in pool.map(lambda name: run_alone(name, arguments), names):
            print(line, flush=True)


def run_alone(name: str, arguments: argparse.Namespace) -> str:
    """One model in a process of its own, and a line about it."""
    path = _FOLDER / f"{name}.json"
    if path.exists() and not arguments.again:
        return f"{name:22s} done before"
    command = [
        sys.executable,
        __file__,
        "--child",
        name,
        "--data",
        arguments.data,
        "--device",
        arguments.device,
    ]
    command += ["--samples", str(arguments.samples)] + ["--weights"] * arguments.weights
    clock = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit)
        lines = (done.stderr.strip() or "no message").splitlines()
        failure = "" if done.returncode == 0 else lines[-1]
    except subprocess.TimeoutExpired:
        failure = f"stopped after {arguments.limit:g} seconds"
    if failure:
        path.with_suffix(".txt").write_text(failure)
    return f"{name:22s} {time.perf_counter() - clock:6.0f} s  {failure or summary(path)}"


def summary(path: Path) -> str:
    """The bracket in a line."""
    record = Record.model_validate_json(path.read_text())
    return f"{number(record.lower)} ≤ L ≤ {number(record.upper)}, mean Lip(x) {number(record.mean_local)}"


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
        "| import s | bound s | all s | GB | ran on |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(_FOLDER.glob("*.*")):
        if path.suffix == ".json":
            lines.append(Record.model_validate_json(path.read_text()).row())
        elif not path.with_suffix(".json").exists():
            lines.append(f"| {path.stem} | {path.read_text()[:200]} |" + " |" * 11)
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
    parser.add_argument("--device", default="cpu", help="where the estimates are computed")
    parser.add_argument("--jobs", type=int, default=1, help="models at once")
    parser.add_argument("--limit", type=float, default=1800, help="seconds a model may take")
    parser.add_argument("--again", action="store_true", help="run finished models again")
    parser.add_argument("--table", action="store_true", help="write docs/coverage.md and stop")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        _TABLE.write_text(table(), encoding="utf-8")
    elif arguments.child:
        record = run(arguments.names[0], arguments)
        _FOLDER.mkdir(parents=True, exist_ok=True)
        (_FOLDER / f"{record.name}.json").write_text(record.model_dump_json())
    else:
        names = arguments.names or list(DEFAULT)
        if arguments.all:
            import torchvision

            names = torchvision.models.list_models(module=torchvision.models)
        run_all(names, arguments)


if __name__ == "__main__":
    main()
