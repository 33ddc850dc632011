"""PixelRNN's layers as a good PyTorch user writes them: a loop of ``conv1d`` over rows, or over the diagonals of a
skewed image. What ours is compared with; the weights are those of the library's modules."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.models import PixelRNN
from pixelcnn_fast.nn import DiagonalBiLSTM, MaskedConv2d, RowLSTM

Loop = Callable[[Tensor, Tensor], Tensor]  # (sums [N, 4h, H, W], weight [4h, h, taps]) -> h [N, h, H, W]


def cell(sums: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = sums.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def rows(sums: Tensor, weight: Tensor) -> Tensor:
    n, _, _, width = sums.shape
    h = c = sums.new_zeros(n, weight.shape[1], width)
    states = []
    for of_row in sums.unbind(2):
        h, c = cell(of_row + F.conv1d(h, weight, padding=weight.shape[2] // 2), c)
        states.append(h)
    return torch.stack(states, 2)


def diagonals(sums: Tensor, weight: Tensor) -> Tensor:
    n, _, height, width = sums.shape
    h = c = sums.new_zeros(n, weight.shape[1], height)
    states = []
    for of_diagonal in skewed(sums).unbind(3):
        h, c = cell(of_diagonal + F.conv1d(F.pad(h, (1, 0)), weight), c)
        states.append(h)
    return unskewed(torch.stack(states, 3), width)


def skewed(x: Tensor) -> Tensor:
    """Each row moved right by one more than the row above: [..., H, W] -> [..., H, W + H - 1], by reshaping."""
    *outer, height, width = x.shape
    span = width + height - 1
    return F.pad(x, (0, height)).flatten(-2)[..., : height * span].view(*outer, height, span)


def unskewed(x: Tensor, width: int) -> Tensor:
    *outer, height, span = x.shape
    return F.pad(x.flatten(-2), (0, height)).view(*outer, height, span + 1)[..., :width]


def convolution(layer: MaskedConv2d, x: Tensor) -> Tensor:
    _, _, height, width = layer.weight.shape
    return F.conv2d(x, layer.weight * layer.mask, layer.bias, padding=(height // 2, width // 2))


LOOPS = rows, diagonals


def layer(module: nn.Module, x: Tensor, by: tuple[Loop, Loop] = LOOPS) -> Tensor:
    """A layer of the library's, computed by loops over rows and over diagonals."""
    by_rows, by_diagonals = by
    if isinstance(module, RowLSTM):
        return by_rows(convolution(module.input_to_state, x), module.state_to_state.weight)
    assert isinstance(module, DiagonalBiLSTM)
    left, right = (
        (convolution(m.input_to_state, x), m.state_to_state.weight) for m in (module.left, module.right)
    )
    from_the_right = by_diagonals(right[0].flip(3), right[1]).flip(3)
    return by_diagonals(*left) + F.pad(from_the_right, (0, 0, 1, -1))


def bits_per_dimension(model: PixelRNN, images: Tensor, by: tuple[Loop, Loop] = LOOPS) -> Tensor:
    """The mean over images, by plain PyTorch."""
    x = convolution(model.conv_in, images.to(model.conv_in.weight.dtype) / (model.levels - 1))
    for each, upsample in zip(model.layers, model.upsample, strict=True):
        assert isinstance(upsample, MaskedConv2d)
        x = x + convolution(upsample, layer(each, x, by))
    for conv in (model.conv_out1, model.conv_out2, model.conv_out3):
        x = convolution(conv, F.relu(x))
    n, channels, height, width = images.shape
    logits = x.view(n, channels, model.levels, height, width).transpose(1, 2)
    return F.cross_entropy(logits, images.long()) / math.log(2)
