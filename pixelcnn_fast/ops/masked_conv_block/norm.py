"""Batch norm by running statistics as a scale and a shift."""

from __future__ import annotations

import torch
from torch import Tensor


def folded_norm(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The arguments of a batch norm, each [C] -> (scale, shift), both [C], as ``masked_conv_block`` takes them."""
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias
