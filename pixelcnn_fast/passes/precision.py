"""Rounds weights to the precision that a runtime multiplies in."""

from __future__ import annotations

from dataclasses import replace

import torch

from pixelcnn_fast.program.program import Program, Tap


def rounded_weights(program: Program, dtype: torch.dtype) -> Program:
    """The program with its tap weights rounded to ``dtype`` (sums stay in the program's dtype)."""

    def rounded(tap: Tap) -> Tap:
        return replace(tap, weight=tap.weight.to(dtype).to(program.dtype))

    instructions = tuple(i.rewired(operand=lambda read: read, tap=rounded) for i in program.instructions)
    return replace(program, instructions=instructions)
