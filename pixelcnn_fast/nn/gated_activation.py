"""The gate of the Gated PixelCNN."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GatedActivation(nn.Module):
    """tanh(a) * sigmoid(b), where a and b are the two halves of x's channels.

    x: [N, 2C, H, W]; condition: [N, 2C] or [N, 2C, H, W], added to x first -> [N, C, H, W].
    Raises ValueError if x has an odd number of channels or the condition does not fit it.
    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", equations 2 and 4.
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if x.dim() != 4 or x.shape[1] % 2:
            raise ValueError(
                f"x has shape {list(x.shape)}, expected [N, 2C, H, W]: the gate takes half the channels"
            )
        if condition is not None:
            if condition.dim() == 2:
                condition = condition[:, :, None, None]
            if condition.dim() != 4 or condition.shape[1] != x.shape[1]:
                raise ValueError(
                    f"the condition has shape {list(condition.shape)}, expected [N, 2C] or [N, 2C, H, W] with "
                    f"2C = {x.shape[1]}"
                )
            x = x + condition
        a, b = x.chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b)
