"""Computes what an instruction's channels see, as sets of offsets: whole numbers, of which each bit is an offset."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

import numpy as np

from pixelcnn_fast.program.grids import Every, Place, beside
from pixelcnn_fast.program.instruction import Instruction

Node = tuple[int, Place]  # a value at one place of the program's cell


class Offsets:
    """Which bit stands for image channel c of the pixel at (dy, dx), in images [C, H, W].

    A row of bits, and a channel, is twice as long as it need be, so that none is moved from
    one into another.
    """

    def __init__(self, image_channels: int, height: int, width: int) -> None:
        self.shape = (image_channels, 2 * height - 1, 2 * width - 1)
        self._height, self._width = height, width
        self._row = 2 * self.shape[2]
        self._channel = 2 * self.shape[1] * self._row
        self._all = self.within(range(self.shape[1]), range(self.shape[2]))

    def at(self, channel: int, dy: int, dx: int) -> int:
        """The set of one offset; an empty one if no two pixels are that far apart."""
        if abs(dy) >= self._height or abs(dx) >= self._width:
            return 0
        return 1 << channel * self._channel + (dy + self._height - 1) * self._row + dx + self._width - 1

    def within(self, rows: range, columns: range) -> int:
        """All that lie in some rows and columns, of 2H - 1 and 2W - 1."""
        row = (1 << len(columns)) - 1 << columns.start
        channel = reduce(or_, (row << y * self._row for y in rows), 0)
        return reduce(or_, (channel << c * self._channel for c in range(self.shape[0])))

    def shifted(self, seen: int, dy: int, dx: int) -> int:
        """What a reader at (-dy, -dx) sees through what sees this."""
        if abs(dy) >= self.shape[1] or abs(dx) >= self.shape[2]:
            return 0
        by = dy * self._row + dx
        return (seen << by if by >= 0 else seen >> -by) & self._all

    def unpacked(self, seen: Sequence[int]) -> np.ndarray:
        """Sets as truth values: bool [sets, C, 2H - 1, 2W - 1]."""
        channels, rows, columns = self.shape
        size = -(-channels * self._channel // 8)
        packed = np.frombuffer(b"".join(one.to_bytes(size, "little") for one in seen), np.uint8)
        bits = np.unpackbits(packed.reshape(len(seen), size), axis=1, bitorder="little")
        whole = bits[:, : channels * self._channel].reshape(len(seen), channels, 2 * rows, 2 * columns)
        return whole[:, :, :rows, :columns].astype(bool)


class Seen(NamedTuple):
    """What the channels of a value see. group: [channels]; seen: by group, the set of offsets."""

    group: np.ndarray
    seen: list[int]


def nothing(i: Instruction) -> Seen:
    return Seen(np.zeros(i.channels, np.int64), [0])


class Reading(NamedTuple):
    """A ``Connection`` at one place: what is read, where, bool [channels, its channels], and
    whether all channels read some of it."""

    node: Node
    dy: int
    dx: int
    channels: np.ndarray
    by_all: bool


class Readings:
    """What an instruction reads, at any place of the cell ``of``. exist: the nodes that do; elsewhere, it is zero."""

    def __init__(
        self, i: Instruction, of: Every, exist: Container[Node], channels_of: Callable[[int], int]
    ) -> None:
        self._of, self._exist = of, exist
        by_all: dict[int, bool] = {}  # attention reads at thousands of places alike
        self._found = []
        for c in i.connections(channels_of):
            if id(c.channels) not in by_all:
                by_all[id(c.channels)] = bool(c.channels.any(1).all())
            self._found.append((c.read, c.channels, by_all[id(c.channels)]))

    def at(self, place: Place) -> list[Reading]:
        found = []
        for read, channels, by_all in self._found:
            node = read.value, beside(place, read.dy, read.dx, self._of)
            if node in self._exist:
                found.append(Reading(node, read.dy, read.dx, channels, by_all))
        return found


def seen_by(
    i: Instruction,
    readings: Sequence[Reading],
    known: Mapping[Node, Seen],
    offsets: Offsets,
    levels: np.ndarray | None = None,
) -> Seen:
    """What its channels see. known: what the values see that it reads; levels: as ``Instruction.levels_seen``."""
    if levels is None and all(by_all and len(known[node].seen) == 1 for node, *_, by_all in readings):
        alike = (offsets.shifted(known[node].seen[0], dy, dx) for node, dy, dx, *_ in readings)
        return nothing(i)._replace(seen=[reduce(or_, alike, 0)])  # the usual case: all channels see the same
    parts, reads = list[int](), list[np.ndarray]()
    if levels is not None:
        parts += [offsets.at(channel, 0, 0) for channel in range(offsets.shape[0])]
        reads.append(levels)
    for node, dy, dx, channels, _ in readings:
        group, seen = known[node]
        parts += [offsets.shifted(one, dy, dx) for one in seen]
        reads.append(product(channels, group[:, None] == np.arange(len(seen))))
    kinds, kind = distinct(np.concatenate(reads, 1))
    united = [reduce(or_, (parts[k] for k in np.flatnonzero(row)), 0) for row in kinds]
    number = {one: k for k, one in enumerate(dict.fromkeys(united))}
    return Seen(np.array([number[one] for one in united])[kind], list(number))


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of matrices of truth values. NumPy's threads, which would compete with PyTorch's, mostly sleep."""
    if a.all():
        return np.repeat(b.any(0, keepdims=True), len(a), 0)
    if b.all():
        return np.repeat(a.any(1, keepdims=True), b.shape[1], 1)
    if a.shape[0] == a.shape[1] == np.count_nonzero(a) and a.diagonal().all():
        return b
    return np.asarray(a.astype(np.float32) @ b.astype(np.float32) > 0)


def distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-> (the distinct rows; for each row, which of these it is)"""
    first: dict[bytes, int] = {}
    which = [first.setdefault(row.tobytes(), len(first)) for row in rows]
    return rows[[which.index(k) for k in range(len(first))]], np.array(which)
