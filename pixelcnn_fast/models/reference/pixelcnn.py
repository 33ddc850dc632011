"""The plain convolutional PixelCNN."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def groups_of(channels: int, colours: int, channel_order: str | None) -> list[int] | None:
    """Plain version of ``pixelcnn_fast.nn.channel_groups``; None without an order."""
    if channel_order is None:
        return None
    groups = [k % colours for k in range(channels)]
    return sorted(groups) if channel_order == "thirds" else groups


class MaskedConv2d(nn.Conv2d):
    """Plain version of ``pixelcnn_fast.nn.MaskedConv2d``."""

    mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask_type: str,
        groups_in: list[int] | None = None,
        groups_out: list[int] | None = None,
        dilation: int = 1,
    ) -> None:
        height, width = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        padding = (dilation * (height // 2), dilation * (width // 2))
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation)
        row, column = height // 2, width // 2  # of the present pixel
        mask = torch.ones_like(self.weight)
        mask[:, :, row, column + (mask_type == "B") :] = 0
        mask[:, :, row + 1 :] = 0
        if groups_in is not None and groups_out is not None:
            for i, group_in in enumerate(groups_in):
                for o, group_out in enumerate(groups_out):
                    seen = group_in < group_out or (mask_type == "B" and group_in == group_out)
                    mask[o, i, row, column] = float(seen)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.mask
        return nn.functional.conv2d(x, weight, self.bias, padding=self.padding, dilation=self.dilation)


class ResidualBlock(nn.Module):
    """Plain version of ``pixelcnn_fast.nn.ResidualBlock``."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        groups_in: list[int] | None = None,
        groups_out: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = MaskedConv2d(channels_in, channels_out, 3, "B", groups_in, groups_out)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = MaskedConv2d(channels_out, channels_out, 3, "B", groups_out, groups_out)
        self.norm2 = nn.BatchNorm2d(channels_out)
        if channels_in == channels_out:
            self.skip: nn.Module = nn.Identity()
        elif groups_in is None:
            self.skip = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1), nn.BatchNorm2d(channels_out))
        else:
            across = MaskedConv2d(channels_in, channels_out, 1, "B", groups_in, groups_out)
            self.skip = nn.Sequential(across, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        return torch.relu(h + self.skip(x))


class PixelCNN(nn.Module):
    """Plain version of ``pixelcnn_fast.models.PixelCNN``."""

    logits_layout = "N,C,H,W,L"

    def __init__(
        self,
        input_channels: int = 3,
        hidden_channels: int = 128,
        n_residual: int = 15,
        n_classes: int | None = None,
        kernel_size: int = 7,
        channel_order: str | None = None,
    ) -> None:
        super().__init__()
        colours = groups_of(input_channels, input_channels, channel_order)
        hidden = groups_of(hidden_channels, input_channels, channel_order)
        logits = groups_of(input_channels * 256, input_channels, channel_order and "thirds")
        self.conv_in = MaskedConv2d(input_channels, hidden_channels, kernel_size, "A", colours, hidden)
        self.norm_in = nn.BatchNorm2d(hidden_channels)
        self.embedding = None
        if n_classes is not None:
            self.embedding = nn.Embedding(n_classes, hidden_channels)
        self.blocks = nn.Sequential()
        for _ in range(n_residual):
            self.blocks.append(ResidualBlock(hidden_channels, hidden_channels, hidden, hidden))
        self.tail = nn.Sequential(
            MaskedConv2d(hidden_channels, hidden_channels, 3, "B", hidden, hidden),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(),
            MaskedConv2d(hidden_channels, hidden_channels, 3, "B", hidden, hidden),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(),
        )
        self.conv_out = MaskedConv2d(hidden_channels, input_channels * 256, 1, "B", hidden, logits)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x = images.to(self.conv_in.weight.dtype)
        if images.dtype == torch.uint8 or x.max() > 1:
            x = x / 255
        h = torch.relu(self.norm_in(self.conv_in(x)))
        if self.embedding is not None:
            h = h + self.embedding(labels)[:, :, None, None]
        h = self.tail(self.blocks(h))
        logits = self.conv_out(h)  # channel index: colour * 256 + level
        n, c, height, width = images.shape
        return logits.view(n, c, 256, height, width).permute(0, 1, 3, 4, 2)
