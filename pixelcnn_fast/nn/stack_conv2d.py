"""Convolutions of the two stacks of a Gated PixelCNN."""

from __future__ import annotations

from torch import Tensor

from pixelcnn_fast.nn.masked_conv2d import MaskedConv2d, MaskType


class VerticalConv2d(MaskedConv2d):
    """Convolution over whole rows: those above (mask A), or those and the present one (mask B).

    x: [N, in_channels, H, W] -> [N, out_channels, H, W]; weights and errors as in ``MaskedConv2d``.
    A stack that begins with mask A sees only rows above, however many of mask B follow.
    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2.2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, mask_type: MaskType, dilation: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, mask_type, dilation=dilation)
        self.mask[:, :, kernel_size // 2] = float(mask_type == "B")


class HorizontalConv2d(MaskedConv2d):
    """Convolution along the present row: pixels to the left (mask A), or those and the present one (mask B).

    x: [N, in_channels, H, W] -> [N, out_channels, H, W]; channel groups, weights and errors
    as in ``MaskedConv2d``. Source: as for ``VerticalConv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        mask_type: MaskType,
        dilation: int = 1,
        channel_groups: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            (1, kernel_size),
            mask_type,
            dilation=(1, dilation),
            channel_groups=channel_groups,
        )
