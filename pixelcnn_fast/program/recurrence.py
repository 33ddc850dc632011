"""Finds a program's recurrences: instructions that read each other's values at other pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pixelcnn_fast.errors import InvalidProgram
from pixelcnn_fast.program.instruction import Instruction

Offset = tuple[int, int]


@dataclass(frozen=True)
class Component:
    """One instruction, or all of a recurrence, in order."""

    instructions: tuple[Instruction, ...]

    @cached_property
    def values(self) -> set[int]:
        return {i.out for i in self.instructions}

    @cached_property
    def offsets(self) -> frozenset[Offset]:
        """Where they read each other at other pixels, (dy, dx); none if they are no recurrence."""
        reads = (read for i in self.instructions for read in i.reads() if read.value in self.values)
        return frozenset((read.dy, read.dx) for read in reads if not read.is_here)

    @property
    def is_recurrence(self) -> bool:
        return bool(self.offsets)

    @property
    def goes_along_rows(self) -> bool:
        """Whether pixels of a row need each other, so that it can't be computed at once."""
        return any(dy == 0 for dy, _ in self.offsets)

    @property
    def is_from_the_right(self) -> bool:
        """Whether it goes through rows from the right, and so can't begin before a row is finished."""
        return any(dy == 0 and dx > 0 for dy, dx in self.offsets)

    def schedule(self, height: int, width: int) -> Schedule:
        """Which pixels can be computed together. Raises InvalidProgram if one needs a later one."""
        offsets = [(dy, -dx) for dy, dx in self.offsets] if self.is_from_the_right else self.offsets
        if any(offset > (0, 0) for offset in offsets):
            names = ", ".join(dict.fromkeys(i.name for i in self.instructions))
            raise InvalidProgram(f"{names}: a recurrence that reads pixels before and after its own")
        slope = max([1, *(dx // -dy + 1 for dy, dx in offsets if dy)])
        by_rows = all(dy < 0 for dy, _ in offsets)
        return Schedule(height, width, self.is_from_the_right, None if by_rows else slope)


@dataclass(frozen=True)
class Schedule:
    """The steps of a recurrence: pixels of the same time have positions side by side.

    slope: None if rows are computed in turn, at position x; else (y, x) is computed at x + slope * y, at position y.
    from_the_right: x counts from there.
    """

    height: int
    width: int
    from_the_right: bool
    slope: int | None

    @property
    def times(self) -> int:
        if not self.height or not self.width:
            return 0
        return self.height if self.slope is None else self.width + self.slope * (self.height - 1)

    @property
    def positions(self) -> int:
        return self.width if self.slope is None else self.height

    def offset(self, dy: int, dx: int) -> Offset:
        """How much later what is read there is computed, and how far its position is."""
        dx = -dx if self.from_the_right else dx
        return (dy, dx) if self.slope is None else (dx + self.slope * dy, dy)

    def active(self, time: int) -> tuple[int, int]:
        """The first position that has a pixel at this time, and the one after the last."""
        if self.slope is None:
            return 0, self.width
        return max(0, (time - self.width) // self.slope + 1), min(self.height, time // self.slope + 1)

    def pixels(self) -> tuple[Tensor, Tensor]:
        y, x = torch.arange(self.height)[:, None], torch.arange(self.width)
        x = self.width - 1 - x if self.from_the_right else x
        if self.slope is None:
            return y.expand(self.height, self.width), x.expand(self.height, self.width)
        return x + self.slope * y, y.expand(self.height, self.width)


def components(instructions: Sequence[Instruction]) -> list[Component]:
    """The strongly connected components, by Tarjan's algorithm, each after those that it needs."""
    producer = {i.out: i for i in instructions}
    position = {i.out: at for at, i in enumerate(instructions)}
    number: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    done: set[int] = set()
    found: list[Component] = []

    def visit(value: int) -> None:
        """Goes deeper only within a recurrence: others are visited before what reads them."""
        number[value] = lowest[value] = len(number)
        stack.append(value)
        for read in producer[value].reads():
            if read.value not in number:
                visit(read.value)
            if read.value not in done:
                lowest[value] = min(lowest[value], lowest[read.value])
        if lowest[value] == number[value]:
            at = stack.index(value)
            members = sorted(stack[at:], key=position.__getitem__)
            del stack[at:]
            done.update(members)
            found.append(Component(tuple(producer[member] for member in members)))

    for value in producer:
        if value not in number:
            visit(value)
    return found


def recurrent(instructions: Iterable[Instruction]) -> bool:
    """Whether there is a recurrence: a value that is read before it is defined, or by itself."""
    defined: set[int] = set()
    for i in instructions:
        if any(read.value not in defined for read in i.reads()):
            return True
        defined.add(i.out)
    return False
