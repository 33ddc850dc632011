"""elu(x) and elu(-x) in Triton, one pass over memory forward and backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixelcnn_fast.ops.library import memory_format
from pixelcnn_fast.ops.triton_support import check_dtype
from pixelcnn_fast.ops.triton_tuning import INTERPRETER, Tile, Tiles, tile

# rows: elements
TILES: Tiles = {INTERPRETER: (Tile(1024, 16, 16, 4, 1),), 80: (Tile(2048, 16, 16, 4, 1),)}


def forward(x: Tensor) -> Tensor:
    """x: [N, C, H, W] without gaps -> [N, 2C, H, W], likewise. Raises TypeError for float64 and integers."""
    return _launch(x, None)


def backward(grad: Tensor, y: Tensor) -> Tensor:
    """grad and y, the result: [N, 2C, H, W], without gaps, in y's memory format -> the gradient of x."""
    return _launch(y, grad)


def _launch(x: Tensor, grad: Tensor | None) -> Tensor:
    """x, or its result if there is a gradient. In either memory format, a map of both halves is [rows, 2, size], where
    a row is of an image or of a pixel."""
    check_dtype(x)
    layout = memory_format(x)
    n, channels, height, width = x.shape
    half, pixels = channels if grad is None else channels // 2, height * width
    shape = (n, 2 * half if grad is None else half, height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    rows, size = (n * pixels, half) if layout == torch.channels_last else (n, half * pixels)
    if rows * size == 0:
        return out
    elements, *_, warps, _ = tile(TILES, x.device, rows * size)
    block = min(elements, triton.next_power_of_2(size))
    block_rows = elements // block
    grid = (triton.cdiv(rows, block_rows) * triton.cdiv(size, block),)
    with torch.cuda.device_of(x):
        _concat_elu_kernel[grid](
            x, grad, out, rows, size, BLOCK_ROWS=block_rows, BLOCK=block, num_warps=warps
        )
    return out


@triton.jit
def _concat_elu_kernel(x, grad, out, rows, size, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Without grad: x [rows, size], out [rows, 2, size]; with it: x and grad [rows, 2, size], out [rows, size]."""
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < size)
    # int64: a batch of feature maps passes 2^31 elements.
    row = row.to(tl.int64)
    single = row * size + column
    double = single + row * size
    if grad is None:
        v = tl.load(x + single, mask=inside, other=0.0).to(tl.float32)
        below = tl.exp(tl.where(v < 0, v, -v)) - 1
        tl.store(out + double, tl.where(v > 0, v, below).to(out.dtype.element_ty), mask=inside)
        tl.store(out + double + size, tl.where(v < 0, -v, below).to(out.dtype.element_ty), mask=inside)
    else:
        a = tl.load(x + double, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(x + double + size, mask=inside, other=0.0).to(tl.float32)
        of_a = tl.load(grad + double, mask=inside, other=0.0).to(tl.float32)
        of_b = tl.load(grad + double + size, mask=inside, other=0.0).to(tl.float32)
        total = of_a * tl.where(a > 0, 1, a + 1) - of_b * tl.where(b > 0, 1, b + 1)
        tl.store(out + single, total.to(out.dtype.element_ty), mask=inside)
