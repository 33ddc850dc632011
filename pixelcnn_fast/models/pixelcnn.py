"""The convolutional PixelCNN with residual blocks and batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelcnn_fast.models.hub import OnHub
from pixelcnn_fast.models.inputs import as_logits, check_inputs, config_of, to_unit_range
from pixelcnn_fast.nn import FusedSequential, MaskedConv2d, ResidualBlock
from pixelcnn_fast.nn.channel_order import ChannelOrder, channel_groups, named_order
from pixelcnn_fast.nn.fused import conv_norm_relu

LEVELS = 256


class PixelCNN(OnHub):
    """Convolutional PixelCNN: p(image) as a product over pixels in raster order.

    images: [N, input_channels, H, W], uint8 levels 0...255, or floating point in
    0...1 (read as 0...255 when some value exceeds 1); labels: [N] integers,
    needed with ``n_classes``
    -> logits [N, input_channels, H, W, 256].
    channel_order: with 'thirds' (or True) or 'interleaved' a colour sees the earlier ones
    of its pixel, and hidden channels belong to colours as in ``nn.channel_groups``; with
    None it sees earlier pixels only.
    Raises ValueError for a wrong shape or dtype, and for missing, unexpected or
    out-of-range labels. Source: van den Oord et al. 2016, "Pixel Recurrent Neural
    Networks", section 3.5; the class embedding after "Conditional Image Generation with
    PixelCNN Decoders", section 2.3.
    """

    logits_layout = "N,C,H,W,L"  # where H = W = L, the shape does not tell

    def __init__(
        self, input_channels: int = 3, hidden_channels: int = 128, n_residual: int = 15,
        n_classes: int | None = None, kernel_size: int = 7, channel_order: ChannelOrder | bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config_of(locals())
        order = named_order(channel_order)
        self.input_channels = input_channels
        self.n_classes = n_classes
        into, inside, out_of = None, None, None
        if order is not None:
            hidden = channel_groups(hidden_channels, input_channels, order)
            into, inside = (torch.arange(input_channels), hidden), (hidden, hidden)
            out_of = (hidden, torch.arange(input_channels).repeat_interleave(LEVELS))
        self.conv_in = MaskedConv2d(input_channels, hidden_channels, kernel_size, "A", channel_groups=into)
        self.norm_in = nn.BatchNorm2d(hidden_channels)
        self.embedding = nn.Embedding(n_classes, hidden_channels) if n_classes is not None else None
        self.blocks = nn.Sequential(
            *(ResidualBlock(hidden_channels, hidden_channels, inside) for _ in range(n_residual))
        )
        self.tail = FusedSequential()
        for _ in range(2):
            self.tail.append(MaskedConv2d(hidden_channels, hidden_channels, 3, "B", channel_groups=inside))
            self.tail.append(nn.BatchNorm2d(hidden_channels))
            self.tail.append(nn.ReLU())
        self.conv_out = MaskedConv2d(hidden_channels, input_channels * LEVELS, 1, "B", channel_groups=out_of)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        check_inputs(images, self.input_channels, labels, self.n_classes)
        x = to_unit_range(images, LEVELS, self.conv_in.weight.dtype)
        h = conv_norm_relu(x, self.conv_in, self.norm_in)
        if self.embedding is not None:
            h = h + self.embedding(labels)[:, :, None, None]
        return as_logits(self.conv_out(self.tail(self.blocks(h))), self.input_channels, LEVELS)
