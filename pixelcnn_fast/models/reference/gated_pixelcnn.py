"""The plain Gated PixelCNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pixelcnn_fast.models.reference.pixelcnn import MaskedConv2d, groups_of


class VerticalConv2d(MaskedConv2d):
    """Plain version of ``pixelcnn_fast.nn.VerticalConv2d``."""

    def __init__(self, channels_in: int, channels_out: int, size: int, mask_type: str, dilation: int) -> None:
        super().__init__(channels_in, channels_out, size, mask_type, dilation=dilation)
        self.mask[:, :, size // 2] = float(mask_type == "B")


class HorizontalConv2d(MaskedConv2d):
    """Plain version of ``pixelcnn_fast.nn.HorizontalConv2d``."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int,
        mask_type: str,
        dilation: int,
        groups_in: list[int] | None,
        groups_out: list[int] | None,
    ) -> None:
        super().__init__(channels_in, channels_out, (1, size), mask_type, groups_in, groups_out, dilation)


def gated(x: Tensor) -> Tensor:
    channels = x.shape[1] // 2
    return torch.tanh(x[:, :channels]) * torch.sigmoid(x[:, channels:])


class GatedBlock(nn.Module):
    """Plain version of ``pixelcnn_fast.nn.GatedBlock``."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int,
        mask_type: str,
        dilation: int,
        n_classes: int | None,
        condition_channels: int | None,
        colours: int,
        channel_order: str | None,
    ) -> None:
        super().__init__()
        width = 2 * channels_out
        source = groups_of(channels_in, colours, channel_order)
        result = groups_of(channels_out, colours, channel_order)
        twice = None if result is None else result + result
        self.mask_type = mask_type
        self.vertical = VerticalConv2d(channels_in, width, size, mask_type, dilation)
        self.horizontal = HorizontalConv2d(channels_in, width, size, mask_type, dilation, source, twice)
        self.link = nn.Conv2d(width, width, 1)
        self.out = MaskedConv2d(channels_out, channels_out, 1, "B", result, result)
        if n_classes is not None:
            self.label_vertical = nn.Embedding(n_classes, width)
            self.label_horizontal = nn.Embedding(n_classes, width)
        if condition_channels is not None:
            self.condition_vertical = nn.Conv2d(condition_channels, width, 1, bias=False)
            self.condition_horizontal = nn.Conv2d(condition_channels, width, 1, bias=False)

    def forward(
        self, vertical: Tensor, horizontal: Tensor, labels: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        v = self.vertical(vertical)
        h = self.horizontal(horizontal) + self.link(v)
        if labels is not None:
            v = v + self.label_vertical(labels)[:, :, None, None]
            h = h + self.label_horizontal(labels)[:, :, None, None]
        if condition is not None:
            v = v + self.condition_vertical(condition)
            h = h + self.condition_horizontal(condition)
        h = self.out(gated(h))
        if self.mask_type == "B":
            h = h + horizontal
        return gated(v), h


class GatedPixelCNN(nn.Module):
    """Plain version of ``pixelcnn_fast.models.GatedPixelCNN``."""

    logits_layout = "N,C,H,W,L"

    def __init__(
        self,
        input_channels: int = 3,
        hidden_channels: int = 64,
        dilations: Sequence[int] = (1, 2, 1, 4, 1, 2, 1),
        n_classes: int | None = None,
        condition_channels: int | None = None,
        kernel_size: int = 3,
        channel_order: str | None = None,
        levels: int = 256,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.blocks = nn.ModuleList()
        channels, mask_type = input_channels, "A"
        for dilation in dilations:
            settings = (dilation, n_classes, condition_channels, input_channels, channel_order)
            self.blocks.append(GatedBlock(channels, hidden_channels, kernel_size, mask_type, *settings))
            channels, mask_type = hidden_channels, "B"
        hidden = groups_of(hidden_channels, input_channels, channel_order)
        logits = groups_of(input_channels * levels, input_channels, channel_order and "thirds")
        self.conv_hidden = MaskedConv2d(hidden_channels, hidden_channels, 1, "B", hidden, hidden)
        self.conv_out = MaskedConv2d(hidden_channels, input_channels * levels, 1, "B", hidden, logits)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        x = images.to(self.conv_out.weight.dtype)
        if images.dtype == torch.uint8 or x.max() > 1:
            x = x / (self.levels - 1)
        vertical = horizontal = x
        for block in self.blocks:
            vertical, horizontal = block(vertical, horizontal, labels, condition)
        h = torch.relu(self.conv_hidden(torch.relu(horizontal)))
        logits = self.conv_out(h)  # channel index: colour * levels + level
        n, c, height, width = images.shape
        return logits.view(n, c, self.levels, height, width).permute(0, 1, 3, 4, 2)
