"""Computes what each value of a program sees of the image, exactly, from the weights."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.receptive_field.recurrences import Known, seen_in_recurrence
from pixelcnn_fast.program.receptive_field.seen import Seen, seen_by
from pixelcnn_fast.program.recurrence import components


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


_known: WeakKeyDictionary[Program, dict[int, Field]] = WeakKeyDictionary()


def receptive_fields(program: Program) -> dict[int, Field]:
    """The field of every value; computed once for each program."""
    if program in _known:
        return _known[program]
    shape = (program.shape[0], 2 * program.shape[1] - 1, 2 * program.shape[2] - 1)
    found: dict[int, Seen] = {}
    sums: Known = {}

    def channels_of(value: int) -> int:
        return len(found[value].group)

    for component in components(program.instructions):
        if component.is_recurrence:
            found |= seen_in_recurrence(component, found, shape, sums)
        else:
            (i,) = component.instructions
            found[i.out] = seen_by(i, found, shape, channels_of)
    _known[program] = {out: Field(*map(torch.from_numpy, seen)) for out, seen in found.items()}
    return _known[program]


def output_field(program: Program) -> Tensor:
    """What each distribution sees: bool [distributions, image channels, 2H - 1, 2W - 1]."""
    c, height, width = program.shape
    fields = receptive_fields(program)
    seen = torch.cat([fields[output].of_channels() for output in program.outputs])
    return seen.view(program.distributions, program.parameters, c, 2 * height - 1, 2 * width - 1).any(1)
