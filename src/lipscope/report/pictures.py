"""Inputs and directions as pictures: images as such, signed arrays in diverging colours, vectors as bars.

Colours of signed pictures run from one hue through nothing to another: where the array is zero the picture is
transparent, so that it suits a light and a dark page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import format as fmt

Array = NDArray[np.floating]

RISE, FALL = (217, 95, 14), (33, 102, 200)
"""What a signed picture paints entries above and below zero with."""
SHOWN_PIXELS, SHOWN_BARS = 448, 160
_SMALLEST_SIDE = 4
_PIXELATED_BELOW = 160
_SATURATED = 0.002
_BARS_WIDTH, _BARS_HEIGHT = 320.0, 120.0
_NAMED = 3
_CHANNELS_TOLD = 4


@dataclass(frozen=True)
class Image:
    """A picture as a data URI; `note` goes below it, `detail` is for those who do not see it."""

    uri: str
    width: int
    height: int
    note: str = ""
    detail: str = ""

    @property
    def pixelated(self) -> bool:
        """Whether it is small enough to be shown with hard pixels."""
        return max(self.width, self.height) < _PIXELATED_BELOW


@dataclass(frozen=True)
class Bars:
    """A vector as bars about zero: two SVG paths in a box of `width`×`height`."""

    rise: str
    fall: str
    zero: float
    note: str
    width: float = _BARS_WIDTH
    height: float = _BARS_HEIGHT


Drawing = Image | Bars


def input_drawing(x: Array) -> Drawing:
    """An input (*in): of 1 or 3 channels as an image, from its smallest to its largest value channel by channel."""
    x = _finite(x)
    if x.ndim != 3 or x.shape[0] not in (1, 3) or min(x.shape[1:]) < _SMALLEST_SIDE:
        return signed_drawing(x)
    from PIL import Image as Pixels

    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    scaled = (x - low) / np.maximum(high - low, 1e-12) * 255
    shown = Pixels.fromarray(
        scaled.round().astype(np.uint8).transpose(1, 2, 0).squeeze(-1 if len(x) == 1 else ())
    )
    shown.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    return _image(shown)


def signed_drawing(v: Array) -> Drawing:
    """An array (*in) whose signs matter, such as a direction or a difference.

    A matrix is a picture of its entries. Of several channels (all leading dimensions count as channels) the
    picture is of the mix of channels that holds most of the energy, the leading singular vector of the channels by
    pixels: of all single pictures it loses least. A vector, or what is too flat for a picture, is drawn as bars.
    """
    v = _finite(v)
    if v.ndim < 2 or min(v.shape[-2:]) < _SMALLEST_SIDE:
        return _bars(v.ravel())
    plane, share, mix = _leading_plane(v.reshape(-1, *v.shape[-2:]))
    plane = _peaks(plane, SHOWN_PIXELS)
    limit = float(np.quantile(np.abs(plane), 1 - _SATURATED)) or float(np.abs(plane).max())
    scale = f"full colour at ±{fmt.figure(limit, digits=2)}" if limit > 0 else "zero everywhere"
    return _diverging(plane / (limit or 1.0), "; ".join(filter(None, [share, scale])), mix)


def _finite(x: Array) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(x, dtype=np.float64), posinf=0.0, neginf=0.0)


def _leading_plane(v: NDArray[np.float64]) -> tuple[NDArray[np.float64], str, str]:
    """The mix of the channels of v (C, H, W) that holds most energy, what it holds, and the mix in words."""
    channels = len(v)
    scale = float(np.abs(v).max())
    if channels == 1 or scale == 0:
        return v[0], "", ""
    left, values, right = np.linalg.svd(v.reshape(channels, -1) / scale, full_matrices=False)
    sign = 1.0 if left[:, 0].sum() >= 0 else -1.0
    mix, plane = sign * left[:, 0], sign * scale * values[0] * right[0].reshape(v.shape[1:])
    share = f"{100 * values[0] ** 2 / (values**2).sum():.0f} % of its energy"
    told = ", ".join(fmt.number(float(c), digits=2) for c in mix)
    return plane, share, f"channels mixed {told}" if channels <= _CHANNELS_TOLD else ""


def _peaks(plane: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """The plane with at most `most` rows and columns: of each block the entry of largest magnitude."""
    height, width = plane.shape
    step = -(-max(height, width) // most)
    if step == 1:
        return plane
    padded = np.pad(plane, ((0, -height % step), (0, -width % step)))
    blocks = padded.reshape(padded.shape[0] // step, step, -1, step).swapaxes(1, 2)
    flat = blocks.reshape(*blocks.shape[:2], -1)
    return np.take_along_axis(flat, np.abs(flat).argmax(-1)[..., None], -1)[..., 0]


def _diverging(plane: NDArray[np.float64], note: str, detail: str) -> Image:
    """Entries in [−1, 1], beyond it saturated, as a picture of two hues that fade out at zero.

    The depth of colour follows the root of the magnitude: leading directions have few large entries and many small.
    """
    from PIL import Image as Pixels

    # A palette keeps files small: 0 … 254 stand for −1 … 1.
    depth = np.sign(plane) * np.sqrt(np.minimum(np.abs(plane), 1.0))
    indices = (depth * 127).round().astype(np.int16) + 127
    shown = Pixels.fromarray(indices.astype(np.uint8), "L").convert("P")
    shown.putpalette([c for level in range(-127, 129) for c in (RISE if level > 0 else FALL)])
    alpha = bytes(min(255, 2 * abs(level) + abs(level) // 64) for level in range(-127, 129))
    return _image(shown, note, detail, transparency=alpha)


def _image(shown: Any, note: str = "", detail: str = "", **options: object) -> Image:
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=True, **options)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Image(uri, shown.width, shown.height, note, detail)


def _bars(v: NDArray[np.float64]) -> Bars:
    """A vector's entries in order; of each of the groups that many entries are put in, the largest."""
    count = len(v)
    step = max(1, -(-count // SHOWN_BARS))
    peaks = _peaks_of(v, step)
    low, high = min(0.0, float(peaks.min(initial=0.0))), max(0.0, float(peaks.max(initial=0.0)))
    span = (high - low) or 1.0
    width = _BARS_WIDTH / max(1, len(peaks))
    zero = _BARS_HEIGHT * high / span if high > low else _BARS_HEIGHT / 2

    def path(chosen: Sequence[int]) -> str:
        return "".join(
            f"M{place * width:.2f} {zero:.2f}h{0.86 * width:.2f}v{-_BARS_HEIGHT * peaks[place] / span:.2f}"
            f"h{-0.86 * width:.2f}z"
            for place in chosen
        )

    rise, fall = np.flatnonzero(peaks > 0).tolist(), np.flatnonzero(peaks < 0).tolist()
    largest = np.argsort(-np.abs(v), kind="stable")[:_NAMED]
    named = ", ".join(f"[{place}] {fmt.number(float(v[place]), digits=2)}" for place in largest.tolist())
    entries = f"{fmt.integer(count)} entr{'y' if count == 1 else 'ies'}"
    return Bars(path(rise), path(fall), zero, f"{entries}, largest {named}" if count else entries)


def _peaks_of(v: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    groups = np.pad(v, (0, -len(v) % step)).reshape(-1, step)
    return np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], -1)[:, 0]
