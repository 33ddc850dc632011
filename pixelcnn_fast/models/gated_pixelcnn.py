"""The Gated PixelCNN: a vertical and a horizontal stack, without a blind spot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.models.hub import OnHub
from pixelcnn_fast.models.inputs import as_logits, check_condition, check_inputs, config_of, to_unit_range
from pixelcnn_fast.nn import GatedBlock, MaskedConv2d
from pixelcnn_fast.nn.channel_order import ChannelOrder, channel_groups, named_order
from pixelcnn_fast.nn.masked_conv2d import MaskType


class GatedPixelCNN(OnHub):
    """Gated PixelCNN: p(image) as a product over pixels in raster order.

    images: [N, input_channels, H, W], uint8 levels 0...levels-1, or floating point in 0...1
    (read as 0...levels-1 when some value exceeds 1); labels: [N] integers, needed with
    ``n_classes``; condition:
    [N, condition_channels, H, W] floating point, needed with ``condition_channels``
    -> logits [N, input_channels, H, W, levels].
    dilations: one block for each; the first has mask A. channel_order: as in ``PixelCNN``.
    Raises ValueError for a wrong shape or dtype, and for missing, unexpected or
    out-of-range labels or conditions. Source: van den Oord et al. 2016, "Conditional Image
    Generation with PixelCNN Decoders".
    """

    logits_layout = "N,C,H,W,L"  # where H = W = L, the shape does not tell

    def __init__(
        self, input_channels: int = 3, hidden_channels: int = 64, dilations: Sequence[int] = (1, 2, 1, 4, 1, 2, 1),
        n_classes: int | None = None, condition_channels: int | None = None, kernel_size: int = 3,
        channel_order: ChannelOrder | bool | None = None, levels: int = 256,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config_of(locals()) | {"dilations": list(dilations)}
        order = named_order(channel_order)
        self.input_channels = input_channels
        self.n_classes = n_classes
        self.condition_channels = condition_channels
        self.levels = levels
        self.blocks = nn.ModuleList()
        for index, dilation in enumerate(dilations):
            mask_type: MaskType = "A" if index == 0 else "B"
            channels = input_channels if index == 0 else hidden_channels
            settings = (dilation, n_classes, condition_channels, input_channels, order)
            self.blocks.append(GatedBlock(channels, hidden_channels, kernel_size, mask_type, *settings))
        hidden, logits = None, None
        if order is not None:
            groups = channel_groups(hidden_channels, input_channels, order)
            hidden = (groups, groups)
            logits = (groups, torch.arange(input_channels).repeat_interleave(levels))
        self.conv_hidden = MaskedConv2d(hidden_channels, hidden_channels, 1, "B", channel_groups=hidden)
        self.conv_out = MaskedConv2d(hidden_channels, input_channels * levels, 1, "B", channel_groups=logits)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        check_inputs(images, self.input_channels, labels, self.n_classes)
        check_condition(condition, images, self.condition_channels)
        vertical = horizontal = to_unit_range(images, self.levels, self.conv_out.weight.dtype)
        for block in self.blocks:
            vertical, horizontal = block(vertical, horizontal, labels, condition)
        x = self.conv_out(F.relu(self.conv_hidden(F.relu(horizontal))))
        return as_logits(x, self.input_channels, self.levels)
