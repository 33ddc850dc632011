"""Negative log-likelihood of categorical logits in Triton: no probability is stored."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixelcnn_fast.ops.categorical_nll.reference import NO_LEVEL
from pixelcnn_fast.ops.triton_support import check_dtype
from pixelcnn_fast.ops.triton_tuning import INTERPRETER, Tile, Tiles, tile

# rows: sub-pixels; columns: levels at a time
TILES: Tiles = {INTERPRETER: (Tile(64, 64, 16, 4, 1),), 80: (Tile(32, 256, 16, 8, 1),)}


def forward(logits: Tensor, levels: Tensor, ignored: int = NO_LEVEL) -> tuple[Tensor, Tensor]:
    """logits: [N, C, H, W, L], any strides; levels: [N, C, H, W] int64, 0...L-1, ``ignored`` ones left out
    -> nats per image [N], in float32, and log sum exp(logits) per sub-pixel [N, C, H, W],
    computed in float32 but stored in float64, as by the other backends.

    A level outside 0...L-1 makes its image's nats NaN. Equal inputs give equal bits.
    Raises TypeError for float64 and integer logits.
    """
    n, channels, height, width, _ = logits.shape
    blocks = triton.cdiv(height * width, _tile(logits).rows)
    partial = logits.new_empty((n, channels * blocks), dtype=torch.float32)
    logsumexp = logits.new_empty((n, channels, height, width), dtype=torch.float64)
    _launch(_forward_kernel, logits, ignored, levels.contiguous(), logsumexp, partial)
    return partial.sum(1), logsumexp


def backward(
    grad_nll: Tensor, logits: Tensor, levels: Tensor, logsumexp: Tensor, ignored: int = NO_LEVEL
) -> Tensor:
    """grad_nll: [N]; others as in ``forward`` -> the logits' gradient, in their dtype and order of strides."""
    grad = torch.empty_like(logits).flatten(2, 3)
    given = (levels.contiguous(), logsumexp.contiguous(), grad_nll.contiguous(), grad, grad.stride())
    _launch(_backward_kernel, logits, ignored, *given)
    return grad.unflatten(2, logits.shape[2:4])


def _tile(logits: Tensor) -> Tile:
    check_dtype(logits)
    pixels, levels = logits.shape[2] * logits.shape[3], logits.shape[4]
    return tile(TILES, logits.device, pixels, levels)


def _launch(kernel: Any, logits: Tensor, ignored: int, *given: Any) -> None:
    # This copies if the pixels are cut out of a larger image.
    size, rows = _tile(logits), logits.flatten(2, 3)
    n, channels, pixels, levels = rows.shape
    with torch.cuda.device_of(logits):
        kernel[n * channels * triton.cdiv(pixels, size.rows),](
            rows,
            *given,
            channels,
            pixels,
            rows.stride(),
            IGNORED=ignored,
            LEVELS=levels,
            BLOCK_P=size.rows,
            BLOCK_L=size.columns,
            num_warps=size.warps,
        )


@triton.jit
def _locate(channels, pixels, BLOCK_P: tl.constexpr):
    """This program's image, channel and pixels [P], int64 as a batch may have more than 2^31 logits."""
    blocks = tl.cdiv(pixels, BLOCK_P)
    plane = tl.program_id(0) // blocks
    pixel = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    return (plane // channels).to(tl.int64), (plane % channels).to(tl.int64), pixel.to(tl.int64)


@triton.jit
def _logits(pointer, image, channel, pixel, strides):
    return pointer + image * strides[0] + channel * strides[1] + pixel * strides[2]


@triton.jit
def _forward_kernel(
    logits,
    levels,
    logsumexp,
    partial,
    channels,
    pixels,
    strides,
    IGNORED: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """A program stores the sum over BLOCK_P pixels of one channel of one image in partial[program]."""
    image, channel, pixel = _locate(channels, pixels, BLOCK_P)
    inside = pixel < pixels
    rows = _logits(logits, image, channel, pixel, strides)
    largest = tl.full((BLOCK_P,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_P,), tl.float32)
    for first in range(0, LEVELS, BLOCK_L):
        level = first + tl.arange(0, BLOCK_L).to(tl.int64)
        mask = inside[:, None] & (level < LEVELS)[None, :]
        address = rows[:, None] + level[None, :] * strides[3]
        x = tl.load(address, mask=mask, other=float("-inf")).to(tl.float32)
        before = largest
        largest = tl.maximum(before, tl.max(x, 1))
        # If all logits so far are -inf, their difference would be NaN.
        finite = tl.where(largest == float("-inf"), 0.0, largest)
        total = total * tl.exp(before - finite) + tl.sum(tl.exp(x - finite[:, None]), 1)
    result = largest + tl.log(total)
    number = (image * channels + channel) * pixels + pixel
    tl.store(logsumexp + number, result.to(tl.float64), mask=inside)
    level = tl.load(levels + number, mask=inside, other=0)
    known = inside & (level >= 0) & (level < LEVELS)
    chosen = tl.load(rows + level * strides[3], mask=known, other=float("nan")).to(tl.float32)
    tl.store(
        partial + tl.program_id(0), tl.sum(tl.where(inside & (level != IGNORED), result - chosen, 0.0), 0)
    )


@triton.jit
def _backward_kernel(
    logits,
    levels,
    logsumexp,
    grad_nll,
    grad,
    grad_strides,
    channels,
    pixels,
    strides,
    IGNORED: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    image, channel, pixel = _locate(channels, pixels, BLOCK_P)
    inside = pixel < pixels
    rows = _logits(logits, image, channel, pixel, strides)
    grad_rows = _logits(grad, image, channel, pixel, grad_strides)
    number = (image * channels + channel) * pixels + pixel
    target = tl.load(levels + number, mask=inside, other=0)
    normaliser = tl.load(logsumexp + number, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(grad_nll + image).to(tl.float32)
    for first in range(0, LEVELS, BLOCK_L):
        level = first + tl.arange(0, BLOCK_L).to(tl.int64)
        mask = inside[:, None] & (level < LEVELS)[None, :]
        x = tl.load(rows[:, None] + level[None, :] * strides[3], mask=mask, other=0.0).to(tl.float32)
        probability = tl.exp(x - normaliser[:, None])
        result = scale * (probability - tl.where(level[None, :] == target[:, None], 1.0, 0.0))
        result = tl.where((target == IGNORED)[:, None], 0.0, result)
        address = grad_rows[:, None] + level[None, :] * grad_strides[3]
        tl.store(address, result.to(grad.dtype.element_ty), mask=mask)
