"""The plain PixelCNN++."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Seen = list[tuple[Tensor, Tensor]]


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], dim=1))


class ShiftedConv2d(nn.Module):
    """Plain version of ``pixelcnn_fast.nn.ShiftedConv2d``."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: tuple[int, int],
        stride: int = 1,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(0.05 * torch.randn(channels_out, channels_in, *kernel_size))
        self.weight_g = nn.Parameter(torch.full((channels_out, 1, 1, 1), scale))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.stride = stride
        height, width = kernel_size
        self.right = (width - 1) // 2
        self.padding = (width - 1 - self.right, self.right, height - 1, 0)

    def weight(self) -> Tensor:
        return self.weight_g * self.weight_v / self.weight_v.square().sum((1, 2, 3), keepdim=True).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.padding), self.weight(), self.bias, self.stride)


class ShiftedConvTranspose2d(ShiftedConv2d):
    """Plain version of ``pixelcnn_fast.nn.ShiftedConvTranspose2d``."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]  # of the result
        y = F.conv_transpose2d(x, self.weight().transpose(0, 1), self.bias, self.stride)
        return y[:, :, : size[0], self.right : self.right + size[1]]


class GatedResnet(nn.Module):
    """Plain version of ``pixelcnn_fast.nn.GatedResnet``; skips are maps before their ``concat_elu``."""

    def __init__(
        self, channels: int, kernel_size: tuple[int, int], skips: int, dropout: float, n_classes: int | None
    ) -> None:
        super().__init__()
        self.conv_input = ShiftedConv2d(2 * channels, channels, kernel_size)
        if skips:
            self.nin_skip = ShiftedConv2d(2 * skips * channels, channels, (1, 1))
        self.dropout = nn.Dropout(dropout)
        self.conv_out = ShiftedConv2d(2 * channels, 2 * channels, kernel_size, scale=0.1)
        if n_classes is not None:
            self.label = nn.Embedding(n_classes, 2 * channels)
            nn.init.normal_(self.label.weight, std=0.05)

    def forward(self, x: Tensor, *skips: Tensor, labels: Tensor | None) -> Tensor:
        y = self.conv_input(concat_elu(x))
        if skips:
            y = y + self.nin_skip(torch.cat([concat_elu(skip) for skip in skips], dim=1))
        y = self.conv_out(self.dropout(concat_elu(y)))
        if labels is not None:
            y = y + self.label(labels)[:, :, None, None]
        a, b = y.chunk(2, dim=1)
        return x + a * torch.sigmoid(b)


class Streams(nn.Module):
    """The layers of both streams on one grid; seen: what both gave after each layer so far."""

    def __init__(self, n: int, skips: int, n_filters: int, dropout: float, n_classes: int | None) -> None:
        super().__init__()
        self.u_stream, self.ul_stream = nn.ModuleList(), nn.ModuleList()
        for _ in range(n):
            self.u_stream.append(GatedResnet(n_filters, (2, 3), skips, dropout, n_classes))
            self.ul_stream.append(GatedResnet(n_filters, (2, 2), skips + 1, dropout, n_classes))


class UpStreams(Streams):
    def forward(self, u: Tensor, ul: Tensor, seen: Seen, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        for u_layer, ul_layer in zip(self.u_stream, self.ul_stream, strict=True):
            u = u_layer(u, labels=labels)
            ul = ul_layer(ul, u, labels=labels)
            seen.append((u, ul))
        return u, ul


class DownStreams(Streams):
    def forward(self, u: Tensor, ul: Tensor, seen: Seen, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        for u_layer, ul_layer in zip(self.u_stream, self.ul_stream, strict=True):
            skip_u, skip_ul = seen.pop()
            u = u_layer(u, skip_u, labels=labels)
            ul = ul_layer(ul, u, skip_ul, labels=labels)
        return u, ul


class PixelCNNpp(nn.Module):
    """Plain version of ``pixelcnn_fast.models.PixelCNNpp``."""

    def __init__(
        self,
        input_channels: int = 3,
        n_filters: int = 160,
        n_resnets: int = 5,
        n_mixtures: int = 10,
        dropout: float = 0.5,
        n_classes: int | None = None,
    ) -> None:
        super().__init__()
        f, layers = n_filters, (n_filters, dropout, n_classes)
        self.u_init = ShiftedConv2d(input_channels + 1, f, (2, 3))
        self.ul_init = nn.ModuleList(ShiftedConv2d(input_channels + 1, f, size) for size in ((1, 3), (2, 1)))
        self.up_layers = nn.ModuleList(UpStreams(n_resnets, 0, *layers) for _ in range(3))
        self.downsize_u_stream = nn.ModuleList(ShiftedConv2d(f, f, (2, 3), 2) for _ in range(2))
        self.downsize_ul_stream = nn.ModuleList(ShiftedConv2d(f, f, (2, 2), 2) for _ in range(2))
        self.down_layers = nn.ModuleList(DownStreams(n_resnets + (i > 0), 1, *layers) for i in range(3))
        self.upsize_u_stream = nn.ModuleList(ShiftedConvTranspose2d(f, f, (2, 3), 2) for _ in range(2))
        self.upsize_ul_stream = nn.ModuleList(ShiftedConvTranspose2d(f, f, (2, 2), 2) for _ in range(2))
        self.nin_out = ShiftedConv2d(f, (10 if input_channels == 3 else 3) * n_mixtures, (1, 1))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x = images.to(self.nin_out.bias.dtype)
        if images.dtype == torch.uint8:
            x = x / 127.5 - 1
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # tells the image from zeros around it
        u = shifted_down(self.u_init(x))
        ul = shifted_down(self.ul_init[0](x)) + shifted_right(self.ul_init[1](x))
        seen = [(u, ul)]
        for grid, up in enumerate(self.up_layers):
            if grid > 0:
                u, ul = self.downsize_u_stream[grid - 1](u), self.downsize_ul_stream[grid - 1](ul)
                seen.append((u, ul))
            u, ul = up(u, ul, seen, labels)
        seen.pop()  # u and ul, where the way back begins
        for grid, down in enumerate(self.down_layers):
            if grid > 0:
                size = seen[-1][0].shape[2:]
                u, ul = self.upsize_u_stream[grid - 1](u, size), self.upsize_ul_stream[grid - 1](ul, size)
            u, ul = down(u, ul, seen, labels)
        return self.nin_out(F.elu(ul))


def shifted_down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shifted_right(x: Tensor) -> Tensor:
    return F.pad(x, (1, 0))[:, :, :, :-1]
