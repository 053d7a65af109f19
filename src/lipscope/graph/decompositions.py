"""How operations that stand for many layers are written out while a module is traced."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Recurrent layers and cells, gated linear units, sums by index: by torch's own rules where it has them."""
    aten = torch.ops.aten
    recurrent = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
    whole = (*recurrent, aten.glu.default, aten.baddbmm.default)
    known = torch._decomp.decomposition_table
    own: dict[Any, Callable[..., Any]] = {
        aten.einsum.default: _einsum,
        aten.lstm_cell.default: _lstm_cell,
        aten.gru_cell.default: _gru_cell,
        aten.rnn_tanh_cell.default: partial(_rnn_cell, torch.tanh),
        aten.rnn_relu_cell.default: partial(_rnn_cell, torch.relu),
    }
    return {op: known[op] for op in whole} | own


def _lstm_cell(
    x: Tensor,
    state: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S. Hochreiter, J. Schmidhuber (1997), with F. Gers's forget gate (2000); the gates lie as torch has them."""
    hidden, cell = state
    gates = functional.linear(x, w_ih, b_ih) + functional.linear(hidden, w_hh, b_hh)
    enter, forget, candidate, leave = gates.chunk(4, 1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _gru_cell(
    x: Tensor,
    hidden: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """K. Cho et al. (2014), the reset gate behind the hidden state's matrix."""
    reset, update, candidate = functional.linear(x, w_ih, b_ih).chunk(3, 1)
    hidden_reset, hidden_update, hidden_candidate = functional.linear(hidden, w_hh, b_hh).chunk(3, 1)
    new = (candidate + (reset + hidden_reset).sigmoid() * hidden_candidate).tanh()
    return new + (update + hidden_update).sigmoid() * (hidden - new)


def _rnn_cell(
    activation: Callable[[Tensor], Tensor],
    x: Tensor,
    hidden: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    return activation(functional.linear(x, w_ih, b_ih) + functional.linear(hidden, w_hh, b_hh))


def _einsum(equation: str, tensors: Sequence[Tensor], path: object = None) -> Tensor:
    """One or two tensors, every index a letter and at most once in each: sums and a product of matrices."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    if len(names) > 2 or "." in equation or "->" not in equation:
        raise NotImplementedError(f"einsum {equation!r}: give one or two tensors, all indices and the output")
    if any(len(set(name)) < len(name) for name in (*names, output)):
        raise NotImplementedError(f"einsum {equation!r} repeats an index")
    operands = []
    for name, tensor in zip(names, tensors, strict=True):
        # What only this tensor has and the output lacks is summed at once.
        others = output + "".join(other for other in names if other != name)
        alone = [axis for axis, letter in enumerate(name) if letter not in others]
        summed = tensor.sum(alone) if alone else tensor
        operands.append(("".join(letter for letter in name if letter in others), summed))
    (left, a), *rest = operands
    if not rest:
        return a.permute([left.index(letter) for letter in output])
    ((right, b),) = rest
    size = dict(zip(left, a.shape, strict=True)) | dict(zip(right, b.shape, strict=True))
    shared = [letter for letter in output if letter in left and letter in right]
    inner = [letter for letter in left if letter in right and letter not in output]
    rows = [letter for letter in left if letter not in right]
    columns = [letter for letter in right if letter not in left]

    def arranged(tensor: Tensor, name: str, first: list[str], second: list[str]) -> Tensor:
        ordered = tensor.permute([name.index(letter) for letter in (*shared, *first, *second)])
        lead = [size[letter] for letter in shared]
        return ordered.reshape([*lead, *(math.prod(size[x] for x in part) for part in (first, second))])

    product = torch.matmul(arranged(a, left, rows, inner), arranged(b, right, inner, columns))
    found = [*shared, *rows, *columns]
    unfolded = product.reshape([size[letter] for letter in found])
    return unfolded.permute([found.index(letter) for letter in output])
