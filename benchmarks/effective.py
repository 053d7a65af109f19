"""What the effective Jacobian costs beside the bare forward passes of the same images.

Usage: python benchmarks/effective.py [--data FOLDER] [--images 20000] [--pairs 10000] [--full 1000] [--many 6]

AlexNet's trunk at 224×224, images as random crops and mirror images of the photographs of a folder
(default: the built-in ones). Every chunk of images is evaluated bare, then by what is measured, in turn on
the same images in memory, so that a noisy machine weighs on both:
- all means of slopes, at points and over pairs, at every level, with their groups for standard errors;
- level full: E[J] over --full pairs (of two images each), in its default two passes. With --many, also the
  answer of that many passes over the same pairs, which shows how far below it two passes are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import lipscope
from lipscope.data.demo import PHOTOGRAPHS, _photograph_folder

MEAN, STD = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class Crops:
    """Random crops of photographs, some mirrored; the photographs are kept as bytes, a chunk as the network sees it."""

    def __init__(self, folder: Path | None, count: int) -> None:
        paths = sorted(folder.iterdir()) if folder else [_photograph_folder() / name for name in PHOTOGRAPHS]
        pixels = [np.asarray(Image.open(path).convert("RGB")).copy() for path in paths]
        self.images = [torch.from_numpy(image).permute(2, 0, 1) for image in pixels]
        self.count = count
        self.held: dict[int, torch.Tensor] = {}

    def __call__(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([self.held[i] if i in self.held else self._crop(i) for i in indices])

    def hold(self, indices: Iterable[int]) -> None:
        """Keep these in memory, and no others."""
        self.held = {i: self._crop(i) for i in indices}

    def _crop(self, index: int) -> torch.Tensor:
        generator = np.random.default_rng(index)
        image = self.images[index % len(self.images)]
        top, left = (generator.integers(0, side - 224 + 1) for side in image.shape[1:])
        crop = image[:, top : top + 224, left : left + 224]
        crop = crop.flip(2) if generator.random() < 0.5 else crop
        return (crop.float() / 255 - MEAN) / STD

    def samples(self) -> lipscope.Samples:
        names = [f"crop {i}" for i in range(self.count)]
        return lipscope.Samples(names, (3, 224, 224), "random crops", "crops", self)


class InTurn:
    """An engine that evaluates the bare network on each chunk before the chunk's task, and times both."""

    def __init__(self, module: torch.nn.Module, crops: Crops) -> None:
        self.module, self.crops = module, crops
        self.bare = self.task = 0.0
        self.images = 0

    def map(self, task: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        for number, batches in enumerate(items):
            self.crops.hold(i for batch in batches for i in batch.indices)
            started = time.perf_counter()
            with torch.no_grad():
                for batch in batches:
                    self.module(self.crops(batch.indices))
            middle = time.perf_counter()
            yield task(shared, batches)  # what the driver does with the result is counted too
            self.bare += middle - started
            self.task += time.perf_counter() - middle
            self.images += len(self.crops.held)
            print(
                f"  chunk {number + 1} of {len(items)}: ratio {self.task / self.bare:.3f}",
                end="\r",
                flush=True,
            )

    def report(self, what: str, images: int) -> None:
        """The cost of the whole, in bare forward passes of `images` images."""
        bare = self.bare / self.images * images
        print(f"  bare forward passes of {images} images {bare:9.1f} s   1.00")
        print(f"  {what:<36} {self.task:9.1f} s   {self.task / bare:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--full", type=int, default=1000)
    parser.add_argument("--many", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    model = lipscope.load_model("alexnet-trunk")
    module = model.module.eval()
    graph = lipscope.from_torch(module, (3, 224, 224))
    crops = Crops(options.data, options.images)
    samples = crops.samples()
    engine = InTurn(module, crops)
    means = lipscope.mean_slopes(graph, samples, pairs=options.pairs, batch_size=options.batch, engine=engine)
    threads = torch.get_num_threads()
    print(f"AlexNet trunk, {means.samples} images, {means.pairs} pairs, {threads} threads, float32")
    engine.report("all means of slopes", means.samples)
    print("\n  level    reading      L_eff   std. error   seconds   forward passes")
    direction = None
    for level in ("scalar", "channel", "unit"):
        for reading in ("active", "secant"):
            started = time.perf_counter()
            found, direction = lipscope.effective(means, level, reading, start=direction)
            seconds = time.perf_counter() - started
            passes = (found.cost.forward_passes or 0) - means.samples
            line = f"{found.value:9.5g}   {found.standard_error or 0:10.2g}   {seconds:7.1f}   {passes:8.0f}"
            print(f"  {level:<8} {reading:<8} {line}")
    if options.full:
        full(means, samples.take(2 * options.full), module, crops, options)


def full(
    means: lipscope.MeanSlopes,
    samples: lipscope.Samples,
    module: torch.nn.Module,
    crops: Crops,
    options: argparse.Namespace,
) -> None:
    """Level full: the cost of the default, and how far it is below the answer of many passes."""
    engine = InTurn(module, crops)
    shared = {"pairs": options.full, "batch_size": options.batch}
    two = lipscope.mean_jacobian_norm(means, samples, "secant", engine=engine, **shared)
    print(f"\nLevel full, secant, {options.full} pairs of {2 * options.full} images")
    engine.report("E[J] in two passes", 2 * options.full)
    error = f"± {two.standard_error or 0:.2g} (sampling), at most {two.relative_error:.1%} below as stated"
    print(f"  L_eff {two.value:.5g} {error}")
    if options.many:
        many = lipscope.mean_jacobian_norm(
            means, samples, "secant", passes=options.many, tolerance=1e-4, **shared
        )
        print(
            f"  {options.many} passes: {many.value:.5g}; two passes are {1 - two.value / many.value:.2%} below"
        )


if __name__ == "__main__":
    main()
