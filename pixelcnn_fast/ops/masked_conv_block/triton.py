"""Masked convolution with an epilogue, in one pass, by the kernel of ``masked_conv2d``."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.ops.masked_conv2d.triton import Pair, fused_forward


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    dilation: Pair,
    padding: Pair,
    activation: str,
    residual: Tensor | None,
    condition: Tensor | None,
    alpha: float = 1.0,
    result_format: torch.memory_format | None = None,
) -> Tensor:
    """activation(convolution(x) + condition + residual).

    x: [N, C, H, W]; weight: [O, C, kH, kW]; mask: one that is expanded to it; bias: [O];
    residual: [N, O, H', W']; condition: [N, O]; any strides -> [N, O, H', W'] in a memory format, or in x's.
    activation: 'none', 'relu', 'leaky_relu', 'elu' (alpha is the slope), 'silu', 'sigmoid' or 'tanh'.
    Raises what ``masked_conv2d.triton.forward`` raises.
    """
    terms = (activation, alpha, residual, condition)
    return fused_forward(x, weight, bias, mask, dilation, padding, *terms, result_format)
