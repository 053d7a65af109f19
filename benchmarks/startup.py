"""Start-up by the clock: `lipscope --help`, `import lipscope`, and `import torch` beside them, in turn.

Usage: python benchmarks/startup.py [--rounds 9]

Prints medians of processor time (of the process and what it starts) and of the wall clock, and the ratios.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import lipscope": ["-c", "import lipscope"],
    "lipscope.from_torch": ["-c", "import lipscope; lipscope.from_torch"],
    "lipscope.analyze": ["-c", "import lipscope; lipscope.analyze"],
    "lipscope --help": ["-m", "lipscope", "--help"],
    "lipscope analyze --help": ["-m", "lipscope", "analyze", "--help"],
}


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Processor and wall time of one start."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    for arguments in COMMANDS.values():
        seconds(arguments)  # compiles and fills the system's cache
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            taken[name].append(seconds(arguments))
    medians = {
        name: [statistics.median(part) for part in zip(*times, strict=True)] for name, times in taken.items()
    }
    torch = medians["import torch"][0]
    for name, (cpu, wall) in medians.items():
        print(
            f"{name:<24} {cpu:6.2f} s of processor time, {wall:6.2f} s by the clock, {cpu / torch:5.2f} × import torch"
        )


if __name__ == "__main__":
    main()
