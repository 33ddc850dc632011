"""The activation of PixelCNN++ in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def concat_elu(x: Tensor) -> Tensor:
    """x: [N, C, H, W] -> elu(x) and elu(-x), [N, 2C, H, W]."""
    return F.elu(torch.cat([x, -x], dim=1))


def gradient(grad: Tensor, y: Tensor) -> Tensor:
    """grad and y, the result: [N, 2C, H, W] -> the gradient of x, [N, C, H, W]."""
    of_x, of_minus_x = (grad * slope(y)).chunk(2, dim=1)
    return of_x - of_minus_x


def slope(y: Tensor) -> Tensor:
    """The derivative of elu where its value is y."""
    return torch.where(y > 0, 1, y + 1)
