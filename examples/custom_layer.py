"""A layer type added from outside of the package: a torch operation of one's own, and what lipscope needs of it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lipscope
from lipscope.layers.activation import Activation
from lipscope.layers.base import torch_rule


@torch.library.custom_op("example::softsign", mutates_args=())
def softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


softsign.register_fake(torch.empty_like)


@dataclass(eq=False)
class Softsign(Activation):
    """x / (1 + |x|)."""

    kind = "softsign"
    slope_range = (0.0, 1.0)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] / (1 + xs[0].abs())

    def derivative(self, x: Tensor) -> Tensor:
        return (1 + x.abs()).square().reciprocal()


@torch_rule("example.softsign.default")
def softsign_rule(call):
    return [Softsign()]


class Network(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](softsign(self[0](x)))


def main() -> lipscope.Bracket:
    torch.manual_seed(0)
    found = lipscope.bracket(Network(nn.Linear(3, 8), nn.Linear(8, 2)), (3,), effort="fast")
    print(f"{found.lower:.4f} ≤ L ≤ {found.upper:.4f}")
    return found


if __name__ == "__main__":
    main()
