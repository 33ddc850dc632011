"""The fused block in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.ops.masked_conv2d.reference import masked_conv2d

ACTIVATIONS = {
    "none": lambda x, alpha: x,
    "relu": lambda x, alpha: F.relu(x),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "silu": lambda x, alpha: F.silu(x),
    "sigmoid": lambda x, alpha: x.sigmoid(),
    "tanh": lambda x, alpha: x.tanh(),
}


def masked_conv_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    condition: Tensor | None,
    residual: Tensor | None,
    activation: str,
    alpha: float,
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """activation(scale * (masked convolution + bias) + shift + condition + residual)

    scale, shift: [O]; condition: [N, O]; residual: the result's shape. None leaves a term out.
    """
    y = masked_conv2d(x, weight, bias, mask, padding, dilation)
    if scale is not None:
        y = y * scale[:, None, None]
    if shift is not None:
        y = y + shift[:, None, None]
    if condition is not None:
        y = y + condition[:, :, None, None]
    if residual is not None:
        y = y + residual
    return ACTIVATIONS[activation](y, alpha)
