"""`lipscope constrain`: a trained network within a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import DataError, LipscopeError, RunFolderError
from .app import app
from .console import open_console, written
from .options import InputShape, State, load


@app.command()
def constrain(
    model: Annotated[str, typer.Argument(help="The network, as for `analyze`; not a file.")],
    maximum: Annotated[
        float, typer.Option("--max", help="The largest certified Lipschitz constant allowed, Euclidean.")
    ],
    output: Annotated[
        Path,
        typer.Option(help="Where the weights are written, as .safetensors; a .json with the figures beside."),
    ],
    split: Annotated[
        Literal["even", "proportional"],
        typer.Option(
            help="Shares of the bound: in proportion to the layers' norms, or the same for all layers."
        ),
    ] = "proportional",
    state: State = None,
    input_shape: InputShape = None,
) -> None:
    """Scale a trained network's weights down until its certified Lipschitz constant is at most --max.

    The new weights suit fine-tuning with lipscope.train.constrain, which keeps the bound. Biases stay.

    [bold]Examples[/]

      lipscope constrain net.py:build --state weights.pt --input-shape 3x32x32 --max 10 --output bounded.safetensors

      lipscope constrain alexnet-trunk --max 1000 --output bounded.safetensors
    """
    from safetensors.torch import save

    from ..atomic import write_atomically
    from ..report import print_constrained
    from ..train.projection import project

    if output.suffix != ".safetensors":
        raise LipscopeError(f"--output {output}: weights are written as .safetensors")
    loaded, shape = load(model, state, input_shape)
    if shape is None:
        raise DataError("the model's --input-shape is needed, such as 3x224x224")
    found = project(loaded.module, shape, maximum, split=split, name=loaded.name)
    # Tied weights share memory, which the format has no word for: each name gets its own.
    held = {name: tensor.detach().clone().contiguous() for name, tensor in loaded.module.state_dict().items()}
    figures = output.with_suffix(".json")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, lambda file: file.write(save(held)))
        write_atomically(figures, lambda file: file.write(found.to_json().encode() + b"\n"))
    except OSError as error:
        raise RunFolderError(f"cannot write {output}: {error.strerror or error}") from error
    print_constrained(found, open_console(error=False))
    written(output, figures)
