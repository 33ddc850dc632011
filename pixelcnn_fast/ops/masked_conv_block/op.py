"""Convolution, batch norm, condition, residual and activation in one pass, for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.library import Pair, address, computed, define, pooled, raw
from pixelcnn_fast.ops.masked_conv2d.op import (
    Epilogue,
    Geometry,
    MaskedWeight,
    Padding,
    check_masked_conv2d,
    geometry,
    like_result,
    mask_like,
    result_size,
)
from pixelcnn_fast.ops.masked_conv_block import reference


def masked_conv_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    condition: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    alpha: float = 1.0,
    padding: Padding = "same",
    dilation: int | tuple[int, int] = 1,
    backend: str = "auto",
    result_format: torch.memory_format | None = None,
) -> Tensor:
    """activation(scale * (masked convolution + bias) + shift + condition + residual) in one pass; no gradients.

    x: [N, I, H, W]; weight, mask: [O, I, kH, kW]; bias, scale, shift: [O]; condition:
    [N, O]; residual: [N, O, H', W'] -> [N, O, H', W'], in ``result_format``, or as x is
    laid out. None leaves a term out.
    activation: 'none', or a name in ``reference.ACTIVATIONS``; alpha is the slope, where it has one.
    Raises ValueError like ``masked_conv2d``, and if a gradient would be needed, where fusing would save nothing.
    """
    given = [t for t in (x, weight, bias, scale, shift, condition, residual) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        raise ValueError("masked_conv_block has no gradient: use it under torch.no_grad(), or masked_conv2d")
    padding, dilation = geometry(weight, padding, dilation)
    check_masked_conv2d(x, weight, bias, mask, padding, dilation)
    if activation not in reference.ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected one of {', '.join(reference.ACTIVATIONS)}")
    n, out = x.shape[0], weight.shape[0]
    sizes: tuple[tuple[str, Tensor | None, tuple[int, ...]], ...] = (
        ("scale", scale, (out,)),
        ("shift", shift, (out,)),
        ("condition", condition, (n, out)),
    )
    for name, tensor, size in sizes:
        if tensor is not None and tensor.shape != size:
            raise ValueError(f"{name} {list(tensor.shape)}: expected {list(size)}")
    if residual is not None:
        size = result_size(x, weight, padding, dilation)
        if residual.shape != size:
            raise ValueError(f"residual {list(residual.shape)}: expected the result's shape {list(size)}")
        if residual.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"residual is {residual.dtype}, x is {x.dtype}: convert one of them")
    for name, tensor in (*((name, tensor) for name, tensor, _ in sizes), ("residual", residual)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}: move one of them")
    terms = (scale, shift, condition, residual, activation, alpha, padding, dilation)
    return _block(x, weight, bias, mask, *terms, backend, result_format)


def _compute(
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
    padding: Pair,
    dilation: Pair,
    backend: str,
    result_format: torch.memory_format | None = None,
) -> Tensor:
    backend = choose(backend, x.device, x.dtype)
    if backend == "triton":
        from pixelcnn_fast.ops.masked_conv2d import triton

        if scale is not None:
            weight = weight * scale[:, None, None, None]
            bias = bias * scale if bias is not None else None
        if shift is not None:
            bias = shift if bias is None else bias + shift
        how = (dilation, padding, activation, alpha, residual, condition, result_format)
        return triton.forward(x, weight, bias, mask, *how)
    mask = mask_like(mask, weight)
    if backend == "reference":
        terms = (scale, shift, condition, residual, activation, alpha, padding, dilation)
        y = reference.masked_conv_block(x, weight, bias, mask, *terms)
        return y if result_format is None else y.contiguous(memory_format=result_format)
    out = pooled(like_result(x, weight, padding, dilation, result_format))
    if not out.numel():
        return out
    bias, scale, shift, condition = map(computed, (bias, scale, shift, condition))
    required().masked_conv2d(
        raw(x),
        MaskedWeight(raw(weight), raw(mask)),
        Geometry(padding, dilation),
        Epilogue(
            address(bias),
            address(scale),
            address(shift),
            address(condition),
            residual=None if residual is None else raw(residual),
            activation=None if activation == "none" else activation,
            alpha=alpha,
        ),
        raw(out),
        torch.get_num_threads(),
    )
    return out


_block = define("masked_conv_block", _compute, like_result, casts=("x", "weight", "bias", "residual"))
