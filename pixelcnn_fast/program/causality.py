"""Finds out whether a program is causal, and if not, which layer is at fault."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.errors import NotCausal
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.operands import Connection, Tap
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.receptive_field.fields import output_field, receptive_fields
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
    fields, sees = receptive_fields(program), output_field(program)
    own = [size // 2 for size in sees.shape[2:]]
    forbidden = torch.zeros_like(sees)
    forbidden.flatten(2)[:, :, forbidden[0, 0].numel() // 2 + 1 :] = True
    forbidden[:, :, own[0], own[1]] = torch.ones(sees.shape[:2]).triu().bool()
    found = (sees & forbidden).nonzero().tolist()  # (distribution, channel seen, row, column)
    if not found:
        return None
    channel, seen, y, x = min(found, key=lambda at: (at[2:] == own, at[2:]))
    dy, dx = y - own[0], x - own[1]
    path = list(reversed(_path(program, channel, seen, dy, dx)))
    ahead = sorted((s for s in path if (s[1].dy, s[1].dx) > (0, 0)), key=lambda s: (-s[1].dy, -s[1].dx))
    spatial = [(i, tap) for i, tap in path if any((t.dy, t.dx) != (0, 0) for t in i.taps)]
    if not path:
        return Leak("the model's output is its own input, pixel by pixel: nothing to sample", None)
    instruction, tap = (ahead + spatial + path)[0]
    what, advice = "sees a later pixel", "is the mask applied?"
    if any(instruction in c.instructions and c.is_from_the_right for c in components(program.instructions)):
        advice = "it walks rows from the right: shift what it gives down by a row"
    if (dy, dx) == (0, 0):
        what = "sees its own pixel"
        if not ahead:
            advice = "should this first layer have mask A?"
        if not all(fields[value].present().all() for value in program.outputs):
            which = "its own channel" if channel == seen else f"channel {seen}, which is drawn later,"
            through = ", ".join(dict.fromkeys(i.name for i, _ in path))
            what = f"of image channel {channel} sees {which} of its own pixel, through {through}"
            advice = "are the channels' masks right?"
    largest = tap.weight.abs().max().item()
    why = (
        f"{instruction.name}: kernel tap ({tap.dy:+d}, {tap.dx:+d}) has weight {largest:.2g}, so the output {what}; "
        f"{advice}"
    )
    return Leak(why, tap)


def _path(program: Program, channel: int, seen: int, dy: int, dx: int) -> list[tuple[Instruction, Tap]]:
    """The taps of one path from the output to the levels that looks ahead as late as possible."""
    fields, producer = receptive_fields(program), program.producer()
    _, height, width = program.shape

    def sees(value: int, dy: int, dx: int) -> Tensor:
        field = fields[value]
        if abs(dy) >= height or abs(dx) >= width:
            return torch.zeros(len(field.group), dtype=torch.bool)
        return field.seen[:, seen, dy + height - 1, dx + width - 1][field.group]

    def step_down(i: Instruction, at: int, dy: int, dx: int) -> tuple[Connection, int]:
        """A connection through which channel ``at`` sees the pixel, and the channel read there."""
        connections = i.connections(lambda value: len(fields[value].group))
        for connection in sorted(
            connections, key=lambda c: c.tap is not None and (c.tap.dy, c.tap.dx) > (0, 0)
        ):
            read = connection.read
            found = connection.channels[at] & sees(read.value, dy - read.dy, dx - read.dx)
            if found.any():
                return connection, int(found.int().argmax())
        raise AssertionError("a value sees a pixel that nothing it reads sees")

    first = channel * program.parameters
    for value in program.outputs:
        channels = producer[value].channels
        if first < channels:
            break
        first -= channels
    at = first + int(sees(value, dy, dx)[first : first + program.parameters].int().argmax())
    path: list[tuple[Instruction, Tap]] = []
    while not (i := producer[value]).reads_levels:
        connection, at = step_down(i, at, dy, dx)
        if connection.tap is not None:
            path.append((i, connection.tap))
        read = connection.read
        value, dy, dx = read.value, dy - read.dy, dx - read.dx
    return path
