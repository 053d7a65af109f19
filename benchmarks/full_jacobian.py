"""The mean Jacobian of the AlexNet trunk at 224×224: what the one-pass answer costs, and how good it is.

Usage: python benchmarks/full_jacobian.py [--pairs 200] [--data demo] [--batch 32] [--passes 8] [--reading both]

--data takes a folder of images or "demo". Time is the ratio to the bare forward pass of the module over
2·pairs images of that data, run in turn in the same process; the error is that against the answer of many
passes over the same Jacobians. The secant reading takes --pairs pairs, the active one 2·pairs samples, or
all there are.
"""

from __future__ import annotations

import argparse
import time

import torch

import lipscope
from lipscope.quantities.sketch import mean_jacobian_norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--passes", type=int, default=8, help="of the many-pass answer; 0 leaves it out")
    parser.add_argument("--reading", choices=["active", "secant", "both"], default="both")
    args = parser.parse_args()
    model = lipscope.load_model("alexnet-trunk")
    graph = lipscope.from_torch(model.module, model.input_shape)
    samples = lipscope.load_samples(args.data, preprocess=model.preprocessing)
    threads = torch.get_num_threads()
    print(f"AlexNet trunk, 224×224, {samples.name} ({len(samples)} images), {threads} threads, float32")
    with torch.no_grad():
        for reading in ("secant", "active") if args.reading == "both" else (args.reading,):
            measure(model.module.eval(), graph, samples, reading, args)


def measure(
    module: torch.nn.Module,
    graph: lipscope.Graph,
    samples: lipscope.Samples,
    reading: str,
    args: argparse.Namespace,
) -> None:
    """One reading: time and error of one pass, against many."""
    if reading == "active":
        samples = samples.take(2 * args.pairs, seed=0)
    options = {"pairs": args.pairs, "batch_size": args.batch, "block": args.block}

    def forward(images: int) -> float:
        """Seconds of the bare forward pass, the images decoded beforehand."""
        seconds = 0.0
        for start in range(0, images, args.batch):
            x = samples.batch([i % len(samples) for i in range(start, min(start + args.batch, images))])
            started = time.perf_counter()
            module(x)
            seconds += time.perf_counter() - started
        return seconds

    images = 2 * args.pairs if reading == "secant" else len(samples)
    forward(args.batch)
    before = forward(images)
    one = mean_jacobian_norm(graph, samples, reading, **options)
    bare = (before + forward(images)) / 2
    counted = f"{args.pairs} pairs" if reading == "secant" else f"{images} samples"
    print(f"{reading}: {counted}; bare forward pass of {images} images {bare:.1f} s")
    print(
        f"  one pass     {one.value:.5f} ± {one.standard_error or 0:.5f} (sampling), "
        f"stated error {one.relative_error:.1%}; {one.cost.seconds:.1f} s = {one.cost.seconds / bare:.2f} × bare "
        f"(reading images included); counted {one.cost.forward_passes / images:.2f}"
    )
    if args.passes:
        many = mean_jacobian_norm(graph, samples, reading, passes=args.passes, tolerance=1e-3, **options)
        print(
            f"  many passes  {many.value:.5f}, stated error {many.relative_error:.2%}; {many.method}; "
            f"{many.cost.seconds / bare:.1f} × bare"
        )
        print(f"  one pass is below many by {1 - one.value / many.value:.2%}", flush=True)


if __name__ == "__main__":
    main()
