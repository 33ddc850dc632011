"""The recurrence of a Diagonal LSTM in plain PyTorch: one diagonal after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.ops.row_lstm.reference import State, cell, cell_backward, cell_of_gates, initial


def diagonal_lstm(
    sums: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """sums: [N, 4h, H, W]; weight: [4h, h, 2], tap 0 on the pixel above and tap 1 on the
    one to the left; h0, c0: what row -1 and column -1 hold, [h], or None for zeros;
    reverse: each row from the right -> h [N, h, H, W]."""
    return forward(sums, weight, h0, c0, reverse, keep=False)[0]


def forward(
    sums: Tensor,
    weight: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    reverse: bool = False,
    *,
    keep: bool = True,
) -> tuple[Tensor, Tensor]:
    """-> h [N, h, H, W], and what the gates were, [N, 4h, H, W], or something empty unless ``keep``."""
    if reverse:
        h, gates = forward(sums.flip(3), weight, h0, c0, keep=keep)
        return h.flip(3), gates.flip(3)
    height, width = sums.shape[2:]
    skewed = [(h, torch.cat(gates, 1) if keep else h[:0]) for h, _, gates in _diagonals(sums, weight, h0, c0)]
    if not skewed:
        return sums.new_zeros(len(sums), weight.shape[1], height, width), torch.empty_like(sums)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    h, gates = (torch.stack(each, 3)[:, :, rows, rows + columns] for each in zip(*skewed, strict=True))
    return h, gates


def backward(
    grad: Tensor,
    weight: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    h: Tensor,
    gates: Tensor,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad: of h; the rest as ``forward`` was given and gave -> the gradients of sums, weight, h0 and c0."""
    if reverse:
        of_sums, of_weight, of_h0, of_c0 = backward(grad.flip(3), weight, h0, c0, h.flip(3), gates.flip(3))
        return of_sums.flip(3), of_weight, of_h0, of_c0
    n, hidden, height, width = h.shape
    grad_sums, grad_weight = torch.empty_like(gates), torch.zeros_like(weight)
    first_h, first_c = (initial(state, h.new_empty(n, hidden, 1)) for state in (h0, c0))
    # With what is outside of the image above and to the left; there, gradients are summed up.
    h, c = _framed(h, first_h), _framed(h, first_c)
    for left in range(width):
        c[:, :, 1:, left + 1] = cell_of_gates(gates[:, :, :, left], c[:, :, 1:, left])
    grad_h, grad_c = torch.zeros_like(h), torch.zeros_like(c)
    grad_h[:, :, 1:, 1:] = grad
    for d in reversed(range(height + width - 1)):
        y = _rows_on(d, height, width) + 1
        x = d + 2 - y
        of_gates, of_cell = cell_backward(
            grad_h[:, :, y, x],
            grad_c[:, :, y, x],
            gates[:, :, y - 1, x - 1],
            c[:, :, y, x],
            c[:, :, y, x - 1],
        )
        grad_sums[:, :, y - 1, x - 1] = of_gates
        grad_c[:, :, y, x - 1] += of_cell
        for tap, at in enumerate(((y - 1, x), (y, x - 1))):
            grad_h[:, :, at[0], at[1]] += weight[:, :, tap].T @ of_gates
            grad_weight[:, :, tap] += torch.einsum("nop,nip->oi", of_gates, h[:, :, at[0], at[1]])
    of_h0, of_c0 = (x[:, :, 0].sum((0, 2)) + x[:, :, 1:, 0].sum((0, 2)) for x in (grad_h, grad_c))
    return grad_sums, grad_weight, of_h0, of_c0


def _framed(x: Tensor, first: Tensor) -> Tensor:
    """x [N, h, H, W] with ``first`` [N, h, 1] above and to the left -> [N, h, H + 1, W + 1]."""
    n, channels, height, width = x.shape
    framed = first[..., None].repeat(1, 1, height + 1, width + 1)
    framed[:, :, 1:, 1:] = x
    return framed


def _rows_on(d: int, height: int, width: int) -> Tensor:
    return torch.arange(max(0, d - width + 1), min(height, d + 1))


def _diagonals(sums: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None) -> Iterator[State]:
    """For each diagonal, the states of pixels (y, d - y): [N, h, H]; outside they are zero, or not read."""
    if not sums.numel():
        return
    (n, _, height, _), hidden = sums.shape, weight.shape[1]
    first_h, first_c = (initial(state, sums.new_empty(n, hidden, 1)) for state in (h0, c0))
    rows = torch.arange(height, device=sums.device)
    h = c = sums.new_zeros(n, hidden, height)
    for d, of_diagonal in enumerate(_skewed(sums).unbind(3)):
        if h0 is not None or c0 is not None:  # left of the first column
            h, c = torch.where(rows == d, first_h, h), torch.where(rows == d, first_c, c)
        h, c, gates = cell(of_diagonal + F.conv1d(torch.cat([first_h, h], 2), weight), c)
        yield h, c, gates


def _skewed(x: Tensor) -> Tensor:
    """Each row moved right by one more than the row above -> [N, C, H, W + H - 1], zero beside it."""
    n, channels, height, width = x.shape
    span = width + height - 1
    return F.pad(x, (0, height)).flatten(2)[..., : height * span].view(n, channels, height, span)
