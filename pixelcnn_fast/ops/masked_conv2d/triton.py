"""Masked 2-D convolution in Triton: implicit matrix products over the live taps only.

A tap is a pair (i, j) of kernel indices. The kernels read one matrix per tap, packed beforehand by a small copy, and
channels-last feature maps. Other maps are copied first: shifted by a tap, the 16-bit elements of their rows would not
be aligned for asynchronous loads. Sums are float32; float32 inputs are rounded to TF32 where torch allows it for
convolutions (torch.backends.cudnn.conv.fp32_precision). Equal inputs give equal bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixelcnn_fast.ops.library import memory_format
from pixelcnn_fast.ops.masked_conv2d.taps import Taps
from pixelcnn_fast.ops.triton_support import (
    INTERPRETED,
    activate,
    check_dtype,
    load_tile,
    multiply_add,
    precision_of,
    store_tile,
)
from pixelcnn_fast.ops.triton_tuning import multiprocessors, tile

Pair = tuple[int, int]


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
    dilation: Pair,
    padding: Pair,
    size: Sequence[int] | None = None,
) -> Tensor:
    """x: [N, C, H, W], any strides; weight: [O, C, kH, kW], zero outside the taps; bias: [O] or None
    -> [N, O, H', W'] in x's memory format; size: (H', W'), if padding below and to the right differs.

    Raises TypeError for float64, integers and unequal dtypes; ValueError if the result has no pixel, or 2^30 or more.
    """
    return fused_forward(x, weight, bias, taps, dilation, padding, size=size)


def fused_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
    dilation: Pair,
    padding: Pair,
    activation: str = "none",
    alpha: float = 1.0,
    residual: Tensor | None = None,
    condition: Tensor | None = None,
    size: Sequence[int] | None = None,
) -> Tensor:
    """activation(convolution + condition + residual); arguments as in ``masked_conv_block``."""
    kernel = weight.shape[2:]
    pixels = [x.shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) for d in (0, 1)]
    pixels = pixels if size is None else [*size]
    if min(pixels) < 1:
        raise ValueError(
            f"kernel {tuple(kernel)} at dilation {tuple(dilation)} is larger than the input {tuple(x.shape[2:])} "
            f"padded by {tuple(padding)}: pad by more"
        )
    matrices, offsets = _pack(weight, taps, dilation, padding, sign=1)
    shape = (x.shape[0], weight.shape[0], *pixels)
    return _product_over_taps(x, matrices, offsets, shape, bias, activation, alpha, residual, condition)


def input_gradient(
    grad: Tensor, weight: Tensor, taps: Taps, input_shape: Sequence[int], dilation: Pair, padding: Pair
) -> Tensor:
    """grad: [N, O, H', W'], any strides; weight: [O, C, kH, kW] -> [N, C, H, W] = input_shape, in grad's
    memory format."""
    matrices, offsets = _pack(weight.transpose(0, 1), taps, dilation, padding, sign=-1)
    return _product_over_taps(grad, matrices, offsets, tuple(input_shape))


def weight_gradient(
    grad: Tensor, x: Tensor, weight_shape: Sequence[int], taps: Taps, dilation: Pair, padding: Pair
) -> Tensor:
    """grad: [N, O, H', W']; x: [N, C, H, W]; any strides -> [O, C, kH, kW] = weight_shape, 0 outside the taps."""
    check_dtype(grad, x)
    if not taps:
        return x.new_zeros(weight_shape)
    grad = grad.contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    out_channels, in_channels, *kernel = weight_shape
    index, offsets = _tables(tuple(taps), kernel[1], tuple(dilation), tuple(padding), 1, x.device)
    positions = _positions(grad.shape)
    precision = precision_of(x.dtype)
    size = tile(f"outer product over taps, {precision}", x.device, in_channels, out_channels, positions)
    blocks = len(taps) * triton.cdiv(in_channels, size.rows) * triton.cdiv(out_channels, size.columns)
    # Each split sums a share of the positions, and the shares are summed in order: no atomics.
    splits = max(1, min(multiprocessors(x.device) // blocks, positions // (4 * size.depth)))
    share = size.depth * triton.cdiv(triton.cdiv(positions, splits), size.depth)
    partial = x.new_empty((splits, len(taps), in_channels, out_channels), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _outer_product_over_taps_kernel[blocks, splits](
            grad,
            x,
            offsets,
            partial,
            positions,
            share,
            x.shape[2],
            x.shape[3],
            *grad.shape[2:],
            grad.stride(),
            x.stride(),
            partial.stride(),
            IN_CHANNELS=in_channels,
            OUT_CHANNELS=out_channels,
            PRECISION=precision,
            INTERPRETED=INTERPRETED,
            BLOCK_I=size.rows,
            BLOCK_O=size.columns,
            BLOCK_P=size.depth,
            num_warps=size.warps,
            num_stages=size.stages,
        )
    gradient = x.new_zeros(weight_shape)
    by_tap = gradient.permute(2, 3, 1, 0).view(kernel[0] * kernel[1], in_channels, out_channels)
    by_tap.index_copy_(0, index, partial.sum(0).to(x.dtype))
    return gradient


def _product_over_taps(
    x: Tensor,
    matrices: Tensor,
    offsets: Tensor,
    shape: tuple[int, ...],
    bias: Tensor | None = None,
    activation: str = "none",
    alpha: float = 1.0,
    residual: Tensor | None = None,
    condition: Tensor | None = None,
) -> Tensor:
    """Sums over taps: x, shifted by the tap's offset, times the tap's matrix. Then applies the epilogue.

    x: [N, I, H, W]; matrices: [taps, I, O]; offsets: [taps, 2] -> ``shape`` [N, O, H', W'], in x's memory format.
    """
    check_dtype(x, matrices)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    x = x.contiguous(memory_format=torch.channels_last)
    positions = _positions(shape)
    precision = precision_of(x.dtype)
    _, in_channels, out_channels = matrices.shape
    size = tile(f"product over taps, {precision}", x.device, positions, out_channels, in_channels)
    blocks = triton.cdiv(positions, size.rows) * triton.cdiv(out_channels, size.columns)
    with torch.cuda.device_of(x):
        _product_over_taps_kernel[blocks,](
            x,
            matrices,
            offsets,
            bias,
            residual,
            condition,
            out,
            alpha,
            offsets.shape[0],
            positions,
            x.shape[2],
            x.shape[3],
            shape[2],
            shape[3],
            x.stride(),
            matrices.stride(),
            out.stride(),
            residual.stride() if residual is not None else None,
            condition.stride() if condition is not None else None,
            IN_CHANNELS=in_channels,
            OUT_CHANNELS=out_channels,
            CHANNELS_LAST=memory_format(out) == torch.channels_last,
            ACTIVATION=activation,
            PRECISION=precision,
            INTERPRETED=INTERPRETED,
            BLOCK_P=size.rows,
            BLOCK_O=size.columns,
            BLOCK_I=size.depth,
            num_warps=size.warps,
            num_stages=size.stages,
        )
    return out


def _pack(weight: Tensor, taps: Taps, dilation: Pair, padding: Pair, sign: int) -> tuple[Tensor, Tensor]:
    """weight: [to, from, kH, kW] -> matrices [taps, from, to] and offsets [taps, 2] of the pixels they apply to."""
    taps = tuple(taps) or ((0, 0),)  # if all weights are zero, one tap is enough
    index, offsets = _tables(taps, weight.shape[3], tuple(dilation), tuple(padding), sign, weight.device)
    # In memory [taps, to, from]: sm_90 takes TF32 operands only with the summed dimension innermost.
    return weight.permute(2, 3, 0, 1).flatten(0, 1).index_select(0, index).transpose(1, 2), offsets


@functools.lru_cache(1024)
def _tables(
    taps: Taps, kernel_width: int, dilation: Pair, padding: Pair, sign: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """On the device: the taps' flat kernel indices [taps], and the offsets (dy, dx) of what they read [taps, 2]."""
    index = [i * kernel_width + j for i, j in taps]
    offsets = [(sign * (i * dilation[0] - padding[0]), sign * (j * dilation[1] - padding[1])) for i, j in taps]
    return torch.tensor(index, device=device), torch.tensor(offsets, dtype=torch.int32, device=device)


def _positions(shape: Sequence[int]) -> int:
    positions = shape[0] * shape[2] * shape[3]
    if positions >= 2**30:
        raise ValueError(
            f"{list(shape)} has {positions} pixels, and the kernels take fewer than 2^30: split the batch"
        )
    return positions


@triton.jit
def _locate(positions, count, height, width):
    """Numbers of output pixels [P] -> image, row and column. For numbers past the last, the row is far outside."""
    image = positions // (height * width)
    pixel = positions % (height * width)
    row = tl.where(positions < count, pixel // width, -(1 << 30))
    return image.to(tl.int64), row, pixel % width


@triton.jit
def _product_over_taps_kernel(
    x,
    matrices,
    offsets,
    bias,
    residual,
    condition,
    out,
    alpha,
    taps,
    positions,
    height,
    width,
    out_height,
    out_width,
    x_strides,
    matrix_strides,
    out_strides,
    residual_strides,
    condition_strides,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """A program computes one tile [BLOCK_P positions, BLOCK_O output channels]; see ``_product_over_taps``."""
    O_BLOCKS: tl.constexpr = (OUT_CHANNELS + BLOCK_O - 1) // BLOCK_O
    I_BLOCKS: tl.constexpr = (IN_CHANNELS + BLOCK_I - 1) // BLOCK_I
    # Programs that read the same positions run side by side.
    program = tl.program_id(0)
    p = (program // O_BLOCKS) * BLOCK_P + tl.arange(0, BLOCK_P)
    o = (program % O_BLOCKS) * BLOCK_O + tl.arange(0, BLOCK_O)
    image, row, column = _locate(p, positions, out_height, out_width)
    # int64: a feature map passes 2^31 elements at 4k x 4k x 128.
    source = x + image * x_strides[0] + row.to(tl.int64) * x_strides[2] + column.to(tl.int64) * x_strides[3]

    total = tl.zeros((BLOCK_P, BLOCK_O), dtype=tl.float32)
    dy = tl.load(offsets)
    dx = tl.load(offsets + 1)
    # One loop, not two, so that loads are pipelined across taps.
    for step in range(taps * I_BLOCKS):
        tap = step // I_BLOCKS
        i = (step % I_BLOCKS) * BLOCK_I + tl.arange(0, BLOCK_I)
        inside = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        shift = dy.to(tl.int64) * x_strides[2] + dx.to(tl.int64) * x_strides[3]
        a = load_tile(source + shift, inside, i * x_strides[1], i < IN_CHANNELS)
        b = load_tile(
            matrices + tap * matrix_strides[0] + i * matrix_strides[1],
            i < IN_CHANNELS,
            o * matrix_strides[2],
            o < OUT_CHANNELS,
        )
        total = multiply_add(a, b, total, PRECISION, INTERPRETED)
        following = tl.minimum((step + 1) // I_BLOCKS, taps - 1)
        dy = tl.load(offsets + 2 * following)
        dx = tl.load(offsets + 2 * following + 1)

    if bias is not None:
        total += tl.load(bias + o, mask=o < OUT_CHANNELS, other=0.0).to(tl.float32)[None, :]
    known = row >= 0
    if condition is not None:
        rows = condition + image * condition_strides[0]
        total += load_tile(rows, known, o * condition_strides[1], o < OUT_CHANNELS).to(tl.float32)
    row = row.to(tl.int64)
    channel = o.to(tl.int64)
    if residual is not None:
        rows = residual + image * residual_strides[0] + row * residual_strides[2] + column * residual_strides[3]
        addend = load_tile(rows, known, channel * residual_strides[1], o < OUT_CHANNELS, not CHANNELS_LAST)
        total += addend.to(tl.float32)
    total = activate(total, alpha, ACTIVATION)
    rows = out + image * out_strides[0] + row * out_strides[2] + column * out_strides[3]
    store_tile(rows, known, channel * out_strides[1], o < OUT_CHANNELS, total, not CHANNELS_LAST)


@triton.jit
def _outer_product_over_taps_kernel(
    grad,
    x,
    offsets,
    partial,
    positions,
    share,
    height,
    width,
    out_height,
    out_width,
    grad_strides,
    x_strides,
    partial_strides,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """A program computes one tile [BLOCK_I, BLOCK_O] of one tap's gradient, over one share of the positions."""
    O_BLOCKS: tl.constexpr = (OUT_CHANNELS + BLOCK_O - 1) // BLOCK_O
    I_BLOCKS: tl.constexpr = (IN_CHANNELS + BLOCK_I - 1) // BLOCK_I
    block = tl.program_id(0)
    split = tl.program_id(1)
    tap = block // (I_BLOCKS * O_BLOCKS)
    i = (block // O_BLOCKS % I_BLOCKS) * BLOCK_I + tl.arange(0, BLOCK_I)
    o = (block % O_BLOCKS) * BLOCK_O + tl.arange(0, BLOCK_O)
    dy = tl.load(offsets + 2 * tap)
    dx = tl.load(offsets + 2 * tap + 1)
    last = tl.minimum((split + 1) * share, positions)

    total = tl.zeros((BLOCK_I, BLOCK_O), dtype=tl.float32)
    for first in range(split * share, last, BLOCK_P):
        image, row, column = _locate(first + tl.arange(0, BLOCK_P), last, out_height, out_width)
        inside = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        known = row >= 0
        row = row.to(tl.int64)
        column = column.to(tl.int64)
        source = image * x_strides[0] + (row + dy) * x_strides[2] + (column + dx) * x_strides[3]
        # Loaded as [I, P]: on sm_80 and sm_120, Triton does not pipeline a load that is transposed afterwards.
        a = load_tile(x + i * x_strides[1], i < IN_CHANNELS, source, inside)
        rows = grad + image * grad_strides[0] + row * grad_strides[2] + column * grad_strides[3]
        b = load_tile(rows, known, o * grad_strides[1], o < OUT_CHANNELS)
        total = multiply_add(a, b, total, PRECISION, INTERPRETED)

    rows = partial + split * partial_strides[0] + tap * partial_strides[1] + i * partial_strides[2]
    store_tile(rows, i < IN_CHANNELS, o, o < OUT_CHANNELS, total)
