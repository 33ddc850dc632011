"""What each value of a program can see, exactly, from the weights; and whether that is causal."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.sampling.program import LEVELS, Instruction, Program, Tap


class NotCausal(ValueError):
    """The model's output at a pixel depends on that pixel or a later one."""


def receptive_fields(program: Program) -> dict[int, Tensor]:
    """Value -> boolean [2H - 1, 2W - 1]: entry (dy + H - 1, dx + W - 1) tells whether it sees the pixel at (dy, dx).

    Offsets that leave the grid from every pixel are outside the array.
    """
    _, height, width = program.shape
    fields: dict[int, Tensor] = {}
    for instruction in program.instructions:
        seen = torch.zeros(2 * height - 1, 2 * width - 1, dtype=torch.bool)
        if instruction.base == LEVELS:
            seen[height - 1, width - 1] = True
        for tap in instruction.taps:
            seen |= _shift(fields[tap.source], tap.dy, tap.dx)
        for value in instruction.reads()[len(instruction.taps) :]:
            seen |= fields[value]
        fields[instruction.out] = seen
    return fields


def _shift(seen: Tensor, dy: int, dx: int) -> Tensor:
    out = torch.zeros_like(seen)
    rows, columns = seen.shape
    if abs(dy) < rows and abs(dx) < columns:
        out[max(dy, 0) : rows + min(dy, 0), max(dx, 0) : columns + min(dx, 0)] = seen[
            max(-dy, 0) : rows - max(dy, 0), max(-dx, 0) : columns - max(dx, 0)
        ]
    return out


def sees_only_rows_above(seen: Tensor) -> bool:
    return not seen[seen.shape[0] // 2 :].any()


def sees_present_or_later(seen: Tensor) -> bool:
    return bool(seen.flatten()[seen.numel() // 2 :].any())


def check_causal(program: Program) -> None:
    """Raises NotCausal, naming the layer and the tap, if the output sees its own pixel or a later one."""
    if not sees_present_or_later(receptive_fields(program)[program.output]):
        return
    instruction, tap = _culprit(program)
    largest = tap.weight.abs().max().item()
    pixel = "its own pixel" if (tap.dy, tap.dx) == (0, 0) else "a later pixel"
    hint = "should this first layer have mask A?" if (tap.dy, tap.dx) == (0, 0) else "is the mask applied?"
    raise NotCausal(
        f"{instruction.name}: kernel tap ({tap.dy:+d}, {tap.dx:+d}) has weight {largest:.2g}, "
        f"so the output sees {pixel}; {hint}"
    )


def _culprit(program: Program) -> tuple[Instruction, Tap]:
    """The first tap to blame: one that looks ahead by itself, else the first that reads the present pixel."""
    convolutions = [(i, tap) for i in program.instructions for tap in i.taps]
    ahead = [(i, tap) for i, tap in convolutions if (tap.dy, tap.dx) > (0, 0)]
    present = [(i, tap) for i, tap in convolutions if (tap.dy, tap.dx) == (0, 0)]
    if not ahead + present:
        raise NotCausal("the model's output is its own input, pixel by pixel: nothing to sample")
    return (ahead + present)[0]
