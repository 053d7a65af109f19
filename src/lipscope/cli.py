"""The command line: `lipscope analyze MODEL --data DIR_OR_FILE`, and small helpers.

Heavy imports happen inside the commands, so that `lipscope --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from ._version import __version__
from .errors import CertificateError, DataError, LipscopeError, RunFolderError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from .data import ImagePreprocessing
    from .models import LoadedModel
    from .progress import Progress
    from .results import Result

app = typer.Typer(
    name="lipscope",
    help="How much can a trained network stretch its input? "
    "Certified from above, attained from below, effectively on your data.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> NoReturn:
    """Entry point: errors a user can cause end in one sentence and their exit code."""
    try:
        app(standalone_mode=True)
    except LipscopeError as error:
        _say(f"[bold red]error:[/] {_escaped(str(error))}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say("[bold]interrupted[/]: the same command goes on where this run stopped")
        sys.exit(130)
    sys.exit(0)


def _version(shown: bool) -> None:
    if shown:
        print(f"lipscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


State = Annotated[Path | None, typer.Option(help="Weights to load: a .safetensors, .pt or .pth state dict.")]
Effort = Annotated[
    Literal["none", "fast", "balanced", "tight"],
    typer.Option(help="How long is spent on the certificate: about 20 s, 4 min or 20 min at full size."),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        help="Time to optimise the certificate, instead of the effort's own; proofs come on top.",
        min=0,
        max=1e7,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all random choices.")]


@app.command()
def analyze(
    model: Annotated[
        str,
        typer.Argument(
            help="A built-in network (see `lipscope models`), an exported program (.pt2), an .onnx file, or "
            "`module:callable` / `file.py:callable`, a function without arguments that returns a torch module."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="A folder of images, an image, an .npy, .npz, .safetensors or .pt file of samples "
            "(first dimension), a Hugging Face data set on disk, `module:callable` or `file.py:callable`, "
            "or `demo` for the built-in photographs."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run folder for result.json, report.html and the witnesses; an interrupted run goes on from it. "
            "Default: a folder under runs/ named after model, data and options."
        ),
    ] = None,
    state: State = None,
    input_shape: Annotated[
        str | None,
        typer.Option(help="Per-sample input shape, such as 3x224x224. Default: the model's or the data's."),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Image normalisation: means per channel in 0..1, such as 0.485,0.456,0.406."),
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Image normalisation: standard deviations per channel.")
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(help="Resize the shorter side of images to this before the centre crop.", min=1),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Use only this many samples, chosen at random with --seed.", min=1)
    ] = None,
    pairs: Annotated[
        int, typer.Option(help="Random pairs of samples behind the mean secant slopes.", min=1)
    ] = 10_000,
    jacobians: Annotated[
        int,
        typer.Option(
            help="Jacobians, at samples and over pairs, behind the level `full` and the second moment; "
            "each costs about 60 forward passes in all. 0 leaves them out.",
            min=0,
        ),
    ] = 128,
    local_samples: Annotated[
        int,
        typer.Option(
            help="The most samples at which Lip(x) is computed (about 30 forward passes each).", min=1
        ),
    ] = 1000,
    effort: Effort = "balanced",
    seconds: Seconds = None,
    tolerance: Annotated[
        float, typer.Option(help="Relative accuracy of Lip(x) at each sample.", min=1e-12, max=0.5)
    ] = 1e-3,
    batch_size: Annotated[
        int, typer.Option(help="Samples treated at once; memory grows with it.", min=1)
    ] = 16,
    seed: Seed = 0,
    device: Annotated[
        str, typer.Option(help="Where the estimates are computed: cpu, cuda, cuda:1, mps.")
    ] = "cpu",
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16", "float16"],
        typer.Option(help="Precision of the estimates; certificates and witnesses are always float64."),
    ] = "float32",
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where passes over the data run: in this process, or on a Ray cluster."),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Threads that decode images; on `--engine ray`, processes of a cluster started here.", min=1
        ),
    ] = None,
) -> None:
    """Analyse a network on a data set: certified upper, attained lower and effective constants.

    Prints the table, and writes result.json, report.html and the witness inputs to the run folder.

    [bold]Examples[/]

      lipscope analyze alexnet-trunk --data demo

      lipscope analyze alexnet-trunk --data photos/ --output runs/photos

      lipscope analyze my_model.py:build --state weights.safetensors --data test.npy
    """
    from .analysis import Options, analyze, default_output
    from .data import load_samples
    from .engines import engine_named

    options = Options(
        pairs, jacobians, local_samples, effort, seconds, tolerance, batch_size, seed, device, dtype
    )
    loaded, shape = _loaded(model, state, input_shape)
    preprocessing = _preprocessing(loaded, shape, mean, std, resize)
    inputs = load_samples(data, shape, preprocessing, workers=workers if engine == "local" else None)
    if samples is not None and samples < len(inputs):
        inputs = inputs.take(samples, seed)
    asked = {"model": model, "state": str(state), "data": data, "shape": shape, "samples": samples,
             "mean": mean, "std": std, "resize": resize, "options": repr(options)}  # fmt: skip
    folder = output or default_output(loaded.name, data, asked)
    with engine_named(engine, workers, device) as where, _progress_bars() as progress:
        result = analyze(
            loaded.module,
            inputs,
            name=loaded.name,
            output=folder,
            options=options,
            engine=where,
            progress=progress,
        )
    _show(result)
    _say(f"\nwrote {_escaped(str(folder / 'result.json'))} and {_escaped(str(folder / 'report.html'))}")


@app.command()
def certify(
    model: Annotated[str, typer.Argument(help="The network, as for `analyze`.")],
    ball: Annotated[
        tuple[str, float] | None,
        typer.Option(
            metavar="CENTER RADIUS",
            help="Only inputs within RADIUS of CENTER: an image or a file of one sample, or `zeros`.",
        ),
    ] = None,
    ball_norm: Annotated[Literal["2", "inf"], typer.Option(help="The norm of the ball.")] = "2",
    norm: Annotated[Literal["2", "1", "inf"], typer.Option(help="The norm ℓ_q of inputs and outputs.")] = "2",
    effort: Effort = "balanced",
    seconds: Seconds = None,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--no-exact",
            help="Search for the exact constant by branch and bound. Default: for up to 60 piecewise-linear units.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run folder for bracket.json, the certificate and the witnesses. Default: a folder under runs/."
        ),
    ] = None,
    state: State = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Per-sample input shape, such as 3x224x224. Default: the model's.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Bracket a network's Lipschitz constant without data: certified from above, attained from below.

    [bold]Examples[/]

      lipscope certify alexnet-trunk --effort fast

      lipscope certify net.py:build --input-shape 20 --norm inf --exact

      lipscope certify net.py:build --ball photo.jpg 0.1
    """
    from .analysis import default_output
    from .brackets import BallOptions, bracket
    from .report import print_bracket

    loaded, shape = _loaded(model, state, input_shape)
    if shape is None:
        raise DataError("the model's --input-shape is needed, such as 3x224x224")
    over = None
    if ball is not None:
        over = BallOptions(_center(ball[0], shape, loaded), ball[1], ball_norm, ball[0])
    asked = {"certify": model, "state": str(state), "shape": shape, "ball": ball, "ball_norm": ball_norm,
             "norm": norm, "effort": effort, "seconds": seconds, "exact": exact, "seed": seed}  # fmt: skip
    folder = output or default_output(loaded.name, "bracket", asked)
    with _progress_bars() as progress:
        found = bracket(
            loaded.module, shape, norm=norm, over=over, effort=effort, seconds=seconds, search=exact,
            output=folder, name=loaded.name, seed=seed, progress=progress,
        )  # fmt: skip
    print_bracket(found, _console(error=False))
    _say(f"\nwrote {_escaped(str(folder / 'bracket.json'))}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="The network, as for `analyze`.")],
    data: Annotated[
        str | None,
        typer.Option(help="Samples, as for `analyze`: the loss is measured at the most sensitive of them."),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Use at most so many samples, chosen at random with --seed.", min=1)
    ] = 64,
    sort: Annotated[
        Literal["order", "slack"],
        typer.Option(help="List layers in the network's order, or those that lose most first."),
    ] = "order",
    top: Annotated[int, typer.Option(help="List only so many layers, those that lose most.", min=1)] = 40,
    everything: Annotated[
        bool, typer.Option("--all", help="List all layers, those that do nothing too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print inspect.json instead of the table.")] = False,
    effort: Effort = "none",
    seconds: Seconds = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run folder for inspect.json, the certificate and the witness. Default: a folder under runs/."
        ),
    ] = None,
    state: State = None,
    input_shape: Annotated[
        str | None,
        typer.Option(help="Per-sample input shape, such as 3x224x224. Default: the model's or the data's."),
    ] = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="Where points are searched: cpu, cuda, cuda:1, mps.")] = "cpu",
) -> None:
    """Show a network layer by layer: shapes, certified norms, slopes, and where the bound loses most.

    Without data and with --effort none, the loss is measured at a Gaussian point.

    [bold]Examples[/]

      lipscope inspect alexnet-trunk --data photos/

      lipscope inspect net.py:build --input-shape 20 --effort fast --sort slack --top 10
    """
    from .analysis import default_output
    from .data import load_samples
    from .inspection import inspect
    from .report import print_inspection

    loaded, shape = _loaded(model, state, input_shape)
    if shape is None and data is None:
        raise DataError("the model's --input-shape is needed, such as 3x224x224")
    given = data and load_samples(data, shape, _preprocessing(loaded, shape, None, None, None))
    asked = {"inspect": model, "state": str(state), "shape": shape, "data": data, "samples": samples,
             "effort": effort, "seconds": seconds, "seed": seed, "device": device}  # fmt: skip
    folder = output or default_output(loaded.name, data or "inspect", asked)
    with _progress_bars() as progress:
        found = inspect(
            loaded.module, shape, given, samples=samples, effort=effort, seconds=seconds, output=folder,
            name=loaded.name, seed=seed, device=device, progress=progress,
        )  # fmt: skip
    if json:
        print(found.to_json())
    else:
        print_inspection(found, _console(error=False), sort, None if everything else top)
    _say(f"\nwrote {_escaped(str(folder / 'inspect.json'))}")


def _center(source: str, shape: tuple[int, ...], loaded: LoadedModel) -> Tensor:
    """The centre of a ball as the network takes it."""
    import torch

    from .data import load_samples

    if source == "zeros":
        return torch.zeros(shape)
    samples = load_samples(source, shape, _preprocessing(loaded, shape, None, None, None))
    if len(samples) != 1:
        raise DataError(f"--ball {source}: it holds {len(samples)} samples; the centre is one")
    return samples.batch([0])[0]


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or its result.json.")],
    html: Annotated[
        Path | None, typer.Option(help="Write the HTML page here. Default: report.html in the run folder.")
    ] = None,
) -> None:
    """Print the table of a finished run again and rebuild its HTML page from result.json."""
    from .analysis import witness_pictures
    from .report import write_html
    from .results import Result
    from .runs import REPORT, RESULT, WITNESS, read_tensors

    path = run / RESULT if run.is_dir() else run
    try:
        result = Result.from_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; give a run folder or a result.json"
        ) from error
    except LipscopeError as error:
        raise DataError(f"{path}: {error}") from error
    stored = path.parent / WITNESS
    pictures = witness_pictures(read_tensors(stored)) if stored.exists() else {}
    target = html or path.parent / REPORT
    try:
        write_html(result, target, pictures)
    except OSError as error:
        raise RunFolderError(f"cannot write {target}: {error.strerror or error}") from error
    _show(result)
    _say(f"\nwrote {_escaped(str(target))}")


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A run folder, your own or one that somebody sent you.")],
    model: Annotated[str, typer.Argument(help="The network it is claimed of, as for `analyze`.")],
    state: State = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Per-sample input shape. Default: the one the run states.")
    ] = None,
) -> None:
    """Check every bound of a finished run again: repeat the proofs, evaluate the witnesses.

    The exit code is 7 if a bound does not hold. Only the model that you name is run as code.
    """
    from .graph import from_torch
    from .report import print_checks
    from .verification import stated_shape, verify_run

    shape = _parse_shape(input_shape) if input_shape else stated_shape(run)
    loaded, _ = _loaded(model, state, None)
    graph = from_torch(loaded.module, shape)
    with _progress_bars() as progress:
        checks = verify_run(run, graph, progress)
    print_checks(checks, _console(error=False))
    if not all(check.holds for check in checks):
        raise CertificateError(f"{run}: not every bound could be confirmed")


@app.command()
def models() -> None:
    """List the built-in networks."""
    from rich.table import Table

    from .models import ZOO

    table = Table("name", "input", "description", box=None, pad_edge=False)
    for name, entry in ZOO.items():
        table.add_row(name, "×".join(map(str, entry.input_shape)), entry.description)
    _console(error=False).print(table)


@app.command()
def schema() -> None:
    """Print the JSON schema of result.json."""
    import json

    from .results import Result

    print(json.dumps(Result.json_schema(), indent=2))


def _loaded(
    model: str, state: Path | None, input_shape: str | None
) -> tuple[LoadedModel, tuple[int, ...] | None]:
    """The model, and the input's shape as it is given or as the model knows it."""
    from .models import load_model

    loaded = load_model(model, state, notify=lambda message: _say(_escaped(message)))
    return loaded, _parse_shape(input_shape) if input_shape else loaded.input_shape


def _preprocessing(
    loaded: LoadedModel, shape: tuple[int, ...] | None, mean: str | None, std: str | None, resize: int | None
) -> ImagePreprocessing | None:
    """The model's own preprocessing, or crops of its input's size, with what the options change."""
    from dataclasses import replace

    from .data import ImagePreprocessing

    base = loaded.preprocessing
    if base is not None and shape is not None and shape[-2:] != base.size:
        base = replace(base, size=(shape[-2], shape[-1]))
    if not (mean or std or resize):
        return base
    if base is None and shape is None:
        raise DataError("--mean, --std and --resize need the model's --input-shape, such as 3x224x224")
    base = base or ImagePreprocessing.for_shape(shape or ())
    if mean:
        base = replace(base, mean=_parse_numbers("--mean", mean, len(base.mean)))
    if std:
        base = replace(base, std=_parse_numbers("--std", std, len(base.std)))
    return base if resize is None else replace(base, resize=resize)


def _parse_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise DataError(f"--input-shape {text}: write positive integers as in 3x224x224")
    return shape


def _parse_numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, count):
        raise DataError(f"{option} {text}: write one number, or {count} separated by commas")
    return values * count if len(values) == 1 else values


@contextmanager
def _progress_bars() -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, object] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield show


def _show(result: Result) -> None:
    from .report import print_result

    print_result(result, _console(error=False))


def _console(error: bool = True) -> Console:
    from rich.console import Console

    return Console(stderr=error, highlight=False)


def _say(message: str) -> None:
    _console().print(message, soft_wrap=True)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
