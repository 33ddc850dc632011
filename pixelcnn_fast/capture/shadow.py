"""Shadow memory: where the elements of tensors come from.

Every element of every source has an address; address 0 stands for a zero. A source is a value of the program, or an
operand: a constant, or what depends on the condition alone. Each storage has a parallel array of addresses, and a
view's addresses are the same strided view of that array; so whatever moves or overwrites elements is followed exactly,
however it is written.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.errors import Unsupported


class Elements(NamedTuple):
    """What each address means, in tensors of the addresses' shape. source is -1 for a zero; an operand has no pixels,
    and numbers its elements of one image as channels."""

    source: Tensor
    image: Tensor
    channel: Tensor
    y: Tensor
    x: Tensor


class Segment(NamedTuple):
    """Channels of a map laid out as [N, C, h, w] that come from one value, all shifted alike.

    Element (i, j) of channel ``at[k]`` is channel ``channels[k]`` of the value at (i + dy, j + dx), if that pixel is
    ``given``, bool [H, W]; else it is zero.
    """

    source: int
    channels: list[int]
    at: list[int]
    dy: int
    dx: int
    given: Tensor


class Value(NamedTuple):
    """A source that is a value of the program: number ``out``, of a frame other than the grid where a convolution was
    padded by more or less than its kernel needs."""

    out: int


class Constant(NamedTuple):
    """A source that depends on neither image nor condition: all elements, [R].

    of_weights: whether it depends on weights, which may change.
    """

    elements: Tensor
    of_weights: bool = False


class OfCondition(NamedTuple):
    """A source that depends on the condition: a slot of the recorded calls on conditions that holds [N, R]."""

    slot: int


class Unknown(NamedTuple):
    """The source of what depends on the image in a way that no instruction expresses."""

    reason: str


Source = Value | Constant | OfCondition | Unknown


class AddressSpace:
    """Sources are numbered from 0 as they are allotted. Each has a shape [N or 1, channels, h, w]."""

    def __init__(self, images: int, height: int, width: int) -> None:
        self.images, self.grid = images, (height, width)
        self.sources: list[Source] = []
        self._shapes: list[tuple[int, int, int, int]] = []
        self._starts: list[int] = []
        self.size = 1  # one more than the last address

    def allot(self, source: Source, channels: int, frame: tuple[int, int] = (1, 1)) -> int:
        """A new source -> its number."""
        images = self.images if isinstance(source, (Value, OfCondition)) else 1
        self.sources.append(source)
        self._shapes.append((images, channels, *frame))
        self._starts.append(self.size)
        self.size += images * channels * frame[0] * frame[1]
        return len(self.sources) - 1

    def shape(self, source: int | None) -> torch.Size:
        assert source is not None
        return torch.Size(self._shapes[source])

    def channels(self, source: int) -> int:
        return self._shapes[source][1]

    def frame(self, source: int) -> tuple[int, int]:
        return self._shapes[source][2:]

    def has_whole_frame(self, source: int) -> bool:
        return self.frame(source) == self.grid

    def of(self, source: int) -> Tensor:
        """All addresses of a source, [N or 1, channels, h, w]."""
        n, c, h, w = shape = self._shapes[source]
        return torch.arange(self._starts[source], self._starts[source] + n * c * h * w).view(shape)

    def at(self, source: int, image: Any, channel: Any, y: Any = 0, x: Any = 0) -> Tensor:
        _, channels, height, width = self._shapes[source]
        return self._starts[source] + ((image * channels + channel) * height + y) * width + x

    def decode(self, addresses: Tensor) -> Elements:
        first, last = self._range(addresses)
        known: Any
        if first == last >= 0:  # the usual case, which takes a third of the time
            source, known = torch.full_like(addresses, first), first
        else:
            source = self.source_of(addresses)
            known = source.clamp_min(0)
        start, (_, channels, height, width) = self._start_and_shape(known)
        rest = addresses - start
        x, rest = rest % width, rest // width
        y, rest = rest % height, rest // height
        return Elements(source, rest // channels, rest % channels, y, x)

    def relative(self, addresses: Tensor) -> Tensor:
        """Which channel of which source each element is of: the address of its first element in the first image."""
        elements = self.decode(addresses)
        start, (_, _, height, width) = self._start_and_shape(elements.source.clamp_min(0))
        return torch.where(addresses != 0, start + elements.channel * height * width, 0)

    def _start_and_shape(self, source: Any) -> tuple[Any, Any]:
        """Of a source, or for each of several."""
        if isinstance(source, int):
            return self._starts[source], self._shapes[source]
        return torch.tensor(self._starts)[source], torch.tensor(self._shapes)[source].unbind(-1)

    def source_of(self, addresses: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor(self._starts), addresses.contiguous(), right=True) - 1

    def found(self, addresses: Tensor) -> list[int]:
        """The sources that occur among the addresses, in order."""
        first, last = self._range(addresses)
        if first == last:
            return [first] if first >= 0 else []
        counts = torch.bincount(self.source_of(addresses).flatten() + 1)
        return counts[1:].nonzero()[:, 0].tolist()

    def joined(self, addresses: Tensor) -> tuple[list[Source], Tensor]:
        """The sources that occur, and for each address the place of its channel, if a zero and all channels of these
        sources are put in a row."""
        found, starts, start = self.found(addresses), torch.zeros(len(self.sources), dtype=torch.long), 1
        for s in found:
            starts[s], start = start, start + self.channels(s)
        elements = self.decode(addresses)
        index = torch.where(addresses != 0, starts[elements.source] + elements.channel, 0)
        return [self.sources[s] for s in found], index

    def _range(self, addresses: Tensor) -> tuple[int, int]:
        """The first and the last source among the addresses, -1 for a zero."""
        if not addresses.numel():
            return -1, -1
        least, largest = addresses.aminmax()
        return bisect_right(self._starts, int(least)) - 1, bisect_right(self._starts, int(largest)) - 1

    def moved(self, addresses: Tensor, to: dict[int, int], zero: int = 0) -> Tensor:
        """Addresses of the same elements in other sources of the same shapes: ``to`` maps each source to the other.
        zero: what stands for a zero."""
        by = torch.zeros(len(self.sources), dtype=torch.long)
        for old, new in to.items():
            by[old] = self._starts[new] - self._starts[old]
        return torch.where(addresses != 0, addresses + by[self.source_of(addresses)], zero)

    def only(self, addresses: Tensor, kinds: type | tuple[type, ...]) -> Tensor:
        """The addresses, with zeros in place of other kinds of sources."""
        return torch.where(self._is_of(self.source_of(addresses), kinds), addresses, 0)

    def _is_of(self, source: Tensor, kinds: type | tuple[type, ...]) -> Tensor:
        """Whether sources, by number, are of some kinds; -1 is not."""
        return torch.tensor([*(isinstance(each, kinds) for each in self.sources), False])[source]

    # -- the axes of the image among those of a tensor

    def layout(self, addresses: Tensor) -> tuple[list[int], list[int]]:
        """Which dimensions are N, H and W (-1 where none varies), and which are channels, in order.

        Raises Unsupported if two dimensions run along one axis of the image, or one dimension along two.
        """
        elements = self.decode(addresses)
        is_value = self._is_of(elements.source, Value)
        has_image = is_value | self._is_of(elements.source, OfCondition)
        lives = (has_image, is_value, is_value)
        spatial: list[int] = []
        for index, live in zip((elements.image, elements.y, elements.x), lives, strict=True):
            along = _runs_along(index, live)
            if len(along) > 1 or set(along) & set(spatial):
                raise Unsupported(
                    f"it mixes rows, columns or images in a tensor of shape {list(addresses.shape)}"
                )
            spatial += along or [-1]
        dims, usual = range(addresses.dim()), (0, addresses.dim() - 2, addresses.dim() - 1)
        for axis, (size, live) in enumerate(zip((self.images, *self.grid), lives, strict=True)):
            # Where zeros and constants leave no more than one image, row or column that tells.
            for dim in sorted(dims, key=lambda dim: dim != usual[axis]):  # used at once
                if spatial[axis] < 0 and addresses.shape[dim] == size > 1 and dim not in spatial:
                    if bool((live.sum(dim) <= 1).all()):
                        spatial[axis] = dim
        return spatial, [dim for dim in dims if dim not in spatial]

    def placed(self, addresses: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """-> (the addresses, with an axis for each axis of the image, N, H and W, and those for channels).

        An axis that runs over several axes of the image, as in [N * H * W, C], is split.
        """
        first: Unsupported | None = None
        for shape in self._unflattened(addresses):
            try:
                split = addresses.reshape(shape)
                return split, *self.layout(split)
            except Unsupported as error:
                first = first or error
        assert first is not None
        raise first

    def _unflattened(self, addresses: Tensor) -> Iterator[list[int]]:
        shape, n = list(addresses.shape), self.images
        yield shape
        values = (s for s in self.found(addresses) if isinstance(self.sources[s], Value))
        for h, w in {self.grid, *map(self.frame, values)}:
            for parts in ((n, h, w), (h, w, n), (h, w), (n, h), (n, -1), (-1, n)):
                product = abs(math.prod(parts))
                for dim, size in enumerate(shape):
                    if size > 1 and size % product == 0 and (size == product or -1 in parts):
                        yield [*shape[:dim], *parts, *shape[dim + 1 :]]

    def standard(self, addresses: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Addresses laid out as [N, C, h, w], and a function that restores their own shape."""
        whole = (self.images, *addresses.shape[1:2], *self.grid)
        try:
            split, spatial, channels = self.placed(addresses)
        except Unsupported:
            if addresses.shape != whole:
                raise
            return addresses, lambda standard: standard  # channels that are shifted against each other
        usual = all(dim in (-1, i) for dim, i in zip(spatial, (0, 2, 3), strict=True))
        if addresses.shape == whole and split.shape == whole and usual:
            return addresses, lambda standard: standard  # also if an axis can't be told: all is zero along it
        order = [dim for dim in (*spatial[:1], *channels, *spatial[1:]) if dim >= 0]
        n, height, width = (split.shape[dim] if dim >= 0 else 1 for dim in spatial)
        arranged = split.permute(order)

        def back(standard: Tensor) -> Tensor:
            split = standard.reshape(arranged.shape).movedim(list(range(len(order))), order)
            return split.reshape(addresses.shape)

        return arranged.reshape(n, -1, height, width), back

    def segments(self, addresses: Tensor) -> list[Segment]:
        """Splits addresses of values, laid out as [N, C, h, w], into segments. Channels that are all zero are in none,
        and one that holds pixels of several values, each in its own place, is in several.

        Raises Unsupported if pixels are rearranged in any way other than by shifts that move zeros in.
        """
        source = self.source_of(addresses)
        return [
            segment
            for found in self.found(addresses)
            for segment in self._segments_of(found, torch.where(source == found, addresses, 0))
        ]

    def _segments_of(self, source: int, addresses: Tensor) -> list[Segment]:
        """The segments of one value, whose frame is the grid."""
        used = (addresses[0] != 0).flatten(1).any(1).nonzero()[:, 0]
        here, (height, width) = addresses[:, used], addresses.shape[2:]
        live = here[0] != 0
        first = live.flatten(1).int().argmax(1)
        start = self.decode(here[0].flatten(1).gather(1, first[:, None])[:, 0])
        dy, dx = start.y - first // width, start.x - first % width
        y, x = torch.arange(height)[:, None] + dy[:, None, None], torch.arange(width) + dx[:, None, None]
        image, channel = torch.arange(len(addresses))[:, None, None, None], start.channel[:, None, None]
        if not torch.equal(torch.where(live, self.at(source, image, channel, y, x), 0), here):
            raise Unsupported(
                "it reads a rearrangement of pixels that is not a shift with zeros moved in, such as rows that are "
                "rolled around the image or flipped"
            )
        given = torch.zeros(len(used), *self.grid, dtype=torch.bool)
        k, i, j = live.nonzero().unbind(1)
        given[k, i + dy[k], j + dx[k]] = True
        _, pattern = torch.unique(given.flatten(1), dim=0, return_inverse=True)
        alike: dict[tuple[int, ...], list[int]] = {}
        for row, key in enumerate(torch.stack([dy, dx, pattern], 1).tolist()):
            alike.setdefault(tuple(key), []).append(row)
        return [
            Segment(source, start.channel[rows].tolist(), used[rows].tolist(), by_y, by_x, given[rows[0]])
            for (by_y, by_x, _), rows in alike.items()
        ]


def _runs_along(index: Tensor, live: Tensor) -> list[int]:
    """The dimensions along which an index runs. Where channels are shifted against each other, it varies along theirs,
    too, but does not count one by one."""
    found = {}
    for dim, size in enumerate(index.shape):
        if size > 1:
            both = live.narrow(dim, 0, size - 1) & live.narrow(dim, 1, size - 1)
            steps = index.diff(dim=dim)[both]
            if bool(steps.any()):
                found[dim] = bool((steps == 1).all())
    return [dim for dim, counts in found.items() if counts] or list(found)


class Map:
    """A feature map of the captured model: a whole value, laid out as [N, C, h, w], or any addresses."""

    def __init__(self, space: AddressSpace, addresses: Tensor | None = None, source: int | None = None) -> None:
        self._space, self._source, self._addresses = space, source, addresses

    @property
    def addresses(self) -> Tensor:
        if self._addresses is None:
            assert self._source is not None
            self._addresses = self._space.of(self._source)
        return self._addresses

    @property
    def shape(self) -> torch.Size:
        return self._space.shape(self._source) if self._addresses is None else self._addresses.shape

    @cached_property
    def sources(self) -> list[int]:
        """The sources that its elements are of, in order."""
        return [self._source] if self._source is not None else self._space.found(self.addresses)

    @property
    def kinds(self) -> set[type]:
        return {type(self._space.sources[source]) for source in self.sources}

    @property
    def source(self) -> int | None:
        """The value that this map equals as it stands, or None."""
        if self._source is None:
            found = self._addresses
            assert found is not None
            if found.dim() == 4 and found.numel() and int(found[0, 0, 0, 0]):
                source = int(self._space.source_of(found[:1, :1, :1, :1]))
                if isinstance(self._space.sources[source], Value) and torch.equal(
                    self._space.of(source), found
                ):
                    self._source = source
        return self._source
