"""`lipscope verify`: every bound of a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CertificateError, ModelError
from .app import app
from .console import open_console, progress_bars
from .options import State, load, parse_shape


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

    Runs of analyze, certify, inspect, check, fisher, discriminant and
    concentration; those of mean-field and compare hold nothing to prove.
    The exit code is 7 if a bound does not hold. Only the model that you
    name is run as code.

    [bold]Examples[/]

      lipscope verify runs/demo alexnet-trunk

      lipscope verify noise net.py:build --state weights.safetensors
    """
    from ..graph import from_torch
    from ..jobs.verification import stated_shape, verify_run
    from ..report import print_checks

    shape = parse_shape(input_shape) if input_shape else stated_shape(run)
    loaded, _ = load(model, state, None)
    try:
        graph = from_torch(loaded.module, shape)
    except ModelError as error:
        raise type(error)(f"{run}, about inputs of shape {shape}: {error}") from error
    with progress_bars() as progress:
        checks = verify_run(run, graph, progress)
    print_checks(checks, open_console(error=False))
    if not all(check.holds for check in checks):
        raise CertificateError(f"{run}: not every bound could be confirmed")
