"""`lipscope certify`: a bracket without data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import DataError
from .app import app
from .console import open_console, progress_bars, written
from .options import Effort, InputShape, Model, Seconds, Seed, State, load, one_input


@app.command()
def certify(
    model: Model,
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
            help="Run folder for bracket.json, report.html, the certificate and the witnesses. "
            "Default: a folder under runs/."
        ),
    ] = None,
    state: State = None,
    input_shape: InputShape = None,
    seed: Seed = 0,
) -> None:
    """Bracket a network's Lipschitz constant without data: certified from above, attained from below.

    [bold]Examples[/]

      lipscope certify alexnet-trunk --effort fast

      lipscope certify net.py:build --input-shape 20 --norm inf --exact

      lipscope certify net.py:build --ball photo.jpg 0.1
    """
    from ..jobs.brackets import BallOptions, bracket
    from ..jobs.folder import default_output
    from ..report import print_bracket

    loaded, shape = load(model, state, input_shape)
    if shape is None:
        raise DataError("the model's --input-shape is needed, such as 3x224x224")
    over = None
    if ball is not None:
        center, _ = one_input("--ball", ball[0], shape, loaded)
        over = BallOptions(center, ball[1], ball_norm, ball[0])
    asked = {"certify": model, "state": str(state), "shape": shape, "ball": ball, "ball_norm": ball_norm,
             "norm": norm, "effort": effort, "seconds": seconds, "exact": exact, "seed": seed}  # fmt: skip
    folder = output or default_output(loaded.name, "bracket", asked)
    with progress_bars() as progress:
        found = bracket(
            loaded.module, shape, norm=norm, over=over, effort=effort, seconds=seconds, search=exact,
            output=folder, name=loaded.name, seed=seed, progress=progress,
        )  # fmt: skip
    print_bracket(found, open_console(error=False))
    written(folder / "bracket.json", folder / "report.html")
