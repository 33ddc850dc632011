"""Negative log-likelihood under a mixture of logistics in Triton: one pass over memory forward and backward."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixelcnn_fast.ops.logistic_mixture_nll.reference import LEAST_LOG_SCALE, LEAST_MASS
from pixelcnn_fast.ops.triton_support import check_dtype, tanh
from pixelcnn_fast.ops.triton_tuning import INTERPRETER, Tile, Tiles, tile

# rows: pixels
TILES: Tiles = {INTERPRETER: (Tile(64, 16, 16, 1, 1),), 80: (Tile(128, 16, 16, 4, 1),)}

_LEAST_LOG_SCALE = tl.constexpr(LEAST_LOG_SCALE)
_LEAST_MASS = tl.constexpr(LEAST_MASS)


def forward(parameters: Tensor, values: Tensor, components: int, levels: int) -> tuple[Tensor, Tensor]:
    """parameters: [N, P, H, W], any strides; values: [N, C, H, W] int64, 0...levels-1
    -> nats per image [N], in float32, and log-sum-exps [N, 2, H, W] as in ``reference.py``,
    computed in float32 but stored in float64, as by the other backends.

    A value out of range makes its image's nats NaN. Equal inputs give equal bits.
    Raises TypeError for float64 and integer parameters.
    """
    n, _, height, width = parameters.shape
    partial = parameters.new_empty(
        (n, triton.cdiv(height * width, _tile(parameters).rows)), dtype=torch.float32
    )
    log_sum_exp = parameters.new_empty((n, 2, height, width), dtype=torch.float64)
    _launch(_forward_kernel, parameters, values, components, levels, log_sum_exp, partial)
    return partial.sum(1), log_sum_exp


def backward(
    grad_nll: Tensor, parameters: Tensor, values: Tensor, log_sum_exp: Tensor, components: int, levels: int
) -> Tensor:
    """grad_nll: [N]; others as in ``forward`` -> the parameters' gradient, in their dtype and order of strides."""
    grad = torch.empty_like(parameters).flatten(2, 3)
    given = (log_sum_exp.contiguous(), grad_nll.contiguous(), grad, grad.stride())
    _launch(_backward_kernel, parameters, values, components, levels, *given)
    return grad.unflatten(2, parameters.shape[2:])


def _tile(parameters: Tensor) -> Tile:
    check_dtype(parameters)
    n, _, height, width = parameters.shape
    return tile(TILES, parameters.device, n * height * width)


def _launch(
    kernel: Any, parameters: Tensor, values: Tensor, components: int, levels: int, *given: Any
) -> None:
    # This copies if the pixels are cut out of a larger image.
    size, rows = _tile(parameters), parameters.flatten(2, 3)
    n, channels, pixels = rows.shape
    with torch.cuda.device_of(parameters):
        kernel[n * triton.cdiv(pixels, size.rows),](
            rows,
            values.contiguous(),
            *given,
            pixels,
            rows.stride(),
            CHANNELS=channels,
            COMPONENTS=components,
            COLOURS=values.shape[1],
            LEVELS=levels,
            LOG_WIDTH=math.log((levels - 1) / 2),
            BLOCK=size.rows,
            num_warps=size.warps,
        )


@triton.jit
def _locate(pixels, BLOCK: tl.constexpr):
    """This program's image and pixels [BLOCK], int64 as a batch may have more than 2^31 parameters."""
    blocks = tl.cdiv(pixels, BLOCK)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), pixel.to(tl.int64)


@triton.jit
def _level(values, inside, LEVELS: tl.constexpr):
    """The level's place in [-1, 1], or NaN out of range; -1 if it is the lowest level, 1 if the highest, else 0."""
    level = tl.load(values, mask=inside, other=0)
    x = 2.0 * level.to(tl.float32) / (LEVELS - 1) - 1.0
    x = tl.where((level >= 0) & (level < LEVELS), x, float("nan"))
    return x, tl.where(level == LEVELS - 1, 1.0, 0.0) - tl.where(level == 0, 1.0, 0.0)


@triton.jit
def _levels(values, image, pixel, pixels, inside, COLOURS: tl.constexpr, LEVELS: tl.constexpr):
    """As above, of three colours; where there is only one, the others are left unused."""
    first = values + image * COLOURS * pixels + pixel
    x0, edge0 = _level(first, inside, LEVELS)
    x1, edge1, x2, edge2 = x0, edge0, x0, edge0
    if COLOURS == 3:
        x1, edge1 = _level(first + pixels, inside, LEVELS)
        x2, edge2 = _level(first + 2 * pixels, inside, LEVELS)
    return x0, edge0, x1, edge1, x2, edge2


@triton.jit
def _load(rows, inside):
    return tl.load(rows, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _level_mass(means, plane, inside, shift, x, edge, LEVELS: tl.constexpr, LOG_WIDTH: tl.constexpr):
    """The probability of a level under one logistic, exp(-exponent) * factor, and the derivatives of its logarithm by
    the mean and the log-scale, computed as in csrc/cpu/ops/logistic_mixture_kernels.h."""
    given = _load(means + plane, inside)
    log_scale = tl.where(given < _LEAST_LOG_SCALE, _LEAST_LOG_SCALE, given)
    inverse = tl.exp(-log_scale)
    middle = (x - (_load(means, inside) + shift)) * inverse
    half = inverse / (LEVELS - 1)
    distance = tl.abs(middle)
    is_edge = edge != 0.0
    near = tl.where(is_edge, half - edge * middle, distance - half)
    step = tl.exp(-half)
    at_near = tl.exp(-tl.where(near < -80.0, -80.0, tl.where(near > 80.0, 80.0, near)))
    at_middle = at_near * step
    at_far = at_middle * step
    square = half * half
    series = 1 + square * (1 / 6 + square * (1 / 120 + square * (1 / 5040 + square / 362880)))
    width = tl.where(half < 0.5, 2 * step * half * series, 1 - step * step)
    by_density = at_near * width <= _LEAST_MASS * (1 + at_far) * (1 + at_near)
    inner = 1 / (1 + at_near)
    outer = 1 / (1 + tl.where(by_density, at_middle, at_far))
    beyond = at_near * inner
    exponent = tl.where(by_density, distance + log_scale + LOG_WIDTH, 0.0)
    exponent = tl.where(is_edge, tl.where(near < 0, -near, 0.0), exponent)
    factor = tl.where(by_density, outer * outer, beyond * width * outer)
    factor = tl.where(is_edge, tl.where(near < 0, beyond, inner), factor)
    slope = tl.where(by_density, (at_middle - 1) * outer, at_far * outer - inner)
    by_middle = tl.where(is_edge, -edge * beyond, tl.where(middle < 0, -slope, slope))
    widening = half * ((step * step + at_far) * outer + (1 + at_far) * inner) / width
    by_log_scale = -distance * slope - tl.where(by_density, 1.0, widening)
    by_log_scale = tl.where(is_edge, -near * beyond, by_log_scale)
    return exponent, factor, -inverse * by_middle, tl.where(given < _LEAST_LOG_SCALE, 0.0, by_log_scale)


@triton.jit
def _component(
    logits,
    plane,
    inside,
    x0,
    edge0,
    x1,
    edge1,
    x2,
    edge2,
    COLOURS: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
):
    """Of one component, whose channels are ``plane`` apart: exponent and factor of the colours' mass; then the
    derivatives by mean and log-scale and the coefficient, of each of three colours as above."""
    exponent, factor, mean0, scale0 = _level_mass(
        logits + plane, plane, inside, 0.0, x0, edge0, LEVELS, LOG_WIDTH
    )
    mean1, scale1, mean2, scale2 = mean0, scale0, mean0, scale0
    c0, c1, c2 = x0, x0, x0
    if COLOURS == 3:
        c0 = tanh(_load(logits + 3 * plane, inside))
        c1 = tanh(_load(logits + 6 * plane, inside))
        c2 = tanh(_load(logits + 9 * plane, inside))
        t1, f1, mean1, scale1 = _level_mass(
            logits + 4 * plane, plane, inside, c0 * x0, x1, edge1, LEVELS, LOG_WIDTH
        )
        t2, f2, mean2, scale2 = _level_mass(
            logits + 7 * plane, plane, inside, c1 * x0 + c2 * x1, x2, edge2, LEVELS, LOG_WIDTH
        )
        exponent += t1 + t2
        factor *= f1 * f2
    return exponent, factor, mean0, scale0, c0, mean1, scale1, c1, mean2, scale2, c2


@triton.jit
def _add(high, total, term, factor):
    """high + log(total), with factor * exp(term) added."""
    larger = tl.where(term > high, term, high)
    return larger, total * tl.exp(high - larger) + factor * tl.exp(term - larger)


@triton.jit
def _forward_kernel(
    parameters,
    values,
    log_sum_exp,
    partial,
    pixels,
    strides,
    CHANNELS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    COLOURS: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program stores the sum over BLOCK pixels of an image in partial[program]."""
    image, pixel = _locate(pixels, BLOCK)
    inside = pixel < pixels
    x0, edge0, x1, edge1, x2, edge2 = _levels(values, image, pixel, pixels, inside, COLOURS, LEVELS)
    logits = parameters + image * strides[0] + pixel * strides[2]
    plane = tl.cast(strides[1], tl.int64) * COMPONENTS
    # Not -inf: if the first logits were that, their difference would be NaN.
    high = tl.full((BLOCK,), -3e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    high_mixture, total_mixture = high, total
    for _ in range(COMPONENTS):
        logit = _load(logits, inside)
        exponent, factor, _, _, _, _, _, _, _, _, _ = _component(
            logits, plane, inside, x0, edge0, x1, edge1, x2, edge2, COLOURS, LEVELS, LOG_WIDTH
        )
        high, total = _add(high, total, logit, 1.0)
        high_mixture, total_mixture = _add(high_mixture, total_mixture, logit - exponent, factor)
        logits += strides[1]
    of_logits = high + tl.log(total)
    of_mixture = high_mixture + tl.log(total_mixture)
    to = log_sum_exp + image * 2 * pixels + pixel
    tl.store(to, of_logits.to(tl.float64), mask=inside)
    tl.store(to + pixels, of_mixture.to(tl.float64), mask=inside)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(inside, of_logits - of_mixture, 0.0), 0))


@triton.jit
def _store(rows, plane, which, value, inside):
    tl.store(rows + which * plane, value.to(rows.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    parameters,
    values,
    log_sum_exp,
    grad_nll,
    grad,
    grad_strides,
    pixels,
    strides,
    CHANNELS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    COLOURS: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, pixel = _locate(pixels, BLOCK)
    inside = pixel < pixels
    x0, edge0, x1, edge1, x2, edge2 = _levels(values, image, pixel, pixels, inside, COLOURS, LEVELS)
    logits = parameters + image * strides[0] + pixel * strides[2]
    plane = tl.cast(strides[1], tl.int64) * COMPONENTS
    to = grad + image * grad_strides[0] + pixel * grad_strides[2]
    to_plane = tl.cast(grad_strides[1], tl.int64) * COMPONENTS
    sums = log_sum_exp + image * 2 * pixels + pixel
    of_logits = _load(sums, inside)
    of_mixture = _load(sums + pixels, inside)
    scale = tl.load(grad_nll + image).to(tl.float32)
    for _ in range(COMPONENTS):
        logit = _load(logits, inside)
        exponent, factor, mean0, scale0, c0, mean1, scale1, c1, mean2, scale2, c2 = _component(
            logits, plane, inside, x0, edge0, x1, edge1, x2, edge2, COLOURS, LEVELS, LOG_WIDTH
        )
        share = factor * tl.exp((logit - exponent) - of_mixture)
        given = -scale * share
        _store(to, to_plane, 0, scale * (tl.exp(logit - of_logits) - share), inside)
        _store(to, to_plane, 1, given * mean0, inside)
        _store(to, to_plane, 2, given * scale0, inside)
        if COLOURS == 3:
            _store(to, to_plane, 3, given * mean1 * x0 * (1 - c0 * c0), inside)
            _store(to, to_plane, 4, given * mean1, inside)
            _store(to, to_plane, 5, given * scale1, inside)
            _store(to, to_plane, 6, given * mean2 * x0 * (1 - c1 * c1), inside)
            _store(to, to_plane, 7, given * mean2, inside)
            _store(to, to_plane, 8, given * scale2, inside)
            _store(to, to_plane, 9, given * mean2 * x1 * (1 - c2 * c2), inside)
        elif CHANNELS > 3 * COMPONENTS:
            _store(to, to_plane, 3, tl.zeros((BLOCK,), tl.float32), inside)
        logits += strides[1]
        to += grad_strides[1]
