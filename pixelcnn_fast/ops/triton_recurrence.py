"""The recurrences of PixelRNN in Triton: one launch computes all steps, a program for each image.

Pixels of one step, a row or a diagonal, are computed together: their gates are products of
the states before them and the weights, which stay in the L2 cache as all programs read
them. A program passes states on through memory, with a barrier after each step. States are
in the inputs' dtype, cells and sums in float32; float32 products are rounded to TF32 where
torch allows it for convolutions. Equal inputs give equal bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixelcnn_fast.ops.library import memory_format
from pixelcnn_fast.ops.triton_support import (
    check_dtype,
    load_tile,
    multiply_add,
    precision_of,
    store_tile,
    tanh,
)
from pixelcnn_fast.ops.triton_tuning import INTERPRETER, Tile, Tiles, tile

# rows: positions of a step; columns: channels, of each gate; depth: channels of the states
TILES: dict[str, Tiles] = {
    "16 bit": {INTERPRETER: (Tile(16, 16, 16, 4, 1),), 80: (Tile(32, 32, 64, 4, 3),)},
    "tf32": {INTERPRETER: (Tile(16, 16, 16, 4, 1),), 80: (Tile(32, 32, 32, 4, 3),)},
    "ieee": {INTERPRETER: (Tile(16, 16, 16, 4, 1),), 80: (Tile(32, 32, 16, 4, 3),)},
}
# rows: elements
CELL_TILES: Tiles = {INTERPRETER: (Tile(1024, 16, 16, 4, 1),), 80: (Tile(256, 16, 16, 4, 1),)}


def forward(
    sums: Tensor,
    weight: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    diagonal: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """sums: [N, 4h, H, W], any strides; weight: [4h, h, taps]; h0, c0: [h] or None;
    diagonal: whether a state follows on those above and to the left, the cell on the
    latter; keep: whether the gates are needed
    -> h [N, h, H, W] and the gates [N, 4h, H, W], in sums' memory format.

    Raises TypeError for float64 and unequal dtypes.
    """
    check_dtype(*(x for x in (sums, weight, h0, c0) if x is not None))
    n, _, height, width = sums.shape
    hidden, taps = weight.shape[1:]
    layout, sums = memory_format(sums), sums.contiguous(memory_format=torch.channels_last)
    h0, c0 = (x if x is None else x.contiguous() for x in (h0, c0))
    h = torch.empty(
        (n, hidden, height, width), dtype=sums.dtype, device=sums.device, memory_format=torch.channels_last
    )
    gates = torch.empty_like(sums) if keep else None
    positions = height if diagonal else width
    cells = sums.new_empty((n, positions, hidden), dtype=torch.float32)
    # For TF32, sm_90 needs the summed dimension innermost.
    weight = weight.permute(2, 0, 1).contiguous()
    if sums.numel():
        walk, how = (height, width, sums.stride(), h.stride()), dict(DIAGONAL=diagonal, REVERSE=reverse)
        sizes = _sizes(sums, positions, hidden, taps, hidden)
        with torch.cuda.device_of(sums):
            _forward_kernel[n,](sums, weight, h0, c0, h, gates, cells, *walk, **how, **sizes)
    kept = sums.new_empty(0) if gates is None else gates.contiguous(memory_format=layout)
    return h.contiguous(memory_format=layout), kept


def backward(
    grad: Tensor, weight: Tensor, c0: Tensor | None, gates: Tensor, diagonal: bool, reverse: bool
) -> tuple[Tensor, Tensor]:
    """grad: of h, [N, h, H, W]; gates: as ``forward`` gave them -> the gradients of sums
    [N, 4h, H, W], in gates' memory format, and of c0 [h]."""
    check_dtype(*(x for x in (grad, weight, c0, gates) if x is not None))
    n, hidden, height, width = grad.shape
    layout, c0 = memory_format(gates), c0 if c0 is None else c0.contiguous()
    grad, gates = (x.contiguous(memory_format=torch.channels_last) for x in (grad, gates))
    grad_sums = torch.empty_like(gates)
    positions = height if diagonal else width
    cells = torch.empty_like(grad, dtype=torch.float32)
    grad_cells = grad.new_zeros((n, positions, hidden), dtype=torch.float32)
    if grad.numel():
        walk, how = (height, width, gates.stride(), cells.stride()), dict(DIAGONAL=diagonal, REVERSE=reverse)
        sizes = _sizes(grad, positions, hidden, weight.shape[2], 4 * hidden)
        weight, many = weight.permute(2, 1, 0).contiguous(), n * positions * hidden
        elements, *_, warps, _ = tile(CELL_TILES, grad.device, many)
        with torch.cuda.device_of(grad):
            _cells_kernel[triton.cdiv(many, elements),](
                gates, c0, cells, many, *walk, HIDDEN=hidden, BLOCK=elements, num_warps=warps, **how
            )
            _backward_kernel[n,](grad, weight, c0, gates, cells, grad_cells, grad_sums, *walk, **how, **sizes)
    return grad_sums.contiguous(memory_format=layout), grad_cells.sum((0, 1)).to(grad.dtype)


def _sizes(x: Tensor, positions: int, hidden: int, taps: int, depth: int) -> dict[str, Any]:
    precision = precision_of(x.dtype)
    size = tile(TILES[precision], x.device, positions, hidden, depth)
    return {
        "HIDDEN": hidden,
        "TAPS": taps,
        "PRECISION": precision,
        "BLOCK_P": size.rows,
        "BLOCK_C": size.columns,
        "BLOCK_K": size.depth,
        **size.launch_options(),
    }


@triton.jit
def _active(step, height, width, DIAGONAL: tl.constexpr):
    """The first position that has a pixel at a step, and the one after the last."""
    if DIAGONAL:
        return tl.maximum(step - width + 1, 0), tl.minimum(step + 1, height)
    else:
        return step * 0, width


@triton.jit
def _pixels(step, p, width, DIAGONAL: tl.constexpr, REVERSE: tl.constexpr):
    """The rows and columns of pixels at positions p, and their places in the row's walk, from 0."""
    y, walked = (p, step - p) if DIAGONAL else (p * 0 + step, p)
    return y, (width - 1 - walked if REVERSE else walked), walked


@triton.jit
def _offset(tap, TAPS: tl.constexpr, DIAGONAL: tl.constexpr, REVERSE: tl.constexpr):
    """Where a tap's state lies: rows down, columns to the right."""
    # On a diagonal, tap 0 is above, and tap 1 the pixel before it in the row.
    before = tap if REVERSE else -tap
    return (tap - 1, before) if DIAGONAL else (tap * 0 - 1, tap - TAPS // 2)


@triton.jit
def _load_gates(pixels, active, c, known, stride, HIDDEN: tl.constexpr):
    """Of channels c, [P, C] each in float32. stride: from channel to channel."""
    at = [(c + gate * HIDDEN) * stride for gate in (0, 1, 2, 3)]
    return [load_tile(pixels, active, channels, known).to(tl.float32) for channels in at]


@triton.jit
def _store_gates(pixels, active, c, known, stride, values, HIDDEN: tl.constexpr):
    for gate in tl.static_range(4):
        store_tile(pixels, active, (c + gate * HIDDEN) * stride, known, values[gate])


@triton.jit
def _add_product(total, a, rows, columns, real, known, PRECISION: tl.constexpr):
    return multiply_add(a, load_tile(rows, real, columns, known), total, PRECISION)


@triton.jit
def _pixel(image, y, x, strides):
    return y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3] + image * strides[0]


@triton.jit
def _or_initial(before, is_first, c0, c, known):
    """The cells before [P, C]: c0, if there is one, where a walk begins."""
    if c0 is not None:
        initial = tl.load(c0 + c, mask=known, other=0.0).to(tl.float32)
        before = tl.where(is_first[:, None], initial[None, :], before)
    return before


@triton.jit
def _forward_kernel(
    sums,
    weight,
    h0,
    c0,
    h,
    gates,
    cells,
    height,
    width,
    sum_strides,
    h_strides,
    DIAGONAL: tl.constexpr,
    REVERSE: tl.constexpr,
    HIDDEN: tl.constexpr,
    TAPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program computes one image. weight: [taps, 4h, h]; cells: each position's latest, [N, positions, h]."""
    K_BLOCKS: tl.constexpr = (HIDDEN + BLOCK_K - 1) // BLOCK_K
    image = tl.program_id(0).to(tl.int64)
    positions = height if DIAGONAL else width
    for step in range(height + width - 1 if DIAGONAL else height):
        begin, end = _active(step, height, width, DIAGONAL)
        for first in range(begin, end, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            active = p < end
            y, x, walked = _pixels(step, p, width, DIAGONAL, REVERSE)
            pixel = _pixel(image, y, x, h_strides)
            sum_pixel = _pixel(image, y, x, sum_strides)
            is_first = (walked == 0) if DIAGONAL else (y == 0)
            for channel in range(0, HIDDEN, BLOCK_C):
                c = channel + tl.arange(0, BLOCK_C)
                known = c < HIDDEN
                zero = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
                totals = [zero, zero, zero, zero]  # of i, f, g and o
                for part in range(TAPS * K_BLOCKS):
                    tap = part // K_BLOCKS
                    k = (part % K_BLOCKS) * BLOCK_K + tl.arange(0, BLOCK_K)
                    dy, dx = _offset(tap, TAPS, DIAGONAL, REVERSE)
                    in_columns = (x + dx >= 0) & (x + dx < width)
                    inside = active & (y + dy >= 0) & in_columns
                    states = load_tile(
                        h + pixel + dy * h_strides[2] + dx * h_strides[3],
                        inside,
                        k * h_strides[1],
                        k < HIDDEN,
                    )
                    if h0 is not None:
                        outside = active & (~inside if DIAGONAL else (y + dy < 0) & in_columns)
                        initial = tl.load(h0 + k, mask=k < HIDDEN, other=0.0)
                        states = tl.where(outside[:, None], initial[None, :], states)
                    rows = weight + tap * (4 * HIDDEN * HIDDEN) + k
                    columns = c.to(tl.int64) * HIDDEN
                    at = [rows + gate * HIDDEN * HIDDEN for gate in (0, 1, 2, 3)]
                    totals = [
                        _add_product(totals[gate], states, at[gate], columns, k < HIDDEN, known, PRECISION)
                        for gate in (0, 1, 2, 3)
                    ]
                inputs = _load_gates(sums + sum_pixel, active, c, known, sum_strides[1], HIDDEN)
                i, f, g, o = [totals[gate] + inputs[gate] for gate in (0, 1, 2, 3)]
                i, f, g, o = tl.sigmoid(i), tl.sigmoid(f), tanh(g), tl.sigmoid(o)
                latest = cells + (image * positions + p) * HIDDEN
                before = load_tile(latest, active & ~is_first, c, known)
                before = _or_initial(before, is_first, c0, c, known)
                cell = f * before + i * g
                store_tile(latest, active, c, known, cell)
                store_tile(h + pixel, active, c * h_strides[1], known, o * tanh(cell))
                if gates is not None:
                    _store_gates(gates + sum_pixel, active, c, known, sum_strides[1], (i, f, g, o), HIDDEN)
        tl.debug_barrier()  # the next step reads what all threads have written


@triton.jit
def _cells_kernel(
    gates,
    c0,
    cells,
    elements,
    height,
    width,
    gate_strides,
    cell_strides,
    HIDDEN: tl.constexpr,
    DIAGONAL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Cells of all pixels, from their gates."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = element % HIDDEN
    positions = height if DIAGONAL else width
    p = element // HIDDEN % positions
    image = element // (HIDDEN * positions)
    cell = tl.zeros((BLOCK,), dtype=tl.float32)
    if c0 is not None:
        cell = tl.load(c0 + c).to(tl.float32)
    for step in range(height + width - 1 if DIAGONAL else height):
        begin, end = _active(step, height, width, DIAGONAL)
        active = (element < elements) & (p >= begin) & (p < end)
        y, x, _ = _pixels(step, p, width, DIAGONAL, REVERSE)
        at = gates + _pixel(image, y, x, gate_strides) + c * gate_strides[1]
        gate = HIDDEN * gate_strides[1]
        i, f, g = [tl.load(at + n * gate, mask=active, other=0.0).to(tl.float32) for n in (0, 1, 2)]
        cell = tl.where(active, f * cell + i * g, cell)
        to = cells + _pixel(image, y, x, cell_strides) + c * cell_strides[1]
        tl.store(to, cell, mask=active)


@triton.jit
def _backward_kernel(
    grad,
    weight,
    c0,
    gates,
    cells,
    grad_cells,
    grad_sums,
    height,
    width,
    gate_strides,
    h_strides,
    DIAGONAL: tl.constexpr,
    REVERSE: tl.constexpr,
    HIDDEN: tl.constexpr,
    TAPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program computes one image, from its last step to its first. weight: [taps, h, 4h];
    cells: of all pixels, like grad; grad_cells: of each position, by the steps after it,
    [N, positions, h]."""
    K_BLOCKS: tl.constexpr = (4 * HIDDEN + BLOCK_K - 1) // BLOCK_K
    image = tl.program_id(0).to(tl.int64)
    positions = height if DIAGONAL else width
    steps = height + width - 1 if DIAGONAL else height
    for back in range(steps):
        step = steps - 1 - back
        begin, end = _active(step, height, width, DIAGONAL)
        for first in range(begin, end, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            active = p < end
            y, x, walked = _pixels(step, p, width, DIAGONAL, REVERSE)
            pixel = _pixel(image, y, x, h_strides)
            gate_pixel = _pixel(image, y, x, gate_strides)
            is_first = (walked == 0) if DIAGONAL else (y == 0)
            in_row = pixel + (h_strides[3] if REVERSE else -h_strides[3])
            before_pixel = in_row if DIAGONAL else pixel - h_strides[2]
            for channel in range(0, HIDDEN, BLOCK_C):
                c = channel + tl.arange(0, BLOCK_C)
                known = c < HIDDEN
                of_h = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
                for part in range(TAPS * K_BLOCKS):
                    tap = part // K_BLOCKS
                    k = (part % K_BLOCKS) * BLOCK_K + tl.arange(0, BLOCK_K)
                    dy, dx = _offset(tap, TAPS, DIAGONAL, REVERSE)  # that pixel reads this one
                    inside = active & (y - dy < height) & (x - dx >= 0) & (x - dx < width)
                    of_gates = load_tile(
                        grad_sums + gate_pixel - dy * gate_strides[2] - dx * gate_strides[3],
                        inside,
                        k * gate_strides[1],
                        k < 4 * HIDDEN,
                    )
                    rows = weight + tap * (4 * HIDDEN * HIDDEN) + k
                    columns = c.to(tl.int64) * (4 * HIDDEN)
                    of_h = _add_product(of_h, of_gates, rows, columns, k < 4 * HIDDEN, known, PRECISION)
                of_h += load_tile(grad + pixel, active, c * h_strides[1], known).to(tl.float32)
                i, f, g, o = _load_gates(gates + gate_pixel, active, c, known, gate_strides[1], HIDDEN)
                t = tanh(load_tile(cells + pixel, active, c * h_strides[1], known))
                before = load_tile(cells + before_pixel, active & ~is_first, c * h_strides[1], known)
                before = _or_initial(before, is_first, c0, c, known)
                later = grad_cells + (image * positions + p) * HIDDEN
                of_c = load_tile(later, active, c, known) + of_h * o * (1 - t * t)
                store_tile(later, active, c, known, of_c * f)
                of_i, of_f = of_c * g * i * (1 - i), of_c * before * f * (1 - f)
                of_sums = (of_i, of_f, of_c * i * (1 - g * g), of_h * t * o * (1 - o))
                _store_gates(grad_sums + gate_pixel, active, c, known, gate_strides[1], of_sums, HIDDEN)
        tl.debug_barrier()  # the step before reads what all threads have written
