"""What a program means, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.program.formulas import apply_steps
from pixelcnn_fast.program.program import ConditionOperand, Convolution, Instruction, Program, Read
from pixelcnn_fast.program.recurrence import Component, components

Condition = Callable[[ConditionOperand], Tensor]


def evaluate(program: Program, levels: Tensor, condition: Condition) -> Tensor:
    """The program's meaning, teacher-forced, without phases: all pixels at once, and recurrences by rows or diagonals.

    levels: integers [N, C, H, W]; condition: operand -> [N, channels] or [N, H, W, channels]
    -> [N, distributions, H, W, parameters]; for a categorical head, logits [N, C, H, W, L].
    """
    grid = _Grid(program, levels, condition)
    for component in components(program.instructions):
        if component.is_recurrence:
            _Walk(component, grid).through()
        else:
            (i,) = component.instructions
            grid.values[i.out] = apply_steps(i.start(grid), i.steps, grid.value, grid.condition)
    output = torch.cat([grid.values[output] for output in program.outputs], -1)
    output = output.unflatten(-1, (program.distributions, program.parameters)).permute(0, 3, 1, 2, 4)
    return output.log_softmax(-1) if program.normalised else output


class _Grid:
    """The surroundings of all pixels at once: [N, H, W, channels]."""

    def __init__(self, program: Program, levels: Tensor, condition: Condition) -> None:
        self.dtype, self._levels, self.given = program.dtype, levels, condition
        self.values: dict[int, Tensor] = {}

    def value(self, read: Read) -> Tensor:
        return shifted(self.values[read.value], read.dy, read.dx)

    def image(self) -> Tensor:
        return self._levels.permute(0, 2, 3, 1)

    def zeros(self, channels: int) -> Tensor:
        n, _, height, width = self._levels.shape
        return self._levels.new_zeros((n, height, width, channels), dtype=self.dtype)

    def condition(self, operand: ConditionOperand) -> Tensor:
        x = self.given(operand)
        return x if operand.varies_over_pixels else x[:, None, None]


class _Walk:
    """The surroundings of those pixels of a recurrence that are computed next: [positions, N, channels].

    Maps are laid out by time and position, [times, positions, N, channels], so that such pixels lie side by side. Those
    of the recurrence's own values have room for what lies outside of the image: zeros.
    """

    def __init__(self, component: Component, grid: _Grid) -> None:
        self.dtype, self._grid, self._component = grid.dtype, grid, component
        self._schedule = component.schedule(*grid.image().shape[1:3])
        self._pixels = tuple(x.to(grid.image().device) for x in self._schedule.pixels())
        shifts = [self._schedule.offset(*offset) for offset in component.offsets]
        self._before = max(-later for later, _ in shifts)
        self._around = max(abs(away) for _, away in shifts)
        self._own = {i.out: self._lines(i.channels, self._before, self._around) for i in component.instructions}
        self._others: dict[Read | ConditionOperand, Tensor] = {}
        self._time, self._first, self._last = 0, 0, 0

    def through(self) -> None:
        """Computes the recurrence, time by time."""
        sums = _Sums(self._component, self._grid)
        outer = {value: self._laid_out(found) for value, found in sums.outer.items()}
        for time in range(self._schedule.times):
            self._time, (self._first, self._last) = time, self._schedule.active(time)
            ahead = sums.of_states(self)
            for i in self._component.instructions:
                start = ahead[i.out] if i.out in ahead else sums.own[i.out].start(self)
                if i.out in outer:
                    start = start + self._now(outer[i.out])
                self.value(Read(i.out))[:] = apply_steps(start, i.steps, self.value, self.condition)
        times, positions = self._pixels
        for value, lines in self._own.items():
            found = lines[times + self._before, positions + self._around]
            self._grid.values[value] = found.permute(2, 0, 1, 3).contiguous()

    def value(self, read: Read) -> Tensor:
        if read.value not in self._own:
            return self._other(read, self._grid.value)
        later, away = self._schedule.offset(read.dy, read.dx)
        lines, away = self._own[read.value][self._time + self._before + later], away + self._around
        return lines[self._first + away : self._last + away]

    def condition(self, operand: ConditionOperand) -> Tensor:
        if operand.varies_over_pixels:
            return self._other(operand, self._grid.given)
        return self._grid.given(operand)

    def zeros(self, channels: int) -> Tensor:
        image = self._grid.image()
        size = (self._last - self._first, len(image), channels)
        return torch.zeros(size, dtype=self.dtype, device=image.device)

    def image(self) -> Tensor:
        raise AssertionError("levels are no part of a recurrence")

    def _other(self, key: Any, known: Callable[[Any], Tensor]) -> Tensor:
        if key not in self._others:
            self._others[key] = self._laid_out(known(key))
        return self._now(self._others[key])

    def _now(self, lines: Tensor) -> Tensor:
        return lines[self._time, self._first : self._last]

    def _laid_out(self, whole: Tensor) -> Tensor:
        lines = self._lines(whole.shape[-1])
        lines[self._pixels] = whole.permute(1, 2, 0, 3)
        return lines

    def _lines(self, channels: int, before: int = 0, around: int = 0) -> Tensor:
        image = self._grid.image()
        size = (self._schedule.times + before, self._schedule.positions + 2 * around, len(image), channels)
        return torch.zeros(size, dtype=self.dtype, device=image.device)


class _Sums:
    """The sums of a recurrence's convolutions, in three parts: outer, of the bias and of taps on other values, which
    are known before; of states at other pixels, those with the same taps as one product; and what ``own`` is left."""

    def __init__(self, component: Component, grid: _Grid) -> None:
        self.outer: dict[int, Tensor] = {}
        self.own: dict[int, Instruction] = {i.out: i for i in component.instructions}
        alike: dict[tuple[Read, ...], list[Convolution]] = {}
        for i in component.instructions:
            if not isinstance(i, Convolution):
                continue
            inner = tuple(tap for tap in i.taps if tap.source in component.values)
            self.outer[i.out] = replace(i, taps=tuple(tap for tap in i.taps if tap not in inner)).start(grid)
            self.own[i.out] = own = replace(i, taps=inner, bias=None)
            if inner and not any(tap.read.is_here for tap in inner):
                alike.setdefault(tuple(tap.read for tap in inner), []).append(own)
        self._products = [
            (
                reads,
                convolutions,
                torch.cat([torch.cat([tap.weight for tap in i.taps]) for i in convolutions], 1),
            )
            for reads, convolutions in alike.items()
        ]

    def of_states(self, around: _Walk) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for reads, convolutions, weight in self._products:
            product = torch.cat([around.value(read) for read in reads], -1) @ weight
            parts = product.split([i.channels for i in convolutions], -1)
            found.update(zip([i.out for i in convolutions], parts, strict=True))
        return found


def shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """x: [N, H, W, C] read at (row + dy, column + dx), zero outside -> [N, H, W, C]."""
    if (dy, dx) == (0, 0):
        return x
    height, width = x.shape[1:3]
    out = torch.zeros_like(x)
    rows, columns = max(height - abs(dy), 0), max(width - abs(dx), 0)
    to_y, to_x, from_y, from_x = max(-dy, 0), max(-dx, 0), max(dy, 0), max(dx, 0)
    out[:, to_y : to_y + rows, to_x : to_x + columns] = x[:, from_y : from_y + rows, from_x : from_x + columns]
    return out
