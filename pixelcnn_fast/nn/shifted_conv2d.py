"""The convolutions of PixelCNN++: the shape of a kernel decides which earlier pixels it sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.nn.settings import check_sizes
from pixelcnn_fast.ops import masked_conv2d

FEWEST_PIXELS = 512  # of a map, from which masked_conv2d takes less time than PyTorch on the CPU


class ShiftedConv2d(nn.Module):
    """Weight-normalised convolution whose kernel ends at the present row.

    x: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    A kernel of odd width has the present column in its middle, and one of two columns ends there.
    The weight is g * v / |v| for each output channel. ``weight_v``, [out_channels,
    in_channels, kH, kW], begins as random numbers of standard deviation 0.05, ``weight_g``,
    [out_channels, 1, 1, 1], as ``scale``, and ``bias`` as zeros.
    Source: Salimans et al. 2017, "PixelCNN++", section 2.4; Salimans and Kingma 2016,
    "Weight Normalization".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: int = 1,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, stride=stride)
        self.stride, self.scale = stride, scale
        height, width = kernel_size
        self.above, self.right = height - 1, (width - 1) // 2
        self.left = width - 1 - self.right
        self.weight_v = nn.Parameter(torch.empty(out_channels, in_channels, height, width).normal_(std=0.05))
        self.weight_g = nn.Parameter(torch.full((out_channels, 1, 1, 1), scale))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    @property
    def weight(self) -> Tensor:
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.weight_v[0, 0].numel() > 1:
            is_large = x.device.type == "cpu" and height * width >= FEWEST_PIXELS
            if self.stride == 1 and is_large:
                no_mask, padding = self.bias.new_ones(1), (self.above, self.left)
                return masked_conv2d(x, self.weight, self.bias, no_mask, padding, size=(height, width))
            x = F.pad(x, (self.left, self.right, self.above, 0))
        return F.conv2d(x, self.weight, self.bias, self.stride)

    @torch.no_grad()
    def normalise(self, y: Tensor) -> Tensor:
        """y: what the layer gave; sets g and the bias so that each channel of it would have had mean 0
        and standard deviation ``scale`` -> what the layer would have given."""
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        factor = self.scale / variance.clamp(min=1e-10).sqrt()
        self.weight_g.mul_(factor[:, None, None, None])
        self.bias.sub_(mean).mul_(factor)
        return (y - mean[:, None, None]) * factor[:, None, None]


class ShiftedConvTranspose2d(ShiftedConv2d):
    """The transpose of such a convolution, back to a grid that is ``stride`` times as fine.

    x: [N, in_channels, h, w]; size: (H, W), at most (h, w) * stride -> [N, out_channels, H, W].
    Weights are those of a ``ShiftedConv2d`` from x to the result. Source: as for that.
    """

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]  # of the result
        y = F.conv_transpose2d(x, self.weight.transpose(0, 1), self.bias, self.stride)
        return y[:, :, : size[0], self.right : self.right + size[1]]
