"""`lipscope mean-field`: a network beside a random one of the same weight statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError
from .app import app
from .console import draw, open_console, print_json, progress_bars, written
from .options import BatchSize, Device, FigureFile, InputShape, Model, Seed, State, image_preprocessing, load


@app.command()
def mean_field(
    model: Model,
    data: Annotated[
        str | None, typer.Option(help="Samples, as for `analyze`. Default: Gaussian inputs.")
    ] = None,
    length: Annotated[
        float,
        typer.Option(help="q_0 of Gaussian inputs, the mean square of an entry.", min=1e-300, max=1e300),
    ] = 1.0,
    samples: Annotated[
        int, typer.Option(help="Use at most so many inputs, chosen at random with --seed.", min=1, max=10**6)
    ] = 64,
    probes: Annotated[
        int, typer.Option(help="Random directions per input behind the measured ‖J‖_F².", min=1, max=10**6)
    ] = 4,
    batch_size: BatchSize = 16,
    json: Annotated[bool, typer.Option("--json", help="Print mean-field.json instead of the table.")] = False,
    figure: FigureFile = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Run folder for mean-field.json and its page. Default: a folder under runs/."),
    ] = None,
    state: State = None,
    input_shape: InputShape = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Compare a network with mean-field theory: what random weights of the same variances would do.

    Layer by layer: mean slopes p, χ = σ_w² E φ'², lengths q, correlations c; in all, ‖J‖_F² and whether random
    weights would damp differences between inputs (ordered), keep them (critical) or amplify them (chaotic).

    [bold]Examples[/]

      lipscope mean-field alexnet-trunk --data photos/ --figure mean-field.svg

      lipscope mean-field net.py:build --input-shape 784 --length 0.1
    """
    from ..data import load_samples
    from ..jobs.folder import default_output
    from ..jobs.mean_field import compare_mean_field
    from ..report import print_report

    loaded, shape = load(model, state, input_shape)
    if shape is None and data is None:
        raise DataError("the model's --input-shape is needed, such as 3x224x224")
    given = data and load_samples(data, shape, image_preprocessing(loaded, shape, None, None, None))
    asked = {"mean-field": model, "state": str(state), "shape": shape, "data": data, "length": length,
             "samples": samples, "probes": probes, "batch": batch_size, "seed": seed, "device": device}  # fmt: skip
    folder = output or default_output(loaded.name, data or "mean-field", asked)
    with progress_bars() as progress:
        found = compare_mean_field(
            loaded.module, shape, given, length=length, samples=samples, probes=probes, batch_size=batch_size,
            output=folder, name=loaded.name, seed=seed, device=device, progress=progress,
        )  # fmt: skip
    if json:
        print_json(found)
    else:
        print_report(found, open_console(error=False))
    written(folder / "mean-field.json", folder / "report.html")
    if figure is not None:
        from ..figures.mean_field import mean_field_figure

        draw(mean_field_figure(found), figure)
