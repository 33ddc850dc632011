"""Computes what an instruction's channels see, in NumPy, which is faster than PyTorch on small arrays."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pixelcnn_fast.program.grids import Every, Place, beside
from pixelcnn_fast.program.instruction import Instruction

FieldShape = tuple[int, int, int]  # (image channels, 2H - 1, 2W - 1)
Node = tuple[int, Place]  # a value at one place of the program's cell


class Seen(NamedTuple):
    """As a ``Field``, in NumPy."""

    group: np.ndarray
    seen: np.ndarray


def nothing(i: Instruction, shape: FieldShape) -> Seen:
    return Seen(np.zeros(i.channels, np.int64), np.zeros((1, *shape), bool))


class Reading(NamedTuple):
    """A ``Connection`` in NumPy: what is read, where, bool [channels, its channels], and
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
        self._found = [
            (c.read, c.channels, bool(c.channels.any(1).all())) for c in i.connections(channels_of)
        ]

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
    shape: FieldShape,
    levels: np.ndarray | None = None,
) -> Seen:
    """What its channels see. known: what the values see that it reads; levels: as ``Instruction.levels_seen``."""
    if levels is None and all(by_all and len(known[node].seen) == 1 for node, *_, by_all in readings):
        group, seen = nothing(i, shape)  # the usual case: all channels see the same
        for node, dy, dx, *_ in readings:
            seen |= shifted(known[node].seen, dy, dx)
        return Seen(group, seen)
    parts: list[np.ndarray] = []
    reads: list[np.ndarray] = []
    if levels is not None:
        own = np.zeros((shape[0], *shape), bool)
        own[range(shape[0]), range(shape[0]), shape[1] // 2, shape[2] // 2] = True
        parts.append(own)
        reads.append(levels)
    for node, dy, dx, channels, _ in readings:
        group, seen = known[node]
        parts.append(shifted(seen, dy, dx))
        reads.append(product(channels, group[:, None] == np.arange(len(seen))))
    every, of_which = np.concatenate(parts), np.concatenate(reads, 1)
    kinds, kind = distinct(of_which)
    seen, merged = distinct(product(kinds, every.reshape(len(every), -1)))
    return Seen(merged[kind], seen.reshape(-1, *shape))


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


def shifted(seen: np.ndarray, dy: int, dx: int) -> np.ndarray:
    if (dy, dx) == (0, 0):
        return seen
    out = np.zeros_like(seen)
    rows, columns = seen.shape[-2:]
    if abs(dy) < rows and abs(dx) < columns:
        out[..., max(dy, 0) : rows + min(dy, 0), max(dx, 0) : columns + min(dx, 0)] = seen[
            ..., max(-dy, 0) : rows - max(dy, 0), max(-dx, 0) : columns - max(dx, 0)
        ]
    return out
