"""The idea in one picture: every quantity is a slope of the same network, drawn for one of one input and one output.

Usage: python examples/one_picture.py [FIGURE.svg]    (needs the extra `figures`)
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import lipscope
from lipscope.figures import blank, save
from lipscope.figures.canvas import ESTIMATE, LOWER, MUTED, UPPER


def trained() -> tuple[nn.Sequential, Tensor]:
    """A network [1, 16, 16, 1] that has learnt a wave from 24 samples, and the samples (24, 1)."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)
    ).double()
    x = torch.linspace(-2, 2, 24, dtype=torch.float64)[:, None]
    y = torch.sin(2.5 * x) * torch.exp(-0.2 * x.square())
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(600):
        optimiser.zero_grad()
        nn.functional.mse_loss(module(x), y).backward()
        optimiser.step()
    return module.eval(), x


def numbers(module: nn.Module, x: Tensor) -> dict[str, tuple[float, str]]:
    """Each quantity with the colour of its kind, from the certified upper bounds down."""
    result = lipscope.analyze(module, x, options=lipscope.Options(effort="fast", seconds=1, dtype="float64"))
    exact, _ = lipscope.exact(lipscope.from_torch(module, (1,)))
    assert result.certified is not None
    assert result.ascent is not None
    assert result.empirical is not None
    unit = next(found for found in result.effective if (found.level, found.reading) == ("unit", "active"))
    return {
        "analytical": (result.analytical.value, UPPER),
        "certified": (result.certified.value, UPPER),
        "exact": (exact.upper, MUTED),
        "ascent": (result.ascent.value, LOWER),
        "local": (result.local.value, LOWER),
        "empirical": (result.empirical.value, LOWER),
        "effective": (unit.value, ESTIMATE),
    }


def draw_unit(axes) -> None:
    """The slopes of one ReLU: free, of a pair, at a point, on average."""
    a = torch.linspace(-2, 2, 201)
    low, high = -1.2, 1.2
    axes.fill_between([low, 2], [0, 0], [0, 2 - low], color=UPPER, alpha=0.13, lw=0,
                      label="certified: any slope from 0 to 1")  # fmt: skip
    axes.plot(a, a.clamp(min=0), color="black", lw=1.6)
    axes.plot([0.7, 1.7], [0.7, 1.7], color=LOWER, lw=5, alpha=0.4, label="local: the slope at a point, 1")
    axes.plot([low, high], [0, high], color=LOWER, lw=1.4, marker="o", ms=4,
              label=f"empirical: the secant slope of a pair, {high / (high - low):g}")  # fmt: skip
    axes.plot(
        a, 0.3 * a, color=ESTIMATE, lw=1.4, ls="--", label="effective: the mean slope over data, say 0.3"
    )
    axes.legend(loc="lower center", fontsize=7, framealpha=0.9, edgecolor="none")
    axes.set_title("one unit, y = max(a, 0)", fontsize=9)
    axes.set(xlabel="a", ylabel="y", xlim=(-2, 2), ylim=(-2.4, 2.2))


def draw_network(axes, module: nn.Module, x: Tensor, found: dict[str, tuple[float, str]]) -> None:
    """The network's graph with its steepest pair, and the wedges that no other value can lie in."""
    line = torch.linspace(-2.2, 2.2, 441, dtype=torch.float64)[:, None]
    _, pair = lipscope.empirical(lipscope.from_torch(module, (1,)), lipscope.load_samples(x))
    ends = torch.stack([pair.x1, pair.x2])
    with torch.no_grad():
        y, at_samples, at_ends = (module(points)[:, 0] for points in (line, x, ends))
    reach = line[:, 0] - ends[0, 0]
    for name, alpha in (("analytical", 0.28), ("certified", 0.13)):
        cone = found[name][0] * reach.abs()
        for side in (-1, 1):
            axes.fill_between(line[:, 0], at_ends[0] + side * cone, side * 99.0, color=UPPER, alpha=alpha, lw=0,
                              where=cone < 98, label=f"{name}: not here" if side > 0 else None)  # fmt: skip
    axes.plot(line[:, 0], y, color="black", lw=1.6)
    axes.plot(x[:, 0], at_samples, "o", color="black", ms=3, label="data")
    axes.plot(ends[:, 0], at_ends, color=LOWER, lw=5, alpha=0.5, label="empirical: the steepest pair")
    axes.legend(loc="lower right", fontsize=7, framealpha=0.9, edgecolor="none")
    axes.set_title("a network, seen from one of its points", fontsize=9)
    axes.set(xlabel="x", ylabel="Φ(x)", xlim=(-2.2, 2.2), ylim=(-4.4, 3.4))


def draw_numbers(axes, found: dict[str, tuple[float, str]]) -> None:
    """The quantities on one logarithmic axis."""
    names = list(found)[::-1]
    for row, name in enumerate(names):
        value, colour = found[name]
        axes.plot([value], [row], "o", color=colour, ms=6)
        axes.annotate(
            f"{value:.3g}", (value, row), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(names)), names)
    axes.set(xscale="log", xlabel="largest slope", ylim=(-0.6, len(names) - 0.3))
    axes.set_title("the same network in numbers", fontsize=9)
    axes.margins(x=0.2)


def main(path: str = "one-picture.svg") -> dict[str, tuple[float, str]]:
    """Draw the figure and return the numbers in it."""
    module, x = trained()
    found = numbers(module, x)
    figure, (unit, network, values) = blank(3, width=10.5, height=3.6)
    draw_unit(unit)
    draw_network(network, module, x, found)
    draw_numbers(values, found)
    save(figure, Path(path))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
