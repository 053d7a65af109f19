"""`lipscope check`: limits that a network must keep, for continuous integration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError, LipscopeError
from .app import app
from .console import open_console, print_json, progress_bars, written
from .options import (
    Device,
    Effort,
    InputShape,
    Mean,
    Resize,
    Seconds,
    Seed,
    State,
    Std,
    image_preprocessing,
    load,
)

_CONFIGURATION = Path("pyproject.toml")
_TABLE = "[tool.lipscope.check]"


def _configured(context: typer.Context, model: str | None) -> str | None:
    """The model; where none is named, that of pyproject.toml, whose table then stands for the options too."""
    if model is not None or context.resilient_parsing:
        return model
    table = {key.replace("-", "_"): value for key, value in _table().items()}
    known = sorted(parameter.name for parameter in context.command.params if parameter.name != "help")
    for key in table:
        if key not in known:
            names = ", ".join(name.replace("_", "-") for name in known)
            raise LipscopeError(
                f"{_CONFIGURATION}: {_TABLE} has no key {key.replace('_', '-')}; it may hold {names}"
            )
    if not isinstance(table.get("model"), str):
        raise LipscopeError(f'{_CONFIGURATION}: {_TABLE} names no model; write model = "net.py:build"')
    context.default_map = table
    return str(table["model"])


def _table() -> Mapping[str, Any]:
    import tomllib

    try:
        content: Any = tomllib.loads(_CONFIGURATION.read_text("utf-8"))
    except FileNotFoundError:
        content = {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LipscopeError(f"cannot read {_CONFIGURATION}: {error}") from error
    for key in ("tool", "lipscope", "check"):
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise LipscopeError(
            f"name a MODEL and a limit (lipscope check net.py:build --max-upper 5), or write {_TABLE} in "
            f"{_CONFIGURATION} of this folder"
        )
    return content


@app.command()
def check(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"The network, as for `analyze`. Without it, model and options are those of \\{_TABLE} in "
            "pyproject.toml of this folder, changed by the options given here.",
            callback=_configured,
            is_eager=True,
        ),
    ] = None,
    max_upper: Annotated[
        float | None,
        typer.Option(
            help="Limit of the Lipschitz constant over all inputs: holds only if a certificate proves it.",
            min=0,
        ),
    ] = None,
    max_local: Annotated[
        float | None,
        typer.Option(help="Limit of Lip(x), the Jacobian's norm, at the samples of --data.", min=0),
    ] = None,
    max_empirical: Annotated[
        float | None, typer.Option(help="Limit of the stretch between any two samples of --data.", min=0)
    ] = None,
    max_effective: Annotated[
        float | None,
        typer.Option(help="Limit of L_eff with mean slopes of each unit on --data, an estimate.", min=0),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="A run folder of `analyze` or `certify`: the constants it states are limits too, plus --tolerance. "
            "Those on data only if --data are given, and are the same."
        ),
    ] = None,
    tolerance: Annotated[
        str, typer.Option(help="How far the baseline's constants may be exceeded: 10% or 0.1.")
    ] = "10%",
    data: Annotated[str | None, typer.Option(help="Samples, as for `analyze`.")] = None,
    samples: Annotated[
        int | None, typer.Option(help="Use only this many samples, chosen at random with --seed.", min=1)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print check.json instead of the table.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Run folder for check.json, the certificate and the witnesses.")
    ] = None,
    state: State = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    effort: Effort = "balanced",
    seconds: Seconds = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Check that a network keeps limits on its Lipschitz constants; the exit code is 1 if it does not.

    The exit code is 0 if every limit holds, 1 if one is exceeded or could not be proved, and another one if
    the check could not be made.

    [bold]Examples[/]

      lipscope check net.py:build --state weights.safetensors --input-shape 1x28x28 --max-upper 5

      lipscope check net.py:build --data test.npy --max-local 3 --baseline runs/release --tolerance 10%

      lipscope check
    """
    from ..data import load_samples
    from ..jobs.gate import check
    from ..report import print_gate

    assert model is not None  # the callback has found one
    loaded, shape = load(model, state, input_shape)
    if shape is None and data is None:
        raise DataError("the model's --input-shape is needed, such as 3x224x224")
    inputs = None
    if data is not None:
        inputs = load_samples(data, shape, image_preprocessing(loaded, shape, mean, std, resize))
        if samples is not None:
            inputs = inputs.take(samples, seed)
    with progress_bars() as progress:
        found = check(
            loaded.module, shape, inputs, max_upper=max_upper, max_local=max_local, max_empirical=max_empirical,
            max_effective=max_effective, baseline=baseline, tolerance=_fraction(tolerance), effort=effort,
            seconds=seconds, output=output, name=loaded.name, seed=seed, device=device, progress=progress,
        )  # fmt: skip
    if json:
        print_json(found)
    else:
        print_gate(found, open_console(error=False))
    if output is not None:
        written(output / "check.json")
    if not found.passed:
        raise typer.Exit(1)


def _fraction(text: str) -> float:
    """The fraction that a user writes as 10% or 0.1."""
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        rest = text
    if rest:
        raise LipscopeError(f"--tolerance {text}: write a percentage as in 10%, or a fraction as in 0.1")
    return value
