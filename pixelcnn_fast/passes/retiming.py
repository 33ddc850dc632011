"""Handles layers that read ahead and are shifted back later, such as a whole convolution moved down by one.

Such a value can't be computed in its pixel's turn. But only the shifted value is
read, so the shift is moved up through the layers, onto their taps, until every
layer reads only what is known.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.passes.emitter import Emitter
from pixelcnn_fast.passes.phases import computed_by_rows
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution, Pointwise
from pixelcnn_fast.program.operands import Read, Step, Tap
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.recurrence import Component, components


def without_reading_ahead(program: Program) -> Program:
    """The same causal program, in which nothing reads ahead.

    Then taps read rows above, the present row up to the present pixel, or, of values that
    see only rows above, any pixel of the present row. Raises Unsupported if that is
    impossible. What needs a recurrence from the right, or one that reads ahead, is left
    alone, to be computed when its row is finished and read from the rows below.
    """
    retiming = _Retiming(program)
    reads = [read for i in program.instructions if i.out not in retiming.finished for read in i.reads()]
    in_time = all(retiming.in_time(read.value, read.dy, read.dx) for read in reads)
    return program if in_time else retiming.retimed()


class _Retiming:
    def __init__(self, program: Program) -> None:
        self._program, self._producer = program, program.producer()
        ordered = components(program.instructions)
        self._rows = computed_by_rows(ordered)
        self._computable: dict[tuple[int, int, int], bool] = {}
        self.late: set[int] = set()  # values that can't be computed in their pixel's turn
        self.finished: set[int] = set()  # of these, what is computed when the row is finished
        self._recurrences: dict[int, Component] = {}  # by value
        self._up: dict[int, int] = {}  # by how many rows each must be moved down to see only rows above
        for component in ordered:
            self._classify(component)
        self._new = Emitter()
        self._made: dict[tuple[int, int, int], int] = {}
        self._insides: dict[tuple[int, int, int], int] = {}

    def _classify(self, component: Component) -> None:
        values, reads = component.values, [read for i in component.instructions for read in i.reads()]
        others = [read for read in reads if read.value not in values]
        if component.is_recurrence:
            self._recurrences |= dict.fromkeys(values, component)
            is_late = not values <= self._rows and (
                component.is_from_the_right
                or not all(self._is_computable(read.value, read.dy, read.dx) for read in others)
            )
            self._computable |= {(value, 0, 0): not is_late for value in values}
            self._up |= dict.fromkeys(values, 1)
        else:
            (i,) = component.instructions
            is_late = not self._is_computable(i.out, 0, 0)
            below = [read.dy + self._up[read.value] for read in reads]
            self._up[i.out] = 1 if i.reads_levels else max(0, *below) if below else 0
        if is_late:
            self.late |= values
            if component.is_recurrence or any(r.dy == 0 and r.value in self.finished for r in others):
                self.finished |= values

    def in_time(self, value: int, dy: int, dx: int) -> bool:
        """Whether the value at (dy, dx), computed in its own turn, is known in the pixel's turn."""
        if value in self.finished:
            return dy < 0
        return value not in self.late and (dy < 0 or (dy == 0 and (dx <= 0 or value in self._rows)))

    def _is_computable(self, value: int, dy: int, dx: int) -> bool:
        """Whether the value at (dy, dx) from a pixel can be known in its turn, if shifts may be moved."""
        key = (value, dy, dx)
        if key not in self._computable:
            i = self._producer[value]
            if i.reads_levels:
                found = (dy, dx) <= (0, 0)
            elif (dy, dx) != (0, 0) and self.in_time(*key):
                found = True
            elif value in self._recurrences or value in self.finished:
                found = False
            else:
                there = [(read.value, read.dy + dy, read.dx + dx) for read in i.reads()]
                found = dy <= 0 and all(self._is_computable(*each) for each in there)
            self._computable[key] = found
        return self._computable[key]

    def retimed(self) -> Program:
        outputs = tuple(self._at(value, 0, 0) for value in self._program.outputs)
        return replace(self._program, instructions=tuple(self._new.instructions), outputs=outputs)

    def _at(self, value: int, dy: int, dx: int) -> int:
        """The new value that has everywhere what ``value`` has (dy, dx) away: zero outside the grid."""
        key = (value, dy, dx)
        if key not in self._made:
            if (dy, dx) == (0, 0) and value in self._recurrences:
                self._make_recurrence(self._recurrences[value])
            elif (dy, dx) == (0, 0) and value in self.late:
                self._made[key] = self._new.emit(self._unmoved(self._producer[value]))
            else:
                self._made[key] = self._make(self._producer[value], dy, dx)
        return self._made[key]

    def _make_recurrence(self, component: Component) -> None:
        """Makes all instructions of a recurrence, whose numbers come first, as they need each other."""
        for i in component.instructions:
            for read in i.reads():
                if read.value not in component.values:
                    self._as_it_is(read, i)
        self._made |= {(i.out, 0, 0): self._new.number() for i in component.instructions}
        for i in component.instructions:
            self._new.emit(self._unmoved(i), self._made[i.out, 0, 0])

    def _unmoved(self, i: Instruction) -> Instruction:
        def tap(tap: Tap) -> Tap:
            read = self._as_it_is(tap.read, i)
            return Tap(read.value, read.dy, read.dx, tap.weight)

        return i.rewired(lambda read: self._as_it_is(read, i), tap)

    def _as_it_is(self, read: Read, by: Instruction) -> Read:
        """Where an unmoved instruction reads a value's new form; one on finished rows may read all of its row."""
        if by.out in self.late or self.in_time(read.value, read.dy, read.dx):
            return read.of(self._at(read.value, 0, 0))
        return Read(self._at(read.value, read.dy, read.dx))

    def _make(self, i: Instruction, dy: int, dx: int) -> int:
        moved = (dy, dx) != (0, 0)
        is_below = self._below(i.out, dy) and (dy, dx) != (-self._up[i.out], 0)
        if moved and (self.in_time(i.out, dy, dx) or is_below):
            identity = torch.eye(i.channels, dtype=self._program.dtype, device=self._program.device)
            tap = self._read(i.out, dy, dx, identity)
            return self._new.emit(Convolution(0, i.channels, i.name, taps=(tap,)))
        if moved and (i.reads_levels or i.out in self._recurrences or i.out in self.finished):
            raise Unsupported(f"{i.name}: it is read ({dy:+d}, {dx:+d}) ahead of the present pixel")
        there = i.rewired(
            operand=lambda read: self._operand(read, dy, dx),
            tap=lambda tap: self._read(tap.source, tap.dy + dy, tap.dx + dx, tap.weight),
        )
        there = replace(there, steps=tuple(step.shifted(dy, dx) for step in there.steps))
        if moved and any(step.is_infinite_at_zero for step in i.steps):
            # The power of the zeros outside the grid would be infinite.
            ones_outside = Step("add", value=Read(self._outside(i.channels, dy, dx)))
            there = replace(there, steps=(ones_outside, *there.steps))
        out = self._new.emit(there)
        if not moved:
            return out
        inside = Step("multiply", value=Read(self._inside(i.channels, dy, dx)))
        return self._new.emit(Pointwise(0, i.channels, i.name, base=Read(out), steps=(inside,)))

    def _below(self, value: int, dy: int) -> bool:
        """Whether reading a late value at ``dy`` moves it down until it sees only rows above."""
        return value in self.late and dy <= -self._up[value]

    def _read(self, source: int, dy: int, dx: int, weight: Tensor) -> Tap:
        if self.in_time(source, dy, dx):
            return Tap(self._at(source, 0, 0), dy, dx, weight)
        if self._below(source, dy):  # one moved value serves all its readers
            up = self._up[source]
            return Tap(self._at(source, -up, 0), dy + up, dx, weight)
        return Tap(self._at(source, dy, dx), 0, 0, weight)

    def _operand(self, read: Read, dy: int, dx: int) -> Read:
        """Where an instruction that is moved to (dy, dx) reads an operand."""
        dy, dx = dy + read.dy, dx + read.dx
        if not read.is_here and self.in_time(read.value, dy, dx):
            return Read(self._at(read.value, 0, 0), dy, dx)
        return Read(self._at(read.value, dy, dx))

    def _outside(self, channels: int, dy: int, dx: int) -> int:
        """A value that is one where (dy, dx) is outside the grid, and else zero."""
        inside = self._inside(channels, dy, dx)
        ones = torch.ones(channels, dtype=self._program.dtype, device=self._program.device)
        opposite = Step("affine", scale=-ones, shift=ones)
        return self._new.emit(Pointwise(0, channels, "outside", base=Read(inside), steps=(opposite,)))

    def _inside(self, channels: int, dy: int, dx: int) -> int:
        """A value that is one where (dy, dx) is inside the grid, and else zero."""
        key = (channels, dy, dx)
        if key not in self._insides:
            ones = torch.ones(1, channels, dtype=self._program.dtype, device=self._program.device)
            whole = self._new.emit(Convolution(0, 1, "inside", bias=ones[0, :1]))
            inside = Convolution(0, channels, "inside", taps=(Tap(whole, dy, dx, ones),))
            self._insides[key] = self._new.emit(inside)
        return self._insides[key]
