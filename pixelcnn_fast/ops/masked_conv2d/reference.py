"""Masked 2-D convolution in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """x: [N, I, H, W]; weight, mask: [O, I, kH, kW]; bias: [O] or None -> [N, O, H', W']."""
    return F.conv2d(x, weight * mask, bias, padding=padding, dilation=dilation)
