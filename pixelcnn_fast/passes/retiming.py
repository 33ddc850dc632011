"""Handles layers that read ahead and are shifted back later, such as a whole convolution moved down by one, or
earlier, such as two strided convolutions of an image that was moved down by a cell.

Such a value can't be computed in its pixel's turn. But only the shifted value is
read, or what it reads sees rows further above only, so the shift, or the read ahead,
is moved up through the layers, onto their taps, until every layer reads only what is known.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.passes.emitter import Emitter
from pixelcnn_fast.passes.phases import computed_by_rows
from pixelcnn_fast.program.grids import Every, count
from pixelcnn_fast.program.in_turn import made
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution, Pointwise
from pixelcnn_fast.program.operands import Read, Step, Tap
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.recurrence import Component, components

Key = tuple[int, int, int]  # (value, dy, dx)


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
        self._up: dict[int, int] = {}  # by how many rows to move each so that it sees only rows above
        for component in ordered:
            self._classify(component)
        self._new = Emitter()
        self._made: dict[Key, int] = {}
        self._missing: list[Key] = []  # what the value that is being made needs, and is not there yet
        self._insides: dict[tuple[int, Every, int, int], int] = {}

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
            # A value is moved from pixel to pixel of its grid.
            up = max(below, default=-self._program.shape[1])
            self._up[i.out] = 1 if i.reads_levels else i.every[0] * count(up, i.every[0])
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
            elif (on_grid := _on_grid(i, dy, dx)) != (dy, dx):
                found = self._is_computable(value, *on_grid)
            else:
                there = [(read.value, read.dy + dy, read.dx + dx) for read in i.reads()]
                found = all(self._is_computable(*each) for each in there)
            self._computable[key] = found
        return self._computable[key]

    def retimed(self) -> Program:
        outputs = tuple(made(self._made, (value, 0, 0), self._make) for value in self._program.outputs)
        return replace(self._program, instructions=tuple(self._new.instructions), outputs=outputs)

    def _at(self, value: int, dy: int, dx: int) -> int:
        """The new value that has everywhere what ``value`` has (dy, dx) away, on its grid: zero outside the image."""
        key = (value, dy, dx)
        if key not in self._made:
            self._missing.append(key)
        return self._made.get(key, -1)

    def _make(self, value: int, dy: int, dx: int) -> int | list[Key]:
        """Makes what ``_at`` gives, or says what is missing for it."""
        self._missing, i, moved = [], self._producer[value], (dy, dx) != (0, 0)
        if not moved and value in self._recurrences:
            self._make_recurrence(self._recurrences[value])
            return self._missing or self._made[value, dy, dx]
        if moved and self._is_moved_itself(value, dy, dx):
            identity = torch.eye(i.channels, dtype=self._program.dtype, device=self._program.device)
            tap = Tap(value, 0, 0, identity).of(self._read(value, dy, dx))
            there: Instruction = Convolution(0, i.channels, i.name, taps=(tap,), every=i.every)
            return self._missing or self._new.emit(there)
        there = self._unmoved(i) if not moved and value in self.late else self._there(i, dy, dx)
        if self._missing or not moved:
            return self._missing or self._new.emit(there)
        return self._without_borders(i, there, dy, dx)

    def _make_recurrence(self, component: Component) -> None:
        """Makes all instructions of a recurrence, whose numbers come first, as they need each other."""
        for i in component.instructions:
            for read in i.reads():
                if read.value not in component.values:
                    self._as_it_is(read, i)
        if self._missing:
            return
        self._made |= {(i.out, 0, 0): self._new.number() for i in component.instructions}
        for i in component.instructions:
            self._new.emit(self._unmoved(i), self._made[i.out, 0, 0])

    def _unmoved(self, i: Instruction) -> Instruction:
        def unmoved(read: Read) -> Read:
            return self._as_it_is(read, i)

        return i.rewired(unmoved, lambda tap: tap.of(unmoved(tap.read)))

    def _as_it_is(self, read: Read, by: Instruction) -> Read:
        """Where an unmoved instruction reads a value's new form; one on finished rows may read all of its row."""
        if by.out in self.late or self.in_time(read.value, read.dy, read.dx):
            return read.of(self._at(read.value, 0, 0))
        return self._moved(read)

    def _moved(self, read: Read) -> Read:
        """Where a value is read that can't be computed in its turn: moved, as far as its grid allows."""
        dy, dx = _on_grid(self._producer[read.value], read.dy, read.dx)
        return Read(self._at(read.value, dy, dx), read.dy - dy, read.dx - dx)

    def _is_moved_itself(self, value: int, dy: int, dx: int) -> bool:
        """Whether it is moved once it is there, or with the one that serves all its readers."""
        is_server = (dy, dx) == (self._server(value, dy), 0)
        return self.in_time(value, dy, dx) or (self._below(value, dy) and not is_server)

    def _there(self, i: Instruction, dy: int, dx: int) -> Instruction:
        """The instruction, computing (dy, dx) away; wrong where that is outside the image."""
        if (dy, dx) != (0, 0) and (i.reads_levels or i.out in self._recurrences or i.out in self.finished):
            raise Unsupported(f"{i.name}: it is read ({dy:+d}, {dx:+d}) ahead of the present pixel")
        there = i.rewired(
            operand=lambda read: self._operand(read, dy, dx),
            tap=lambda tap: tap.of(self._read(tap.source, tap.dy + dy, tap.dx + dx)),
        )
        return replace(there, steps=tuple(step.shifted(dy, dx) for step in there.steps))

    def _without_borders(self, i: Instruction, there: Instruction, dy: int, dx: int) -> int:
        """What ``_there`` gives, with zeros outside the image."""
        if any(step.is_infinite_at_zero for step in i.steps):
            # The power of the zeros outside the grid would be infinite.
            ones_outside = Step("add", value=Read(self._outside(i, dy, dx)))
            there = replace(there, steps=(ones_outside, *there.steps))
        out = self._new.emit(there)
        inside = Step("multiply", value=Read(self._inside(i, dy, dx)))
        return self._new.emit(
            Pointwise(0, i.channels, i.name, base=Read(out), steps=(inside,), every=i.every)
        )

    def _below(self, value: int, dy: int) -> bool:
        """Whether all that a value sees at ``dy``, on its grid, lies in the rows above."""
        return dy <= -self._up[value]

    def _server(self, value: int, dy: int) -> int:
        """By how many rows a value is moved for all that read it at ``dy``, where it sees only rows above."""
        return min(-self._up[value], max(dy, 0))

    def _read(self, source: int, dy: int, dx: int) -> Read:
        """Where a tap of a moved instruction reads a value."""
        if self.in_time(source, dy, dx):
            return Read(self._at(source, 0, 0), dy, dx)
        to, _ = _on_grid(self._producer[source], dy, dx)
        if self._below(source, to):  # one moved value serves all its readers
            by = self._server(source, to)
            return Read(self._at(source, by, 0), dy - by, dx)
        return self._moved(Read(source, dy, dx))

    def _operand(self, read: Read, dy: int, dx: int) -> Read:
        """Where an instruction that is moved to (dy, dx) reads an operand."""
        dy, dx = dy + read.dy, dx + read.dx
        if not read.is_here and self.in_time(read.value, dy, dx):
            return Read(self._at(read.value, 0, 0), dy, dx)
        return self._moved(Read(read.value, dy, dx))

    def _outside(self, like: Instruction, dy: int, dx: int) -> int:
        """A value with as many channels, and on the same grid, that is one where (dy, dx) is outside the image."""
        inside, channels, every = self._inside(like, dy, dx), like.channels, like.every
        ones = torch.ones(channels, dtype=self._program.dtype, device=self._program.device)
        opposite = (Step("affine", scale=-ones, shift=ones),)
        return self._new.emit(
            Pointwise(0, channels, "outside", base=Read(inside), steps=opposite, every=every)
        )

    def _inside(self, like: Instruction, dy: int, dx: int) -> int:
        """A value with as many channels, and on the same grid, that is one where (dy, dx) is inside the image."""
        channels, every = like.channels, like.every
        key = (channels, every, dy, dx)
        if key not in self._insides:
            ones = torch.ones(1, channels, dtype=self._program.dtype, device=self._program.device)
            whole = self._new.emit(Convolution(0, 1, "inside", bias=ones[0, :1], every=every))
            taps = [Tap(whole, min(dy, 0), dx, ones)]
            if dy > 0:  # the last rows are those that have so many rows above
                above = every[0] * count(max(self._program.shape[1] - dy, 0), every[0])
                taps.append(Tap(whole, -above, dx, -ones))
            self._insides[key] = self._new.emit(
                Convolution(0, channels, "inside", taps=tuple(taps), every=every)
            )
        return self._insides[key]


def _on_grid(i: Instruction, dy: int, dx: int) -> tuple[int, int]:
    """The nearest (dy, dx) between the pixels of a value's grid that is neither above nor to the left."""
    return i.every[0] * count(dy, i.every[0]), i.every[1] * count(dx, i.every[1])
