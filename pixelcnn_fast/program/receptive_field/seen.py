"""Computes what an instruction's channels see, in NumPy, which is faster than PyTorch on small arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pixelcnn_fast.program.instruction import Instruction

FieldShape = tuple[int, int, int]  # (image channels, 2H - 1, 2W - 1)


class Seen(NamedTuple):
    """As a ``Field``, in NumPy."""

    group: np.ndarray
    seen: np.ndarray


def nothing(i: Instruction, shape: FieldShape) -> Seen:
    return Seen(np.zeros(i.channels, np.int64), np.zeros((1, *shape), bool))


class Reading(NamedTuple):
    """A ``Connection`` in NumPy: a value, where it is read, bool [channels, its channels],
    and whether all channels read some of it."""

    value: int
    dy: int
    dx: int
    channels: np.ndarray
    by_all: bool


def readings(i: Instruction, channels_of: Callable[[int], int]) -> list[Reading]:
    found = ((each.read, each.channels.cpu().numpy()) for each in i.connections(channels_of))
    return [Reading(read.value, read.dy, read.dx, each, bool(each.any(1).all())) for read, each in found]


def seen_by(
    i: Instruction, readings: Sequence[Reading], known: Mapping[int, Seen], shape: FieldShape
) -> Seen:
    """What its channels see. known: what the values see that it reads."""
    levels = i.levels_seen(shape[0])
    if levels is None and all(by_all and len(known[value].seen) == 1 for value, *_, by_all in readings):
        group, seen = nothing(i, shape)  # the usual case: all channels see the same
        for value, dy, dx, *_ in readings:
            seen |= shifted(known[value].seen, dy, dx)
        return Seen(group, seen)
    parts: list[np.ndarray] = []
    reads: list[np.ndarray] = []
    if levels is not None:
        own = np.zeros((shape[0], *shape), bool)
        own[range(shape[0]), range(shape[0]), shape[1] // 2, shape[2] // 2] = True
        parts.append(own)
        reads.append(levels.numpy())
    for value, dy, dx, channels, _ in readings:
        group, seen = known[value]
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
