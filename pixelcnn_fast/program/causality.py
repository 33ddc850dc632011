"""Finds out whether a program is causal, and if not, which layer is at fault."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.errors import NotCausal
from pixelcnn_fast.program.grids import Place, beside, cell
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.operands import Connection, Read, Tap
from pixelcnn_fast.program.orders import Order, other_order
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.receptive_field.fields import output_fields, receptive_fields
from pixelcnn_fast.program.recurrence import components


class Leak(NamedTuple):
    """What an output sees but must not, in words, and the tap at fault, if one is."""

    why: str
    tap: Tap | None


def check_causal(program: Program) -> None:
    """Raises NotCausal, with layer and tap, if the output sees its own sub-pixel or a later one."""
    if (leak := leak_of(program)) is not None:
        raise NotCausal(leak.why)


def leak_of(program: Program) -> Leak | None:
    """What the output sees but must not, preferably a later pixel; None for a causal program.

    At fault is the tap on the path to it that looks furthest ahead. If none does,
    it is the first in a layer with taps on other pixels, which should be masked,
    or else the first of all.
    """
    by_place = output_fields(program)
    found = [at for place, sees in by_place.items() for at in _forbidden(place, sees)]
    if not found:
        return None
    first = min(found, key=lambda at: (at.offset == (0, 0), at.offset))
    channel, seen, (dy, dx) = first.distribution, first.seen, first.offset
    path = list(reversed(_path(program, first)))
    ahead = sorted((s for s in path if s.offset > (0, 0)), key=lambda s: (-s.offset[0], -s.offset[1]))
    spatial = [s for s in path if any(not read.is_here for read in s.instruction.reads())]
    if not path:
        return Leak("the model's output is its own input, pixel by pixel: nothing to sample", None)
    instruction, read, tap = (ahead + spatial + path)[0]
    what, advice = "sees a later pixel", "is the mask applied?"
    if any(instruction in c.instructions and c.is_from_the_right for c in components(program.instructions)):
        advice = "it walks rows from the right: shift what it gives down by a row"
    elif (dy, dx) != (0, 0):
        advice = other_order(lambda order: not _leaks(by_place, order)) or advice
    if (dy, dx) == (0, 0):
        what = "sees its own pixel"
        if not ahead:
            advice = (
                "should this first layer have mask A?" if tap is not None else "should its mask be strict?"
            )
        fields = receptive_fields(program)
        if not all(field.present().all() for value in program.outputs for field in fields[value].values()):
            which = "its own channel" if channel == seen else f"channel {seen}, which is drawn later,"
            through = ", ".join(dict.fromkeys(s.instruction.name for s in path))
            what = f"of image channel {channel} sees {which} of its own pixel, through {through}"
            advice = "are the channels' masks right?"
    if tap is None:
        reason = instruction.said_of(read, program.shape[0])
    else:
        reason = f"kernel tap ({tap.dy:+d}, {tap.dx:+d}) has weight {tap.weight.abs().max().item():.2g}"
    return Leak(f"{instruction.name}: {reason}, so the output {what}; {advice}", tap)


class _Step(NamedTuple):
    """One of a path: what an instruction reads, by a tap or without a weight."""

    instruction: Instruction
    read: Read
    tap: Tap | None

    @property
    def offset(self) -> tuple[int, int]:
        return self.read.dy, self.read.dx


class _Seen(NamedTuple):
    """That a distribution of a pixel at a place of the cell sees an image channel of another pixel."""

    place: Place
    distribution: int
    seen: int
    offset: tuple[int, int]


def _forbidden(place: Place, sees: Tensor) -> list[_Seen]:
    """What is seen of ``output_fields`` that must not be."""
    y, x = (size // 2 for size in sees.shape[2:])
    forbidden = sees.new_zeros(sees.shape)
    forbidden.flatten(2)[:, :, forbidden[0, 0].numel() // 2 + 1 :] = True
    forbidden[:, :, y, x] = torch.ones(sees.shape[:2]).triu().bool()
    return [_Seen(place, d, c, (i - y, j - x)) for d, c, i, j in (sees & forbidden).nonzero().tolist()]


def _leaks(by_place: dict[Place, Tensor], order: Order) -> bool:
    return any(_forbidden(place, order.turned(sees)) for place, sees in by_place.items())


def _path(program: Program, of: _Seen) -> list[_Step]:
    """A path from the output to the levels that looks ahead as late as possible: taps, and what is read elsewhere."""
    fields, producer = receptive_fields(program), program.producer()
    whole = cell(i.every for i in program.instructions)

    def there(place: Place, read: Read) -> Place:
        return beside(place, read.dy, read.dx, whole)

    def sees(value: int, place: Place, dy: int, dx: int) -> np.ndarray:
        if place not in fields[value]:
            return np.zeros(producer[value].channels, bool)
        return fields[value][place].sees(of.seen, dy, dx)

    def step_down(i: Instruction, place: Place, at: int, dy: int, dx: int) -> tuple[Connection, int]:
        """A connection through which channel ``at`` sees the pixel, and the channel read there."""
        connections = i.connections(lambda value: producer[value].channels)
        for connection in sorted(connections, key=lambda c: (c.read.dy, c.read.dx) > (0, 0)):
            read = connection.read
            seen = sees(read.value, there(place, read), dy - read.dy, dx - read.dx)
            if (found := connection.channels[at] & seen).any():
                return connection, int(found.argmax())
        raise AssertionError("a value sees a pixel that nothing it reads sees")

    place, (dy, dx), first = of.place, of.offset, of.distribution * program.parameters
    for value in program.outputs:
        channels = producer[value].channels
        if first < channels:
            break
        first -= channels
    at = first + int(sees(value, place, dy, dx)[first : first + program.parameters].argmax())
    path: list[_Step] = []
    while not (i := producer[value]).reads_levels:
        connection, at = step_down(i, place, at, dy, dx)
        read = connection.read
        if connection.tap is not None or not read.is_here or read.value in i.attended():
            path.append(_Step(i, read, connection.tap))
        value, place, dy, dx = read.value, there(place, read), dy - read.dy, dx - read.dx
    return path
