"""The plain PixelSNAIL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedConv2d(nn.Module):
    """Weight-normalised convolution of a map with zeros around it.

    padding: how many columns of zeros to the left and to the right, how many rows above and below.
    strict: what the kernel's last row has from its middle on takes no part.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel_size: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0), strict: bool = False, scale: float = 1.0, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight_v = nn.Parameter(0.05 * torch.randn(channels_out, channels_in, *kernel_size))
        self.weight_g = nn.Parameter(torch.full((channels_out, 1, 1, 1), scale))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None
        self.padding, self.strict = padding, strict

    def weight(self) -> Tensor:
        v: Tensor = self.weight_v
        if self.strict:
            middle = v.shape[3] // 2
            last = torch.cat([v[:, :, -1:, :middle], torch.zeros_like(v[:, :, -1:, middle:])], dim=3)
            v = torch.cat([v[:, :, :-1], last], dim=2)
        return self.weight_g * v / v.square().sum((1, 2, 3), keepdim=True).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.padding), self.weight(), self.bias)


def causal(channels_in: int, channels_out: int, size: int, scale: float = 1.0) -> PaddedConv2d:
    """Of a square of rows that ends at the present pixel, without it and what follows."""
    padding = (size // 2, size // 2, size - 1, 0)
    return PaddedConv2d(channels_in, channels_out, (size, size), padding, strict=True, scale=scale)


def around(channels_in: int, channels_out: int, size: int, scale: float = 1.0) -> PaddedConv2d:
    half = size // 2
    return PaddedConv2d(channels_in, channels_out, (size, size), (half, half, half, half), scale=scale)


class GatedBlock(nn.Module):
    """x + a * sigmoid(b); kernel_size: of its two convolutions, which are causal or, otherwise, see all around."""

    def __init__(
        self, channels: int, hidden: int, dropout: float, kernel_size: int = 1, is_causal: bool = False,
        n_attended: int = 0, n_condition: int = 0, n_classes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        convolution = causal if is_causal else around
        self.conv1 = convolution(channels, hidden, kernel_size)
        if n_attended:
            self.aux_conv = PaddedConv2d(n_attended, hidden)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(hidden, 2 * channels, kernel_size, scale=0.1)
        if n_condition:
            self.condition = PaddedConv2d(n_condition, 2 * channels, scale=0.1, bias=False)
        if n_classes is not None:
            self.label = nn.Embedding(n_classes, 2 * channels)
            nn.init.normal_(self.label.weight, std=0.05)

    def forward(
        self,
        x: Tensor,
        attended: Tensor | None = None,
        labels: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        y = self.conv1(F.elu(x))
        if attended is not None:
            y = y + self.aux_conv(F.elu(attended))
        y = self.conv2(self.dropout(F.elu(y)))
        if condition is not None:
            y = y + self.condition(condition)
        if labels is not None:
            y = y + self.label(labels)[:, :, None, None]
        a, b = y.chunk(2, dim=1)
        return x + a * torch.sigmoid(b)


class CausalAttention(nn.Module):
    """Plain version of ``models.pixelsnail.CausalAttention``."""

    def __init__(self, of_query: int, of_key: int, channels: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key = PaddedConv2d(of_query, channels), PaddedConv2d(of_key, channels)
        self.value = PaddedConv2d(of_key, channels)
        self.dropout, self.n_heads = nn.Dropout(dropout), n_heads

    def forward(self, of_query: Tensor, of_key: Tensor) -> Tensor:
        query, key, value = self.query(of_query), self.key(of_key), self.value(of_key)
        n, channels, height, width = query.shape
        size, pixels = channels // self.n_heads, height * width
        heads = []
        for head in range(self.n_heads):
            q, k, v = (
                x[:, head * size : (head + 1) * size].reshape(n, size, pixels).transpose(1, 2)
                for x in (query, key, value)
            )
            scores = q @ k.transpose(1, 2) / size**0.5
            is_later = torch.ones(pixels, pixels, device=q.device).triu().bool()  # or the pixel itself
            weights = scores.masked_fill(is_later, -torch.inf)[:, 1:].softmax(2)
            weights = torch.cat(
                [torch.zeros_like(scores[:, :1]), weights], dim=1
            )  # nothing precedes the first
            heads.append((self.dropout(weights) @ v).transpose(1, 2))
        return torch.cat(heads, dim=1).reshape(n, channels, height, width)


class Stage(nn.Module):
    def __init__(
        self, channels: int, kernel_size: int, n_res_blocks: int, n_heads: int, dropout: float, attention: bool,
        n_condition: int, n_classes: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        given: dict[str, Any] = dict(n_condition=n_condition, n_classes=n_classes)
        self.resblocks = nn.ModuleList(
            GatedBlock(channels, channels, dropout, kernel_size, True, **given) for _ in range(n_res_blocks)
        )
        self.attention = attention
        if attention:
            self.key_resblock = GatedBlock(2 * channels + 2, channels, dropout)
            self.query_resblock = GatedBlock(channels + 2, channels, dropout)
            sizes = (channels + 2, 2 * channels + 2, channels // 2)
            self.causal_attention = CausalAttention(*sizes, n_heads, dropout)
            self.out_resblock = GatedBlock(channels, channels, dropout, n_attended=channels // 2)
        else:
            self.out = PaddedConv2d(channels + 2, channels)

    def forward(self, x: Tensor, places: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        y = x
        for block in self.resblocks:
            y = block(y, labels=labels, condition=condition)
        if not self.attention:
            return self.out(torch.cat([y, places], dim=1))
        keys = self.key_resblock(torch.cat([x, y, places], dim=1))
        queries = self.query_resblock(torch.cat([y, places], dim=1))
        return self.out_resblock(y, self.causal_attention(queries, keys))


class PixelSNAIL(nn.Module):
    """Plain version of ``pixelcnn_fast.models.PixelSNAIL``."""

    def __init__(
        self,
        levels: int,
        channels: int = 256,
        kernel_size: int = 5,
        n_blocks: int = 4,
        n_res_blocks: int = 4,
        n_heads: int = 8,
        dropout: float = 0.1,
        attention: bool = True,
        n_out_res_blocks: int = 0,
        condition_levels: int | None = None,
        n_cond_res_blocks: int = 3,
        n_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.levels, self.condition_levels = levels, condition_levels
        half, c = kernel_size // 2, channels
        self.above = PaddedConv2d(levels, c, (half, kernel_size), (half, half, half - 1, 0))
        self.left = PaddedConv2d(levels, c, (half + 1, half), (half - 1, 0, half, 0))
        n_condition = c if condition_levels is not None else 0
        settings = (n_heads, dropout, attention, n_condition, n_classes)
        self.blocks = nn.ModuleList(Stage(c, kernel_size, n_res_blocks, *settings) for _ in range(n_blocks))
        if condition_levels is not None:
            blocks = [GatedBlock(c, c, dropout, 3) for _ in range(n_cond_res_blocks)]
            self.cond_resnet = nn.Sequential(around(condition_levels, c, 3), *blocks)
        out = [GatedBlock(c, c, dropout) for _ in range(n_out_res_blocks)]
        self.out = nn.Sequential(*out, nn.ELU(), PaddedConv2d(c, levels))

    def forward(
        self, images: Tensor, labels: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        x = self.one_hot(images, self.levels)
        n, _, height, width = x.shape
        above = F.pad(self.above(x), (0, 0, 1, 0))[:, :, :-1]
        left = F.pad(self.left(x), (1, 0))[:, :, :, :-1]
        x = above + left
        places = x.new_zeros(n, 2, height, width)
        for row in range(height):
            places[:, 0, row] = row / height - 0.5
        for column in range(width):
            places[:, 1, :, column] = column / width - 0.5
        coarse = None
        if condition is not None and self.condition_levels is not None:
            coarse = self.cond_resnet(self.one_hot(condition, self.condition_levels))
            coarse = F.interpolate(coarse, (height, width), mode="nearest")
        for block in self.blocks:
            x = block(x, places, labels, coarse)
        return self.out(x).permute(0, 2, 3, 1)[:, None]

    def one_hot(self, codes: Tensor, levels: int) -> Tensor:
        """[N, H, W] or [N, 1, H, W] -> [N, levels, H, W]."""
        codes = codes.reshape(len(codes), *codes.shape[-2:]).long()
        return F.one_hot(codes, levels).permute(0, 3, 1, 2).to(self.above.weight_v.dtype)
