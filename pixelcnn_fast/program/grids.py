"""Grids: at which pixels values exist, and where a reader's grid meets that of what it reads.

A value with ``every`` (ey, ex) exists at pixels with y % ey == x % ex == 0, and is zero
elsewhere. Offsets are counted in pixels of the image, whatever the grids are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

Every = tuple[int, int]
Place = tuple[int, int]  # of a pixel in a cell, (y, x)
WHOLE: Every = (1, 1)


class Meeting(NamedTuple):
    """The rows, or the columns, of a reader's grid that meet those of what it reads: their
    numbers in the reader's grid, and in the other, where they may lie outside the image."""

    reader: range
    source: range

    def inside(self, many: int) -> Meeting:
        """Those that lie among the so many rows, or columns, of what is read."""
        first, by = self.source.start, self.source.step
        kept = slice(max(0, count(-first, by)), max(0, count(many - first, by)))
        return Meeting(self.reader[kept], self.source[kept])


def count(size: int, every: int) -> int:
    """How many of so many rows, or columns, are in a grid."""
    return -(-size // every)


def frame(shape: Sequence[int], every: Every) -> tuple[int, int]:
    """How many rows and columns of an image [..., H, W] are in a grid."""
    return count(shape[-2], every[0]), count(shape[-1], every[1])


def cell(grids: Iterable[Every]) -> Every:
    """The least rectangle whose places tell at which pixels the values of all grids exist."""
    rows, columns = zip(*grids, strict=True)
    return math.lcm(*rows), math.lcm(*columns)


def places(of: Every, every: Every, shape: Sequence[int]) -> list[Place]:
    """The places of a cell at which a value exists in images [..., H, W]."""
    rows, columns = (range(0, min(axis), by) for *axis, by in zip(of, shape[-2:], every, strict=True))
    return [*product(rows, columns)]


def beside(place: Place, dy: int, dx: int, of: Every) -> Place:
    """The place in a cell of the pixel at (dy, dx) from one at this place."""
    return (place[0] + dy) % of[0], (place[1] + dx) % of[1]


def meet(reader: int, source: int, offset: int) -> int | None:
    """The first row, or column, of a reader's grid that finds what it reads at the offset, if any does."""
    return next((q for q in range(0, math.lcm(reader, source), reader) if (q + offset) % source == 0), None)


def meeting(size: int, reader: int, source: int, offset: int) -> Meeting:
    """Where the rows, or columns, of a reader in an image with ``size`` of them meet those of
    what it reads at ``offset``. reader, source: the grids."""
    first, period = meet(reader, source, offset), math.lcm(reader, source)
    if first is None or first >= size:
        return Meeting(range(0), range(0))
    many = count(size - first, period)

    def numbers(start: int, every: int) -> range:
        by = period // every
        return range(start // every, start // every + many * by, by)

    return Meeting(numbers(first, reader), numbers(first + offset, source))


def stretch(numbers: range) -> slice:
    """The same rows, or columns, as an index of a tensor."""
    return slice(numbers.start, numbers.stop, numbers.step)
