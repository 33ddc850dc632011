"""Calls that are recorded as simpler ones, so that no runtime needs a step for each of them.

A formula takes the arguments of its call and returns the same, up to rounding. It must not write into its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.ops.gated_activation.reference import gated_activation
from pixelcnn_fast.ops.masked_conv2d.reference import masked_conv2d
from pixelcnn_fast.ops.masked_conv_block.reference import masked_conv_block

OWN_OPS: dict[Callable, Callable[..., Tensor]] = {
    torch.ops.pixelcnn_fast.masked_conv2d.default: masked_conv2d,
    torch.ops.pixelcnn_fast.masked_conv_block.default: masked_conv_block,
    torch.ops.pixelcnn_fast.gated_activation.default: gated_activation,
}


def _hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return x.clamp(min_val, max_val)


def _selu(x: Tensor, inplace: bool = False) -> Tensor:
    return 1.0507009873554804934193349852946 * F.elu(x, 1.6732632423543772848170429916717)


def _celu(x: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return alpha * F.elu(x / alpha)


def _rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    x_in_groups = x.flatten(-len(normalized_shape))
    mean = x_in_groups.square().mean(-1, keepdim=True)
    y = x_in_groups * (mean + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    y = y.reshape(x.shape)
    return y if weight is None else y * weight


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1.0) -> Tensor:
    return x + value * (a * b)


def _softmin(x: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    return F.softmax(-x, dim)


DECOMPOSITIONS: dict[str, Callable[..., Tensor]] = {
    "abs": lambda x: F.relu(x) + F.relu(-x),
    "addcmul": _addcmul,
    "celu": _celu,
    "hardsigmoid": lambda x, inplace=False: (x + 3).clamp(0, 6) / 6,
    "hardtanh": _hardtanh,
    "lerp": lambda x, end, weight: x + weight * (end - x),
    "log_sigmoid": lambda x: -F.softplus(-x),
    "mish": lambda x, inplace=False: x * torch.tanh(F.softplus(x)),
    "relu6": lambda x, inplace=False: x.clamp(0, 6),
    "rms_norm": _rms_norm,
    "selu": _selu,
    "softmin": _softmin,
    "softsign": lambda x: x / (1 + (F.relu(x) + F.relu(-x))),
    "tanhshrink": lambda x: x - torch.tanh(x),
}
