"""Where the elements of a tensor come from.

Every element of every value has an address; address 0 stands for a zero. A feature map is a tensor of the captured
model together with the addresses of its elements. So PyTorch itself shows what a call that only moves elements does:
view, permute, chunk, cat, pad, crop, roll and assignments to a part are run on the addresses as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.errors import Unsupported


class Elements(NamedTuple):
    """What each address means, in tensors of the addresses' shape; value is -1 for a zero."""

    value: Tensor
    image: Tensor
    channel: Tensor
    y: Tensor
    x: Tensor


class Segment(NamedTuple):
    """Channels of a map laid out as [N, C, h, w] that come from one value.

    Within ``rows`` and ``columns``, each (first, end), element (i, j) of channel ``at[k]`` is channel ``channels[k]``
    of the value at (i + dy, j + dx); elsewhere it is zero.
    """

    value: int
    channels: list[int]
    at: list[int]
    dy: int
    dx: int
    rows: tuple[int, int]
    columns: tuple[int, int]


class AddressSpace:
    """Values are numbered from 0 as they are allotted. A value's frame is the height and width of its tensor: those
    of the grid, unless a convolution was padded by more or less than its kernel needs."""

    def __init__(self, images: int, height: int, width: int) -> None:
        self.images, self.grid = images, (height, width)
        self._shapes: list[tuple[int, int, int]] = []
        self._starts: list[int] = []
        self._next = 1

    def allot(self, channels: int, frame: tuple[int, int]) -> ShadowMap:
        self._shapes.append((channels, *frame))
        self._starts.append(self._next)
        self._next += self.images * channels * frame[0] * frame[1]
        return ShadowMap(self, len(self._starts) - 1)

    def channels(self, value: int) -> int:
        return self._shapes[value][0]

    def frame(self, value: int) -> tuple[int, int]:
        return self._shapes[value][1:]

    def of(self, value: int) -> Tensor:
        """The addresses of a value, [N, C, h, w]."""
        shape = (self.images, *self._shapes[value])
        size = shape[0] * shape[1] * shape[2] * shape[3]
        return torch.arange(self._starts[value], self._starts[value] + size).view(shape)

    def at(self, value: int, image: Tensor, channel: Tensor, y: Tensor, x: Tensor) -> Tensor:
        channels, height, width = self._shapes[value]
        return self._starts[value] + ((image * channels + channel) * height + y) * width + x

    def decode(self, addresses: Tensor) -> Elements:
        starts, shapes = torch.tensor(self._starts), torch.tensor(self._shapes)
        value = self._value_of(addresses)
        known = value.clamp_min(0)
        channels, height, width = (size[known] for size in shapes.unbind(-1))
        rest = addresses - starts[known]
        x, rest = rest % width, rest // width
        y, rest = rest % height, rest // height
        return Elements(value, rest // channels, rest % channels, y, x)

    def _value_of(self, addresses: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor(self._starts), addresses.contiguous(), right=True) - 1

    def moved(self, addresses: Tensor, to: dict[int, int]) -> Tensor:
        """Addresses of the same elements in other values of the same shapes: ``to`` maps each value to the other."""
        value = self._value_of(addresses)
        out = torch.zeros_like(addresses)
        for old, new in to.items():
            out = torch.where(value == old, addresses - self._starts[old] + self._starts[new], out)
        return out

    def values(self, addresses: Tensor) -> list[int]:
        counts = torch.bincount(self._value_of(addresses).flatten() + 1)
        return counts[1:].nonzero()[:, 0].tolist()

    def layout(self, addresses: Tensor) -> tuple[list[int], list[int]]:
        """Which dimensions are N, H and W (-1 where none varies), and which are channels, in order.

        Raises Unsupported if two dimensions run along one axis of the image, or one dimension along two.
        """
        elements = self.decode(addresses)
        spatial = [-1, -1, -1]
        for dim, size in enumerate(addresses.shape):
            if size == 1:
                continue
            both = (elements.value.narrow(dim, 0, size - 1) >= 0) & (
                elements.value.narrow(dim, 1, size - 1) >= 0
            )
            for axis, index in enumerate((elements.image, elements.y, elements.x)):
                if bool(((index.narrow(dim, 0, size - 1) != index.narrow(dim, 1, size - 1)) & both).any()):
                    if spatial[axis] >= 0 or dim in spatial:
                        raise Unsupported(
                            f"it mixes rows, columns or images in a tensor of shape {list(addresses.shape)}"
                        )
                    spatial[axis] = dim
        return spatial, [dim for dim in range(addresses.dim()) if dim not in spatial]

    def is_stack(self, addresses: Tensor) -> bool:
        """Whether maps were stacked along the last dimension, besides those of the image and the channels."""
        try:
            return len(self.layout(addresses)[1]) > 1
        except Unsupported:  # the maps are shifted against each other
            return addresses.dim() > 4

    def segments(self, addresses: Tensor) -> list[Segment]:
        """Splits addresses laid out as [N, C, h, w] into segments; channels that are all zero are in none of them.

        Raises Unsupported if pixels are rearranged in any way other than by shifts that move zeros in.
        """
        images, _, height, width = addresses.shape
        live = addresses[0] != 0
        first = live.flatten(1).int().argmax(1)
        start = self.decode(addresses[0].flatten(1).gather(1, first[:, None])[:, 0])
        dy, dx = start.y - first // width, start.x - first % width
        rows, columns = live.any(2), live.any(1)
        bounds = [_bounds(rows), _bounds(columns)]
        groups: dict[tuple, tuple[list[int], list[int]]] = {}
        fields = torch.stack([start.value, dy, dx, *bounds[0], *bounds[1], start.channel], 1).tolist()
        expected = torch.zeros_like(addresses)
        for row, (*key, channel) in enumerate(fields):
            if key[0] >= 0:
                of_group, rows_of_group = groups.setdefault(tuple(key), ([], []))
                of_group.append(channel)
                rows_of_group.append(row)
        result = []
        for (value, dy, dx, r0, r1, c0, c1), (channels, at) in groups.items():
            segment = Segment(value, channels, at, dy, dx, (r0, r1), (c0, c1))
            image, of_value = torch.arange(images)[:, None, None, None], torch.tensor(channels)[:, None, None]
            y, x = torch.arange(r0, r1)[:, None] + dy, torch.arange(c0, c1) + dx
            expected[:, at, r0:r1, c0:c1] = self.at(value, image, of_value, y, x)
            result.append(segment)
        if not torch.equal(expected, addresses):
            raise Unsupported(
                "it reads a rearrangement of pixels that is not a shift with zeros moved in, such as rows that are "
                "rolled around the image or flipped"
            )
        return result


def _bounds(live: Tensor) -> tuple[Tensor, Tensor]:
    """live: [C, size] -> the first live index and the one after the last, [C] each."""
    first = live.int().argmax(1)
    return first, live.shape[1] - live.flip(1).int().argmax(1)


class ShadowMap:
    """A feature map of the captured model: a whole value, laid out as [N, C, h, w], or any addresses."""

    def __init__(self, space: AddressSpace, value: int | None = None, addresses: Tensor | None = None) -> None:
        self._space, self._value, self._addresses = space, value, addresses

    @property
    def has_addresses(self) -> bool:
        """Whether views of its addresses may exist; these must then see what is written to it."""
        return self._addresses is not None

    @property
    def addresses(self) -> Tensor:
        if self._addresses is None:
            self._addresses = self._space.of(self.value())
        return self._addresses

    def whole(self) -> int | None:
        """The value that this map equals as it stands, or None."""
        if self._addresses is None:
            return self._value
        first = self._space.decode(self._addresses.flatten()[:1])
        if self._addresses.dim() != 4 or not self._addresses.numel() or first.value < 0:
            return None
        value = int(first.value)
        expected = self._space.of(value)
        return value if torch.equal(expected, self._addresses) else None

    def value(self) -> int:
        """The value that this map equals, for a map that is known to equal one."""
        value = self._value if self._addresses is None else self.whole()
        assert value is not None, "the map is not one value"
        return value
