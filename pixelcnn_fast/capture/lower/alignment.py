"""Finds the image's axes in a tensor of addresses, and how it is shifted against the image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.capture.record.shadow_memory import AddressSpace, Map, OfCondition, Value, unrecorded
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.grids import WHOLE, Every, count

MOST_SHIFTS = 3  # of the pixels of one map, such as one that is padded with its own columns


class Segment(NamedTuple):
    """Channels ``at`` of a map [N, C, h, w] that come from ``channels`` of one value: each
    element is what the value has (dy, dx) pixels away, if that is one of ``pixels``, bool
    [rows, columns] of the value's grid; else zero."""

    source: int
    channels: list[int]
    at: list[int]
    dy: int
    dx: int
    pixels: np.ndarray


Index = tuple[Tensor, Tensor]  # the image, row or column of each element, and where it has one


def _indices(space: AddressSpace, addresses: Tensor) -> list[Index]:
    elements = space.decode(addresses)
    is_value = space.is_of(elements.source, Value)
    has_image = is_value | space.is_of(elements.source, OfCondition)
    return [(elements.image, has_image), (elements.y, is_value), (elements.x, is_value)]


def _layout(
    space: AddressSpace, indices: Sequence[Index], shape: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The dimensions of N, H and W (-1 where none varies), and of channels, in a shape. Raises Unsupported if they
    mix."""
    spatial: list[int] = []
    for axis, (index, live) in enumerate(indices):
        along = _runs_along(index, live)
        mixes_images = axis == 0 and any(shape[dim] > space.images for dim in along)
        if len(along) > 1 or set(along) & set(spatial) or mixes_images:
            raise _mixed(space, shape)
        spatial += along or [-1]
    for at, (index, live) in enumerate(indices):
        if spatial[at] < 0 and any(dim >= 0 and _varies(index, live, dim) for dim in spatial):
            raise _mixed(space, shape)  # zeros lie between what is of different rows, or images
    dims, usual = range(len(shape)), (0, len(shape) - 2, len(shape) - 1)
    for axis, (size, (_, live)) in enumerate(zip((space.images, *space.grid), indices, strict=True)):
        # Where zeros and constants leave no more than one image, row or column that tells.
        for dim in sorted(dims, key=lambda dim: dim != usual[axis]):
            is_usual = axis > 0 and dim == usual[axis]  # there, it may be of a coarser grid
            fits = shape[dim] == size or is_usual
            if spatial[axis] < 0 and 1 < shape[dim] <= size and fits and dim not in spatial:
                if bool((live.sum(dim) <= 1).all()):
                    spatial[axis] = dim
    return spatial, [dim for dim in dims if dim not in spatial]


def _mixed(space: AddressSpace, shape: Sequence[int]) -> Unsupported:
    what = f"it mixes rows, columns or images in a tensor of shape {list(shape)}"
    return Unsupported(what + _of_tokens(space, shape))


def _of_tokens(space: AddressSpace, shape: Sequence[int]) -> str:
    """What a refusal adds where an axis seems to be one of tokens."""
    pixels = math.prod(space.grid)
    tokens = shape[-2] // (space.images if len(shape) == 2 else 1) if len(shape) in (2, 3) else 0
    if not pixels < tokens <= 4 * pixels:
        return ""
    return (
        f": neither a prefix of tokens before the {pixels} pixels is supported, nor sub-pixels as tokens, but one "
        "token in place of the last pixel"
    )


def _varies(index: Tensor, live: Tensor, dim: int) -> bool:
    """Whether an index differs along a dimension, where it is live."""
    least = index.masked_fill(~live, torch.iinfo(index.dtype).max).amin(dim)
    most = index.masked_fill(~live, torch.iinfo(index.dtype).min).amax(dim)
    return bool((least < most).any())


@unrecorded
def placed(
    space: AddressSpace, addresses: Tensor, is_whole: bool = False
) -> tuple[Tensor, list[int], list[int]]:
    """-> (the addresses, where an axis that combines several of the image's is split, such
    as the first of [N * H * W, C]; the dimensions of N, H and W; those of channels).
    is_whole: whether it has all images, and all pixels of each."""
    first: Unsupported | None = None
    whole, indices = Counter([space.images, *space.grid]), _indices(space, addresses)
    for shape in _unflattened(space, addresses):
        if is_whole and not whole <= Counter([*shape, 1, 1]):  # an axis of one is left out
            continue
        try:
            split = addresses.reshape(shape)
            parts = [(index.reshape(shape), live.reshape(shape)) for index, live in indices]
            spatial, channels = _layout(space, parts, shape)
            sizes = [split.shape[dim] if dim >= 0 else 1 for dim in spatial]
            if is_whole and sizes != [space.images, *space.grid]:
                raise Unsupported(
                    f"features of shape {list(addresses.shape)}, of {sizes[1]}×{sizes[2]} pixels of {sizes[0]} images, "
                    "where those of whole images are needed"
                )
            return split, spatial, channels
        except Unsupported as error:
            first = first or error
    what = f"features of shape {list(addresses.shape)}, where those of whole images are needed"
    raise first or Unsupported(what + _of_tokens(space, addresses.shape))


def _unflattened(space: AddressSpace, addresses: Tensor) -> Iterator[list[int]]:
    """Shapes in which one axis of several of the image's is split, and then two of them."""
    shape, n = list(addresses.shape), space.images
    yield shape
    values = (s for s in space.found(addresses) if isinstance(space.sources[s], Value))
    splits: list[tuple[int, tuple[int, ...]]] = []
    for h, w in {space.grid, *map(space.frame, values)}:
        several: list[tuple[int, ...]] = [(n, h, w), (h, w, n), (h, w), (n, h), (n, -1), (-1, n)]
        several += [(-1, n, h, w), (-1, n, h), (-1, n, w)]  # several batches, one after another
        several += [(n, -1, h), (n, -1, w), (n, h, -1), (n, w, -1)]  # the heads of rows, or of columns
        several += [(-1, h, w), (h, w, -1)]  # all that there is of an image
        for parts in several:
            count = abs(math.prod(parts))
            for dim, size in enumerate(shape):
                if size > 1 and size % count == 0 and (size == count or -1 in parts):
                    splits.append((dim, tuple(size // count if part < 0 else part for part in parts)))
    for dim, parts in splits:
        yield [*shape[:dim], *parts, *shape[dim + 1 :]]
    for (one, first), (two, last) in product(splits, splits):
        if one < two:
            yield [*shape[:one], *first, *shape[one + 1 : two], *last, *shape[two + 1 :]]


@unrecorded
def standard(
    space: AddressSpace, addresses: Tensor, is_whole: bool = False
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Addresses laid out as [N, C, h, w], and a function that restores their own shape. is_whole: as for ``placed``."""
    whole = (space.images, *addresses.shape[1:2], *space.grid)
    try:
        split, spatial, channels = placed(space, addresses, is_whole)
    except Unsupported:
        if addresses.shape != whole:
            raise
        return addresses, lambda standard: standard  # channels that are shifted against each other
    usual = all(dim in (-1, i) for dim, i in zip(spatial, (0, 2, 3), strict=True))
    if addresses.shape == whole and split.shape == whole and usual:
        return addresses, lambda standard: standard  # also if no axis tells, where all is zero
    order = [dim for dim in (*spatial[:1], *channels, *spatial[1:]) if dim >= 0]
    n, height, width = (split.shape[dim] if dim >= 0 else 1 for dim in spatial)
    arranged = split.permute(order)

    def back(standard: Tensor) -> Tensor:
        split = standard.reshape(arranged.shape).movedim(list(range(len(order))), order)
        return split.reshape(addresses.shape)

    return arranged.reshape(n, -1, height, width), back


@unrecorded
def grid_of(space: AddressSpace, *maps: Map) -> Every:
    """The grid that maps [N, C, h, w] of values are on: how many pixels of the image lie between their rows
    and their columns. Raises Unsupported if that is no whole number."""
    told: tuple[list[int], list[int]] = [], []
    grids = list[Every]()
    for x in maps:
        for s, _, part in _by_source(space, x):
            if isinstance(space.sources[s], Value):
                grids.append(space.every(s))
                channel = (part[0] != 0).flatten(1).sum(1).argmax()  # which tells the most
                elements, live = space.decode(part[0, channel]), part[0, channel] != 0
                lines = (elements.y, live), (elements.x.T, live.T)
                for steps, line, every in zip(told, lines, grids[-1], strict=True):
                    steps += _step(*line, every)
    if not grids:
        return WHOLE
    axes = zip(told, zip(*grids, strict=True), maps[0].shape[2:], space.grid, strict=True)
    rows, columns = (steps[0] if steps else _coarsened(min(own), *sizes) for steps, own, *sizes in axes)
    return rows, columns


def _coarsened(every: int, many: int, size: int) -> int:
    """The least multiple of a grid that has so many rows, or columns, in an image with
    ``size`` of them, for a map in which all others are zero. Where there is one, each grid has it."""
    fitting = (each for each in range(every, size, every) if count(size, each) == many > 1)
    return next(fitting, every)


def _step(index: Tensor, live: Tensor, every: int) -> list[int]:
    """How many pixels lie between the rows of a map; empty if too few rows tell. index, live:
    [rows, lines], the row of a value that each element comes from, if it does; every: how
    many pixels lie between the rows of the value."""
    line = int(live.sum(0).argmax())
    rows = live[:, line].nonzero()[:, 0]
    read = index[rows, line]
    begins = torch.cat([torch.tensor([0]), read.diff().nonzero()[:, 0] + 1])  # where another row is read
    if len(begins) < 2:
        repeats = len(rows)
        return [every // repeats] if repeats > 1 and every % repeats == 0 else []
    steps = Counter(zip(rows[begins].diff().tolist(), read[begins].diff().abs().tolist(), strict=True))
    between, by = min(steps, key=lambda step: (-steps[step], step))
    longest = int(torch.cat([begins, torch.tensor([len(rows)])]).diff().max())
    repeats = between if longest == 1 else max(between, longest)
    if by * every % repeats:
        raise Unsupported(
            "it enlarges a map to more pixels than the image has, as sub-pixels that are tokens are"
        )
    return [by * every // repeats]


@unrecorded
def segments(space: AddressSpace, x: Map, every: Every) -> list[Segment]:
    """Splits a map [N, C, h, w] of values with whole frames into segments; a channel may have
    none or several. every: the grid that it is on, by ``grid_of``. Raises Unsupported unless
    pixels are just shifted, with zeros moved in, or enlarged."""
    found = []
    for source, at, part in _by_source(space, x):
        if x.window is None:
            found += _segments_of(space, source, at, part, every)
            continue
        channels = space.decode(x.window.channels[0, at]).channel.tolist()
        of_one = _segments_of(space, source, at[:1], part, every)
        found += [segment._replace(channels=channels, at=at.tolist()) for segment in of_one]
    return found


def _by_source(space: AddressSpace, x: Map) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields each source, the channels in which it is, and these channels, with zeros in place
    of other sources; of a window, only the first of them."""
    if x.window is not None:
        own = space.source_of(x.window.channels[0])
        for source in x.sources:
            at = (own == source).nonzero()[:, 0]
            yield source, at, Map(space, window=x.window.part(slice(int(at[0]), int(at[0]) + 1))).addresses
        return
    addresses = x.addresses
    first = addresses[0].flatten(1)
    largest = first.amax(1)
    least = torch.where(first == 0, largest[:, None], first).amin(1)
    own = space.source_of(largest)
    if torch.equal(own, space.source_of(least)):  # the usual case: a channel is of one source
        for source in own[own >= 0].unique().tolist():
            at = (own == source).nonzero()[:, 0]
            is_range = int(at[-1] - at[0]) == len(at) - 1
            yield source, at, addresses[:, at[0] : at[-1] + 1] if is_range else addresses[:, at]
        return
    sources = space.source_of(addresses)
    for source in space.found(addresses):
        part = torch.where(sources == source, addresses, 0)
        at = (part[0] != 0).flatten(1).any(1).nonzero()[:, 0]
        yield source, at, part[:, at]


def _segments_of(space: AddressSpace, source: int, at: Tensor, here: Tensor, every: Every) -> list[Segment]:
    """here: the channels ``at`` of a map, each of which has elements of the source, and zeros."""
    (height, width), live = here.shape[2:], here[0] != 0
    first = live.flatten(1).to(torch.uint8).argmax(1)
    start = space.decode(here[0].flatten(1).gather(1, first[:, None])[:, 0])
    (sy, sx), (rows, columns) = space.every(source), space.size(space.every(source))
    dy, dx = start.y * sy - first // width * every[0], start.x * sx - first % width * every[1]
    y = torch.arange(height)[:, None] * every[0] + dy[:, None, None]
    x = torch.arange(width) * every[1] + dx[:, None, None]
    image, channel = torch.arange(len(here))[:, None, None, None], start.channel[:, None, None]
    there = (y % sy == 0) & (x % sx == 0)
    y, x = y // sy, x // sx
    there &= (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    if not torch.equal(torch.where(live & there, space.at(source, image, channel, y, x), 0), here):
        return _of_several_shifts(space, source, at, here, every)
    if bool((dy == dy[0]).all()) and bool((dx == dx[0]).all()) and bool((live == live[:1]).all()):
        alike = [torch.arange(len(at))]  # the usual case
    else:
        keys = torch.cat([dy[:, None], dx[:, None], live.flatten(1).long()], 1)
        _, kind = torch.unique(keys, dim=0, return_inverse=True)
        alike = [(kind == k).nonzero()[:, 0] for k in dict.fromkeys(kind.tolist())]
    found = []
    for channels in alike:
        k = int(channels[0])
        i, j = live[k].nonzero().unbind(1)
        by_y, by_x = int(dy[k]), int(dx[k])
        pixels = np.zeros((rows, columns), bool)
        pixels[((i * every[0] + by_y) // sy).numpy(), ((j * every[1] + by_x) // sx).numpy()] = True
        of_source, of_map = start.channel[channels].tolist(), at[channels].tolist()
        found.append(Segment(source, of_source, of_map, by_y, by_x, pixels))
    return found


def _of_several_shifts(
    space: AddressSpace, source: int, at: Tensor, addresses: Tensor, every: Every
) -> list[Segment]:
    """``_segments_of`` for several shifts, such as one along the raster, or those within the cells of a
    coarser grid."""
    if len(addresses) > space.images:
        raise Unsupported(
            f"it takes {len(addresses)} images, made of a batch of {space.images}: call the module once for each "
            "part, as in m(x, y) and m(x, z) in place of m(cat([x, x]), cat([y, z]))"
        )
    elements, (height, width), (sy, sx) = space.decode(addresses), addresses.shape[2:], space.every(source)
    dy = elements.y * sy - torch.arange(height)[:, None] * every[0]
    dx = elements.x * sx - torch.arange(width) * every[1]
    shifts = torch.stack([dy, dx], -1)[addresses != 0].unique(dim=0).tolist()
    most = MOST_SHIFTS * max(1, sy // every[0]) * max(1, sx // every[1])
    if not 1 < len(shifts) <= most:
        channels, live = elements.channel[0], addresses[0] != 0
        if bool((channels != channels.where(live, -1).amax((1, 2), keepdim=True))[live].any()):
            raise Unsupported(
                "it takes another feature at each pixel, such as a function of a level that differs there"
            )
        raise Unsupported(
            "it reads a rearrangement of pixels that is not a shift with zeros moved in, such as rows that are "
            "rolled around the image, flipped or transposed: turn them back before this call, or leave the turn out "
            "and turn the images that are drawn"
        )
    found = []
    for by_y, by_x in shifts:
        part = addresses.where((dy == by_y) & (dx == by_x), 0)
        used = (part[0] != 0).flatten(1).any(1).nonzero()[:, 0]
        found += _segments_of(space, source, at[used], part[:, used], every)
    return found


def _runs_along(index: Tensor, live: Tensor) -> list[int]:
    """The dimensions along which an index counts one by one or, without any, varies."""
    found, is_whole = {}, bool(live.all())  # it usually is
    for dim, size in enumerate(index.shape):
        if size > 1:
            steps, both = index.diff(dim=dim), torch.ones((), dtype=torch.bool)
            if not is_whole:
                both = live.narrow(dim, 0, size - 1) & live.narrow(dim, 1, size - 1)
                steps *= both
            if bool(steps.any()):
                found[dim] = bool((steps == both).all())
    return [dim for dim, counts in found.items() if counts] or list(found)
