"""Makes one value with a whole frame out of a map of parts of values and of imageless sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.capture.lower.alignment import segments, standard
from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.record.shadow_memory import Constant, Map, OfCondition, Value, Window, unrecorded
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.grids import Every

IMAGELESS = (Constant, OfCondition)


def windowed(b: Builder, x: Map) -> Map:
    """The same map, [N, C, h, w], where windows of values with other frames have become values with whole ones,
    and rows and columns that are enlarged, but lie apart, a value on their grid."""
    values = [s for s in x.sources if isinstance(b.space.sources[s], Value)]
    if others := [s for s in values if not b.space.has_whole_frame(s)]:
        x = _in_windows(b, x, others)
    if x.window is None and x.source is None:
        for s in x.sources:
            if isinstance(b.space.sources[s], Value) and not _has_neighbours(b, x, s):
                x = _thinned(b, x, s)
    return x


@unrecorded
def _has_neighbours(b: Builder, x: Map, s: int) -> bool:
    """Whether one of its channels, along whatever axis, has rows and columns of a value that do not lie apart."""
    for dim in range(1, x.addresses.dim()):
        planes = x.addresses[0].movedim(dim - 1, 0).reshape(x.shape[dim], -1)
        own = (b.space.source_of(planes.amax(1)) == s).nonzero()[:, 0]
        if len(own) > 0:
            plane = planes[own[0]]
            pixel = b.space.decode(plane[b.space.source_of(plane) == s])[3:]
            if _apart(pixel) == [1, 1]:
                return True
    return False


def _apart(pixel: Sequence[Tensor]) -> list[int]:
    """How far the rows that are there lie apart, and the columns; 0 where there is one."""
    return [math.gcd(*index.bincount().nonzero()[:, 0].diff().tolist()) for index in pixel]


def _thinned(b: Builder, x: Map, s: int) -> Map:
    """Such as x[:, :, ::2, ::2] enlarged: what a value has at rows and columns that lie apart, several times."""
    here = b.space.source_of(x.addresses) == s
    own = x.addresses[here]
    _, image, channel, *pixel = b.space.decode(own)
    apart = [by or 1 for by in _apart(pixel)]
    if apart == [1, 1] or len(own.unique()) == len(own):
        return x
    first = [int(index.min()) % by for index, by in zip(pixel, apart, strict=True)]
    rows, columns = (slice(at, None, by) for at, by in zip(first, apart, strict=True))
    every = b.space.every(s)
    thin = gathered(b, b.map(b.space.of(s)[:, :, rows, columns]), (every[0] * apart[0], every[1] * apart[1]))
    y, x_ = ((index - at) // by for index, at, by in zip(pixel, first, apart, strict=True))
    addresses = x.addresses.clone()
    addresses[here] = b.space.at(thin, image, channel, y, x_)
    return b.map(addresses)


def _in_windows(b: Builder, x: Map, others: list[int]) -> Map:
    if x.window is not None and others == x.sources:
        return _in_one_window(b, x, x.window)
    addresses, elements = x.addresses.clone(), b.space.decode(x.addresses)
    for s in others:
        here = elements.source == s
        image, channel, *pixel = (part[here] for part in elements[1:])
        size = b.space.size(b.space.every(s))
        dy, dx = (_window(size[axis], axis, index, here, addresses) for axis, index in enumerate(pixel))
        addresses[here] = b.space.at(b.window(s, dy, dx), image, channel, pixel[0] - dy, pixel[1] - dx)
    return b.map(addresses)


def _in_one_window(b: Builder, x: Map, window: Window) -> Map:
    live, (_, columns) = window.pixels >= 0, b.space.frame(x.sources[0])
    at, grid = (window.pixels // columns, window.pixels % columns), b.space.size(b.space.every(x.sources[0]))
    frame = window.pixels[None, None]
    dy, dx = (_window(grid[axis], axis, each[live], live[None, None], frame) for axis, each in enumerate(at))
    channels = window.channels.clone()
    for s in x.sources:
        own = b.space.source_of(channels) == s
        of = b.space.decode(channels[own])
        channels[own] = b.space.at(b.window(s, dy, dx), of.image, of.channel)
    pixels = ((at[0] - dy) * grid[1] + at[1] - dx).where(live, -1)
    return Map(b.space, window=Window(channels, pixels))


@unrecorded
def _window(size: int, axis: int, index: Tensor, here: Tensor, addresses: Tensor) -> int:
    """Where the window of a larger map starts, with so many rows or columns. index: those that are read."""
    first, last = int(index.min()), int(index.max())
    if last - first >= size:
        raise Unsupported(
            "it reads more of a feature map that is larger than the image than fits into the image: crop the map first"
        )
    wanted = first
    if addresses.dim() == 4 and addresses.shape[2 + axis] == size:
        wanted -= int(here.nonzero()[int(index.argmin()), 2 + axis])
    return max(wanted, last - size + 1)


def materialised(b: Builder, x: Map) -> Map:
    """The same map of values only: its imageless elements become elements of a value, which holds no others where they
    have whole channels."""
    features, imageless = divided(b, x)
    if imageless is None:
        return x
    features = windowed(b, features)
    every = b.every(features) if len(x.shape) == 4 else None
    if every is None or x.shape != (b.space.images, x.shape[1], *b.space.size(every)):
        return copied(b, x)
    used = (imageless.addresses != 0).any((0, 2, 3))
    if bool((features.addresses[:, used] != 0).any()):
        return copied(b, x)
    beside = features.addresses.clone()
    beside[:, used] = b.space.of(gathered(b, b.map(imageless.addresses[:, used]), every))
    return b.map(beside)


def copied(b: Builder, x: Map, like: Map | None = None, beside: Map | None = None) -> Map:
    """The same map as one value. A smaller one is put where it is least shifted, or as
    ``like`` is. beside: what it is combined with, on the same grid."""
    x = windowed(b, x)
    if x.source is not None and (beside is None or beside.source is not None):
        return x
    arranged, back = standard(b.space, x.addresses)
    n, channels, height, width = arranged.shape
    others = [] if beside is None else [standard(b.space, windowed(b, beside).addresses)[0]]
    every = b.every(*(b.map(b.space.only(each, Value)) for each in (arranged, *others)))
    size = b.space.size(every)
    if x.shape == (b.space.images, *x.shape[1:2], *size):  # the usual case
        with suppress(Unsupported):
            return b.whole(gathered(b, x, every))
    if height > size[0] or width > size[1]:
        raise Unsupported(
            f"a map of {[height, width]} pixels, which is larger than the image, is shifted and combined with "
            "something else"
        )
    top, left = _place(
        b, arranged if like is None else standard(b.space, windowed(b, like).addresses)[0], every
    )
    whole = arranged.new_zeros(n, channels, *size)
    whole[:, :, top : top + height, left : left + width] = arranged
    copy = b.space.of(gathered(b, b.map(whole), every))
    return b.map(back(copy[:, :, top : top + height, left : left + width]))


def _place(b: Builder, x: Tensor, every: Every) -> tuple[int, int]:
    values = b.space.only(x, Value)
    place = [0, 0]
    if bool(values.any()):
        first = values.nonzero()[0]
        found = b.space.decode(values[tuple(first)])
        sy, sx = b.space.every(int(found.source))
        place = [int(found.y * sy // every[0] - first[2]), int(found.x * sx // every[1] - first[3])]
    sizes = zip(place, b.space.size(every), x.shape[2:], strict=True)
    top, left = (min(max(at, 0), whole - size) for at, whole, size in sizes)
    return top, left


def gathered(b: Builder, x: Map, every: Every | None = None) -> int:
    """The value that x, [N, C, h, w], equals, all of a grid: a new one unless x is some channels of one value.
    every: the grid, if it is known."""
    channels = x.shape[1]
    features, imageless = divided(b, windowed(b, x))
    every = every or b.every(features)
    found = segments(b.space, features, every)
    if imageless is None and len(found) == 1:
        (s,) = found
        is_whole = (s.dy, s.dx) == (0, 0) and b.space.every(s.source) == every and bool(s.pixels.all())
        if len(s.at) == channels and is_whole:
            return b.selected(s.source, s.channels)
    bias = None
    if imageless is not None and OfCondition not in imageless.kinds:
        addresses = b.space.relative(imageless.addresses)
        one = addresses[:1, :, :1, :1]
        if bool((addresses == one).all()):
            bias, imageless = b.imageless.constants(one.flatten()), None
    identity = torch.eye(channels, dtype=b.dtype, device=b.device)[None]
    out: Map | None = b.convolution([features], [(0, 0)], identity, bias, every, every)
    if imageless is not None and out is not None:
        out = b.with_operand("add", out, imageless)
    if out is None or out.source is None:
        raise Unsupported("a constant differs from image to image")
    return out.source


def divided(b: Builder, x: Map) -> tuple[Map, Map | None]:
    """-> (x with zeros in place of imageless elements, these with zeros in place of the rest)"""
    if x.kinds.isdisjoint(IMAGELESS):
        return x, None
    features, imageless = (b.map(b.space.only(x.addresses, kinds)) for kinds in (Value, IMAGELESS))
    return features, imageless


def of_imageless(b: Builder, imageless: Map, every: Every, below: int) -> Map | None:
    """Imageless elements [N, C, h, w] as elements of a value on a grid; None if they exceed the image, or would be
    read ahead, as a start row is by a taller kernel. below: how many rows further down they are read, at most."""
    live = imageless.addresses != 0
    _, channel, *pixel = live.nonzero().unbind(1)
    used, grid = channel.unique(), b.space.size(every)
    rows, columns = (slice(int(at.min()), int(at.max()) + 1) for at in pixel)
    if rows.start < below:
        return None
    box = imageless.addresses[:, used, rows, columns]
    height, width = box.shape[2:]
    if height > grid[0] or width > grid[1]:
        return None
    one = box.amax((2, 3), keepdim=True)
    if bool(((box == one) | (box == 0)).all()):  # one for each channel
        whole = one.expand(-1, -1, *grid)
    else:
        whole = F.pad(box, (0, grid[1] - width, 0, grid[0] - height))
    out = torch.zeros_like(imageless.addresses)
    out[:, used, rows, columns] = b.space.of(gathered(b, b.map(whole), every))[:, :, :height, :width]
    return b.map(out.where(live, 0))
