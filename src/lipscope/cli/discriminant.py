"""`lipscope discriminant`: how far apart classes are, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .console import draw, open_console, progress_bars, written
from .options import (
    Device,
    FigureFile,
    InputShape,
    Mean,
    Model,
    Resize,
    Seed,
    State,
    Std,
    image_preprocessing,
    load,
)


@app.command()
def discriminant(
    model: Model,
    data: Annotated[str, typer.Option(help="Samples, as for `analyze`.")],
    labels: Annotated[
        str | None,
        typer.Option(
            help="Their classes: a .npy, .npz, .safetensors or .pt file of one label a sample, or `file.py:name`. "
            "Default: the sub-folders of a folder of images."
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            help="Use at most about so many samples, each class in its proportion. Time grows with the square.",
            min=1,
        ),
    ] = 500,
    accuracy: Annotated[
        bool,
        typer.Option(
            "--accuracy",
            help="Also the accuracy of linear discriminant analysis by scikit-learn (the extra `discriminant`).",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Samples evaluated at once.", min=1, max=10**9)] = 16,
    figure: FigureFile = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Run folder for discriminant.json and its page. Default: a folder under runs/."),
    ] = None,
    state: State = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Show how far apart classes are at each layer, and how much of that the stretch of the network explains.

    Scatter between classes over scatter within, the same divided by what noise could be stretched by, and the
    quotient of linear discriminant analysis, also held out.

    [bold]Examples[/]

      lipscope discriminant alexnet-trunk --data photos/ --figure layers.svg

      lipscope discriminant net.py:build --data digits.npz --labels digits.npz --accuracy
    """
    from ..data import load_labels, load_samples
    from ..jobs.discriminant import separate
    from ..jobs.folder import default_output
    from ..report import print_report

    loaded, shape = load(model, state, input_shape)
    given = load_samples(data, shape, image_preprocessing(loaded, shape, mean, std, resize))
    classes = load_labels(labels, given)
    asked = {"discriminant": model, "state": str(state), "shape": shape, "data": data, "labels": labels,
             "samples": samples, "accuracy": accuracy, "seed": seed, "device": device,
             "images": (mean, std, resize)}  # fmt: skip
    folder = output or default_output(loaded.name, data, asked)
    with progress_bars() as progress:
        found = separate(
            loaded.module, given, classes, shape, accuracy=accuracy, samples=samples, batch_size=batch_size,
            output=folder, name=loaded.name, seed=seed, device=device, progress=progress,
        )  # fmt: skip
    print_report(found, open_console(error=False))
    written(folder / "discriminant.json", folder / "report.html")
    if figure is not None:
        from ..figures.discriminant import discriminant_figure

        draw(discriminant_figure(found.discriminant), figure)
