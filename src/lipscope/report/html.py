"""The result as one self-contained HTML page that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import write_atomically
from ..results import Result
from . import format as fmt
from .charts import charts
from .charts.stretch import FAMILIES
from .rows import KINDS, READINGS, SIGNS, rows
from .slack import by_type, conclusion, piece_growth, slack_rows, won_back

if TYPE_CHECKING:
    from jinja2 import Template

_CAPTIONS = {
    "ascent.x1": "Steepest place found",
    "ascent.x2": "Steepest place, displaced",
    "empirical.x1": "Worst pair, first sample",
    "empirical.x2": "Worst pair, second sample",
    "local.x1": "Most sensitive input",
    "local.x2": "Most sensitive input, displaced along its direction",
}
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELATED_BELOW = 160


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI."""

    key: str
    caption: str
    note: str
    uri: str
    width: int
    height: int

    @property
    def pixelated(self) -> bool:
        """Whether it is small enough to be shown with hard pixels."""
        return max(self.width, self.height) < _PIXELATED_BELOW


def render_html(result: Result, pictures: dict[str, bytes] | None = None) -> str:
    """The page for `result`, with PNG `pictures` of witnesses under keys such as "empirical.x1".

    Raises:
        ValueError: a picture is not a PNG file.
    """
    drawn = charts(result)
    script, plotly = _asset("report.js"), _plotly()
    return _template().render(
        r=result,
        rows=rows(result, name_length=120),
        charts=drawn,
        charts_json=embed_json([{"id": chart.id, **chart.figure} for chart in drawn.values()]),
        pictures=_pictures(result, pictures or {}),
        fmt=fmt,
        signs=SIGNS,
        kinds=KINDS,
        readings=READINGS,
        families=FAMILIES,
        quantiles=[(fmt.QUANTILES.get(key, key), value) for key, value in result.local.quantiles.items()],
        lost=result.slack and slack_rows(result.slack.layers),
        lost_most=result.slack and conclusion(result.slack, result.analytical.no_bound),
        lost_by_type=result.slack and by_type(result.slack),
        piece_growth=piece_growth,
        won_back=won_back,
        bounded=result.upper < math.inf,
        gap=result.upper / result.lower if result.lower > 0 and math.isfinite(result.upper) else None,
        style=_safe(_asset("report.css")),
        script=_safe(script),
        plotly=_safe(plotly),
        policy=f"default-src 'none'; script-src {_source(plotly)} {_source(script)}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
    )


def write_html(
    result: Result, path: str | os.PathLike[str], pictures: dict[str, bytes] | None = None
) -> None:
    """Write the page to `path`, whole or not at all."""
    page = render_html(result, pictures).encode("utf-8")
    write_atomically(Path(path).resolve(), lambda file: file.write(page))


def embed_json(value: object) -> Any:
    """`value` as JSON that no HTML parser can leave, for a `<script type="application/json">`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _safe(text)


def _pictures(result: Result, given: Mapping[str, bytes]) -> list[Picture]:
    order = [key for key in _CAPTIONS if key in given] + sorted(
        (key for key in given if key not in _CAPTIONS), key=_natural
    )
    return [_picture(result, key, given[key]) for key in order]


def _natural(key: str) -> list[tuple[int, str]]:
    """Orders `second_moment.active.10` after `second_moment.active.9`."""
    return [(int(part) if part.isdecimal() else -1, part) for part in key.split(".")]


def _direction(result: Result, key: str) -> tuple[str, str] | None:
    """Caption and note of the picture of a leading direction; None if it is another picture."""
    name, _, rest = key.partition(".")
    reading, _, number = rest.partition(".")
    moment = next((moment for moment in result.second_moment if moment.reading == reading), None)
    if name != "second_moment" or moment is None or not number.isdecimal():
        return None
    place = moment.directions.index(key) if key in moment.directions else -1
    stretch = f"stretch {fmt.number(moment.leading[place])}, " if 0 <= place < len(moment.leading) else ""
    rank = "" if place <= 0 else f", {_ordinal(place + 1)}"
    where = "at the samples" if reading == "active" else "over pairs"
    return f"Direction of largest mean-square stretch{rank}", f"{stretch}{where}"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _picture(result: Result, key: str, content: bytes) -> Picture:
    if not content.startswith(_PNG) or len(content) < 24:
        raise ValueError(f"picture {key!r} is not a PNG file")
    width, height = struct.unpack(">II", content[16:24])
    quantity, _, end = key.partition(".")
    names: list[str] = []
    if quantity == "empirical" and result.empirical is not None:
        names = result.empirical.witness.samples
    elif quantity == "local":
        names = result.local.witness.samples
    place = 1 if end == "x2" and len(names) > 1 else 0
    caption, note = _CAPTIONS.get(key, key), names[place] if names and key in _CAPTIONS else ""
    if (direction := _direction(result, key)) is not None:
        caption, note = direction
    return Picture(
        key=key,
        caption=caption,
        note=note,
        uri=f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}",
        width=width,
        height=height,
    )


def _date(started: str) -> str:
    """An ISO 8601 time for people; anything else as it is."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return started
    return f"{moment.day} {moment:%B %Y, %H:%M}" + (" UTC" if started.endswith(("Z", "+00:00")) else "")


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _source(script: str) -> str:
    """The policy's name for exactly this script, so no other one runs."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def printable(value: object) -> object:
        return fmt.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=printable
    )
    environment.filters["date"] = _date
    return environment.from_string(_asset("template.html.j2"))
