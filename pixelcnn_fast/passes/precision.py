"""Rounds weights to the precision that a runtime multiplies in."""

from __future__ import annotations

from dataclasses import replace

import torch

from pixelcnn_fast.program.program import Convolution, Instruction, Program, Tap


def rounded_weights(program: Program, dtype: torch.dtype) -> Program:
    """The program with its tap weights rounded to ``dtype`` (sums stay in the program's dtype)."""

    def rounded(i: Instruction) -> Instruction:
        return replace(i, taps=tuple(map(rounded_tap, i.taps))) if isinstance(i, Convolution) else i

    def rounded_tap(tap: Tap) -> Tap:
        return replace(tap, weight=tap.weight.to(dtype).to(program.dtype))

    return replace(program, instructions=tuple(map(rounded, program.instructions)))
