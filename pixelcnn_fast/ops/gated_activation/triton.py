"""tanh(a) * sigmoid(b), or a * sigmoid(b), in Triton, one pass over memory forward and backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixelcnn_fast.ops.library import memory_format
from pixelcnn_fast.ops.triton_support import check_dtype, tanh
from pixelcnn_fast.ops.triton_tuning import INTERPRETER, Tile, Tiles, tile

# rows: elements
TILES: Tiles = {INTERPRETER: (Tile(1024, 16, 16, 4, 1),), 80: (Tile(2048, 16, 16, 4, 1),)}


def forward(x: Tensor, condition: Tensor | None, linear: bool = False) -> Tensor:
    """x: [N, 2C, H, W]; condition, added to x: [N, 2C], as x, or None; all without gaps, in x's memory format
    -> [N, C, H, W], likewise. Raises TypeError for float64 and integers."""
    return _launch(x, condition, None, linear)


def backward(grad: Tensor, x: Tensor, condition: Tensor | None, linear: bool = False) -> Tensor:
    """grad: [N, C, H, W]; x and condition as in ``forward`` -> the gradient of x + condition."""
    return _launch(x, condition, grad, linear)


def _launch(x: Tensor, condition: Tensor | None, grad: Tensor | None, linear: bool) -> Tensor:
    """In either memory format, x is [rows, 2, size], where a row is a and b of an image or of a pixel."""
    check_dtype(x)
    layout = memory_format(x)
    channels_last = layout == torch.channels_last
    n, channels, height, width = x.shape
    shape, pixels = (n, channels // 2 if grad is None else channels, height, width), height * width
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    rows, size = (n * pixels, channels // 2) if channels_last else (n, channels // 2 * pixels)
    if rows * size == 0:
        return out
    elements, *_, warps, _ = tile(TILES, x.device, rows * size)
    block = min(elements, triton.next_power_of_2(size))
    block_rows = elements // block
    grid = (triton.cdiv(rows, block_rows) * triton.cdiv(size, block),)
    with torch.cuda.device_of(x):
        _gated_activation_kernel[grid](
            x,
            condition,
            grad,
            out,
            rows,
            size,
            pixels,
            PER_IMAGE=condition is not None and condition.dim() == 2,
            CHANNELS_LAST=channels_last,
            LINEAR=linear,
            BLOCK_ROWS=block_rows,
            BLOCK=block,
            num_warps=warps,
        )
    return out


@triton.jit
def _gated_activation_kernel(
    x,
    condition,
    grad,
    out,
    rows,
    size,
    pixels,
    PER_IMAGE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LINEAR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x: [rows, 2, size]; without grad: out [rows, size]; with it: grad [rows, size], out [rows, 2, size]."""
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < size)
    # int64: a batch of feature maps passes 2^31 elements.
    row = row.to(tl.int64)
    single = row * size + column
    double = single + row * size
    a = tl.load(x + double, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + double + size, mask=inside, other=0.0).to(tl.float32)
    if condition is not None:
        if not PER_IMAGE:
            first = condition + double
            second = first + size
        elif CHANNELS_LAST:
            first = condition + (row // pixels) * 2 * size + column
            second = first + size
        else:
            first = condition + row * 2 * (size // pixels) + column // pixels
            second = first + size // pixels
        a += tl.load(first, mask=inside, other=0.0).to(tl.float32)
        b += tl.load(second, mask=inside, other=0.0).to(tl.float32)
    t = a if LINEAR else tanh(a)
    s = tl.sigmoid(b)
    if grad is None:
        tl.store(out + single, (t * s).to(out.dtype.element_ty), mask=inside)
    else:
        g = tl.load(grad + single, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + double, (g * s * (1 if LINEAR else 1 - t * t)).to(out.dtype.element_ty), mask=inside)
        tl.store(out + double + size, (g * t * s * (1 - s)).to(out.dtype.element_ty), mask=inside)
