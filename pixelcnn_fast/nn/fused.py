"""Masked convolution, batch norm and activation in one pass, where that changes nothing but the time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.ops import masked_conv_block
from pixelcnn_fast.ops.masked_conv_block import reference
from pixelcnn_fast.ops.masked_conv_block.norm import folded_norm
from pixelcnn_fast.program.steps import ACTIVATIONS


class MaskedConvolution(nn.Conv2d):
    """A convolution that computes ``ops.masked_conv2d`` of its weight and its mask, the buffer called ``mask_name``.

    Where PyTorch can't compile, ``accelerate`` makes such convolutions of the plain ones, so ``is_masked`` looks for
    ``mask_name`` alone.
    """

    mask_name: str
    # nn.Conv2d makes sure of these types but does not declare them.
    kernel_size: tuple[int, int]
    padding: Literal["same", "valid"] | tuple[int, int]
    dilation: tuple[int, int]


def conv_norm_relu(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, residual: Tensor | None = None) -> Tensor:
    """ReLU(norm(conv(x)) + residual); conv has a ``mask``. x: [N, I, H, W] -> [N, O, H, W]."""
    if is_masked(conv) and can_fuse(x, conv, norm) and not _is_promoted(residual):
        return fused(x, conv, norm, "relu", residual=residual)
    y = norm(conv(x))
    return F.relu(y if residual is None else y + residual)


def _is_promoted(residual: Tensor | None) -> bool:
    """Whether PyTorch would compute the sum with it in another dtype than the convolution, as autocast has it."""
    if residual is None or not torch.is_autocast_enabled(residual.device.type):
        return False
    return residual.dtype != torch.get_autocast_dtype(residual.device.type)


def can_fuse(x: Tensor, *modules: nn.Module) -> bool:
    """True in inference, when nobody needs gradients, the batch's statistics or the values in between."""
    if any(isinstance(m, nn.BatchNorm2d) and (m.training or m.running_mean is None) for m in modules):
        return False
    if torch.is_grad_enabled() and any(
        t.requires_grad
        for t in chain([x], *(m.parameters() for m in modules))  # those of parametrizations too
    ):
        return False
    return not any(_has_hooks(m) for m in modules)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def fused(
    x: Tensor,
    conv: MaskedConvolution,
    norm: nn.BatchNorm2d | None,
    activation: str = "none",
    alpha: float = 1.0,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(norm(conv(x)) + residual) through ``ops.masked_conv_block``."""
    scale = shift = None
    if norm is not None:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None, "can_fuse refuses a norm without statistics"
        scale, shift = folded_norm(mean, variance, norm.weight, norm.bias, norm.eps)
    terms = (scale, shift, None, residual, activation, alpha)
    return masked_conv_block(x, conv.weight, conv.bias, kernel_mask(conv), *terms, conv.padding, conv.dilation)


class FusedSequential(nn.Sequential):
    """``nn.Sequential`` that computes its runs of masked convolution, batch norm and activation in one pass each.

    Same children, same state_dict; in training mode, with gradients or with hooks it does what ``nn.Sequential`` does.
    """

    def forward(self, input: Any) -> Any:
        for conv, norm, activation in _runs(self):
            run = [module for module in (conv, norm, activation) if module is not None]
            if len(run) > 1 and is_masked(conv) and can_fuse(input, *run):
                name, alpha = KINDS.get(type(activation), ("none", ""))
                input = fused(input, conv, norm, name, getattr(activation, alpha) if alpha else 1.0)
            else:
                for module in run:
                    input = module(input)
        return input


def _runs(modules: nn.Sequential) -> Iterator[tuple[nn.Module, nn.BatchNorm2d | None, nn.Module | None]]:
    """A masked convolution with the batch norm and the activation after it; any other module by itself."""
    rest = list(modules)
    while rest:
        first = rest.pop(0)
        norm, activation = None, None
        if is_masked(first):
            if rest and isinstance(after := rest[0], nn.BatchNorm2d):
                norm = after
                del rest[0]
            if rest and type(rest[0]) in KINDS:
                activation = rest.pop(0)
        yield first, norm, activation


def is_masked(module: nn.Module) -> TypeGuard[MaskedConvolution]:
    """True for a convolution that computes ``ops.masked_conv2d`` of its weight and mask."""
    return hasattr(type(module), "mask_name")


def kernel_mask(conv: MaskedConvolution) -> Tensor:
    """The mask of such a convolution, in its weight's shape."""
    mask = getattr(conv, conv.mask_name)
    return mask if mask.shape == conv.weight.shape else mask.expand_as(conv.weight)


# Of modules that masked_conv_block can compute: the activation's name there, and the attribute that is its alpha.
KINDS: dict[type, tuple[str, str]] = {
    getattr(nn, names.module): (kind, names.alpha)
    for kind, names in ACTIVATIONS.items()
    if kind in reference.ACTIVATIONS
}
