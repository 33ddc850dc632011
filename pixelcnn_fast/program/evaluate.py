"""Evaluates a program in plain PyTorch: this is what a program means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.program.formulas import apply_steps
from pixelcnn_fast.program.grids import WHOLE, Every, count, frame, meeting, stretch
from pixelcnn_fast.program.instruction import Instruction, Surroundings
from pixelcnn_fast.program.operands import ConditionOperand, Read, Tap
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.recurrence import Component, components

Index = tuple[Any, ...]
Condition = Callable[[ConditionOperand], Tensor]


def evaluate(program: Program, levels: Tensor, condition: Condition) -> Tensor:
    """The program's meaning, teacher-forced: all pixels at once, and recurrences by rows or diagonals.

    levels: integers [N, C, H, W]; condition: operand -> [N, channels] or
    [N, H, W, channels] -> [N, distributions, H, W, parameters]; for a categorical head,
    logits [N, C, H, W, L].
    """
    known = _Known(program, levels, condition)
    parts = components(program.instructions)
    last = {read.value: at for at, part in enumerate(parts) for i in part.instructions for read in i.reads()}
    for at, component in enumerate(parts):
        if component.is_recurrence:
            _Walk(component, _Grid(known)).through()
        else:
            (i,) = component.instructions
            grid = _Grid(known, i.every)
            known.values[i.out] = apply_steps(i.start(grid), i.steps, grid.value, grid.condition)
        for value, reader in last.items():
            if reader == at and value not in program.outputs:
                del known.values[value]
    output = torch.cat([known.values[output] for output in program.outputs], -1)
    output = output.unflatten(-1, (program.distributions, program.parameters)).permute(0, 3, 1, 2, 4)
    return output.log_softmax(-1) if program.normalised else output


class _Known:
    """What is known so far. values: [N, rows, columns, channels], each on its own grid."""

    def __init__(self, program: Program, levels: Tensor, condition: Condition) -> None:
        self.dtype, self.levels, self.given = program.dtype, levels, condition
        self.every = {i.out: i.every for i in program.instructions}
        self.values: dict[int, Tensor] = {}


class _Grid(Surroundings):
    """All pixels of a grid at once: [N, rows, columns, channels]."""

    def __init__(self, known: _Known, every: Every = WHOLE) -> None:
        self.dtype, self.known, self._every = known.dtype, known, every

    def value(self, read: Read) -> Tensor:
        x = self.known.values[read.value]
        if read.is_here and self.known.every[read.value] == self._every:
            return x
        out, (here, there) = self.zeros(x.shape[-1]), self._where(read)
        out[here] = x[there]
        return out

    def summed(self, i: Instruction) -> Tensor:
        total = self.zeros(i.channels)
        if i.bias is not None:
            total += i.bias
        width = total.shape[2]
        inside = (tap for tap in i.taps if abs(tap.dx) < width)  # others read nothing but zeros
        for taps in side_by_side(inside) if self._joins(i) else ([tap] for tap in i.taps):
            first, last = taps[0], taps[-1]
            here, there = self._where(replace(first.read, dx=0) if len(taps) > 1 else first.read)
            seen = self.known.values[first.source][there]
            if len(taps) > 1 and seen.numel():
                # One convolution of rows takes half as long, by the call that FastProducts takes over.
                padded = F.pad(seen.permute(0, 3, 1, 2), (-first.dx, last.dx))
                kernel = torch.stack([tap.weight.mT for tap in taps], -1)[:, :, None]
                found = torch.convolution(padded, kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
                total[here] += found.permute(0, 2, 3, 1)
            else:
                total[here] += (seen.flatten(0, -2) @ first.weight).view(*seen.shape[:-1], i.channels)
        return total

    def _joins(self, i: Instruction) -> bool:
        """Whether taps side by side may be one product: it and all that it reads exist at every pixel.
        Other devices than the CPU may round convolutions more than products (TF32)."""
        every = {self._every, *(self.known.every[tap.source] for tap in i.taps)}
        return self.known.levels.is_cpu and every == {WHOLE}

    def _where(self, read: Read) -> tuple[Index, Index]:
        """The pixels that find what is read, and what they find."""
        of, size = self.known.every[read.value], self.known.levels.shape[2:]
        axes = zip(size, self._every, of, (read.dy, read.dx), strict=True)
        met = [meeting(*axis).inside(count(axis[0], axis[2])) for axis in axes]
        here, there = ((..., *map(stretch, axes), slice(None)) for axes in zip(*met, strict=True))
        return here, there

    def whole(self, value: int) -> Tensor:
        return self.known.values[value].flatten(1, 2)

    def pixels(self) -> Tensor:
        height, width = self.known.levels.shape[2:]
        return torch.arange(height * width, device=self.known.levels.device).view(height, width)

    def image(self) -> Tensor:
        return self._own(self.known.levels.permute(0, 2, 3, 1))

    def zeros(self, channels: int) -> Tensor:
        levels = self.known.levels
        return levels.new_zeros((len(levels), *frame(levels.shape, self._every), channels), dtype=self.dtype)

    def condition(self, operand: ConditionOperand) -> Tensor:
        x = self.known.given(operand)
        return self._own(x) if operand.varies_over_pixels else x[:, None, None]

    def _own(self, whole: Tensor) -> Tensor:
        return whole[:, :: self._every[0], :: self._every[1]]


class _Walk(Surroundings):
    """The pixels of a recurrence that are computed next: [positions, N, channels].

    Maps are [times, positions, N, channels]; the recurrence's own have zeros around the image.
    """

    def __init__(self, component: Component, grid: _Grid) -> None:
        self.dtype, self._grid, self._component = grid.dtype, grid, component
        self._schedule = component.schedule(*grid.image().shape[1:3])
        self._pixels = tuple(x.to(grid.image().device) for x in self._schedule.pixels())
        shifts = [self._schedule.offset(*offset) for offset in component.offsets]
        self._before = max(-later for later, _ in shifts)
        self._around = max(abs(away) for _, away in shifts)
        times, positions = self._schedule.times + self._before, self._schedule.positions + 2 * self._around
        self._own = {i.out: self._zeros(times, positions, i.channels) for i in component.instructions}
        self._others: dict[Read | ConditionOperand, Tensor] = {}
        self._time, self._first, self._last = 0, 0, 0

    def through(self) -> None:
        sums = _sums(self._component, self._grid, self)
        for time in range(self._schedule.times):
            self._time, (self._first, self._last) = time, self._schedule.active(time)
            ahead: dict[int, Tensor] = {}
            for i in self._component.instructions:
                if i.out in sums and i.out not in ahead:
                    ahead.update(sums[i.out].now(self))
                start = ahead[i.out] if i.out in ahead else i.start(self)
                self.value(Read(i.out))[:] = apply_steps(start, i.steps, self.value, self.condition)
        times, positions = self._pixels
        for value, lines in self._own.items():
            found = lines[times + self._before, positions + self._around]
            self._grid.known.values[value] = found.permute(2, 0, 1, 3).contiguous()

    def value(self, read: Read) -> Tensor:
        if read.value not in self._own:
            return self._other(read, self._grid.value)
        later, away = self._schedule.offset(read.dy, read.dx)
        lines, away = self._own[read.value][self._time + self._before + later], away + self._around
        return lines[self._first + away : self._last + away]

    def condition(self, operand: ConditionOperand) -> Tensor:
        given = self._grid.known.given
        return self._other(operand, given) if operand.varies_over_pixels else given(operand)

    def zeros(self, channels: int) -> Tensor:
        return self._zeros(self._last - self._first, channels)

    def image(self) -> Tensor:
        raise AssertionError("levels are no part of a recurrence")

    def whole(self, value: int) -> Tensor:
        raise AssertionError("no attention is part of a recurrence")

    def pixels(self) -> Tensor:
        raise AssertionError("no attention is part of a recurrence")

    def _other(self, key: Any, known: Callable[[Any], Tensor]) -> Tensor:
        if key not in self._others:
            self._others[key] = self.laid_out(known(key))
        return self.now(self._others[key])

    def now(self, lines: Tensor) -> Tensor:
        return lines[self._time, self._first : self._last]

    def laid_out(self, whole: Tensor) -> Tensor:
        """A map [N, H, W, channels], by time and position."""
        lines = self._zeros(self._schedule.times, self._schedule.positions, whole.shape[-1])
        lines[self._pixels] = whole.permute(1, 2, 0, 3)
        return lines

    def _zeros(self, *size: int) -> Tensor:
        image = self._grid.image()
        return image.new_zeros((*size[:-1], len(image), size[-1]), dtype=self.dtype)


def side_by_side(taps: Iterable[Tap]) -> Iterator[list[Tap]]:
    """Yields taps of one source and row whose columns follow each other."""
    found: list[Tap] = []
    for tap in sorted(taps, key=lambda tap: (tap.source, tap.dy, tap.dx)):
        if found and tap.read != replace(found[-1].read, dx=found[-1].dx + 1):
            yield found
            found = []
        found.append(tap)
    if found:
        yield found


@dataclass(frozen=True)
class _Sums:
    """Sums of a recurrence that read the same of its values, as one product."""

    reads: tuple[Read, ...]
    channels: dict[int, int]  # of each, by the value that it computes
    weight: Tensor
    known: Tensor  # their biases, and what they read of other values

    def now(self, around: _Walk) -> dict[int, Tensor]:
        states = torch.cat([around.value(read) for read in self.reads], -1)
        known = around.now(self.known)
        total = torch.addmm(known.flatten(0, 1), states.flatten(0, 1), self.weight).view(known.shape)
        parts = total.split(list(self.channels.values()), -1)
        return dict(zip(self.channels, parts, strict=True))


def _sums(component: Component, grid: _Grid, walk: _Walk) -> dict[int, _Sums]:
    """By value, sums over the recurrence's own values; those of earlier pixels alone are computed together."""
    values, alike = component.values, defaultdict[tuple[int | Read, ...], list[Instruction]](list)
    for i in component.instructions:
        if reads := tuple(tap.read for tap in i.taps if tap.source in values):
            alike[(i.out,) if any(read.is_here for read in reads) else reads].append(i)
    found: dict[int, _Sums] = {}
    for group in alike.values():
        of_states = [[tap for tap in i.taps if tap.source in values] for i in group]
        known = [i.with_taps(tap for tap in i.taps if tap.source not in values).start(grid) for i in group]
        sums = _Sums(
            tuple(tap.read for tap in of_states[0]),
            {i.out: i.channels for i in group},
            torch.cat([torch.cat([tap.weight for tap in inner]) for inner in of_states], 1),
            walk.laid_out(torch.cat(known, -1)),
        )
        found |= dict.fromkeys(sums.channels, sums)
    return found
