"""Lowers convolutions, and the library's own ops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.capture.lower.arithmetic import added, multiplied, stepped
from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.calls.pointwise import halves
from pixelcnn_fast.capture.lower.calls.registry import LoweringContext, lowers, lowers_to_formulas
from pixelcnn_fast.capture.lower.materialize import divided, of_imageless, windowed
from pixelcnn_fast.capture.record.shadow_memory import Map
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import View
from pixelcnn_fast.program.operands import Step


@lowers("convolution")
def _convolution(
    t: LoweringContext, x: View, weight: View, bias: View | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Map:  # fmt: skip
    if any(s != 1 for s in stride):
        raise Unsupported(f"stride {list(stride)}; only stride 1 is supported")
    if transposed:
        raise Unsupported("a transposed convolution computes on another grid than the image's")
    if len(x.size) != 4:
        raise Unsupported(f"its argument has {len(x.size)} axes; only [N, channels, H, W] is supported")
    return convolved(
        t.builder, t.map(x), t.constant(weight, as_is=True), t.constant(bias), padding, dilation, groups
    )


def convolved(
    b: Builder,
    x: Map,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Map:
    """x: [N, C, h, w]; weight: [O, C / groups, kH, kW], in any dtype -> [N, O, h', w']."""
    features, imageless = divided(b, windowed(b, x))
    columns = weight.detach().permute(2, 3, 1, 0)
    if groups > 1:
        columns = _ungrouped(columns, groups)
    taps = columns.shape[:2]
    axes = [*zip(x.shape[2:], taps, padding, dilation, strict=True)]
    height, width = (size + 2 * pad - by * (count - 1) for size, count, pad, by in axes)
    rows, across = ([i * by - pad for i in range(count)] for _, count, pad, by in axes)
    planes = None if imageless is None else of_imageless(b, imageless)
    parts = [features] if planes is None else [features, planes]
    result = b.convolution(parts, [*product(rows, across)], columns.flatten(0, 1), bias, (height, width))
    if imageless is None or planes is not None:
        return result
    whole = columns.permute(3, 2, 0, 1).to(b.dtype)
    of_rest = b.imageless.convolved(imageless.addresses, whole, padding, dilation)
    return added(b, result, b.map(of_rest))


def _ungrouped(columns: Tensor, groups: int) -> Tensor:
    """[..., in / groups, out] -> [..., in, out], zero where the groups differ."""
    parts, width = columns.chunk(groups, -1), columns.shape[-1] // groups
    padded = [F.pad(part, (g * width, (groups - 1 - g) * width)) for g, part in enumerate(parts)]
    return torch.cat(padded, -2)


def _unfold(b: Builder, x: Map, *windows: Sequence[int]) -> Map:
    """Elements are only moved, but PyTorch moves no integers here."""
    return b.map(torch.ops.aten.im2col(x.addresses.double(), *windows).long())


@lowers("masked_conv2d")
def _masked_conv2d(
    t: LoweringContext, x: View, weight: View, bias: Any, mask: View, padding: Any,
    dilation: Any, *backend: Any,
) -> Map:  # fmt: skip
    masked = t.constant(weight, as_is=True) * t.constant(mask, as_is=True)
    return convolved(t.builder, t.map(x), masked, t.constant(bias), padding, dilation)


@lowers("masked_conv_block")
def _masked_conv_block(
    t: LoweringContext, x: View, weight: View, bias: Any, mask: View, scale: Any, shift: Any,
    condition: Any, residual: Any, activation: str, alpha: float, padding: Any, dilation: Any, *backend: Any,
) -> Map:  # fmt: skip
    y = _masked_conv2d(t, x, weight, bias, mask, padding, dilation)
    for combined, term in ((multiplied, scale), (added, shift), (added, condition)):
        if term is not None:
            y = combined(t.builder, y, t.builder.map(t.map(term).addresses[..., None, None]))
    if residual is not None:
        y = added(t.builder, y, t.map(residual))
    return y if activation == "none" else stepped(t.builder, y, Step(activation, alpha))


def _gated_activation(b: Builder, x: Map, condition: Map | None, *backend: Any) -> Map:
    if condition is not None:
        term = condition.addresses
        x = added(b, x, b.map(term if term.dim() == 4 else term[..., None, None]))
    values, gates = halves(b, x, 1)
    return multiplied(b, stepped(b, values, Step("tanh")), stepped(b, gates, Step("sigmoid")))


lowers_to_formulas({"im2col": _unfold, "gated_activation": _gated_activation})
