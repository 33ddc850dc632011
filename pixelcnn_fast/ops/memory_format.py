"""Which of the two memory formats a feature map has."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """x: [N, C, H, W], any strides -> whether its channels are innermost; False where both formats fit."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def memory_format(x: Tensor) -> torch.memory_format:
    """x: [N, C, H, W], any strides -> the format that a result in x's format has."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
