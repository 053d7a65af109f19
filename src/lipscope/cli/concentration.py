"""`lipscope concentration`: tails of the outputs for a noisy input."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import DataError
from .app import app
from .console import draw, open_console, print_json, progress_bars, written
from .options import Device, Effort, FigureFile, InputShape, Model, Seconds, Seed, State, load, one_input


@app.command()
def concentration(
    model: Model,
    sigma: Annotated[
        float,
        typer.Option(
            help="Standard deviation of each entry of the noise, as the network takes it.",
            min=1e-300,
            max=1e300,
        ),
    ],
    at: Annotated[
        str, typer.Option(help="The input without noise: a sample of data as for `analyze`, or `zeros`.")
    ] = "zeros",
    number: Annotated[
        int, typer.Option(help="Which sample of --at it is, counted from 0.", min=0, max=2**62)
    ] = 0,
    law: Annotated[
        Literal["gaussian", "uniform", "signs"],
        typer.Option(help="Law of the entries, mean 0: Gaussian, uniform, or plus or minus sigma."),
    ] = "gaussian",
    draws: Annotated[
        int, typer.Option(help="Draws of the noise behind the measured tails.", min=1, max=10**9)
    ] = 2000,
    in_ball: Annotated[
        bool,
        typer.Option("--ball", help="Also certify the constant in a ball that the noise hardly leaves."),
    ] = False,
    effort: Effort = "none",
    seconds: Seconds = None,
    batch_size: Annotated[
        int, typer.Option(help="Draws evaluated at once; memory grows with it.", min=1, max=10**9)
    ] = 32,
    json: Annotated[
        bool, typer.Option("--json", help="Print concentration.json instead of the table.")
    ] = False,
    figure: FigureFile = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run folder for concentration.json, its page and the certificate. Default: a folder under runs/."
        ),
    ] = None,
    state: State = None,
    input_shape: InputShape = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Show how far a network's outputs stray from their means when the input is noisy.

    Proved tails, from the least certified Lipschitz constant found, beside tails measured on draws of the noise.

    [bold]Examples[/]

      lipscope concentration alexnet-trunk --at photo.jpg --sigma 0.1

      lipscope concentration net.py:build --input-shape 20 --sigma 0.01 --ball --figure tails.svg
    """
    from ..jobs.concentration import Noise, noise_tails
    from ..jobs.folder import default_output
    from ..report import print_report

    loaded, shape = load(model, state, input_shape)
    if shape is None and at == "zeros":
        raise DataError("the model's --input-shape is needed, such as 3x224x224")
    center, label = one_input("--at", at, shape, loaded, number)
    noise = Noise(center, sigma, law, label)
    asked = {"concentration": model, "state": str(state), "shape": shape, "at": at, "number": number,
             "sigma": sigma, "law": law, "draws": draws, "ball": in_ball, "effort": effort, "seconds": seconds,
             "batch": batch_size, "seed": seed, "device": device}  # fmt: skip
    folder = output or default_output(loaded.name, "concentration", asked)
    with progress_bars() as progress:
        found = noise_tails(
            loaded.module, noise, effort=effort, seconds=seconds, in_ball=in_ball, draws=draws,
            batch_size=batch_size, output=folder, name=loaded.name, seed=seed, device=device, progress=progress,
        )  # fmt: skip
    if json:
        print_json(found)
    else:
        print_report(found, open_console(error=False))
    written(folder / "concentration.json", folder / "report.html")
    if figure is not None:
        from ..figures.concentration import concentration_figure

        draw(concentration_figure(found), figure)
