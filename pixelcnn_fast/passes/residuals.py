"""Lets convolutions start before a residual sum that they read is there, for runtimes that wait for every layer.

``x + W g`` is ready a layer after ``g``. A 1x1 tap V makes ``V x + (V W) g`` of it, and so need not wait. That takes
more multiplications, and is worth it where a layer takes no time for them, but for its barrier and its reads of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from pixelcnn_fast.passes.compose import composed
from pixelcnn_fast.passes.phases import with_runs
from pixelcnn_fast.program.phased import PhasedInstruction, PhasedProgram
from pixelcnn_fast.program.program import Convolution, Read, Tap

# Weights of a composed tap, at most. In bfloat16, 64 KB: one multiprocessor of a GPU reads them in some 1,000 clock
# cycles, which is what a layer of one pixel takes.
MOST_WEIGHTS = 1 << 15


def without_waiting_for_residuals(program: PhasedProgram) -> PhasedProgram:
    """The same program, in which convolutions read the parts of a residual sum at their own pixel in place of it."""
    residuals = {i.out: sum for i in program.instructions if (sum := _residual(i)) is not None}
    return replace(program, instructions=tuple(_without_waiting(i, residuals) for i in program.instructions))


def _residual(phased: PhasedInstruction) -> Convolution | None:
    """The instruction as a sum of 1x1 taps alone, if it is one: what it adds to them becomes a tap, too."""
    i = phased.instruction
    if not isinstance(i, Convolution) or phased.scan is not None or not all(tap.read.is_here for tap in i.taps):
        return None
    if i.is_sum:
        return i
    added = i.steps[0].value if len(i.steps) == 1 and i.steps[0].kind == "add" and i.steps[0].alpha == 1 else None
    if added is None or not added.is_here or not i.taps:
        return None
    weight = i.taps[0].weight
    itself = Tap(added.value, 0, 0, torch.eye(i.channels, dtype=weight.dtype, device=weight.device))
    return replace(i, taps=(*i.taps, itself), steps=())


def _without_waiting(phased: PhasedInstruction, residuals: Mapping[int, Convolution]) -> PhasedInstruction:
    """It reads no composed sum, as what that reads is ready a layer earlier."""
    i = phased.instruction
    if not isinstance(i, Convolution) or phased.scan is not None:
        return phased
    in_row = {Read(run.source, run.dy, run.dx + d) for run in phased.row_runs for d in range(run.width)}
    for tap in i.taps:
        inner = residuals.get(tap.source)
        if inner is None or not tap.read.is_here:
            continue
        if sum(first.weight.shape[0] for first in inner.taps[:1]) * i.channels > MOST_WEIGHTS:
            continue
        i = composed(inner, i)
        if tap.read in in_row:
            in_row |= {first.read for first in inner.taps}
    if i is phased.instruction:
        return phased
    return with_runs(i, phased.phase, phased.after, [tap.read in in_row for tap in i.taps])
