"""`lipscope fisher`: Fisher information of inputs and parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .app import app
from .console import draw, open_console, progress_bars, written
from .options import (
    BatchSize,
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
def fisher(
    model: Model,
    data: Annotated[str, typer.Option(help="Samples, as for `analyze`.")],
    likelihood: Annotated[
        Literal["gaussian", "softmax"],
        typer.Option(help="What the output is: the mean of a Gaussian, or the logits of a class."),
    ] = "gaussian",
    variance: Annotated[
        float,
        typer.Option(help="σ² of the Gaussian output, the same for every entry.", min=1e-300, max=1e300),
    ] = 1.0,
    space: Annotated[
        Literal["inputs", "parameters", "both"], typer.Option(help="What the information is about.")
    ] = "both",
    labels: Annotated[
        str | None,
        typer.Option(
            help="For the empirical Fisher information of the parameters too: a .npy, .npz, .safetensors or .pt file "
            "of one label a sample, `file.py:name`, or `folders` for the sub-folders of images."
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Use at most so many samples, chosen at random with --seed.", min=1)
    ] = 64,
    directions: Annotated[int, typer.Option(help="Eigenvalues of each mean.", min=1, max=10**4)] = 4,
    products: Annotated[
        int,
        typer.Option(
            help="Products with the parameters' matrix at most; each takes all samples.", min=1, max=10**6
        ),
    ] = 100,
    probes: Annotated[
        int, typer.Option(help="Random vectors behind each trace that is not exact.", min=2, max=10**6)
    ] = 16,
    batch_size: BatchSize = 16,
    figure: FigureFile = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run folder for fisher.json, its page and the eigenvectors. Default: a folder under runs/."
        ),
    ] = None,
    state: State = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Show how much a network's output tells of its input, and of its parameters: Fisher information.

    Largest eigenvalues and traces, of the mean over the data and at the samples. For a Gaussian output λ_max is
    Lip(x)²/σ²; for softmax it is at most Lip(x)²/2.

    [bold]Examples[/]

      lipscope fisher alexnet-trunk --data photos/ --space inputs

      lipscope fisher net.py:build --data x.npy --likelihood softmax --labels y.npy --figure fisher.svg
    """
    from ..data import load_labels, load_samples
    from ..jobs.fisher import fisher
    from ..jobs.folder import default_output
    from ..report import print_report

    loaded, shape = load(model, state, input_shape)
    given = load_samples(data, shape, image_preprocessing(loaded, shape, mean, std, resize))
    classes = None if labels is None else load_labels(None if labels == "folders" else labels, given)
    asked = {"fisher": model, "state": str(state), "shape": shape, "data": data, "likelihood": likelihood,
             "variance": variance, "space": space, "labels": labels, "samples": samples, "directions": directions,
             "products": products, "probes": probes, "seed": seed, "device": device,
             "images": (mean, std, resize)}  # fmt: skip
    folder = output or default_output(loaded.name, data, asked)
    with progress_bars() as progress:
        found = fisher(
            loaded.module, given, shape, likelihood=likelihood, variance=variance, space=space, labels=classes,
            samples=samples, directions=directions, products=products, probes=probes, batch_size=batch_size,
            output=folder, name=loaded.name, seed=seed, device=device, progress=progress,
        )  # fmt: skip
    print_report(found, open_console(error=False))
    written(folder / "fisher.json", folder / "report.html")
    if figure is not None:
        from ..figures.fisher import fisher_figure

        draw(fisher_figure(found), figure)
