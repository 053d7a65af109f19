"""A small causal decoder on embeddings: bounds of the whole, and of what a small ball of inputs can do to it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import lipscope

TOKENS, WIDTH, HEADS, BLOCKS = 4, 8, 2, 2


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm and beside a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.before_attention(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class Decoder(nn.Module):
    """Embeddings (batch, tokens, width) to embeddings; the layer norms bound what the attention multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(0.1 * torch.randn(TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(x + self.places))


def main() -> tuple[lipscope.Bracket, lipscope.Bracket]:
    torch.manual_seed(0)
    model, shape = Decoder(), (TOKENS, WIDTH)
    around = lipscope.BallOptions(torch.randn(shape, dtype=torch.float64), 0.001)
    everywhere = lipscope.bracket(model, shape, effort="none")
    nearby = lipscope.bracket(model, shape, over=around, effort="none")
    for name, found in (("everywhere", everywhere), ("in the ball", nearby)):
        print(f"{name}: {found.lower:.4g} ≤ L ≤ {found.upper:.4g}")
    return everywhere, nearby


if __name__ == "__main__":
    main()
