"""What a program means, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pixelcnn_fast.program.program import LEVELS, Program, Slot, apply_steps, from_levels


def evaluate(program: Program, levels: Tensor, condition: Callable[[Slot], Tensor]) -> Tensor:
    """The program's meaning, teacher-forced: all pixels at once, no phases.

    levels: integers [N, C, H, W]; condition: slot -> [N, channels] or [N, H, W, channels]
    -> logits [N, C, H, W, L].
    """
    values: dict[int, Tensor] = {}
    n, (c, height, width) = levels.shape[0], program.shape

    def operand(slot: Slot) -> Tensor:
        return condition(slot) if slot.varies_over_pixels else condition(slot)[:, None, None]

    for instruction in program.instructions:
        if instruction.base == LEVELS:
            x = from_levels(instruction, levels.permute(0, 2, 3, 1), program.dtype)
        elif instruction.base is not None:
            x = values[instruction.base]
            x = x if instruction.pick is None else x[..., instruction.pick]
        else:
            x = levels.new_zeros((n, height, width, instruction.channels), dtype=program.dtype)
            if instruction.bias is not None:
                x = x + instruction.bias
            for tap in instruction.taps:
                x = x + shifted(values[tap.source], tap.dy, tap.dx) @ tap.weight
        values[instruction.out] = apply_steps(x, instruction.steps, values.__getitem__, operand)
    logits = torch.cat([values[output] for output in program.outputs], -1)
    logits = logits.view(n, height, width, c, program.levels).permute(0, 3, 1, 2, 4)
    return logits.log_softmax(-1) if program.normalised else logits


def shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """x: [N, H, W, C] read at (row + dy, column + dx), zero outside -> [N, H, W, C]."""
    height, width = x.shape[1:3]
    out = torch.zeros_like(x)
    rows, columns = max(height - abs(dy), 0), max(width - abs(dx), 0)
    to_y, to_x, from_y, from_x = max(-dy, 0), max(-dx, 0), max(dy, 0), max(dx, 0)
    out[:, to_y : to_y + rows, to_x : to_x + columns] = x[:, from_y : from_y + rows, from_x : from_x + columns]
    return out
