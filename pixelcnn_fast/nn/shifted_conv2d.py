"""The convolutions of PixelCNN++ and PixelSNAIL: the shape of a kernel decides which earlier pixels it sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.nn.settings import check_sizes
from pixelcnn_fast.ops import masked_conv2d

FEWEST_PIXELS = 512  # of a map, from which masked_conv2d takes less time than PyTorch on the CPU


class ShiftedConv2d(nn.Module):
    """Weight-normalised convolution whose kernel ends at the present row.

    x: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    A kernel of odd width has the present column in its middle, and one of two columns ends there,
    unless ``right`` says how many columns lie to the right; ``below`` rows follow the present
    one. strict: of the present row, it sees what comes before the present pixel.
    The weight is g * v / |v| for each output channel. ``weight_v``, [out_channels,
    in_channels, kH, kW], begins as random numbers of standard deviation 0.05, ``weight_g``,
    [out_channels, 1, 1, 1], as ``scale``, and ``bias``, if it has one, as zeros.
    Source: Salimans et al. 2017, "PixelCNN++", section 2.4; Salimans and Kingma 2016,
    "Weight Normalization".
    """

    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: int = 1,
        scale: float = 1.0,
        *,
        right: int | None = None,
        below: int = 0,
        strict: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, stride=stride)
        self.stride, self.scale = stride, scale
        height, width = kernel_size
        self.above, self.below = height - 1 - below, below
        self.right = (width - 1) // 2 if right is None else right
        self.left = width - 1 - self.right
        self.weight_v = nn.Parameter(torch.empty(out_channels, in_channels, height, width).normal_(std=0.05))
        self.weight_g = nn.Parameter(torch.full((out_channels, 1, 1, 1), scale))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        mask = torch.ones(height, width)
        mask[self.above, self.left :] = 0
        self.register_buffer("mask", mask if strict else None, persistent=False)

    @property
    def weight(self) -> Tensor:
        v = self.weight_v if self.mask is None else self.weight_v * self.mask
        return torch._weight_norm(v, self.weight_g, 0)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.weight_v[0, 0].numel() > 1:
            is_large = x.device.type == "cpu" and height * width >= FEWEST_PIXELS
            if self.stride == 1 and is_large:
                mask = self.weight_g.new_ones(1) if self.mask is None else self.mask
                padding = (self.above, self.left)
                return masked_conv2d(x, self.weight, self.bias, mask, padding, size=(height, width))
            x = F.pad(x, (self.left, self.right, self.above, self.below))
        return F.conv2d(x, self.weight, self.bias, self.stride)

    @torch.no_grad()
    def normalise(self, y: Tensor) -> Tensor:
        """y: what the layer gave; sets g and the bias so that each channel of it would have had mean 0,
        if there is a bias, and standard deviation ``scale`` -> what the layer would have given."""
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        factor = self.scale / variance.clamp(min=1e-10).sqrt()
        self.weight_g.mul_(factor[:, None, None, None])
        if self.bias is None:
            return y * factor[:, None, None]
        self.bias.sub_(mean).mul_(factor)
        return (y - mean[:, None, None]) * factor[:, None, None]


class ShiftedConvTranspose2d(ShiftedConv2d):
    """The transpose of such a convolution, back to a grid that is ``stride`` times as fine.

    x: [N, in_channels, h, w]; size: (H, W), at most (h, w) * stride -> [N, out_channels, H, W].
    Weights are those of a ``ShiftedConv2d`` from x to the result. Source: as for that.
    """

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]  # of the result
        y = F.conv_transpose2d(x, self.weight.transpose(0, 1), self.bias, self.stride)
        return y[:, :, : size[0], self.right : self.right + size[1]]


def initialise(model: nn.Module, *given: Tensor | None) -> None:
    """Sets scales and biases before training, from what a model is given: ``models.PixelCNNpp.initialise_from``."""
    layers = [module for module in model.modules() if isinstance(module, ShiftedConv2d)]
    hooks = [layer.register_forward_hook(lambda m, args, y: m.normalise(y)) for layer in layers]
    try:
        with torch.no_grad():
            model(*given)
    finally:
        for hook in hooks:
            hook.remove()


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """As large as before; zeros come in, and what leaves the map is lost."""
    height, width = x.shape[2:]
    return F.pad(x, (right, 0, down, 0))[:, :, :height, :width]
