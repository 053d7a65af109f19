"""What several commands take: their common options, and the model and data that these name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import DataError
from .console import escaped, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import ImagePreprocessing
    from ..models import LoadedModel


def finite(value: float | None) -> float | None:
    """The value of an option, which NaN and infinity are not.

    Raises:
        typer.BadParameter: it is one of them.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def drawable(path: Path | None) -> Path | None:
    """The path of a figure, checked before hours go into what it shows.

    Raises:
        LipscopeError: see `check_drawable`.
    """
    if path is not None:
        from ..figures.canvas import check_drawable

        check_drawable(path)
    return path


Model = Annotated[str, typer.Argument(help="The network, as for `analyze`.")]
State = Annotated[Path | None, typer.Option(help="Weights to load: a .safetensors, .pt or .pth state dict.")]
InputShape = Annotated[
    str | None,
    typer.Option(help="Per-sample input shape, such as 3x224x224. Default: the model's or the data's."),
]
Effort = Annotated[
    Literal["none", "fast", "balanced", "tight"],
    typer.Option(help="How long is spent on the certificate: about 20 s, 4 min or 20 min at full size."),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        help="Time to optimise the certificate, instead of the effort's own; proofs come on top.",
        min=0,
        max=1e7,
        callback=finite,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(help="Image normalisation: means per channel in 0..1, such as 0.485,0.456,0.406."),
]
Std = Annotated[str | None, typer.Option(help="Image normalisation: standard deviations per channel.")]
Resize = Annotated[
    int | None,
    typer.Option(help="Resize the shorter side of images to this before the centre crop.", min=1, max=2**15),
]
FigureFile = Annotated[
    Path | None,
    typer.Option(
        "--figure",
        help="Draw the result as .svg, .pdf or .png here (needs the extra `figures`).",
        callback=drawable,
    ),
]
BatchSize = Annotated[
    int, typer.Option(help="Samples treated at once; memory grows with it.", min=1, max=10**9)
]
Device = Annotated[str, typer.Option(help="Where estimates are computed: cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option(help="Seed of all random choices.", min=0, max=2**63 - 1)]


def load(
    model: str, state: Path | None, input_shape: str | None
) -> tuple[LoadedModel, tuple[int, ...] | None]:
    """The model, and the input's shape as it is given or as the model knows it."""
    from ..models import load_model

    loaded = load_model(model, state, notify=lambda message: say(escaped(message)))
    return loaded, parse_shape(input_shape) if input_shape else loaded.input_shape


def image_preprocessing(
    loaded: LoadedModel, shape: tuple[int, ...] | None, mean: str | None, std: str | None, resize: int | None
) -> ImagePreprocessing | None:
    """The model's own preprocessing, or crops of its input's size, with what the options change."""
    from dataclasses import replace

    from ..data import ImagePreprocessing

    base = loaded.preprocessing
    if base is not None and shape is not None and shape[-2:] != base.size:
        base = replace(base, size=(shape[-2], shape[-1]))
    if not (mean or std or resize):
        return base
    if base is None and shape is None:
        raise DataError("--mean, --std and --resize need the model's --input-shape, such as 3x224x224")
    base = base or ImagePreprocessing.for_shape(shape or ())
    if mean:
        base = replace(base, mean=parse_numbers("--mean", mean, len(base.mean)))
    if std:
        base = replace(base, std=parse_numbers("--std", std, len(base.std)))
    return base if resize is None else replace(base, resize=resize)


def one_input(
    option: str, source: str, shape: tuple[int, ...] | None, loaded: LoadedModel, number: int | None = None
) -> tuple[Tensor, str]:
    """One input as the network takes it and what to call it.

    Args:
        source: data, or `zeros` (which need the shape).
        number: which sample of the data; None if they must hold one alone.

    Raises:
        DataError: it cannot be read, or there is no such sample.
    """
    import torch

    from ..data import load_samples

    if source == "zeros" and shape is not None:
        return torch.zeros(shape), source
    samples = load_samples(source, shape, image_preprocessing(loaded, shape, None, None, None))
    if number is None and len(samples) != 1:
        raise DataError(f"{option} {source}: it holds {len(samples)} samples; the centre is one")
    if number is not None and number >= len(samples):
        raise DataError(
            f"{option} {source}: it holds {len(samples)} samples, numbered from 0; {number} is none"
        )
    return samples.batch([number or 0])[0], samples.names[number or 0]


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape that a user writes as 3x224x224 or 3,224,224.

    Raises:
        DataError: it is something else.
    """
    try:
        shape = tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise DataError(f"--input-shape {text}: write positive integers as in 3x224x224")
    return shape


def parse_numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    """The numbers that a user writes with commas; one of them stands for `count`.

    Raises:
        DataError: they are something else.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, count) or not all(map(math.isfinite, values)):
        raise DataError(f"{option} {text}: write one finite number, or {count} separated by commas")
    return values * count if len(values) == 1 else values
