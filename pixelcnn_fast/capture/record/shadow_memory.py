"""Shadow memory: where the elements of tensors come from.

Every element of every source has an address; 0 stands for a zero. A source is a value of
the program, or imageless: a constant, or what depends on the condition alone. Each storage
has a parallel array of addresses, of which a view has its part, so that whatever moves or
overwrites elements is followed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import ParamSpec

from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import View, extent
from pixelcnn_fast.program.grids import WHOLE, Every, frame

Layout = tuple[Sequence[int], Sequence[int], int]  # size, strides, offset
P = ParamSpec("P")
R = TypeVar("R")


class Elements(NamedTuple):
    """What each address stands for: source -1 for a zero; those of an imageless source count as channels."""

    source: Tensor
    image: Tensor
    channel: Tensor
    y: Tensor
    x: Tensor


class Value(NamedTuple):
    """Value ``out`` of the program. Its frame is not its grid's where padding did not fit the kernel."""

    out: int


class Constant(NamedTuple):
    """What depends on neither image nor condition, [R]. of_weights: whether it
    may change with the weights; is_exact: whether it is a product that was not
    rounded to the model's dtype."""

    elements: Tensor
    of_weights: bool = False
    is_exact: bool = False


class OfCondition(NamedTuple):
    """What depends on the condition: a slot of the calls on conditions that holds [N, R]."""

    slot: int


class Unknown(NamedTuple):
    """What depends on the image in a way that no instruction expresses."""

    reason: str


def unrecorded(compute: Callable[P, R]) -> Callable[P, R]:
    """For what computes addresses, in thousands of small calls, past the recorder of weights."""

    @wraps(compute)
    def unseen(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch._C._DisableTorchDispatch():
            return compute(*args, **kwargs)

    return unseen


FEW = 4  # sources of one map, and maps that are looked at in turn
Source = Value | Constant | OfCondition | Unknown


class AddressSpace:
    """Numbers the sources, each [N or 1, channels, h, w], and the addresses of their elements."""

    def __init__(self, images: int, height: int, width: int) -> None:
        self.images, self.grid = images, (height, width)
        self.sources: list[Source] = []
        self._shapes: list[tuple[int, int, int, int]] = []
        self._grids: list[Every] = []
        # The addresses that were looked at last, as they were, with the sources that were found.
        self._looked_at: list[tuple[Tensor, tuple, list[int]]] = []
        self._starts: list[int] = []
        self._next = 1

    def allot(
        self, source: Source, channels: int, frame: tuple[int, int] = (1, 1), every: Every = WHOLE
    ) -> int:
        images = self.images if isinstance(source, (Value, OfCondition)) else 1
        self.sources.append(source)
        self._grids.append(every)
        self._shapes.append((images, channels, *frame))
        self._starts.append(self._next)
        self._next += images * channels * frame[0] * frame[1]
        return len(self.sources) - 1

    def shape(self, source: int) -> torch.Size:
        return torch.Size(self._shapes[source])

    def channels(self, source: int) -> int:
        return self._shapes[source][1]

    def frame(self, source: int) -> tuple[int, int]:
        return self._shapes[source][2:]

    def every(self, source: int) -> Every:
        """The grid of a value, whose rows and columns its elements are numbered by."""
        return self._grids[source]

    def size(self, every: Every) -> tuple[int, int]:
        """How many rows and columns of the image are in a grid."""
        return frame(self.grid, every)

    def has_whole_frame(self, source: int) -> bool:
        return self.frame(source) == self.size(self.every(source))

    @unrecorded
    def of(self, source: int) -> Tensor:
        """All addresses of a source, [N or 1, channels, h, w]."""
        n, c, h, w = shape = self._shapes[source]
        return torch.arange(self._starts[source], self._starts[source] + n * c * h * w).view(shape)

    @unrecorded
    def window(self, source: int) -> Window:
        """A whole value."""
        images, channels, *frame = self._shapes[source]
        pixels = torch.arange(math.prod(frame)).view(frame)
        first = torch.arange(images * channels).view(images, channels) * len(pixels.flatten())
        return Window(self._starts[source] + first, pixels)

    @unrecorded
    def at(self, source: int, image: Any, channel: Any, y: Any = 0, x: Any = 0) -> Tensor:
        _, channels, height, width = self._shapes[source]
        return self._starts[source] + ((image * channels + channel) * height + y) * width + x

    @unrecorded
    def decode(self, addresses: Tensor) -> Elements:
        source, found = self.source_of(addresses), self.found(addresses)
        channels: Any
        height: Any
        width: Any
        frames, counts = {self.frame(s) for s in found}, [self.channels(s) for s in found]
        if len(frames) == 1 and len(found) <= FEW:  # the usual case
            ((height, width),) = frames
            channels = counts[0] if len({*counts}) == 1 else self._chosen(addresses, found, [1, *counts])
            rest = addresses - self._chosen(addresses, found, [0, *(self._starts[s] for s in found)])
        else:
            known = source.clamp_min(0)
            _, channels, height, width = torch.tensor(self._shapes or [(1, 1, 1, 1)])[known].unbind(-1)
            rest = addresses - torch.tensor(self._starts or [0])[known]
        rest, x = _divided(rest, width)
        rest, y = _divided(rest, height)
        return Elements(source, *_divided(rest, channels), y, x)

    @unrecorded
    def relative(self, imageless: Tensor) -> Tensor:
        """Addresses of imageless elements, moved to where the first image has the same elements."""
        elements = self.decode(imageless)
        first = torch.tensor(self._starts)[elements.source]
        return torch.where(imageless != 0, first + elements.channel, 0)

    @unrecorded
    def source_of(self, addresses: Tensor) -> Tensor:
        found = self.found(addresses)
        if len(found) <= FEW:
            return self._chosen(addresses, found, [-1, *found])
        return torch.searchsorted(torch.tensor(self._starts), addresses.contiguous(), right=True) - 1

    @unrecorded
    def found(self, addresses: Tensor) -> list[int]:
        """The sources of these addresses, in order."""
        state = (addresses.data_ptr(), addresses.shape, addresses.stride(), addresses._version)
        for _, known, found in self._looked_at:
            if known == state:  # perhaps of another view of the same memory
                return found
        found = self._found(addresses)
        self._looked_at = [(addresses, state, found), *self._looked_at[:FEW]]
        return found

    def _found(self, addresses: Tensor) -> list[int]:
        # In the order in which they lie, in which it takes a tenth of the time.
        addresses = addresses.permute(sorted(range(addresses.dim()), key=addresses.stride, reverse=True))
        found, left = list[int](), addresses
        while left.numel():
            least, largest = (int(x) for x in left.aminmax())
            if largest == 0:
                break
            found.insert(0, bisect_right(self._starts, largest) - 1)
            start = self._starts[found[0]]
            if least >= start or (len(found) == 1 and bool(((addresses >= start) | (addresses == 0)).all())):
                break  # the usual cases
            if len(found) > FEW:
                starts = torch.tensor(self._starts)
                counts = torch.bincount(
                    torch.searchsorted(starts, addresses.flatten().contiguous(), right=True)
                )
                return (counts[1:].nonzero()[:, 0]).tolist()
            left = torch.where(left < start, left, 0)
        return found

    def _chosen(self, addresses: Tensor, found: Sequence[int], numbers: Sequence[int]) -> Tensor:
        """The first of the numbers where an address is a zero, and where it is of found[i], numbers[i + 1]."""
        if len(found) == 1 and bool(addresses.all()):  # as often
            return addresses.new_tensor(numbers[1]).expand(addresses.shape)
        chosen = torch.full_like(addresses, numbers[0])
        for s, number in zip(found, numbers[1:], strict=True):
            chosen = torch.where(addresses >= self._starts[s], number, chosen)
        return chosen

    @unrecorded
    def joined(self, addresses: Tensor) -> tuple[list[Source], Tensor]:
        """-> (the sources that occur; each address's place in a row of a zero and all their channels)"""
        found, starts, start = self.found(addresses), torch.zeros(len(self.sources), dtype=torch.long), 1
        for s in found:
            starts[s], start = start, start + self.channels(s)
        elements = self.decode(addresses)
        first = starts[found[0]] if len(found) == 1 else starts[elements.source]
        index = torch.where(addresses != 0, first + elements.channel, 0)
        return [self.sources[s] for s in found], index

    @unrecorded
    def moved(self, addresses: Tensor, to: dict[int, int], zero: int = 0) -> Tensor:
        """Addresses of the same elements in other sources. zero: the address that a zero gets."""
        by = torch.zeros(len(self.sources), dtype=torch.long)
        for old, new in to.items():
            by[old] = self._starts[new] - self._starts[old]
        shift = by.sum() if len(to) == 1 else by[self.source_of(addresses)]  # usually needs no search
        return torch.where(addresses != 0, addresses + shift, zero)

    @unrecorded
    def only(self, addresses: Tensor, kinds: type | tuple[type, ...]) -> Tensor:
        """The addresses, with zeros in place of other kinds of sources."""
        if all(isinstance(self.sources[source], kinds) for source in self.found(addresses)):
            return addresses
        return torch.where(self.is_of(self.source_of(addresses), kinds), addresses, 0)

    @unrecorded
    def is_of(self, source: Tensor, kinds: type | tuple[type, ...]) -> Tensor:
        """Whether sources, by number, are of some kinds. -1, a zero, is of none."""
        each = source[tuple(slice(None if by else 1) for by in source.stride())]  # once, where it is expanded
        of_kinds = torch.tensor([*(isinstance(each, kinds) for each in self.sources), False])
        return of_kinds[each].expand(source.shape)


def _divided(x: Tensor, by: int | Tensor) -> tuple[Tensor, Tensor]:
    """-> (x // by, x % by), for x >= 0"""
    if isinstance(by, int) and by == 1:
        return x, x.new_zeros(()).expand(x.shape)
    if isinstance(by, int) and by & (by - 1) == 0:  # a tenth of the time
        return x >> (by.bit_length() - 1), x & (by - 1)
    quotient = x // by
    return quotient, x - quotient * by


class Window(NamedTuple):
    """What a map [N, C, h, w] is made of that has whole channels of values with frames of one
    size, all seen through one window: a small part of its addresses.

    channels: [N, C], where each begins; pixels: [h, w], which pixel of its frame each of a
    channel's elements is, -1 for a zero.
    """

    channels: Tensor
    pixels: Tensor

    @property
    @unrecorded
    def is_live(self) -> bool:
        """Whether some of it is no zero."""
        return bool((self.pixels >= 0).any())

    @unrecorded
    def part(self, channels: slice, rows: slice = slice(None), columns: slice = slice(None)) -> Window:
        return Window(self.channels[:, channels], self.pixels[rows, columns])

    @unrecorded
    def padded(self, by: Sequence[int]) -> Window:
        """With zeros around it. by: as for ``F.pad``."""
        return self._replace(pixels=F.pad(self.pixels, list(by), value=-1))


class Map:
    """A feature map of the captured model: whole channels through a window, or any addresses."""

    def __init__(
        self, space: AddressSpace, addresses: Tensor | None = None, window: Window | None = None
    ) -> None:
        self._space, self._addresses, self.window = space, addresses, window
        self._source: int | None = None

    is_symbolic = False  # whether it has no addresses, but can be viewed in other ways

    def viewed(self, written: Layout, read: Layout) -> Map:
        """A symbolic map as seen in memory. written: the layout in which it was written; read: now."""
        raise AssertionError("others have addresses, which are viewed")

    @property
    @unrecorded
    def addresses(self) -> Tensor:
        if self._addresses is None:
            assert self.window is not None
            channels, pixels = self.window
            found = channels[:, :, None, None] + pixels
            self._addresses = found.where(pixels >= 0, 0) if self.has_zeros else found
        return self._addresses

    @property
    def shape(self) -> torch.Size:
        if self.window is None:
            return self.addresses.shape
        return torch.Size((*self.window.channels.shape, *self.window.pixels.shape))

    @cached_property
    def sources(self) -> list[int]:
        if self.window is not None and not self.window.is_live:
            return []
        return self._space.found(self.addresses if self.window is None else self.window.channels)

    @property
    def kinds(self) -> set[type]:
        return {type(self._space.sources[source]) for source in self.sources}

    @property
    @unrecorded
    def has_zeros(self) -> bool:
        return bool((self.addresses == 0).any() if self.window is None else (self.window.pixels < 0).any())

    @property
    @unrecorded
    def source(self) -> int | None:
        """The value that the map equals as it stands, or None."""
        if self._source is None and len(self.shape) == 4 and self.shape.numel() and len(self.sources) == 1:
            (source,) = self.sources
            if isinstance(self._space.sources[source], Value) and self.shape == self._space.shape(source):
                if self.window is None:
                    is_it = torch.equal(self._space.of(source), self.addresses)
                else:
                    is_it = all(map(torch.equal, self.window, self._space.window(source)))
                self._source = source if is_it else None
        return self._source


@unrecorded
def beside(space: AddressSpace, maps: Sequence[Map]) -> Map | None:
    """The channels of maps, one after another, if all of them are seen through the same window."""
    windows = [x.window for x in maps if x.window is not None]
    alike = len({space.frame(s) for x in maps for s in x.sources}) == 1
    if not alike or len(windows) < len(maps):
        return None
    if any(not torch.equal(window.pixels, windows[0].pixels) for window in windows[1:]):
        return None
    return Map(space, window=windows[0]._replace(channels=torch.cat([x.channels for x in windows], 1)))


@unrecorded
def seen_whole(space: AddressSpace, addresses: Tensor) -> Map:
    """What has these addresses, through a window if all of its channels lie alike and nothing is left out of them."""
    if addresses.dim() == 4 and addresses.numel() and bool(addresses[:, :, 0, 0].all()):
        channels = addresses[:, :, 0, 0]
        pixels = addresses[0, 0] - channels[0, 0]
        each = addresses[:1] if addresses.stride(0) == 0 else addresses
        is_it = torch.equal(channels[: len(each), :, None, None] + pixels, each)
        if is_it and int(pixels.min()) >= 0:
            return Map(space, addresses, Window(channels, pixels))
    return Map(space, addresses)


class ShadowStorage:
    """What a storage holds: a map, until it is written into or viewed otherwise; then addresses."""

    def __init__(self, view: View, n: int, content: Map) -> None:
        self._layout, self._dtype, self._map = view.at(n), view.dtype, content
        self._array: Tensor | None = None

    @unrecorded
    def read(self, view: View, n: int, space: AddressSpace) -> Map:
        layout = view.at(n)
        if view.dtype != self._dtype:
            if self._map.kinds == {Unknown}:
                return Map(space, self._map.addresses.flatten()[0].expand(layout[0]))
            raise Unsupported(f"it reads the bits of {self._dtype} as {view.dtype}")
        if self._array is None and layout == self._layout:
            return self._map
        if self._array is None and self._map.is_symbolic:
            return self._map.viewed(self._layout, layout)
        if self._array is None and (window := self._part(*layout)) is not None:
            return Map(space, window=window)
        return Map(space, self.array().as_strided(*layout))

    def _part(self, size: Sequence[int], strides: Sequence[int], offset: int) -> Window | None:
        """A view of the map that has some of its channels, rows and columns that follow each other."""
        (whole, own, first), window = self._layout, self._map.window
        if window is None or strides != own or len(size) != 4 or size[0] != whole[0]:
            return None
        if list(own) != [math.prod(whole[k + 1 :]) for k in range(4)]:
            return None
        rest, parts = offset - first, list[slice]()
        for stride, count, most in zip(own[1:], size[1:], whole[1:], strict=True):
            at, rest = divmod(rest, stride)
            if at < 0 or at + count > most:
                return None
            parts.append(slice(at, at + count))
        return window.part(*parts)

    @unrecorded
    def write(self, view: View, n: int, content: Map) -> None:
        is_all = math.prod(view.at(n)[0]) == math.prod(self._layout[0])
        if self._map.is_symbolic and content.is_symbolic and is_all:
            self._layout, self._map = view.at(n), content
        else:
            self.array().as_strided(*view.at(n)).copy_(content.addresses)

    @unrecorded
    def array(self) -> Tensor:
        if self._array is None:
            self._array = torch.zeros(extent(*self._layout), dtype=torch.long)
            self._array.as_strided(*self._layout).copy_(self._map.addresses)
        return self._array
