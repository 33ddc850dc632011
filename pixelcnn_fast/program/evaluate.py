"""What a program means, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pixelcnn_fast.program.formulas import apply_steps
from pixelcnn_fast.program.program import ConditionOperand, Program, Read


def evaluate(program: Program, levels: Tensor, condition: Callable[[ConditionOperand], Tensor]) -> Tensor:
    """The program's meaning, teacher-forced: all pixels at once, no phases.

    levels: integers [N, C, H, W]; condition: operand -> [N, channels] or [N, H, W, channels]
    -> [N, distributions, H, W, parameters]; for a categorical head, logits [N, C, H, W, L].
    """
    grid = _Grid(program, levels)

    def over_pixels(operand: ConditionOperand) -> Tensor:
        return condition(operand) if operand.varies_over_pixels else condition(operand)[:, None, None]

    for i in program.instructions:
        x = i.start(grid)
        grid.values[i.out] = apply_steps(x, i.steps, grid.value, over_pixels)
    output = torch.cat([grid.values[output] for output in program.outputs], -1)
    output = output.unflatten(-1, (program.distributions, program.parameters)).permute(0, 3, 1, 2, 4)
    return output.log_softmax(-1) if program.normalised else output


class _Grid:
    """The surroundings of all pixels at once: [N, H, W, channels]."""

    def __init__(self, program: Program, levels: Tensor) -> None:
        self.dtype, self._levels = program.dtype, levels
        self.values: dict[int, Tensor] = {}

    def value(self, read: Read) -> Tensor:
        return shifted(self.values[read.value], read.dy, read.dx)

    def image(self) -> Tensor:
        return self._levels.permute(0, 2, 3, 1)

    def zeros(self, channels: int) -> Tensor:
        n, _, height, width = self._levels.shape
        return self._levels.new_zeros((n, height, width, channels), dtype=self.dtype)


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
