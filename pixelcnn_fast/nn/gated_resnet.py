"""The layer of PixelCNN++."""

from __future__ import annotations

from torch import Tensor, nn

from pixelcnn_fast.nn.shifted_conv2d import ShiftedConv2d
from pixelcnn_fast.ops import concat_elu, gated_activation


class GatedResnet(nn.Module):
    """x + a * sigmoid(b), where a and b are the halves of two convolutions' result.

    x: [N, channels, H, W]; activated: ``concat_elu(x)``; skip: that of other maps, one after
    the other, [N, 2 * skips * channels, H, W], or None without any; labels: [N] integers,
    needed with ``n_classes`` -> the result, [N, channels, H, W], and its ``concat_elu``,
    which several layers read.
    Source: Salimans et al. 2017, "PixelCNN++", sections 2.3 and 2.5, and its published code,
    which adds a projection of the label before the gate.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: tuple[int, int],
        skips: int = 0,
        dropout: float = 0.5,
        n_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.conv_input = ShiftedConv2d(2 * channels, channels, kernel_size)
        self.nin_skip = ShiftedConv2d(2 * skips * channels, channels, (1, 1)) if skips else None
        self.dropout = nn.Dropout(dropout)
        self.conv_out = ShiftedConv2d(2 * channels, 2 * channels, kernel_size, scale=0.1)
        self.label = None
        if n_classes is not None:
            self.label = nn.Embedding(n_classes, 2 * channels)
            nn.init.normal_(self.label.weight, std=0.05)

    def forward(
        self, x: Tensor, activated: Tensor, skip: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        y = self.conv_input(activated)
        if self.nin_skip is not None:
            y = y + self.nin_skip(skip)
        y = self.conv_out(self.dropout(concat_elu(y)))
        condition = None if self.label is None else self.label(labels).to(y.dtype)  # as autocast needs it
        x = x + gated_activation(y, condition, linear=True)
        return x, concat_elu(x)
