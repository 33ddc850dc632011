"""Lowers convolutions, and the library's own ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import product
from typing import Any, Concatenate

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import ParamSpec

from pixelcnn_fast.capture.lower.alignment import placed
from pixelcnn_fast.capture.lower.arithmetic import added, multiplied, stepped
from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.calls.pointwise import halves
from pixelcnn_fast.capture.lower.calls.registry import LoweringContext, lowers, lowers_to_formulas
from pixelcnn_fast.capture.lower.materialize import copied, divided, materialised, of_imageless, windowed
from pixelcnn_fast.capture.record.shadow_memory import Map, Value, beside
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import View
from pixelcnn_fast.program.operands import Step
from pixelcnn_fast.program.zeros import lets_through

P = ParamSpec("P")


def by_batch(
    lowering: Callable[Concatenate[Builder, Map, P], Map],
) -> Callable[Concatenate[Builder, Map, P], Map]:
    """A lowering of maps [N, C, h, w] for several batches in one, such as one twice, under two conditions."""

    @wraps(lowering)
    def lowered(b: Builder, x: Map, /, *args: P.args, **kwargs: P.kwargs) -> Map:
        images = b.space.images
        if x.shape[0] <= images or x.shape[0] % images:
            return lowering(b, x, *args, **kwargs)
        image = b.space.decode(b.space.only(x.addresses, Value).flatten(1).amax(1)).image
        if len(image.bincount(minlength=images).unique()) > 1:  # some have no features
            image = torch.arange(len(image)) % images
        order = image.argsort(stable=True).view(images, -1).T  # such as those of x.repeat_interleave(2, 0)
        parts = [lowering(b, b.map(x.addresses[part]), *args, **kwargs).addresses for part in order]
        return b.map(torch.cat(parts)[order.flatten().argsort()])

    return lowered


@lowers("convolution")
def _convolution(
    t: LoweringContext, x: View, weight: View, bias: View | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Map:  # fmt: skip
    matrices, shift = t.constant(weight, as_is=True), t.constant(bias)
    if len(x.size) == 3 and not transposed:
        return _along(t.builder, t.map(x), matrices, shift, padding[0], dilation[0], groups, stride[0])
    if len(x.size) != 4:
        raise Unsupported(f"its argument has {len(x.size)} axes; only [N, channels, H, W] is supported")
    if transposed:
        return _transposed(
            t.builder, t.map(x), matrices, shift, stride, padding, dilation, output_padding, groups
        )
    return convolved(t.builder, t.map(x), matrices, shift, padding, dilation, groups, stride)


@by_batch
def convolved(
    b: Builder,
    x: Map,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    stride: Sequence[int] = (1, 1),
    size: Sequence[int] | None = None,
) -> Map:
    """x: [N, C, h, w]; weight: [O, C / groups, kH, kW], in any dtype -> [N, O, h', w']. size:
    h' and w', if padding below and to the right is not that above and to the left."""
    features, imageless = divided(b, windowed(b, x))
    every = b.every(features)
    columns = weight.detach().permute(2, 3, 1, 0)
    if groups > 1:
        columns = _ungrouped(columns, groups)
    axes = [*zip(x.shape[2:], columns.shape[:2], padding, dilation, stride, every, strict=True)]
    height, width = size or (
        (many + 2 * pad - by * (count - 1) - 1) // s + 1 for many, count, pad, by, s, _ in axes
    )
    rows, across = ([(i * by - pad) * each for i in range(count)] for _, count, pad, by, _, each in axes)
    planes = None
    if imageless is not None:
        live = lets_through(columns).flatten(1).any(1).cpu().numpy()
        below = max((row // every[0] for row, is_live in zip(rows, live, strict=True) if is_live), default=0)
        planes = of_imageless(b, imageless, every, below)
    parts = [features] if planes is None else [features, planes]
    to = every[0] * stride[0], every[1] * stride[1]
    result = b.convolution(
        parts, [*product(rows, across)], columns.flatten(0, 1), bias, every, to, (height, width)
    )
    if imageless is None or planes is not None:
        return result
    whole = columns.permute(3, 2, 0, 1).to(b.dtype)
    around = [
        side
        for out, (many, count, pad, by, s, _) in zip((width, height), reversed(axes), strict=True)
        for side in (pad, (out - 1) * s + by * (count - 1) + 1 - pad - many)
    ]
    of_rest = b.imageless.convolved(F.pad(imageless.addresses, around), whole, stride, (0, 0), dilation)
    return added(b, result, of_rest)


def _along(
    b: Builder,
    x: Map,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    dilation: int,
    groups: int,
    stride: int,
) -> Map:
    """x: [.., C, l], of rows or of columns; weight: [O, C / groups, k] -> [.., O, l']."""
    split, (image, *spatial), channels = placed(b.space, windowed(b, x).addresses)
    last = split.dim() - 1
    more = [dim for dim in channels if dim < last - 1]  # such as those of several batches in one
    channels = [dim for dim in channels if dim >= last - 1]
    if channels == [last - 1, last] and -1 in spatial:  # the image's rows or columns have one pixel
        spatial[spatial.index(-1)] = channels.pop()
    if channels != [last - 1] or last not in spatial:
        raise Unsupported(
            "it takes channels along axis 1, and the pixels of one row or one column along axis 2"
        )
    goes_along_rows = spatial[1] == last
    order = [dim for dim in (*more, image, spatial[0 if goes_along_rows else 1], last - 1, last) if dim >= 0]
    arranged = split.permute(order)
    images = math.prod(split.shape[dim] for dim in (*more, image) if dim >= 0)
    lines = arranged.reshape(images, -1, *arranged.shape[-2:])

    def turned(x: Tensor) -> Tensor:
        return x if goes_along_rows else x.mT

    def both(along: int, across: int) -> tuple[int, int]:
        return (across, along) if goes_along_rows else (along, across)

    maps, kernel = turned(lines.transpose(1, 2)), turned(weight[:, :, None])
    result = convolved(
        b, b.map(maps), kernel, bias, both(padding, 0), both(dilation, 1), groups, both(stride, 1)
    )
    found = turned(result.addresses).transpose(1, 2)
    back = found.reshape(*arranged.shape[:-2], *found.shape[-2:]).movedim([*range(len(order))], order)
    return b.map(back.reshape(x.shape[0], *found.shape[-2:]))


@by_batch
def _transposed(
    b: Builder,
    x: Map,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> Map:
    """x: [N, C, h, w]; weight: [C, O / groups, kH, kW] -> [N, O, h', w'], on a finer grid."""
    x = materialised(b, windowed(b, x))
    every = b.every(x)
    if any(b.space.every(s)[axis] % every[axis] for s in x.sources for axis in (0, 1)):
        x = copied(b, x)  # some of the pixels of a finer grid
    if every[0] % stride[0] or every[1] % stride[1]:
        raise Unsupported("it computes more pixels than the image has")
    to = every[0] // stride[0], every[1] // stride[1]
    columns = weight.detach().permute(2, 3, 0, 1)
    if groups > 1:
        columns = _ungrouped(columns.mT, groups).mT
    axes = [*zip(x.shape[2:], columns.shape[:2], padding, dilation, stride, output_padding, to, strict=True)]
    height, width = (
        (size - 1) * s - 2 * pad + by * (count - 1) + more + 1 for size, count, pad, by, s, more, _ in axes
    )
    rows, across = ([(pad - i * by) * each for i in range(count)] for _, count, pad, by, *_, each in axes)
    return b.convolution(
        [x], [*product(rows, across)], columns.flatten(0, 1), bias, every, to, (height, width)
    )


def _ungrouped(columns: Tensor, groups: int) -> Tensor:
    """[..., in / groups, out] -> [..., in, out], zero where the groups differ."""
    parts, width = columns.chunk(groups, -1), columns.shape[-1] // groups
    padded = [F.pad(part, (g * width, (groups - 1 - g) * width)) for g, part in enumerate(parts)]
    return torch.cat(padded, -2)


def _moved_by(call: Callable[..., Tensor]) -> Callable[..., Map]:
    """For calls that only move elements, but that PyTorch can't make on integers."""
    return lambda b, x, *settings: b.map(call(x.addresses.double(), *settings).long())


def _average(
    b: Builder,
    x: Map,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Map:
    if ceil_mode or (any(padding) and not count_include_pad):
        raise Unsupported("its windows at the border average fewer pixels: pad, and leave these options out")
    (height, width), channels = kernel, x.shape[1]
    identity = torch.eye(channels, dtype=b.dtype, device=b.device) / (divisor or height * width)
    weight = identity[:, :, None, None].expand(-1, -1, height, width)
    return convolved(b, x, weight, None, padding, stride=stride or kernel)


@lowers("masked_conv2d")
def _masked_conv2d(
    t: LoweringContext, x: View, weight: View, bias: Any, mask: View, padding: Any,
    dilation: Any, backend: Any = None, dense_gradient: Any = None, result_format: Any = None, size: Any = None,
) -> Map:  # fmt: skip
    masked = t.constant(weight, as_is=True) * t.constant(mask, as_is=True)
    return convolved(t.builder, t.map(x), masked, t.constant(bias), padding, dilation, size=size)


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


def _gated_activation(
    b: Builder, x: Map, condition: Map | None, backend: Any = None, linear: bool = False
) -> Map:
    if condition is not None:
        term = condition.addresses
        x = added(b, x, b.map(term if term.dim() == 4 else term[..., None, None]))
    values, gates = halves(b, x, 1)
    return multiplied(
        b, values if linear else stepped(b, values, Step("tanh")), stepped(b, gates, Step("sigmoid"))
    )


def _concat_elu(b: Builder, x: Map, *backend: Any) -> Map:
    parts = [stepped(b, part, Step("elu")) for part in (x, stepped(b, x, (-1.0, 0.0)))]
    return beside(b.space, parts) or b.map(torch.cat([part.addresses for part in parts], 1))


lowers_to_formulas(
    {
        "im2col": _moved_by(torch.ops.aten.im2col),
        "upsample_nearest2d": _moved_by(torch.ops.aten.upsample_nearest2d.default),
        "_upsample_nearest_exact2d": _moved_by(torch.ops.aten._upsample_nearest_exact2d.default),
        "avg_pool2d": _average,
        "concat_elu": _concat_elu,
        "gated_activation": _gated_activation,
    }
)
