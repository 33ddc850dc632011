"""What each value of a program can see, exactly, from the weights."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

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
    c, height, width = program.shape
    fields: dict[int, Field] = {}
    for i in program.instructions:
        # Each channel sees the union of some parts: reads[channel, part] says which.
        parts: list[Tensor] = []
        reads: list[Tensor] = []
        if (levels := i.levels_seen(c)) is not None:
            own = torch.zeros(c, c, 2 * height - 1, 2 * width - 1, dtype=torch.bool)
            own[range(c), range(c), height - 1, width - 1] = True
            parts.append(own)
            reads.append(levels)
        for connection in i.connections(lambda value: len(fields[value].group)):
            field, read = fields[connection.read.value], connection.read
            parts.append(_shift(field.seen, read.dy, read.dx))
            reads.append(_groups_read(connection.channels, field))
        fields[i.out] = _united(parts, reads, i.channels, (c, 2 * height - 1, 2 * width - 1))
    return fields


def _groups_read(channels: Tensor, field: Field) -> Tensor:
    """channels: bool [n, channels of the field's value] -> of which groups of them each reads any: bool [n, groups]."""
    if len(field.seen) == 1:
        return channels.any(1, keepdim=True)
    one_hot = field.group[:, None] == torch.arange(len(field.seen))
    return channels.float() @ one_hot.float() > 0


def _united(parts: list[Tensor], reads: list[Tensor], channels: int, shape: tuple[int, int, int]) -> Field:
    if not parts:
        return Field(torch.zeros(channels, dtype=torch.long), torch.zeros(1, *shape, dtype=torch.bool))
    kinds, kind = torch.unique(torch.cat(reads, 1), dim=0, return_inverse=True)
    every = torch.cat(parts).flatten(1).float()
    seen = kinds.float() @ every > 0
    if len(seen) > 1:
        seen, merged = torch.unique(seen, dim=0, return_inverse=True)
        kind = merged[kind]
    return Field(kind, seen.view(-1, *shape))


def _shift(seen: Tensor, dy: int, dx: int) -> Tensor:
    out = torch.zeros_like(seen)
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
