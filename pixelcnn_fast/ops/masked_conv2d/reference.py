"""Masked 2-D convolution in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    padding: tuple[int, int],
    dilation: tuple[int, int],
    size: Sequence[int] | None = None,
) -> Tensor:
    """x: [N, I, H, W]; weight, mask: [O, I, kH, kW]; bias: [O] or None -> [N, O, H', W'].

    With ``size`` = (H', W'), the padding is that above and to the left, and what is needed on the other sides.
    """
    if size is None:
        return F.conv2d(x, weight * mask, bias, padding=padding, dilation=dilation)
    return F.conv2d(window(x, weight, padding, dilation, size), weight * mask, bias, dilation=dilation)


def window(
    x: Tensor, weight: Tensor, padding: Sequence[int], dilation: Sequence[int], size: Sequence[int]
) -> Tensor:
    """What a result of that size reads of a map, zero outside."""
    height, width = (n + step * (k - 1) for n, step, k in zip(size, dilation, weight.shape[2:], strict=True))
    return _placed(x, padding[0], padding[1], height, width)


def input_gradient(
    grad: Tensor, weight: Tensor, size: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """grad: [N, O, H', W']; weight: [O, I, kH, kW] -> that of x, [N, I, H, W] = size."""
    whole = F.conv_transpose2d(grad, weight, dilation=dilation)
    return _placed(whole, -padding[0], -padding[1], size[2], size[3])


def _placed(x: Tensor, above: int, left: int, height: int, width: int) -> Tensor:
    """A map of this size: x from (above, left) on, as far as it lies inside, and zero elsewhere."""
    right, below = max(width - x.shape[3] - left, 0), max(height - x.shape[2] - above, 0)
    padded = F.pad(x, (max(left, 0), right, max(above, 0), below))
    return padded[:, :, max(-above, 0) :, max(-left, 0) :][:, :, :height, :width]
