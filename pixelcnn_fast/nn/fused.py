"""Masked convolution, batch norm and activation in one pass."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.nn.masked_conv2d import MaskedConv2d
from pixelcnn_fast.ops import masked_conv_block
from pixelcnn_fast.ops.masked_conv_block import reference
from pixelcnn_fast.ops.masked_conv_block.norm import folded_norm
from pixelcnn_fast.program.steps import ACTIVATIONS

# The names of activations in masked_conv_block, and the attributes that are their alpha.
KINDS: dict[type, tuple[str, str]] = {
    getattr(nn, names.module): (kind, names.alpha)
    for kind, names in ACTIVATIONS.items()
    if kind in reference.ACTIVATIONS
}


def conv_norm_relu(
    x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, residual: Tensor | None = None
) -> Tensor:
    """ReLU(norm(conv(x)) + residual). x: [N, I, H, W] -> [N, O, H, W]."""
    if is_masked(conv) and can_fuse(x, conv, norm) and not _is_promoted(residual):
        return fused(x, conv, norm, "relu", residual=residual)
    y = norm(conv(x))
    return F.relu(y if residual is None else y + residual)


def _is_promoted(residual: Tensor | None) -> bool:
    """Whether autocast has the sum with it computed in another dtype than the convolution."""
    if residual is None or not torch.is_autocast_enabled(residual.device.type):
        return False
    return residual.dtype != torch.get_autocast_dtype(residual.device.type)


def is_masked(module: nn.Module) -> TypeGuard[MaskedConv2d]:
    """True also for plain layers that ``accelerate`` has given this forward."""
    return type(module).forward is MaskedConv2d.forward


def can_fuse(x: Tensor, *modules: nn.Module) -> bool:
    """True in inference, when nobody needs gradients, the batch's statistics or the values in between."""
    if any(isinstance(m, nn.BatchNorm2d) and (m.training or m.running_mean is None) for m in modules):
        return False
    if torch.is_grad_enabled():
        # Those of parametrizations, too.
        parameters = [parameter for m in modules for parameter in m.parameters()]
        if any(t.requires_grad for t in (x, *parameters)):
            return False
    return not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def fused(
    x: Tensor,
    conv: MaskedConv2d,
    norm: nn.BatchNorm2d | None,
    activation: str = "none",
    alpha: float = 1.0,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(norm(conv(x)) + residual) through ``ops.masked_conv_block``."""
    scale = shift = None
    if norm is not None:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None, "as can_fuse sees to"
        scale, shift = folded_norm(mean, variance, norm.weight, norm.bias, norm.eps)
    terms = (scale, shift, None, residual, activation, alpha)
    return masked_conv_block(x, conv.weight, conv.bias, conv.mask, *terms, conv.padding, conv.dilation)


class FusedSequential(nn.Sequential):
    """``nn.Sequential`` that computes its runs of masked convolution, batch norm and activation in one pass each.

    input: what the first module takes, such as [N, C, H, W] -> what the last one gives. In
    training mode, with gradients or with hooks it does what ``nn.Sequential`` does.
    """

    def forward(self, input: Any) -> Any:
        rest: list[Any] = list(self)
        while rest:
            conv = rest.pop(0)
            starts = is_masked(conv)
            norm = rest.pop(0) if starts and rest and isinstance(rest[0], nn.BatchNorm2d) else None
            activation = rest.pop(0) if starts and rest and type(rest[0]) in KINDS else None
            run = [module for module in (conv, norm, activation) if module is not None]
            if len(run) > 1 and is_masked(conv) and can_fuse(input, *run):
                name, alpha = KINDS.get(type(activation), ("none", ""))
                input = fused(input, conv, norm, name, getattr(activation, alpha) if alpha else 1.0)
            else:
                for module in run:
                    input = module(input)
        return input
