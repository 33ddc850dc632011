"""The residual block of the convolutional PixelCNN."""

from __future__ import annotations

from torch import Tensor, nn

from pixelcnn_fast.nn.fused import conv_norm_relu
from pixelcnn_fast.nn.masked_conv2d import MaskedConv2d


class ResidualBlock(nn.Module):
    """ReLU(norm2(conv2(ReLU(norm1(conv1(x))))) + skip(x)), both convolutions 3x3 with mask B.

    x: [N, channels_in, H, W] -> [N, channels_out, H, W]. ``skip`` is the identity where the
    widths agree, else a 1x1 convolution with batch norm. channel_groups: those of input and
    output, as in ``MaskedConv2d``. Source: van den Oord et al. 2016, "Pixel Recurrent
    Neural Networks", figure 5, with batch norm.
    """

    def __init__(
        self, channels_in: int, channels_out: int, channel_groups: tuple[Tensor, Tensor] | None = None
    ) -> None:
        super().__init__()
        inside = None if channel_groups is None else (channel_groups[1], channel_groups[1])
        self.conv1 = MaskedConv2d(channels_in, channels_out, 3, mask_type="B", channel_groups=channel_groups)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = MaskedConv2d(channels_out, channels_out, 3, mask_type="B", channel_groups=inside)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.skip: nn.Module = nn.Identity()
        if channels_in != channels_out:
            across: nn.Module = nn.Conv2d(channels_in, channels_out, 1)
            if channel_groups is not None:
                across = MaskedConv2d(channels_in, channels_out, 1, "B", channel_groups=channel_groups)
            self.skip = nn.Sequential(across, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        h = conv_norm_relu(x, self.conv1, self.norm1)
        return conv_norm_relu(h, self.conv2, self.norm2, residual=self.skip(x))
