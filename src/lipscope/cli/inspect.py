"""`lipscope inspect`: a network layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import DataError
from ..text import plain
from .app import app
from .console import escaped, open_console, progress_bars, say
from .options import Effort, Seconds, Seed, State, image_preprocessing, load


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
            help="Run folder for inspect.json, report.html, the certificate and the witness. "
            "Default: a folder under runs/."
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
    from ..data import load_samples
    from ..jobs.analysis import default_output
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
        print(_safe(found.to_json()))
    else:
        print_inspection(found, open_console(error=False), sort, None if everything else top)
    say(f"\nwrote {escaped(str(folder / 'inspect.json'))} and {escaped(str(folder / 'report.html'))}")


def _safe(json: str) -> str:
    """The same JSON, whose control characters and direction overrides are escaped."""
    return "".join(c if c == "\n" or plain(c) == c else f"\\u{ord(c):04x}" for c in json)
