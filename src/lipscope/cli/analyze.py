"""`lipscope analyze`: a network on a data set, everything at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .app import app
from .console import open_console, progress_bars, written
from .options import (
    BatchSize,
    Device,
    Effort,
    InputShape,
    Mean,
    Resize,
    Seconds,
    Seed,
    State,
    Std,
    finite,
    image_preprocessing,
    load,
)


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
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
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
        float,
        typer.Option(help="Relative accuracy of Lip(x) at each sample.", min=1e-12, max=0.5, callback=finite),
    ] = 1e-3,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    device: Device = "cpu",
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
    from ..data import load_samples
    from ..engines import engine_named
    from ..jobs.analysis import Options, analyze
    from ..jobs.folder import default_output
    from ..report import print_result

    options = Options(
        pairs, jacobians, local_samples, effort, seconds, tolerance, batch_size, seed, device, dtype
    )
    loaded, shape = load(model, state, input_shape)
    preprocessing = image_preprocessing(loaded, shape, mean, std, resize)
    inputs = load_samples(data, shape, preprocessing, workers=workers if engine == "local" else None)
    if samples is not None and samples < len(inputs):
        inputs = inputs.take(samples, seed)
    asked = {"model": model, "state": str(state), "data": data, "shape": shape, "samples": samples,
             "mean": mean, "std": std, "resize": resize, "options": repr(options)}  # fmt: skip
    folder = output or default_output(loaded.name, data, asked)
    with engine_named(engine, workers, device) as where, progress_bars() as progress:
        result = analyze(
            loaded.module,
            inputs,
            name=loaded.name,
            output=folder,
            options=options,
            engine=where,
            progress=progress,
        )
    print_result(result, open_console(error=False))
    written(folder / "result.json", folder / "report.html")
