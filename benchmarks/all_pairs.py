"""The largest ratio over all pairs: the pruned search beside plain blocked products of whole vectors.

Usage: python benchmarks/all_pairs.py [--data FOLDER] [--count 4000] [--threads 2]

Times are of one run; with other work on the machine, the ratios are what counts. Plain products are those of
all pairs of blocks, inputs and outputs, in memory; timed on some blocks and scaled to all.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from shared import mlp, row
from torch import Tensor

import lipscope
from lipscope.quantities.all_pairs import Side, largest_ratios
from lipscope.quantities.features import PILOT, Basis, direction_count

_BLOCK = 256
WIDTHS = (26, 8, 10, 10, 10, 10, 10, 12, 12, 12)


class Crops:
    """Random square crops, half of them mirrored, of some photographs; always the same for an index."""

    def __init__(self, photographs: Sequence[Path], preprocess: Callable[[Image.Image], Tensor]) -> None:
        # Scaled so that a crop of the network's size shows a good part of the photograph.
        self.photographs = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in photographs]
        self.preprocess = preprocess

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._crop(i) for i in indices])

    def _crop(self, index: int) -> Tensor:
        random = np.random.default_rng(index)
        image = self.photographs[index % len(self.photographs)]
        side = min(224, *image.size)
        left, top = (int(random.integers(0, n - side + 1)) for n in image.size)
        crop = image.crop((left, top, left + side, top + side))
        return self.preprocess(ImageOps.mirror(crop) if random.integers(2) else crop)


def photographs(folder: str | None) -> list[Path]:
    """The images of a folder; by default those that scikit-image ships."""
    if folder is None:
        from lipscope.data.demo import _photograph_folder

        place = _photograph_folder()
    else:
        place = Path(folder)
    found = sorted(p for p in place.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [p for p in found if min(Image.open(p).size) >= 224]


def alexnet(folder: str | None, count: int) -> tuple[Callable[[Sequence[int]], Tensor], Tensor]:
    """Reader of the inputs, and float32 outputs of the trunk as the search's float64 outputs."""
    model = lipscope.load_model("alexnet-trunk")
    module = model.module.eval().float()
    read = Crops(photographs(folder), model.preprocessing)
    outputs = []
    with torch.no_grad():
        for start in range(0, count, 64):
            outputs.append(module(read(range(start, min(start + 64, count)))).flatten(1))
    return read, torch.cat(outputs).double()


def plain(read: Callable[[Sequence[int]], Tensor], y: Tensor, dtype: torch.dtype, pairs: int) -> float:
    """Seconds of plain products for so many pairs, from two blocks held in memory."""
    half = min(_BLOCK, len(y) // 2)
    x = read(range(2 * half)).flatten(1)
    sides = [v.to(dtype) - v.to(dtype).mean(0) for v in (x, y[: 2 * half])]
    squares = [v.square().sum(1) for v in sides]

    def block() -> Tensor:
        distances = [
            s[:half, None] + s[None, half:] - 2 * (v[:half] @ v[half:].T)
            for v, s in zip(sides, squares, strict=True)
        ]
        return (distances[1] / distances[0]).max()

    block()
    started, repeats = time.perf_counter(), 0
    while repeats < 3 or time.perf_counter() - started < 2:
        block()
        repeats += 1
    return (time.perf_counter() - started) / repeats * pairs / half**2


def compare(name: str, read: Callable[[Sequence[int]], Tensor], y: Tensor) -> None:
    """One line of the table."""
    count = len(y)
    pairs = count * (count - 1) // 2
    shapes = read([0]).shape[1:], y.shape[1:]
    total = sum(math.prod(shape) for shape in shapes)
    bases, fitted = [], 0.0
    for shape, source in zip(shapes, (read, lambda indices: y[indices]), strict=True):
        directions = direction_count(count, shape, total)
        pilot = source(np.sort(np.random.default_rng(0).permutation(count)[: PILOT * directions]).tolist())
        started = time.perf_counter()
        bases.append(Basis.fit(pilot, directions))
        fitted += time.perf_counter() - started
    of_inputs, of_outputs = bases
    features, averages, projecting, reading = [], [], 0.0, 0.0
    for start in range(0, count, 64):
        started = time.perf_counter()
        x = read(range(start, min(start + 64, count)))
        reading += time.perf_counter() - started
        started = time.perf_counter()
        coordinates = of_inputs.averages(x)
        features.append(of_inputs.features_of(coordinates))
        if of_inputs.averaged:
            averages.append(coordinates.float())
        projecting += time.perf_counter() - started
    started = time.perf_counter()
    kept = torch.cat(averages) if averages else None
    inputs = Side(
        of_inputs, torch.cat(features), read, None if kept is None else lambda indices: kept[list(indices)]
    )
    outputs = Side(of_outputs, of_outputs.features(y), lambda indices: y[list(indices)])
    norms = y.norm(dim=1)
    projecting += time.perf_counter() - started + fitted
    started = time.perf_counter()
    found = largest_ratios(inputs, outputs, norms)
    searching = time.perf_counter() - started
    double, single = (plain(read, y, dtype, pairs) for dtype in (torch.float64, torch.float32))
    total = projecting + searching
    shares = [f"{100 * n / pairs:.2g} %" for n in (found.projected, found.bounded, found.compared)]
    row(
        WIDTHS,
        name,
        count,
        double,
        single,
        projecting,
        searching,
        double / total,
        single / total,
        *shares[:2],
    )
    print(
        f"    largest ratio {found.pairs[0][2]:.6g} of samples {found.pairs[0][:2]}; inputs read again for "
        f"{found.compared} pairs; reading the data once takes {reading:.3g} s",
        flush=True,
    )


def main(folder: str | None, count: int) -> None:
    print(
        f"{torch.get_num_threads()} threads; times in seconds; plain: scaled up from two blocks of {_BLOCK}\n"
    )
    row(
        WIDTHS, "data", "samples", "plain f64", "plain f32", "features", "search", "f64 ÷ ours", "f32 ÷ ours",
        "projected", "bounded",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(count, 32, generator=generator)
    network = mlp((32, 64, 64, 10))
    with torch.no_grad():
        compare("MLP 32-64-64-10", lambda i: low[list(i)], network(low.double()))
    noise = torch.randn(count, 3072, generator=generator)
    network = mlp((3072, 256, 128))
    with torch.no_grad():
        compare("MLP on noise 3072-256-128", lambda i: noise[list(i)], network(noise.double()))
    compare(
        "noise 3072, noise 1024",
        lambda i: noise[list(i)],
        torch.randn(count, 1024, generator=generator).double(),
    )
    compare("AlexNet trunk, crops", *alexnet(folder, count))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", help="folder of photographs of at least 224×224 (default: those of the demo)"
    )
    parser.add_argument("--count", type=int, default=4000, help="samples")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options.data, options.count)
