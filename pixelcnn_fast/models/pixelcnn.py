"""The convolutional PixelCNN with residual blocks and batch norm, optionally class-conditional."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelcnn_fast.nn import FusedSequential, MaskedConv2d, ResidualBlock
from pixelcnn_fast.nn.fused import conv_norm_relu

LEVELS = 256


class PixelCNN(nn.Module):
    """Convolutional PixelCNN: p(image) as a product over pixels in raster order.

    images: [N, input_channels, H, W], uint8 levels 0...255, or floating point in 0...1 (read as 0...255 when
    some value exceeds 1); labels: [N] integers, needed when ``n_classes`` is set
    -> logits [N, input_channels, H, W, 256]. The channels of one pixel are conditionally independent given
    the pixels before it.
    Raises ValueError for a wrong shape or dtype, and for missing, unexpected or out-of-range labels.
    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.5; the class embedding after
    "Conditional Image Generation with PixelCNN Decoders", section 2.3.
    """

    def __init__(
        self,
        input_channels: int = 3,
        hidden_channels: int = 128,
        n_residual: int = 15,
        n_classes: int | None = None,
        kernel_size: int = 7,
    ) -> None:
        super().__init__()
        self.config = dict(
            input_channels=input_channels,
            hidden_channels=hidden_channels,
            n_residual=n_residual,
            n_classes=n_classes,
            kernel_size=kernel_size,
        )
        self.input_channels = input_channels
        self.n_classes = n_classes
        self.conv_in = MaskedConv2d(input_channels, hidden_channels, kernel_size, mask_type="A")
        self.norm_in = nn.BatchNorm2d(hidden_channels)
        self.embedding = nn.Embedding(n_classes, hidden_channels) if n_classes is not None else None
        self.blocks = nn.Sequential(
            *(ResidualBlock(hidden_channels, hidden_channels) for _ in range(n_residual))
        )
        self.tail = FusedSequential()
        for _ in range(2):
            self.tail.append(MaskedConv2d(hidden_channels, hidden_channels, 3, mask_type="B"))
            self.tail.append(nn.BatchNorm2d(hidden_channels))
            self.tail.append(nn.ReLU())
        self.conv_out = MaskedConv2d(hidden_channels, input_channels * LEVELS, 1, mask_type="B")

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        self._check_images(images)
        self._check_labels(images.shape[0], labels)
        h = conv_norm_relu(self._to_unit_range(images), self.conv_in, self.norm_in)
        if self.embedding is not None:
            h = h + self.embedding(labels)[:, :, None, None]
        logits = self.conv_out(self.tail(self.blocks(h)))
        n, _, height, width = images.shape
        return logits.view(n, self.input_channels, LEVELS, height, width).permute(0, 1, 3, 4, 2)

    def _to_unit_range(self, images: Tensor) -> Tensor:
        x = images.to(self.conv_in.weight.dtype)
        if images.dtype == torch.uint8 or (x.numel() and x.max() > 1):
            x = x / (LEVELS - 1)
        return x

    def _check_images(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != self.input_channels:
            raise ValueError(
                f"images have shape {list(images.shape)}, expected [N, {self.input_channels}, H, W]"
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}: use torch.uint8 levels or floating point in 0...1")

    def _check_labels(self, n: int, labels: Tensor | None) -> None:
        if self.n_classes is None:
            if labels is not None:
                raise ValueError("labels were given to a model without classes (n_classes=None)")
            return
        if labels is None:
            raise ValueError(f"this model is class-conditional: pass labels [N] in 0...{self.n_classes - 1}")
        if labels.shape != (n,) or labels.is_floating_point():
            raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, expected integers [{n}]")
        if (
            n
            and labels.device.type == "cpu"
            and not 0 <= int(labels.min()) <= int(labels.max()) < self.n_classes
        ):
            raise ValueError(
                f"labels span {int(labels.min())}...{int(labels.max())}, expected 0...{self.n_classes - 1}"
            )
