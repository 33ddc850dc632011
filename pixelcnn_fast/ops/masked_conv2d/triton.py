"""Masked 2-D convolution in Triton: implicit matrix products over the live taps only.

A tap is a pair (i, j) of kernel indices, live if the mask there is not 0 for some channels.
The mask is read at every call, on the device, so that nothing waits for it. The kernels
read one matrix per live tap, packed by a small copy, and channels-last feature maps. Other
maps are copied first: shifted by a tap, the 16-bit elements of their rows would not be
aligned for asynchronous loads. Sums are float32; float32 inputs are rounded to TF32 where
torch allows it for convolutions (torch.backends.cudnn.conv.fp32_precision). Equal inputs
give equal bits.

Nothing is kept between calls, packed weights neither: fused optimizers, and writes through
``.data``, change no version counter, and tensors made in inference mode have none. Loads
have masks; with tensor descriptors, triton 3.6 and 3.9 take tiles of several rows through
registers on sm_90, and pipeline no loads on sm_80 (docs/triton.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixelcnn_fast.ops.library import Pair, memory_format
from pixelcnn_fast.ops.triton_support import (
    activate,
    check_dtype,
    load_tile,
    multiply_add,
    precision_of,
    store_tile,
    within,
)
from pixelcnn_fast.ops.triton_tuning import INTERPRETER, Tile, Tiles, tile

# rows: positions; columns: output channels; depth: input channels of one tap
TILES: dict[str, Tiles] = {
    "16 bit": {
        INTERPRETER: (Tile(256, 32, 32, 4, 1),),
        80: (Tile(128, 128, 32, 8, 4), Tile(64, 64, 64, 4, 4), Tile(32, 32, 64, 4, 4)),
        86: (Tile(128, 128, 32, 8, 3), Tile(64, 64, 64, 4, 3), Tile(32, 32, 64, 4, 3)),
        90: (Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 4), Tile(64, 32, 64, 4, 4)),
        100: (Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 4, 4), Tile(64, 32, 64, 4, 4)),
        120: (Tile(128, 128, 32, 8, 3), Tile(64, 64, 64, 4, 3), Tile(32, 32, 64, 4, 3)),
    },
    "tf32": {
        INTERPRETER: (Tile(256, 32, 32, 4, 1),),
        80: (Tile(128, 64, 32, 4, 3), Tile(64, 64, 32, 4, 3), Tile(32, 32, 32, 4, 3)),
        86: (Tile(64, 64, 32, 4, 3), Tile(32, 32, 32, 4, 3)),
        90: (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 4), Tile(64, 32, 32, 4, 4)),
        100: (Tile(128, 128, 32, 8, 3), Tile(64, 32, 32, 4, 4)),
        120: (Tile(64, 64, 32, 4, 3), Tile(32, 32, 32, 4, 3)),
    },
    "ieee": {
        INTERPRETER: (Tile(256, 32, 32, 4, 1),),
        80: (Tile(64, 64, 16, 4, 3), Tile(32, 32, 16, 4, 3)),
    },
}
PACKED_AT_ONCE = 1024  # elements of a tap's matrix, by a program


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    dilation: Pair,
    padding: Pair,
    activation: str = "none",
    alpha: float = 1.0,
    residual: Tensor | None = None,
    condition: Tensor | None = None,
    result_format: torch.memory_format | None = None,
    size: Sequence[int] | None = None,
    transposed: bool = False,
) -> Tensor:
    """activation(convolution(x) + condition + residual), in one pass.

    x: [N, C, H, W]; weight: [O, C, kH, kW]; mask: of that shape, or one that is expanded to it; bias: [O];
    residual: [N, O, H', W']; condition: [N, O]; any strides -> [N, O, H', W'] in a memory format, or in x's.
    size: (H', W'), if padding below and to the right differs; transposed: x is the gradient
    of a convolution's result, and what comes is that of its input, of this size.
    activation: as for ``masked_conv_block``.
    Raises TypeError for float64, integers and unequal dtypes; ValueError if the result has
    no pixel, or it or x has 2^30 or more.
    """
    kernel = weight.shape[2:]
    if size is None:
        size = [x.shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) for d in (0, 1)]
    if not transposed and min(size) < 1:
        raise ValueError(
            f"kernel {tuple(kernel)} at dilation {tuple(dilation)} is larger than the input {tuple(x.shape[2:])} "
            f"padded by {tuple(padding)}: pad by more"
        )
    matrices, offsets, live = _pack(weight, mask, dilation, padding, transposed)
    check_dtype(x, matrices)
    _, in_channels, out_channels = matrices.shape
    shape = (x.shape[0], out_channels, *size)
    positions = positions_of(shape, x.shape)
    layout = memory_format(x) if result_format is None else result_format
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    x = x.contiguous(memory_format=torch.channels_last)
    precision = precision_of(x.dtype)
    block = tile(TILES[precision], x.device, positions, out_channels, in_channels)
    blocks = triton.cdiv(positions, block.rows) * triton.cdiv(out_channels, block.columns)
    with torch.cuda.device_of(x):
        _product_over_taps_kernel[blocks,](
            x,
            matrices,
            offsets,
            live,
            bias,
            residual,
            condition,
            out,
            alpha,
            positions,
            *x.shape[2:],
            *shape[2:],
            matrices.stride(),
            out.stride(),
            residual.stride() if residual is not None else None,
            condition.stride() if condition is not None else None,
            IN_CHANNELS=in_channels,
            OUT_CHANNELS=out_channels,
            CHANNELS_LAST=memory_format(out) == torch.channels_last,
            ACTIVATION=activation,
            PRECISION=precision,
            BLOCK_P=block.rows,
            BLOCK_O=block.columns,
            BLOCK_I=block.depth,
            **block.launch_options(),
        )
    return out


def input_gradient(
    grad: Tensor,
    weight: Tensor,
    mask: Tensor,
    input_shape: Sequence[int],
    dilation: Pair,
    padding: Pair,
    result_format: torch.memory_format | None = None,
) -> Tensor:
    """grad: [N, O, H', W']; weight, mask: as in ``forward`` -> [N, C, H, W] in a memory format, or grad's."""
    how = (mask, dilation, padding)
    return forward(
        grad, weight, None, *how, result_format=result_format, size=input_shape[2:], transposed=True
    )


def _pack(
    weight: Tensor, mask: Tensor, dilation: Pair, padding: Pair, transposed: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """weight: [to, from, kH, kW], or [from, to, kH, kW] if ``transposed``; mask: one that is expanded to it
    -> the matrices of the taps [kH * kW, from, to], live ones first, the offsets
    (dy, dx) of the pixels that they apply to, int32 [kH * kW, 2], and how many
    are live, int32 [1]."""
    check_dtype(weight)
    live, mask = live_taps(mask, weight.shape[2:]), mask.expand(weight.shape)
    if transposed:
        weight, mask = weight.transpose(0, 1), mask.transpose(0, 1)
    to, from_, *kernel = weight.shape
    taps, size = kernel[0] * kernel[1], to * from_
    # In memory [taps, to, from]: sm_90 takes TF32 operands only with the summed dimension innermost.
    matrices = weight.new_empty(taps, to, from_)
    offsets = torch.empty((taps, 2), dtype=torch.int32, device=weight.device)
    count = torch.empty(1, dtype=torch.int32, device=weight.device)
    with torch.cuda.device_of(weight):
        _pack_kernel[taps, triton.cdiv(size, PACKED_AT_ONCE)](
            weight,
            mask,
            live,
            matrices,
            offsets,
            count,
            size,
            weight.stride(),
            mask.stride(),
            live.stride(),
            # Torch hands pairs over as lists, and Triton 3.6 takes none.
            tuple(dilation),
            tuple(padding),
            -1 if transposed else 1,
            FROM=from_,
            KERNEL_WIDTH=kernel[1],
            TAPS=taps,
            TAPS_OR_MORE=triton.next_power_of_2(taps),
            BLOCK=PACKED_AT_ONCE,
        )
    return matrices.transpose(1, 2), offsets, count


def live_taps(mask: Tensor, kernel: Sequence[int]) -> Tensor:
    """bool [kH, kW]: whether a mask that is expanded to the kernel is not 0 for some channels."""
    return mask[(None,) * (4 - mask.dim())].any(dim=(0, 1)).expand(*kernel)


def positions_of(*shapes: Sequence[int]) -> int:
    """The number of the first map's pixels; raises ValueError if a map has more than the kernels take."""
    numbers = [shape[0] * shape[2] * shape[3] for shape in shapes]
    for shape, number in zip(shapes, numbers, strict=True):
        if number >= 2**30:
            raise ValueError(
                f"{list(shape)} has {number} pixels, and the kernels take fewer than 2^30: split the batch"
            )
    return numbers[0]


@triton.jit
def locate(positions, height, width):
    """Numbers of pixels of maps [height, width] -> image, row and column."""
    pixel = positions % (height * width)
    return positions // (height * width), pixel // width, pixel % width


@triton.jit
def pixel_number(image, row, column, height, width):
    """The inverse of ``locate``."""
    return (image * height + row) * width + column


@triton.jit
def between(index, size):
    """0 <= index < size, in one comparison."""
    return index.to(tl.uint32, bitcast=True) < size


@triton.jit
def _pack_kernel(
    weight,
    mask,
    live,
    matrices,
    offsets,
    count,
    size,
    weight_strides,
    mask_strides,
    live_strides,
    dilation,
    padding,
    sign,
    FROM: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    TAPS_OR_MORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program packs BLOCK elements of one tap's matrix, behind the live taps before it; see ``_pack``."""
    tap = tl.program_id(0)
    i = tap // KERNEL_WIDTH
    j = tap % KERNEL_WIDTH
    k = tl.arange(0, TAPS_OR_MORE)
    each = live + (k // KERNEL_WIDTH) * live_strides[0] + (k % KERNEL_WIDTH) * live_strides[1]
    alive = tl.load(each, mask=k < TAPS, other=0).to(tl.int32)
    place = tl.sum(tl.where(k < tap, alive, 0), 0)
    mine = tl.sum(tl.where(k == tap, alive, 0), 0) > 0
    first = tl.program_id(1) == 0
    tl.store(count, tl.sum(alive, 0), mask=first & (tap == 0))
    tl.store(offsets + 2 * place, sign * (i * dilation[0] - padding[0]), mask=first & mine)
    tl.store(offsets + 2 * place + 1, sign * (j * dilation[1] - padding[1]), mask=first & mine)

    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = element < tl.where(mine, size, 0)
    to = (element // FROM).to(tl.int64)
    source = element % FROM
    of_weight = (
        to * weight_strides[0] + source * weight_strides[1] + i * weight_strides[2] + j * weight_strides[3]
    )
    of_mask = to * mask_strides[0] + source * mask_strides[1] + i * mask_strides[2] + j * mask_strides[3]
    value = tl.load(weight + of_weight, mask=known, other=0.0).to(tl.float32)
    value *= tl.load(mask + of_mask, mask=known, other=0).to(tl.float32)
    rows = matrices + place.to(tl.int64) * size + element
    tl.store(rows, value.to(matrices.dtype.element_ty), mask=known)


@triton.jit
def _product_over_taps_kernel(
    x,
    matrices,
    offsets,
    count,
    bias,
    residual,
    condition,
    out,
    alpha,
    positions,
    height,
    width,
    out_height,
    out_width,
    matrix_strides,
    out_strides,
    residual_strides,
    condition_strides,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    O_BLOCKS: tl.constexpr = (OUT_CHANNELS + BLOCK_O - 1) // BLOCK_O
    I_BLOCKS: tl.constexpr = (IN_CHANNELS + BLOCK_I - 1) // BLOCK_I
    # Programs that read the same positions run side by side.
    program = tl.program_id(0)
    p = (program // O_BLOCKS) * BLOCK_P + tl.arange(0, BLOCK_P)
    o = (program % O_BLOCKS) * BLOCK_O + tl.arange(0, BLOCK_O)
    image, row, column = locate(p, out_height, out_width)
    known = p < positions
    pixel = pixel_number(image, row, column, height, width)

    total = tl.zeros((BLOCK_P, BLOCK_O), dtype=tl.float32)
    taps = tl.load(count)
    dy = tl.load(offsets)
    dx = tl.load(offsets + 1)
    # One loop, not two, so that loads are pipelined across taps.
    for step in range(taps * I_BLOCKS):
        tap = step // I_BLOCKS
        i = (step % I_BLOCKS) * BLOCK_I + tl.arange(0, BLOCK_I)
        inside = known & between(row + dy, height) & between(column + dx, width)
        # int64: a feature map passes 2^31 elements at 4k x 4k x 128.
        source = x + (pixel + dy * width + dx).to(tl.int64) * IN_CHANNELS
        a = load_tile(source, inside, i, within(i, IN_CHANNELS, BLOCK_I))
        b = load_tile(
            matrices + tap * matrix_strides[0] + i * matrix_strides[1],
            within(i, IN_CHANNELS, BLOCK_I),
            o * matrix_strides[2],
            within(o, OUT_CHANNELS, BLOCK_O),
        )
        total = multiply_add(a, b, total, PRECISION)
        following = tl.minimum((step + 1) // I_BLOCKS, taps - 1)
        dy = tl.load(offsets + 2 * following)
        dx = tl.load(offsets + 2 * following + 1)

    # In parts, each written before the next is begun: all addends at once would take the
    # registers that a second program on the multiprocessor needs.
    PART: tl.constexpr = BLOCK_O // 4
    image = image.to(tl.int64)
    row = row.to(tl.int64)
    for n in tl.static_range(4):
        o = (program % O_BLOCKS) * BLOCK_O + n * PART + tl.arange(0, PART)
        real = within(o, OUT_CHANNELS, BLOCK_O)
        part = _halves(_halves(total)[n // 2])[n % 2]
        if bias is not None:
            part += tl.load(bias + o, mask=real, other=0.0).to(tl.float32)[None, :]
        if condition is not None:
            rows = condition + image * condition_strides[0]
            part += load_tile(rows, known, o * condition_strides[1], real).to(tl.float32)
        channel = o.to(tl.int64)
        if residual is not None:
            rows = residual + _offset(image, row, column, residual_strides)
            addend = load_tile(rows, known, channel * residual_strides[1], real, not CHANNELS_LAST)
            part += addend.to(tl.float32)
        part = activate(part, alpha, ACTIVATION)
        rows = out + _offset(image, row, column, out_strides)
        store_tile(rows, known, channel * out_strides[1], real, part, not CHANNELS_LAST)


@triton.jit
def _offset(image, row, column, strides):
    return image * strides[0] + row * strides[2] + column * strides[3]


@triton.jit
def _halves(tile):
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))
