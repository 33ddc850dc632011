"""Makes an instruction of the product of features with a matrix over an image's pixels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.arithmetic import added
from pixelcnn_fast.capture.lower.averages import check_size, own_places, places, summed
from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.calls.pixels import convolved
from pixelcnn_fast.capture.lower.materialize import gathered
from pixelcnn_fast.capture.record.shadow_memory import Map, Value, unrecorded
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.grids import WHOLE
from pixelcnn_fast.program.zeros import lets_through


def sums_over_pixels(b: Builder, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Addresses of the product of addresses [R, K], along whose last axis features of an image's pixels lie, with a
    matrix [K, O], plus a bias [O]."""
    is_image = len(x) == b.space.images
    if is_image and not bool((is_value := b.space.only(x[0], Value) != 0).all()):
        own, others = is_value.to(matrix.device), b.imageless.constants(x[0, ~is_value])
        more = others @ matrix[~own]
        return sums_over_pixels(b, x[:, is_value], matrix[own], more if bias is None else more + bias)
    if not is_image and matrix.shape[1] % math.prod(b.space.grid):
        raise Unsupported(
            f"a matrix makes {matrix.shape[1]} features of all {b.space.grid[0]}×{b.space.grid[1]} pixels"
        )
    is_hidden = is_image and matrix.shape[1] != b.outputs
    if is_hidden and not bool((sees := lets_through(matrix).any(0).cpu()).all()):
        # What sees nothing is no pixel's.
        found, bias = x.new_zeros(len(x), len(sees)), matrix.new_zeros(len(sees)) if bias is None else bias
        own = sees.to(matrix.device)
        found[:, ~sees] = b.imageless.of_constant(bias[~own], of_weights=True)
        if bool(sees.any()):
            found[:, sees] = sums_over_pixels(b, x, matrix[:, own], bias[own])
        return found
    total = _sums(b, x, matrix, is_hidden)
    return total.addresses if bias is None else added(b, total, weights_of(b, bias)).addresses


def weights_of(b: Builder, x: Tensor) -> Map:
    return b.map(b.imageless.of_constant(x, of_weights=True))


def _sums(b: Builder, x: Tensor, matrix: Tensor, is_hidden: bool) -> Map:
    rows, pixels = _rows(b, x), math.prod(b.space.grid)
    channels = rows.channels[rows.image == rows.image[0]]  # [rows of an image, channels of a row]
    if any(not torch.equal(rows.channels[rows.image == other], channels) for other in range(b.space.images)):
        raise Unsupported("a matrix is multiplied with other features in one image than in another")
    of_row = channels.shape[1]
    by_pixel = matrix.new_zeros(of_row, pixels, matrix.shape[1])
    by_pixel[rows.channel, rows.pixel] = matrix
    units = _placed(lets_through(by_pixel).any(0).cpu(), rows, is_hidden)
    many = int(units.channel.max()) + 1
    check_size(many * of_row * (len(channels) if many * of_row > 1 else 1), pixels, pixels)
    table = matrix.new_zeros(many, of_row, pixels, pixels)
    table[units.channel, :, units.pixel] = by_pixel.permute(2, 0, 1)
    table = table.flatten(0, 1)
    if len(table) > 1:
        table = table.repeat(len(channels), 1, 1)
    heads = channels[:, None].expand(-1, many, -1)
    value = gathered(b, b.map(rows.arranged[:, heads.flatten()]), WHOLE)
    results = b.whole(summed(b, value, heads.numel(), table))
    if of_row > 1:  # each of them is the sum of what so many heads have
        each = torch.eye(heads[..., 0].numel(), dtype=b.dtype, device=b.device).repeat_interleave(of_row, 1)
        results = convolved(b, results, each[:, :, None, None], None)
    first = torch.empty_like(rows.image)
    for image in range(b.space.images):
        first[rows.image == image] = torch.arange(len(channels)) * many
    number = first[:, None] + units.channel
    return b.map(results.addresses.flatten(2)[rows.image[:, None], number, units.pixel])


class _Rows(NamedTuple):
    """Rows of features of an image's pixels. arranged: all addresses, [N, C, H, W]; image: of each row, [R]; channels:
    of each row, [R, channels]; channel: of each feature, its number among those, [K]; pixel: [K]."""

    arranged: Tensor
    image: Tensor
    channels: Tensor
    channel: Tensor
    pixel: Tensor


@unrecorded
def _rows(b: Builder, x: Tensor) -> _Rows:
    """x: addresses, [R, K]."""
    found = own_places(b, x) or places(b, x)
    each = [row.unique(return_inverse=True) for row in found.channel]
    channels, channel = each[0]
    is_alike = all(len(own) == len(channels) and torch.equal(at, channel) for own, at in each)
    if not is_alike or bool(((found.image != found.image[:, :1]) | (found.pixel != found.pixel[:1])).any()):
        raise Unsupported(
            f"a matrix is multiplied with pixels of several images, in a tensor of shape {list(x.shape)}"
        )
    own = torch.stack([own for own, _ in each])
    return _Rows(found.arranged, found.image[:, 0], own, channel, found.pixel[0])


class _Units(NamedTuple):
    """Where each of a product's results is, [O]."""

    channel: Tensor
    pixel: Tensor


def _placed(sees: Tensor, rows: _Rows, is_hidden: bool) -> _Units:
    """Where results are that see pixels [pixels, O], so that none sees a later one: all of a channel or all of a pixel
    side by side; or, of a MADE's hidden units, each at the last pixel that it sees."""
    pixels, o = sees.shape
    last = torch.where(sees, torch.arange(pixels)[:, None], 0).amax(0)
    if o % pixels == 0 and not is_hidden:
        number, many = torch.arange(o), o // pixels
        ways = [_Units(number % many, number // many), _Units(number // pixels, number % pixels)]
        if torch.equal(rows.pixel, torch.arange(len(rows.pixel)) % pixels):  # as x has them
            ways.reverse()
        causal = [way for way in ways if bool((last <= way.pixel).all())]
        if causal or bool((last == pixels - 1).all()):
            return [*causal, *ways][0]
    count = torch.bincount(last, minlength=pixels)
    channel, order = torch.empty_like(last), last.argsort(stable=True)
    channel[order] = torch.arange(o) - (count.cumsum(0) - count)[last[order]]
    return _Units(channel, last)
