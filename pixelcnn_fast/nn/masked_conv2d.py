"""Masked 2-D convolution as a drop-in for ``nn.Conv2d``."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pixelcnn_fast.nn.channel_order import channel_mask
from pixelcnn_fast.nn.settings import check_groups
from pixelcnn_fast.ops import masked_conv2d

MaskType = Literal["A", "B"]


def raster_mask(height: int, width: int, mask_type: MaskType) -> Tensor:
    """Mask of a kernel in raster order -> [height, width] of 0 and 1.

    Mask A zeroes the present pixel and all later ones; mask B keeps the present one.
    Raises ValueError for even sizes, which have no present pixel, and for other mask types.
    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.4.
    """
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"kernel {height}x{width}: a masked kernel needs odd sizes, so that it has a centre")
    if mask_type not in ("A", "B"):
        raise ValueError(
            f"mask_type is {mask_type!r}: use 'A' (leaves out the present pixel) or 'B' (keeps it)"
        )
    mask = torch.zeros(height * width)
    mask[: height * width // 2 + (mask_type == "B")] = 1
    return mask.view(height, width)


class MaskedConv2d(nn.Conv2d):
    """Masked 2-D convolution: each output sees only earlier pixels (mask A), or those and its own (mask B).

    x: [N, in_channels, H, W] -> [N, out_channels, H, W] with ``padding='same'``.
    channel_groups: of the input's and of the output's channels
    (``channel_order.channel_groups``), if the colours of a pixel see each other in order.
    The buffer ``mask`` has the weight's shape. The stored weight is never changed: masked
    entries keep their values, take no part and get a gradient of exactly zero.
    Raises ValueError for even kernel sizes, unknown mask types and groups of other channels.
    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.4.
    """

    mask: Tensor
    # nn.Conv2d makes sure of these types but does not declare them.
    kernel_size: tuple[int, int]
    padding: Literal["same", "valid"] | tuple[int, int]
    dilation: tuple[int, int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask_type: MaskType,
        padding: int | tuple[int, int] | Literal["same", "valid"] = "same",
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        channel_groups: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias
        )
        self.mask_type = mask_type
        mask = raster_mask(*self.kernel_size, mask_type).expand_as(self.weight).clone()
        if channel_groups is not None:
            check_groups(channel_groups, in_channels, out_channels)
            height, width = self.kernel_size
            mask[:, :, height // 2, width // 2] = channel_mask(*channel_groups, mask_type).float()
        self.register_buffer("mask", mask.to(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        return masked_conv2d(input, self.weight, self.bias, self.mask, self.padding, self.dilation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask_type={self.mask_type!r}"
