"""What all means of the effective Jacobian cost beside the bare forward passes of the same images.

Usage: python benchmarks/effective.py [--data FOLDER] [--images 20000] [--pairs 10000] [--levels]

AlexNet's trunk at 224×224, images as random crops and mirror images of the photographs of a folder
(default: the built-in ones). Each chunk of images is evaluated bare, then with the means of all
slopes at points and over pairs (scalar, channel and unit levels, with their groups for standard
errors): both in turn on the same data, so that a noisy machine weighs on both. Reading images is
timed apart and counted in neither.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import lipscope
from lipscope.data.demo import PHOTOGRAPHS, _photograph_folder

MEAN, STD = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class Crops:
    """Random crops of photographs, some mirrored, kept as bytes; `seconds` is the time spent on reading."""

    def __init__(self, folder: Path | None, count: int) -> None:
        names = sorted(folder.iterdir()) if folder else [_photograph_folder() / name for name in PHOTOGRAPHS]
        self.images = [
            torch.from_numpy(np.asarray(Image.open(p).convert("RGB")).copy()).permute(2, 0, 1) for p in names
        ]
        self.count, self.seconds = count, 0.0

    def __call__(self, indices: Sequence[int]) -> torch.Tensor:
        started = time.perf_counter()
        x = torch.stack([self._crop(i) for i in indices])
        self.seconds += time.perf_counter() - started
        return x

    def _crop(self, index: int) -> torch.Tensor:
        generator = np.random.default_rng(index)
        image = self.images[index % len(self.images)]
        top, left = (generator.integers(0, side - 224 + 1) for side in image.shape[1:])
        crop = image[:, top : top + 224, left : left + 224]
        crop = crop.flip(2) if generator.random() < 0.5 else crop
        return (crop.float() / 255 - MEAN) / STD

    def samples(self) -> lipscope.Samples:
        return lipscope.Samples(
            [f"crop {i}" for i in range(self.count)], (3, 224, 224), "random crops", "crops", self
        )


class InTurn:
    """An engine that evaluates the bare network on each chunk before the chunk's task, and times both."""

    def __init__(self, module: torch.nn.Module, crops: Crops) -> None:
        self.module, self.crops = module, crops
        self.bare = self.task = 0.0

    def map(self, task: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        for number, batches in enumerate(items):
            started, read = time.perf_counter(), self.crops.seconds
            with torch.no_grad():
                for batch in batches:
                    self.module(self.crops(batch.indices))
            middle, middle_read = time.perf_counter(), self.crops.seconds
            yield task(shared, batches)  # what the driver does with the result is counted too
            self.bare += middle - started - (middle_read - read)
            self.task += time.perf_counter() - middle - (self.crops.seconds - middle_read)
            print(
                f"  chunk {number + 1} of {len(items)}: ratio {self.task / self.bare:.3f}",
                end="\r",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    model = lipscope.load_model("alexnet-trunk")
    module = model.module.eval()
    graph = lipscope.from_torch(module, (3, 224, 224))
    crops = Crops(options.data, options.images)
    engine = InTurn(module, crops)
    means = lipscope.mean_slopes(
        graph, crops.samples(), pairs=options.pairs, batch_size=options.batch, engine=engine
    )
    print(
        f"AlexNet trunk, {means.samples} images, {means.pairs} pairs, {torch.get_num_threads()} threads, float32"
    )
    print(f"  bare forward passes   {engine.bare:8.1f} s   1.00")
    print(f"  with all means        {engine.task:8.1f} s   {engine.task / engine.bare:.2f}")
    print(f"  reading images        {crops.seconds / 2:8.1f} s   (counted in neither)")
    print("\n  level    reading      L_eff   std. error   seconds   Lanczos steps as forward passes")
    direction = None
    for level in ("scalar", "channel", "unit"):
        for reading in ("active", "secant"):
            started = time.perf_counter()
            found, direction = lipscope.effective(means, level, reading, start=direction)
            seconds = time.perf_counter() - started
            passes = (found.cost.forward_passes or 0) - means.samples
            print(
                f"  {level:<8} {reading:<8} {found.value:9.5g}   {found.standard_error or 0:10.2g}   {seconds:7.1f}   {passes:.0f}"
            )


if __name__ == "__main__":
    main()
