"""Computes what each value of a program sees of the image."""

from __future__ import annotations

from collections import ChainMap, defaultdict
from dataclasses import dataclass
from functools import reduce
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.program.grids import WHOLE, Every, Place, cell, places
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.receptive_field.seen import (
    Node,
    Offsets,
    Reading,
    Readings,
    Seen,
    nothing,
    seen_by,
)
from pixelcnn_fast.program.recurrence import components


@dataclass(frozen=True)
class Field:
    """What the channels of a value see. Channels that see the same form a group."""

    groups: Seen
    offsets: Offsets

    @property
    def seen(self) -> Tensor:
        """bool [groups, image channels, 2H - 1, 2W - 1]: whether group g sees image channel c
        of the pixel at (dy, dx) is at (g, c, dy + H - 1, dx + W - 1). Offsets that no pixel
        has are left out."""
        return torch.from_numpy(self.offsets.unpacked(self.groups.seen))

    def of_channels(self) -> Tensor:
        """By channel: [channels, image channels, 2H - 1, 2W - 1]."""
        return self.seen[torch.from_numpy(self.groups.group)]

    def sees(self, channel: int, dy: int, dx: int) -> np.ndarray:
        """Which channels see an image channel of the pixel at (dy, dx): bool [channels]."""
        offset, (group, seen) = self.offsets.at(channel, dy, dx), self.groups
        return np.array([bool(one & offset) for one in seen])[group]

    def present(self) -> np.ndarray:
        """Which image channels of its own pixel each channel sees: bool [channels, image channels]."""
        return np.stack([self.sees(channel, 0, 0) for channel in range(self.offsets.shape[0])], 1)


# By value, its field at each place of the program's cell where it exists.
Fields = dict[int, dict[Place, Field]]
_known: WeakKeyDictionary[Program, dict[bool, Fields]] = WeakKeyDictionary()


def receptive_fields(program: Program, together: bool | None = None) -> Fields:
    """The fields of every value; computed once for each program.

    together: whether the channels of a pixel count as one, by default if they are drawn
    from a joint distribution: many would take long.
    """
    together = program.joint if together is None else together
    found = _known.setdefault(program, {})
    if together not in found:
        found[together] = _receptive_fields(program, together)
    return found[together]


def _receptive_fields(program: Program, together: bool) -> Fields:
    image_channels, height, width = program.shape
    offsets = Offsets(1 if together else image_channels, height, width)
    channels = {i.out: i.channels for i in program.instructions}
    whole = cell(i.every for i in program.instructions)
    exist = {(i.out, place) for i in program.instructions for place in places(whole, i.every, program.shape)}
    possible = {
        place: _possible(offsets, place, whole, program) for place in places(whole, WHOLE, program.shape)
    }
    found: dict[Node, Seen] = {}
    solved: dict[tuple, list[Seen]] = {}
    for component in components(program.instructions):
        reads: dict[Node, tuple[Instruction, list[Reading]]] = {}
        for i in component.instructions:
            of = Readings(i, whole, exist, channels.__getitem__)
            own = places(whole, i.every, program.shape)
            reads |= {(i.out, place): (i, of.at(place)) for place in own}
        if component.is_recurrence:
            found |= _seen_in_recurrence(reads, found, offsets, solved)
            continue
        (i,) = component.instructions
        levels = i.levels_seen(image_channels)
        if levels is not None and together:
            levels = np.asarray(levels.any(1))[:, None]
        for node, (_, readings) in reads.items():
            found[node] = _inside(seen_by(i, readings, found, offsets, levels), possible[node[1]])
    fields: Fields = defaultdict(dict)
    for (value, place), seen in found.items():
        fields[value][place] = Field(seen, offsets)
    return dict(fields)


def _possible(offsets: Offsets, place: Place, whole: Every, program: Program) -> int:
    """The offsets that some pixel at a place of the cell has."""
    kept = []
    for size, first, every in zip(program.shape[1:], place, whole, strict=True):
        last = first + (size - 1 - first) // every * every  # the last pixel at the place
        kept.append(range(size - 1 - last, 2 * size - 1 - first))
    return offsets.within(*kept)


def _inside(seen: Seen, possible: int) -> Seen:
    return seen._replace(seen=[one & possible for one in seen.seen])


def _seen_in_recurrence(
    reads: dict[Node, tuple[Instruction, list[Reading]]],
    known: dict[Node, Seen],
    offsets: Offsets,
    solved: dict[tuple, list[Seen]],
) -> dict[Node, Seen]:
    """The least that agrees with what each value reads of the others. solved: what was
    found before, by what is read: most layers see all that comes before, so the next one
    reads the same."""
    number = {node: k for k, node in enumerate(reads)}

    def told(each: Reading) -> tuple:
        node = each.node
        source = (number[node],) if node in number else (known[node].group.tobytes(), *known[node].seen)
        return each.dy, each.dx, *source, each.channels.tobytes()

    key = tuple((i.channels, *map(told, own)) for i, own in reads.values())
    if key not in solved:
        found = {node: nothing(i) for node, (i, _) in reads.items()}
        readers = {
            node: {j for j, (_, own) in reads.items() if node in (x.node for x in own)} for node in reads
        }
        every, late = ChainMap(found, known), set(reads)  # late: they read what is another by now
        while late:
            for node, (i, own) in reads.items():
                if node not in late:
                    continue
                late.remove(node)
                seen = seen_by(i, own, every, offsets)
                if seen.seen != found[node].seen or not np.array_equal(seen.group, found[node].group):
                    found[node] = seen
                    late |= readers[node]
        solved[key] = list(found.values())
    return dict(zip(number, solved[key], strict=True))


def output_fields(program: Program, together: bool | None = None) -> dict[Place, Tensor]:
    """What each distribution sees, by the place of its pixel: bool [distributions, image
    channels, 2H - 1, 2W - 1]. together: as for ``receptive_fields``."""
    fields, (first, *_) = receptive_fields(program, together), program.outputs
    found = {}
    for place in fields[first]:
        seen = torch.cat([fields[output][place].of_channels() for output in program.outputs])
        found[place] = seen.unflatten(0, (program.distributions, program.parameters)).any(1)
    return found


def output_field(program: Program, together: bool | None = None) -> Tensor:
    """What each distribution sees of any pixel that it is for: as one of ``output_fields``."""
    return reduce(torch.logical_or, output_fields(program, together).values())
