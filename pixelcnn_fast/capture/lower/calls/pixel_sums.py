"""Makes an instruction of the product of features with a matrix over an image's pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.averages import check_size, places
from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.calls.pixels import convolved
from pixelcnn_fast.capture.lower.materialize import gathered
from pixelcnn_fast.capture.record.shadow_memory import Map, unrecorded
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.attention import Attention
from pixelcnn_fast.program.grids import WHOLE
from pixelcnn_fast.program.zeros import lets_through


def sums_over_pixels(b: Builder, x: Map, matrix: Tensor) -> Map:
    """x [.., K], along whose last axis all pixels lie, times matrix [K, O]. So they do along O: a channel's before
    those of the next, or the other way round, as is causal."""
    (height, width), (k, o) = b.space.grid, matrix.shape
    pixels = height * width
    if o % pixels:
        raise Unsupported(
            f"a matrix makes {o} features of all {height}×{width} pixels: only a multiple of {pixels}, so many for "
            "each pixel, can be found one pixel after another"
        )
    rows = _rows(b, x.addresses.reshape(-1, k))
    is_of_first = rows.image == rows.image[0]
    channels = rows.channels[is_of_first]  # [rows of an image, k // pixels]
    if any(not torch.equal(rows.channels[rows.image == other], channels) for other in range(b.space.images)):
        raise Unsupported("a matrix is multiplied with other features in one image than in another")
    parts = matrix.unflatten(0, (-1, pixels) if rows.is_channel_first else (pixels, -1))
    parts = parts if rows.is_channel_first else parts.transpose(0, 1)
    ways = parts.unflatten(2, (-1, pixels)), parts.unflatten(2, (pixels, -1)).transpose(2, 3)
    tables = [way.permute(2, 0, 3, 1).flatten(0, 1) for way in ways]
    later = torch.ones(pixels, pixels, dtype=torch.bool, device=matrix.device).triu(1)
    channel_first, channel_last = (not bool((lets_through(table) & later).any()) for table in tables)
    is_channel_last = channel_last and not (channel_first and rows.is_channel_first)
    table = tables[is_channel_last]  # [1 or o // pixels * k // pixels, pixels, pixels]
    if len(table) > 1:
        check_size(len(table) * len(channels), pixels, pixels)
        table = table.repeat(len(channels), 1, 1)
    heads = channels[:, None].expand(-1, o // pixels, -1)
    out = b.emit(
        Attention,
        heads.numel(),
        query=None,
        key=None,
        value=b.out(gathered(b, b.map(rows.arranged[:, heads.flatten()]), WHOLE)),
        heads=heads.numel(),
        width=width,
        allowed=lets_through(table),
        factors=table.contiguous(),
    )
    results = b.whole(out)
    if k > pixels:  # each of them is the sum of what k // pixels heads have
        each = torch.eye(heads[..., 0].numel(), dtype=b.dtype, device=b.device).repeat_interleave(
            k // pixels, 1
        )
        results = convolved(b, results, each[:, :, None, None], None)
    number = torch.empty(len(rows.image), heads.shape[1], dtype=torch.long)
    for image in range(b.space.images):
        number[rows.image == image] = torch.arange(heads[..., 0].numel()).view(heads.shape[:2])
    found = results.addresses[rows.image[:, None], number].flatten(2)  # [rows, o // pixels, pixels]
    return b.map((found.mT if is_channel_last else found).reshape(*x.shape[:-1], o))


class _Rows(NamedTuple):
    """Rows of all pixels' features. arranged: all addresses, [N, C, H, W]; image: of each row, [R]; channels: [R, ..];
    is_channel_first: whether all of a channel comes before the next, and not all of a pixel."""

    arranged: Tensor
    image: Tensor
    channels: Tensor
    is_channel_first: bool


@unrecorded
def _rows(b: Builder, x: Tensor) -> _Rows:
    """x: addresses, [R, K]."""
    found, pixels = places(b, x), b.space.grid[0] * b.space.grid[1]
    for is_channel_first in (True, False):
        size = (len(x), -1, pixels) if is_channel_first else (len(x), pixels, -1)
        image, channel, pixel = (y.view(size) if is_channel_first else y.view(size).mT for y in found[1:])
        is_of_row = (channel == channel[..., :1]) & (image == image[:, :1, :1])
        if bool((is_of_row & (pixel == torch.arange(pixels))).all()):
            return _Rows(found.arranged, image[:, 0, 0], channel[..., 0], is_channel_first)
    raise Unsupported(
        f"a matrix is multiplied with pixels of several images, in a tensor of shape {list(x.shape)}"
    )
