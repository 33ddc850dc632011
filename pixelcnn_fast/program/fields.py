"""What each value of a program can see, exactly, from the weights."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.program.program import Program


@dataclass(frozen=True)
class Field:
    """What the channels of a value see. Channels that see the same form a group.

    group: [channels], each channel's group; seen: boolean [groups, image channels, 2H - 1, 2W - 1]: entry
    (g, c, dy + H - 1, dx + W - 1) says whether group g sees image channel c of the pixel at (dy, dx). Offsets that lead
    out of the grid from every pixel are not in the array.
    """

    group: Tensor
    seen: Tensor

    def of_channels(self) -> Tensor:
        """``seen`` by channel: [channels, image channels, 2H - 1, 2W - 1]."""
        return self.seen[self.group]

    def present(self) -> Tensor:
        """For each channel, the image channels of its own pixel that it sees: [channels, image channels]."""
        return self.seen[:, :, self.seen.shape[2] // 2, self.seen.shape[3] // 2][self.group]

    def pixels(self) -> Tensor:
        """The pixels of which any channel sees anything: [2H - 1, 2W - 1]."""
        return self.seen.any(0).any(0)


_known: WeakKeyDictionary[Program, dict[int, Field]] = WeakKeyDictionary()


def receptive_fields(program: Program) -> dict[int, Field]:
    """The field of every value; computed once for each program."""
    if program not in _known:
        _known[program] = _computed(program)
    return _known[program]


def _computed(program: Program) -> dict[int, Field]:
    """In NumPy, whose calls on small arrays take a fraction of the time."""
    c, height, width = program.shape
    groups: dict[int, np.ndarray] = {}
    seen: dict[int, np.ndarray] = {}
    for i in program.instructions:
        # Each channel sees the union of some parts: reads[channel, part] says which.
        parts: list[np.ndarray] = []
        reads: list[np.ndarray] = []
        if (levels := i.levels_seen(c)) is not None:
            own = np.zeros((c, c, 2 * height - 1, 2 * width - 1), bool)
            own[range(c), range(c), height - 1, width - 1] = True
            parts.append(own)
            reads.append(levels.numpy())
        for connection in i.connections(lambda value: len(groups[value])):
            read = connection.read
            parts.append(_shift(seen[read.value], read.dy, read.dx))
            channels = connection.channels.cpu().numpy()
            reads.append(_groups_read(channels, groups[read.value], len(seen[read.value])))
        groups[i.out], seen[i.out] = _united(parts, reads, i.channels, (c, 2 * height - 1, 2 * width - 1))
    return {out: Field(torch.from_numpy(groups[out]), torch.from_numpy(seen[out])) for out in groups}


def _groups_read(channels: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """channels: bool [n, channels of the field's value] -> of which groups of them each reads any: bool [n, groups]."""
    if count == 1:
        return np.asarray(channels.any(1, keepdims=True))
    one_hot = group[:, None] == np.arange(count)
    return np.asarray(channels.astype(np.float32) @ one_hot.astype(np.float32) > 0)


def _united(
    parts: list[np.ndarray], reads: list[np.ndarray], channels: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """-> (each channel's group, what each group sees)"""
    if not parts:
        return np.zeros(channels, np.int64), np.zeros((1, *shape), bool)
    every, read = np.concatenate(parts), np.concatenate(reads, 1)
    if (read == read[:1]).all():  # all channels see the same
        return np.zeros(channels, np.int64), every[read[0]].any(0, keepdims=True)
    kinds, kind = _distinct(read)
    seen = kinds.astype(np.float32) @ every.reshape(len(every), -1).astype(np.float32) > 0
    seen, merged = _distinct(seen)
    return merged[kind], seen.reshape(-1, *shape)


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-> (the rows that there are, each once; for each row, which of these it is)"""
    first: dict[bytes, int] = {}
    which = [first.setdefault(row.tobytes(), len(first)) for row in rows]
    return rows[[which.index(k) for k in range(len(first))]], np.array(which)


def _shift(seen: np.ndarray, dy: int, dx: int) -> np.ndarray:
    if (dy, dx) == (0, 0):
        return seen
    out = np.zeros_like(seen)
    rows, columns = seen.shape[-2:]
    if abs(dy) < rows and abs(dx) < columns:
        out[..., max(dy, 0) : rows + min(dy, 0), max(dx, 0) : columns + min(dx, 0)] = seen[
            ..., max(-dy, 0) : rows - max(dy, 0), max(-dx, 0) : columns - max(dx, 0)
        ]
    return out


def output_field(program: Program) -> Tensor:
    """What each distribution sees: bool [distributions, image channels, 2H - 1, 2W - 1]."""
    c, height, width = program.shape
    fields = receptive_fields(program)
    seen = torch.cat([fields[output].of_channels() for output in program.outputs])
    return seen.view(program.distributions, program.parameters, c, 2 * height - 1, 2 * width - 1).any(1)
