"""What a program means, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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
            _walk(component, grid)
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


class _Some:
    """The surroundings of some pixels: [N, pixels, channels]. What is read at other pixels is known before."""

    def __init__(self, grid: _Grid, y: Tensor, x: Tensor) -> None:
        self.dtype, self._grid, self.y, self.x = grid.dtype, grid, y, x
        self._read: dict[Read, Tensor] = {}

    def value(self, read: Read) -> Tensor:
        if read.is_here:
            return self._grid.values[read.value][:, self.y, self.x]
        if read not in self._read:
            self._read[read] = self._elsewhere(read)
        return self._read[read]

    def _elsewhere(self, read: Read) -> Tensor:
        whole, y, x = self._grid.values[read.value], self.y + read.dy, self.x + read.dx
        height, width = whole.shape[1:3]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return whole[:, y.clamp(0, height - 1), x.clamp(0, width - 1)] * inside[:, None]

    def image(self) -> Tensor:
        raise AssertionError("levels are no part of a recurrence")

    def zeros(self, channels: int) -> Tensor:
        n = len(self._grid.image())
        return torch.zeros(n, len(self.y), channels, dtype=self.dtype, device=self.y.device)

    def condition(self, operand: ConditionOperand) -> Tensor:
        x = self._grid.given(operand)
        return x[:, self.y, self.x] if operand.varies_over_pixels else x[:, None]


def _walk(component: Component, grid: _Grid) -> None:
    """Computes a recurrence step by step, but for the sums of taps on other values, which are known beforehand."""
    device, (height, width) = grid.image().device, grid.image().shape[1:3]
    sums: dict[int, Tensor] = {}
    own: dict[int, Instruction] = {}
    for i in component.instructions:
        grid.values[i.out], own[i.out] = grid.zeros(i.channels), i
        if isinstance(i, Convolution):
            inner = [tap for tap in i.taps if tap.source in component.values]
            outer = tuple(tap for tap in i.taps if tap not in inner)
            sums[i.out] = replace(i, taps=outer).start(grid)
            own[i.out] = replace(i, taps=tuple(inner), bias=None)
    for y, x in component.steps(height, width):
        around = _Some(grid, y.to(device), x.to(device))
        for i in own.values():
            start = i.start(around)
            if i.out in sums:
                start = start + sums[i.out][:, y, x]
            grid.values[i.out][:, y, x] = apply_steps(start, i.steps, around.value, around.condition)


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
