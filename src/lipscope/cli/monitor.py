"""`lipscope monitor`: a training as its monitor's log tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .console import draw, open_console
from .options import FigureFile


@app.command()
def monitor(
    log: Annotated[Path, typer.Argument(help="A CSV file that lipscope.train.CsvLog writes or has written.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on showing what is appended, until interrupted.")
    ] = False,
    interval: Annotated[
        float, typer.Option(help="Seconds between two looks at the file with --follow.", min=0.1)
    ] = 1.0,
    figure: FigureFile = None,
) -> None:
    """Show the Lipschitz constants of a network in training, from the log of its monitor.

    The log comes from the training script: a lipscope.train.Monitor that a lipscope.train.CsvLog was given to.

    [bold]Examples[/]

      lipscope monitor training.csv

      lipscope monitor training.csv --follow

      lipscope monitor training.csv --figure training.svg
    """
    import time

    from ..report import LiveView, print_log
    from ..train import read_log

    console = open_console(error=False)
    if follow:
        try:
            with LiveView(log.name, console) as view:
                while True:
                    # The file may not be there yet; what is no log is an error all the same.
                    view.show(read_log(log) if log.exists() else [])
                    time.sleep(interval)
        except KeyboardInterrupt:
            pass
    else:
        print_log(read_log(log), console, log.name)
    if figure is not None:
        from ..figures.monitor import log_figure

        draw(log_figure(read_log(log)), figure)
