"""The gate of the Gated PixelCNN."""

from __future__ import annotations

from torch import Tensor, nn

from pixelcnn_fast.ops import gated_activation


class GatedActivation(nn.Module):
    """tanh(a) * sigmoid(b), where a and b are the two halves of x's channels.

    x: [N, 2C, H, W]; condition: [N, 2C] or [N, 2C, H, W], added to x first -> [N, C, H, W].
    Raises ValueError if x has an odd number of channels or the condition does not fit it.
    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", equations 2 and 4.
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None and condition.dim() == 4 and condition.shape[2:] == (1, 1):
            condition = condition[:, :, 0, 0]
        return gated_activation(x, condition)
