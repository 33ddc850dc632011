"""The masked convolution's gradient by its weight in Triton: for each live tap, an outer product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixelcnn_fast.ops.library import Pair
from pixelcnn_fast.ops.masked_conv2d.triton import between, live_taps, locate, pixel_number, positions_of
from pixelcnn_fast.ops.triton_support import (
    check_dtype,
    load_tile,
    multiply_add,
    precision_of,
    store_tile,
    within,
)
from pixelcnn_fast.ops.triton_tuning import INTERPRETER, Tile, Tiles, multiprocessors, tile

# rows: input channels; columns: output channels; depth: positions
TILES: dict[str, Tiles] = {
    "16 bit": {
        INTERPRETER: (Tile(32, 32, 128, 4, 1),),
        80: (Tile(128, 128, 32, 8, 3),),
        # With 8 warps, triton 3.6 waits for each product before it starts the next.
        90: (Tile(128, 128, 64, 4, 3),),
        120: (Tile(128, 128, 32, 8, 3),),
    },
    "tf32": {
        INTERPRETER: (Tile(32, 32, 128, 4, 1),),
        80: (Tile(64, 64, 32, 4, 3),),
        90: (Tile(128, 128, 32, 8, 3),),
        120: (Tile(64, 64, 32, 4, 3),),
    },
    "ieee": {
        INTERPRETER: (Tile(32, 32, 128, 4, 1),),
        80: (Tile(64, 64, 16, 8, 3),),
    },
}


def weight_gradient(
    grad: Tensor, x: Tensor, weight_shape: Sequence[int], mask: Tensor, dilation: Pair, padding: Pair
) -> Tensor:
    """grad: [N, O, H', W']; x: [N, C, H, W]; any strides -> [O, C, kH, kW], 0 outside the live taps."""
    check_dtype(grad, x)
    positions = positions_of(grad.shape, x.shape)
    grad, x = (each.contiguous(memory_format=torch.channels_last) for each in (grad, x))
    out_channels, in_channels, *kernel = weight_shape
    taps = kernel[0] * kernel[1]
    precision = precision_of(x.dtype)
    size = tile(TILES[precision], x.device, in_channels, out_channels, positions)
    alive = triton.cdiv(taps, 2)  # about so many: the others' programs end at once
    tiles = triton.cdiv(in_channels, size.rows) * triton.cdiv(out_channels, size.columns)
    # Each split sums a share of the positions, and the shares are summed in order: no atomics.
    splits = max(1, min(multiprocessors(x.device) // (alive * tiles), positions // (4 * size.depth)))
    share = size.depth * triton.cdiv(triton.cdiv(positions, splits), size.depth)
    partial = x.new_empty((splits, taps, in_channels, out_channels), dtype=torch.float32)
    live = live_taps(mask, kernel)
    with torch.cuda.device_of(x):
        _outer_product_over_taps_kernel[taps * tiles, splits](
            grad,
            x,
            live,
            partial,
            positions,
            share,
            *x.shape[2:],
            *grad.shape[2:],
            live.stride(),
            partial.stride(),
            tuple(dilation),
            tuple(padding),
            IN_CHANNELS=in_channels,
            OUT_CHANNELS=out_channels,
            KERNEL_WIDTH=kernel[1],
            PRECISION=precision,
            BLOCK_I=size.rows,
            BLOCK_O=size.columns,
            BLOCK_P=size.depth,
            **size.launch_options(),
        )
    by_tap = partial.sum(0).view(*kernel, in_channels, out_channels)
    return by_tap.permute(3, 2, 0, 1).to(x.dtype, memory_format=torch.contiguous_format)


@triton.jit
def _outer_product_over_taps_kernel(
    grad,
    x,
    live,
    partial,
    positions,
    share,
    height,
    width,
    out_height,
    out_width,
    live_strides,
    partial_strides,
    dilation,
    padding,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """A program computes one tile [BLOCK_I, BLOCK_O] of a tap's gradient, over one share of the positions."""
    O_BLOCKS: tl.constexpr = (OUT_CHANNELS + BLOCK_O - 1) // BLOCK_O
    I_BLOCKS: tl.constexpr = (IN_CHANNELS + BLOCK_I - 1) // BLOCK_I
    block = tl.program_id(0)
    split = tl.program_id(1)
    tap = block // (I_BLOCKS * O_BLOCKS)
    i = (block // O_BLOCKS % I_BLOCKS) * BLOCK_I + tl.arange(0, BLOCK_I)
    o = (block % O_BLOCKS) * BLOCK_O + tl.arange(0, BLOCK_O)
    ky = tap // KERNEL_WIDTH
    kx = tap % KERNEL_WIDTH
    dy = ky * dilation[0] - padding[0]
    dx = kx * dilation[1] - padding[1]
    is_live = tl.load(live + ky * live_strides[0] + kx * live_strides[1])
    last = tl.where(is_live, tl.minimum((split + 1) * share, positions), 0)

    # Each step moves on by BLOCK_P positions; divisions would take longer than the products.
    first = split * share
    image, row, column = locate(first + tl.arange(0, BLOCK_P), out_height, out_width)
    pixel = pixel_number(image, row + dy, column + dx, height, width)
    images, rows, columns = locate(BLOCK_P, out_height, out_width)
    pixels = pixel_number(images, rows, columns, height, width)

    total = tl.zeros((BLOCK_I, BLOCK_O), dtype=tl.float32)
    for start in range(first, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p < last) & between(row + dy, height) & between(column + dx, width)
        # Loaded as [I, P]: on sm_80 and sm_120, Triton does not pipeline a load that is transposed afterwards.
        a = load_tile(x + i, within(i, IN_CHANNELS, BLOCK_I), pixel.to(tl.int64) * IN_CHANNELS, inside)
        b = load_tile(grad + p.to(tl.int64) * OUT_CHANNELS, p < last, o, within(o, OUT_CHANNELS, BLOCK_O))
        total = multiply_add(a, b, total, PRECISION)
        column += columns
        in_next_row = column >= out_width
        column -= tl.where(in_next_row, out_width, 0)
        row += rows + in_next_row
        in_next_image = row >= out_height
        row -= tl.where(in_next_image, out_height, 0)
        pixel += pixels + tl.where(in_next_row, width - out_width, 0)
        pixel += tl.where(in_next_image, (height - out_height) * width, 0)

    rows = partial + split * partial_strides[0] + tap * partial_strides[1] + i * partial_strides[2]
    store_tile(rows, i < IN_CHANNELS, o, o < OUT_CHANNELS, total)
