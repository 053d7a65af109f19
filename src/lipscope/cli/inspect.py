"""`lipscope inspect`: a network layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import DataError
from .app import app
from .console import open_console, print_json, progress_bars, written
from .options import Device, Effort, InputShape, Model, Seconds, Seed, State, image_preprocessing, load


@app.command()
def inspect(
    model: Model,
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
            help="Run folder for inspect.json, report.html, the certificate and the witness. "
            "Default: a folder under runs/."
        ),
    ] = None,
    state: State = None,
    input_shape: InputShape = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Show a network layer by layer: shapes, certified norms, slopes, and where the bound loses most.

    Without data and with --effort none, the loss is measured at a Gaussian point.

    [bold]Examples[/]

      lipscope inspect alexnet-trunk --data photos/

      lipscope inspect net.py:build --input-shape 20 --effort fast --sort slack --top 10
    """
    from ..data import load_samples
    from ..jobs.folder import default_output
    from ..jobs.inspection import inspect
    from ..report import print_inspection

    loaded, shape = load(model, state, input_shape)
    if shape is None and data is None:
        raise DataError("the model's --input-shape is needed, such as 3x224x224")
    given = data and load_samples(data, shape, image_preprocessing(loaded, shape, None, None, None))
    asked = {"inspect": model, "state": str(state), "shape": shape, "data": data, "samples": samples,
             "effort": effort, "seconds": seconds, "seed": seed, "device": device}  # fmt: skip
    folder = output or default_output(loaded.name, data or "inspect", asked)
    with progress_bars() as progress:
        found = inspect(
            loaded.module, shape, given, samples=samples, effort=effort, seconds=seconds, output=folder,
            name=loaded.name, seed=seed, device=device, progress=progress,
        )  # fmt: skip
    if json:
        print_json(found)
    else:
        print_inspection(found, open_console(error=False), sort, None if everything else top)
    written(folder / "inspect.json", folder / "report.html")
