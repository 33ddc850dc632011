"""Networks in the styles in which people publish PixelCNNs: what is accelerated in cases/acceleration.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.models import reference
from pixelcnn_fast.nn import raster_mask


class MaskedChild(nn.Module):
    """A plain convolution as a child, and a mask of one kernel."""

    mask: Tensor

    def __init__(self, channels_in: int, channels_out: int, mask: Tensor, dilation: int = 1) -> None:
        super().__init__()
        rows, columns = mask.shape
        padding = (dilation * (rows // 2), dilation * (columns // 2))
        self.conv = nn.Conv2d(channels_in, channels_out, (rows, columns), padding=padding, dilation=dilation)
        self.register_buffer("mask", mask[None, None])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight * self.mask
        return F.conv2d(x, weight, self.conv.bias, padding=self.conv.padding, dilation=self.conv.dilation)


def stack_mask(rows: int, first: bool) -> Tensor:
    """Of the vertical stack (3 rows), or of the horizontal one (1 row)."""
    mask = torch.ones(rows, 3)
    if rows == 3:
        mask[2] = 0
        mask[1] = float(not first)
    else:
        mask[0, 2] = 0
        mask[0, 1] = float(not first)
    return mask


class TutorialBlock(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.vertical = MaskedChild(channels, 2 * channels, stack_mask(3, False), dilation)
        self.horizontal = MaskedChild(channels, 2 * channels, stack_mask(1, False), dilation)
        self.link, self.out = nn.Conv2d(2 * channels, 2 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        features = self.vertical(v)
        a, b = features.chunk(2, dim=1)
        above = torch.tanh(a) * torch.sigmoid(b)
        a, b = (self.horizontal(h) + self.link(features)).chunk(2, dim=1)
        return above, self.out(torch.tanh(a) * torch.sigmoid(b)) + h


class Tutorial(nn.Module):
    """The Gated PixelCNN of the most-read tutorial. images: [N, 1, H, W] of 0…255 -> [N, 256, 1, H, W]."""

    def __init__(self, channels: int = 64, dilations: Sequence[int] = (1, 2, 1, 4, 1, 2, 1)) -> None:
        super().__init__()
        self.vertical = MaskedChild(1, channels, stack_mask(3, True))
        self.horizontal = MaskedChild(1, channels, stack_mask(1, True))
        self.blocks = nn.ModuleList([TutorialBlock(channels, d) for d in dilations])
        self.out = nn.Conv2d(channels, 256, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = images / 255 * 2 - 1
        v, h = self.vertical(x), self.horizontal(x)
        for block in self.blocks:
            v, h = block(v, h)
        logits = self.out(F.elu(h))
        return logits.reshape(logits.shape[0], 256, -1, *logits.shape[2:])


class InPlaceConv2d(nn.Conv2d):
    """Masks its weight in place whenever it runs."""

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


def masked_in_place(network: nn.Module) -> nn.Module:
    """A network of plain ``weight * mask`` convolutions, rewritten so that they mask in place."""
    for module in network.modules():
        if isinstance(module, reference.MaskedConv2d):
            module.__class__ = InPlaceConv2d  # type: ignore[assignment]  # of the same base, with the same attributes
    return network


class Raster(nn.Conv2d):
    """A masked convolution of any style: ``style(weight, mask)`` is what it convolves with."""

    mask: Tensor

    def __init__(
        self, kind: str, channels_in: int, channels_out: int, size: int, style: str = "product"
    ) -> None:
        super().__init__(channels_in, channels_out, size, padding=size // 2)
        mask = raster_mask(size, size, "A" if kind == "A" else "B")
        self.register_buffer("mask", mask.expand_as(self.weight).clone())
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "where":
            weight = torch.where(self.mask.bool(), self.weight, torch.zeros_like(self.weight))
        else:
            weight = self.weight * self.mask
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class CroppedBlock(nn.Module):
    """Two stacks without masks: the vertical one pads above and crops, the horizontal one to the left."""

    def __init__(self, channels: int, first: bool) -> None:
        super().__init__()
        inputs = 1 if first else channels
        self.first = first
        self.vertical = nn.Conv2d(inputs, 2 * channels, (2, 3), padding=(2 if first else 1, 1))
        self.horizontal = nn.Conv2d(inputs, 2 * channels, (1, 2), padding=(0, 2 if first else 1))
        self.link, self.out = nn.Conv2d(2 * channels, 2 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        height, width = h.shape[2:]
        above = self.vertical(v)[:, :, :height]
        moved = F.pad(above, (0, 0, 1, 0))[:, :, :height]
        left = self.horizontal(h)[:, :, :, :width]
        a, b = (left + self.link(moved)).chunk(2, 1)
        row = self.out(torch.tanh(a) * torch.sigmoid(b))
        a, b = above.chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b), row if self.first else row + h


class Cropped(nn.Module):
    """A Gated PixelCNN of cropped convolutions, after the paper's figure 2."""

    def __init__(self, channels: int = 32, blocks: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([CroppedBlock(channels, i == 0) for i in range(blocks)])
        self.out = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 256, 1))

    def forward(self, images: Tensor) -> Tensor:
        v = h = images / 255
        for block in self.blocks:
            v, h = block(v, h)
        return self.out(h)[:, :, None]


class Stack(nn.Module):
    """Masked convolutions with batch norm and ReLU in a row."""

    def __init__(
        self, channels: int = 32, layers: int = 5, style: str = "product", norm: bool = True
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for i in range(layers):
            conv: nn.Module = Raster(
                "B" if i else "A", channels if i else 1, channels, 7 if i == 0 else 5, style
            )
            if style == "weight norm":
                conv = nn.utils.parametrizations.weight_norm(conv)
            parts += [conv, *([nn.BatchNorm2d(channels)] if norm else []), nn.ReLU()]
        self.body, self.out = nn.Sequential(*parts), nn.Conv2d(channels, 256, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.body(images / 255))[:, :, None]


class OneHot(nn.Module):
    """A prior over codes: one-hot input, residual masked convolutions."""

    def __init__(self, codes: int = 64, channels: int = 64, layers: int = 5) -> None:
        super().__init__()
        self.codes = codes
        self.first = Raster("A", codes, channels, 7)
        self.layers = nn.ModuleList([Raster("B", channels, channels, 3) for _ in range(layers)])
        self.out = nn.Conv2d(channels, codes, 1)

    def forward(self, images: Tensor) -> Tensor:
        codes = images[:, 0].long() % self.codes
        x = self.first(F.one_hot(codes, self.codes).permute(0, 3, 1, 2).to(images.dtype))
        for layer in self.layers:
            x = x + layer(F.relu(x))
        return self.out(F.relu(x))[:, :, None]


def ordered_colours() -> nn.Module:
    """A plain Gated PixelCNN in which each colour sees the earlier ones."""
    return reference.GatedPixelCNN(3, 48, (1, 2, 1), channel_order="thirds")
