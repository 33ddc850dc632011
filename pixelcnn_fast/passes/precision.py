"""Rounds a program's constants: to the model's dtype, or to what weights are stored in."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pixelcnn_fast.program.operands import Tap
from pixelcnn_fast.program.program import Program


def in_dtype(program: Program, dtype: torch.dtype) -> Program:
    """The program in another dtype, with constants clamped to its range, such as those of a
    mask with ``finfo(torch.float64).min``."""
    largest = torch.finfo(dtype).max
    is_narrower = largest < torch.finfo(program.dtype).max

    def converted(constant: Tensor) -> Tensor:
        found = constant.to(dtype)
        if is_narrower:
            # Past the recorder of weights: others, which stay in the range, are cast alike.
            with torch._C._DisableTorchDispatch():
                is_within = bool(torch.linalg.vector_norm(found, torch.inf) <= largest)
            if not is_within:
                return constant.clamp(-largest, largest).to(dtype)
        return found

    return replace(program.converted(converted), dtype=dtype)


def rounded_weights(program: Program, dtype: torch.dtype) -> Program:
    """Rounds tap weights, and what attention keeps of pixels, to ``dtype``; sums stay in the program's dtype."""

    def rounded(tap: Tap) -> Tap:
        return tap.converted(lambda weight: weight.to(dtype).to(program.dtype))

    instructions = (i.with_taps(map(rounded, i.taps)).keeping(dtype) for i in program.instructions)
    return replace(program, instructions=tuple(instructions))
