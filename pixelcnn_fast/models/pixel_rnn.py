"""PixelRNN: layers of Row LSTMs, or of Diagonal BiLSTMs."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from pixelcnn_fast.models.hub import OnHub
from pixelcnn_fast.models.inputs import as_logits, check_inputs, config_of
from pixelcnn_fast.nn import DiagonalBiLSTM, MaskedConv2d, RowLSTM
from pixelcnn_fast.nn.channel_order import ChannelOrder, channel_groups, named_order
from pixelcnn_fast.nn.settings import check_sizes

Kind = Literal["row_lstm", "diagonal_bilstm"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def is_unobserved(conv: nn.Module) -> bool:
    """Whether neither autograd nor a hook has use for what a module gives."""
    return type(conv) is MaskedConv2d and not (
        conv._forward_hooks or conv._backward_hooks or conv._backward_pre_hooks or _has_any_global_hook()
    )


class PixelRNN(OnHub):
    """PixelRNN: p(image) as a product over pixels in raster order.

    images: [N, input_channels, H, W], uint8 levels 0...levels-1, or floating point in
    0...1; labels: [N] integers, needed with ``n_classes`` -> logits
    [N, input_channels, H, W, levels].
    kind: of the ``n_layers`` layers, 'row_lstm' or 'diagonal_bilstm'; hidden_channels: h,
    how wide each is; the path that they are added to is 2h wide. kernel_size: of the first
    convolution. channel_order: as in ``PixelCNN``. learn_initial_state: whether the LSTMs'
    states outside of the image are parameters.
    Raises ValueError for another kind, a wrong shape or dtype, and missing, unexpected or
    out-of-range labels. Source: van den Oord et al. 2016, "Pixel Recurrent Neural
    Networks", sections 3.1 to 3.4.
    """

    logits_layout = "N,C,H,W,L"  # where H = W = L, the shape does not tell

    def __init__(
        self, kind: Kind, input_channels: int = 3, hidden_channels: int = 128, n_layers: int = 12,
        n_classes: int | None = None, kernel_size: int = 7, levels: int = 256,
        channel_order: ChannelOrder | bool | None = None, learn_initial_state: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}, expected {' or '.join(map(repr, KINDS))}")
        self.config = config_of(locals())
        order, h = named_order(channel_order), hidden_channels
        check_sizes(
            input_channels=input_channels, hidden_channels=h, n_layers=n_layers, kernel_size=kernel_size
        )
        check_sizes(2, levels=levels)
        if n_classes is not None:
            check_sizes(n_classes=n_classes)
        self.input_channels, self.n_classes, self.levels = input_channels, n_classes, levels
        into, down, up, same, out = None, None, None, None, None
        if order is not None:
            colours = torch.arange(input_channels)
            narrow, wide = (channel_groups(channels, input_channels, order) for channels in (h, 2 * h))
            into, down, up, same = (colours, wide), (wide, narrow), (narrow, wide), (wide, wide)
            out = (wide, colours.repeat_interleave(levels))
        self.conv_in = MaskedConv2d(input_channels, 2 * h, kernel_size, "A", channel_groups=into)
        self.embedding = nn.Embedding(n_classes, 2 * h) if n_classes is not None else None
        self.layers, self.upsample = nn.ModuleList(), nn.ModuleList()
        for _ in range(n_layers):
            layer = RowLSTM if kind == "row_lstm" else DiagonalBiLSTM
            self.layers.append(layer(2 * h, h, learn_initial_state=learn_initial_state, channel_groups=down))
            self.upsample.append(MaskedConv2d(h, 2 * h, 1, "B", channel_groups=up))
        self.conv_out1 = MaskedConv2d(2 * h, 2 * h, 1, "B", channel_groups=same)
        self.conv_out2 = MaskedConv2d(2 * h, 2 * h, 1, "B", channel_groups=same)
        self.conv_out3 = MaskedConv2d(2 * h, input_channels * levels, 1, "B", channel_groups=out)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        check_inputs(images, self.input_channels, labels, self.n_classes)
        x = images.to(self.conv_in.weight.dtype)
        # The recurrences go from pixel to pixel.
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x / (self.levels - 1) if images.dtype == torch.uint8 else x)
        if self.embedding is not None:
            x = x + self.embedding(labels)[:, :, None, None]
        for layer, upsample in zip(self.layers, self.upsample, strict=True):
            added = upsample(layer(x))
            x = added.add_(x) if is_unobserved(upsample) else added + x  # saves memory
        may_overwrite = bool(self.layers)
        for conv in (self.conv_out1, self.conv_out2, self.conv_out3):
            x = conv(F.relu(x, inplace=may_overwrite))
            may_overwrite = is_unobserved(conv)
        return as_logits(x, self.input_channels, self.levels)
