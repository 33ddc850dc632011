"""Computes what each value of a program sees of the image."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.receptive_field.seen import FieldShape, Reading, Seen, nothing, readings, seen_by
from pixelcnn_fast.program.recurrence import components


@dataclass(frozen=True)
class Field:
    """What the channels of a value see. Channels that see the same form a group.

    group: [channels], the group of each; seen: bool [groups, image channels, 2H - 1,
    2W - 1]: whether group g sees image channel c of the pixel at (dy, dx) is at
    (g, c, dy + H - 1, dx + W - 1). Offsets that no pixel has are left out.
    """

    group: Tensor
    seen: Tensor

    def of_channels(self) -> Tensor:
        """By channel: [channels, image channels, 2H - 1, 2W - 1]."""
        return self.seen[self.group]

    def present(self) -> Tensor:
        """Which image channels of its own pixel each channel sees: [channels, image channels]."""
        return self.seen[:, :, self.seen.shape[2] // 2, self.seen.shape[3] // 2][self.group]


_known: WeakKeyDictionary[Program, dict[int, Field]] = WeakKeyDictionary()


def receptive_fields(program: Program) -> dict[int, Field]:
    """The field of every value; computed once for each program."""
    if program in _known:
        return _known[program]
    shape = (program.shape[0], 2 * program.shape[1] - 1, 2 * program.shape[2] - 1)
    channels = {i.out: i.channels for i in program.instructions}
    found: dict[int, Seen] = {}
    solved: dict[tuple, list[Seen]] = {}
    for component in components(program.instructions):
        reads = {i: readings(i, channels.__getitem__) for i in component.instructions}
        if component.is_recurrence:
            found |= _seen_in_recurrence(reads, found, shape, solved)
        else:
            found |= {i.out: seen_by(i, own, found, shape) for i, own in reads.items()}
    _known[program] = {out: Field(*map(torch.from_numpy, seen)) for out, seen in found.items()}
    return _known[program]


def _seen_in_recurrence(
    reads: dict[Instruction, list[Reading]],
    known: dict[int, Seen],
    shape: FieldShape,
    solved: dict[tuple, list[Seen]],
) -> dict[int, Seen]:
    """The least that agrees with what each value reads of the others. solved: what was
    found before, by what is read: most layers see all that comes before, so the next one
    reads the same."""
    number = {i.out: k for k, i in enumerate(reads)}

    def told(each: Reading) -> tuple:
        value = each.value
        source = (number[value],) if value in number else (x.tobytes() for x in known[value])
        return each.dy, each.dx, *source, each.channels.tobytes()

    key = tuple((i.channels, *map(told, own)) for i, own in reads.items())
    if key not in solved:
        found = {i.out: nothing(i, shape) for i in reads}
        readers = {i.out: {j for j, own in reads.items() if i.out in (x.value for x in own)} for i in reads}
        every, late = ChainMap(found, known), set(reads)  # late: they read what is another by now
        while late:
            for i in reads:
                if i not in late:
                    continue
                late.remove(i)
                seen = seen_by(i, reads[i], every, shape)
                if not all(map(np.array_equal, seen, found[i.out])):
                    found[i.out] = seen
                    late |= readers[i.out]
        solved[key] = list(found.values())
    return dict(zip(number, solved[key], strict=True))


def output_field(program: Program) -> Tensor:
    """What each distribution sees: bool [distributions, image channels, 2H - 1, 2W - 1]."""
    c, height, width = program.shape
    fields = receptive_fields(program)
    seen = torch.cat([fields[output].of_channels() for output in program.outputs])
    return seen.view(program.distributions, program.parameters, c, 2 * height - 1, 2 * width - 1).any(1)
