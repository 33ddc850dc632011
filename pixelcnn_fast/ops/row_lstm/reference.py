"""The recurrence of a Row LSTM in plain PyTorch: one row after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight

Gates = tuple[Tensor, Tensor, Tensor, Tensor]  # i, f, g and o
State = tuple[Tensor, Tensor, Gates]  # h, c and what the gates were


def row_lstm(sums: Tensor, weight: Tensor, h0: Tensor | None = None, c0: Tensor | None = None) -> Tensor:
    """sums: [N, 4h, H, W]; weight: [4h, h, k], k odd, whose taps lie on the row above; h0,
    c0: what row -1 holds inside the image's columns, [h], or None for zeros -> h
    [N, h, H, W]."""
    return forward(sums, weight, h0, c0, keep=False)[0]


def forward(
    sums: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, *, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """-> h [N, h, H, W], and what the gates were, [N, 4h, H, W], or something empty unless ``keep``."""
    rows = [(h, torch.cat(gates, 1) if keep else h[:0]) for h, _, gates in _rows(sums, weight, h0, c0)]
    if not rows:
        return sums.new_zeros(len(sums), weight.shape[1], *sums.shape[2:]), torch.empty_like(sums)
    h, gates = zip(*rows, strict=True)
    return torch.stack(h, 2), torch.stack(gates, 2)


def backward(
    grad: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, h: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad: of h; the rest as ``forward`` was given and gave -> the gradients of sums, weight, h0 and c0."""
    grad_sums, grad_weight = torch.empty_like(gates), torch.zeros_like(weight)
    n, hidden, _, width = h.shape
    first_h, first_c = (initial(state, h.new_empty(n, hidden, width)) for state in (h0, c0))
    c = [first_c]
    for of_row in gates.unbind(2):
        c.append(cell_of_gates(of_row, c[-1]))
    grad_h, grad_c = torch.zeros_like(first_h), torch.zeros_like(first_c)
    padding = weight.shape[2] // 2
    for y in reversed(range(h.shape[2])):
        above = h[:, :, y - 1] if y else first_h
        of_gates, grad_c = cell_backward(grad[:, :, y] + grad_h, grad_c, gates[:, :, y], c[y + 1], c[y])
        grad_sums[:, :, y] = of_gates
        grad_h = F.conv_transpose1d(of_gates, weight, padding=padding)
        grad_weight += conv1d_weight(above, weight.shape, of_gates, padding=padding)
    return grad_sums, grad_weight, grad_h.sum((0, 2)), grad_c.sum((0, 2))


def _rows(sums: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None) -> Iterator[State]:
    size = (len(sums), weight.shape[1], sums.shape[3])
    h, c = (initial(state, sums.new_empty(size)) for state in (h0, c0))
    for of_row in sums.unbind(2):
        h, c, gates = cell(of_row + F.conv1d(h, weight, padding=weight.shape[2] // 2), c)
        yield h, c, gates


def initial(state: Tensor | None, like: Tensor) -> Tensor:
    """An initial state, [h], everywhere: [N, h, ...]."""
    return torch.zeros_like(like) if state is None else state[:, None].expand_as(like)


def cell(sums: Tensor, c: Tensor) -> State:
    """sums: of the gates i, f, g and o, [N, 4h, ...]; c: the cell before, [N, h, ...] -> h, c, and the gates."""
    i, f, g, o = sums.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * c.tanh(), c, (i, f, g, o)


def cell_of_gates(gates: Tensor, c: Tensor) -> Tensor:
    """c: the cell before -> the cell"""
    i, f, g, _ = gates.chunk(4, 1)
    return f * c + i * g


def cell_backward(
    grad_h: Tensor, grad_c: Tensor, gates: Tensor, c: Tensor, c_before: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of h, and of c by what came after -> those of the sums, and of the cell before."""
    i, f, g, o = gates.chunk(4, dim=1)
    tanh = c.tanh()
    grad_c = grad_c + grad_h * o * (1 - tanh * tanh)
    of_sums = [
        grad_c * g * i * (1 - i),
        grad_c * c_before * f * (1 - f),
        grad_c * i * (1 - g * g),
        grad_h * tanh * o * (1 - o),
    ]
    return torch.cat(of_sums, 1), grad_c * f
