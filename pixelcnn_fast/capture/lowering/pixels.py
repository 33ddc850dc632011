"""Convolutions, and the library's own ops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.capture.arithmetic import added, multiplied, stepped
from pixelcnn_fast.capture.gathering import divided, of_operands, windowed
from pixelcnn_fast.capture.lowering.pointwise import halves
from pixelcnn_fast.capture.lowering.registry import Trace, lowers
from pixelcnn_fast.capture.shadow import Map
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import Call, View
from pixelcnn_fast.program.program import Step


@lowers("convolution")
def _convolution(
    t: Trace, call: Call, x: View, weight: View, bias: View | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Map:  # fmt: skip
    if any(s != 1 for s in stride):
        raise Unsupported(f"stride {list(stride)}; only stride 1 is supported")
    if transposed:
        raise Unsupported("a transposed convolution computes on another grid than the image's")
    if len(x.size) != 4:
        raise Unsupported(f"its argument has {len(x.size)} axes; only [N, channels, H, W] is supported")
    return convolved(t, t.map(x), t.constant(weight), t.constant(bias), padding, dilation, groups)


def convolved(
    t: Trace,
    x: Map,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Map:
    """x: laid out as [N, C, h, w]; weight: [O, C / groups, kH, kW] -> [N, O, h', w']."""
    features, operands = divided(t.builder, windowed(t.builder, x))
    columns = weight.detach().to(t.builder.dtype).permute(2, 3, 1, 0).contiguous()
    if groups > 1:
        columns = _ungrouped(columns, groups)
    taps = columns.shape[:2]
    axes = [*zip(x.shape[2:], taps, padding, dilation, strict=True)]
    height, width = (size + 2 * pad - by * (count - 1) for size, count, pad, by in axes)
    rows, across = ([i * by - pad for i in range(count)] for _, count, pad, by in axes)
    planes = None if operands is None else of_operands(t.builder, operands)
    parts = [features] if planes is None else [features, planes]
    result = t.builder.convolution(
        parts, [*product(rows, across)], columns.flatten(0, 1), bias, (height, width)
    )
    if operands is None or planes is not None:
        return result
    whole = columns.permute(3, 2, 0, 1)
    of_rest = t.operands.convolved(operands.addresses, whole, padding, dilation)
    return added(t.builder, result, t.builder.map(of_rest))


def _ungrouped(columns: Tensor, groups: int) -> Tensor:
    """[..., in / groups, out] -> [..., in, out], zero where the groups differ."""
    parts, width = columns.chunk(groups, -1), columns.shape[-1] // groups
    padded = [F.pad(part, (g * width, (groups - 1 - g) * width)) for g, part in enumerate(parts)]
    return torch.cat(padded, -2)


@lowers("im2col")
def _unfold(t: Trace, call: Call, x: View, *windows: Sequence[int]) -> Map:
    """Elements are only moved, but PyTorch moves no integers here."""
    return t.builder.map(call.operator(t.map(x).addresses.double(), *windows).long())


@lowers("masked_conv2d")
def _masked_conv2d(
    t: Trace,
    call: Call,
    x: View,
    weight: View,
    bias: Any,
    mask: View,
    padding: Any,
    dilation: Any,
    *backend: Any,
) -> Map:
    return convolved(t, t.map(x), t.constant(weight) * t.constant(mask), t.constant(bias), padding, dilation)


@lowers("masked_conv_block")
def _masked_conv_block(
    t: Trace, call: Call, x: View, weight: View, bias: Any, mask: View, scale: Any, shift: Any, condition: Any,
    residual: Any, activation: str, alpha: float, padding: Any, dilation: Any, *backend: Any,
) -> Map:  # fmt: skip
    y = _masked_conv2d(t, call, x, weight, bias, mask, padding, dilation)
    for combined, term in ((multiplied, scale), (added, shift), (added, condition)):
        if term is not None:
            y = combined(t.builder, y, t.builder.map(t.map(term).addresses[..., None, None]))
    if residual is not None:
        y = added(t.builder, y, t.map(residual))
    return y if activation == "none" else stepped(t.builder, y, Step(activation, alpha))


@lowers("gated_activation")
def _gated_activation(t: Trace, call: Call, x: View, condition: Any, *backend: Any) -> Map:
    y = t.map(x)
    if condition is not None:
        term = t.map(condition).addresses
        y = added(t.builder, y, t.builder.map(term if term.dim() == 4 else term[..., None, None]))
    a, b = halves(t.builder, y, 1)
    return multiplied(t.builder, stepped(t.builder, a, Step("tanh")), stepped(t.builder, b, Step("sigmoid")))
