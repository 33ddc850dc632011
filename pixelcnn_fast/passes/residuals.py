"""Lets convolutions start before a residual sum that they read, where every layer is waited for.

``x + W g`` is ready a layer after ``g``. A 1x1 tap V makes ``V x + (V W) g`` of it, and
need not wait. That takes more multiplications, which pays where a layer takes time only for
its barrier and its reads of memory.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

import torch

from pixelcnn_fast.passes.compose import composed
from pixelcnn_fast.passes.phases import with_runs
from pixelcnn_fast.program.grids import Every
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.operands import Read, Tap
from pixelcnn_fast.program.phased import Phase, PhasedInstruction, PhasedProgram

# A sum's readers may take so many weights more, 64 KB in bfloat16: a multiprocessor reads
# them in about the 1,000 clock cycles that a layer of one pixel takes.
MOST_WEIGHTS = 1 << 15


def without_waiting_for_residuals(program: PhasedProgram) -> PhasedProgram:
    """Lets convolutions read the parts of a residual sum of their own pixel, computed just before them."""
    leads = {} if program.wavefront is None else program.wavefront.leads

    def when(i: PhasedInstruction) -> tuple[Phase, int, int]:
        return i.phase, i.after, leads.get(i.out, 0)

    residuals: dict[int, Instruction] = {}
    for i in program.instructions:
        if (residual := _residual(i)) is not None:
            alike = [j for j in program.instructions if when(j) == when(i)]
            readers = [j.channels for j in alike if Read(i.out) in (tap.read for tap in j.instruction.taps)]
            more = sum(len(tap.weight) for tap in residual.taps) - i.channels
            if more * sum(readers) <= MOST_WEIGHTS:
                residuals[i.out] = residual
    by_out = {i.out: i for i in program.instructions}
    every = {i.out: i.instruction.every for i in program.instructions}
    rows = {i.out for i in program.in_phase(Phase.ROW)}
    instructions = tuple(
        _without_waiting(
            i, {out: sum for out, sum in residuals.items() if when(by_out[out]) == when(i)}, every, rows
        )
        for i in program.instructions
    )
    return replace(program, instructions=instructions)


def _residual(phased: PhasedInstruction) -> Instruction | None:
    """The instruction as a sum of 1x1 taps, one of which may come from a step; None if it is none."""
    i = phased.instruction
    if not i.taps or phased.scan is not None or not all(tap.read.is_here for tap in i.taps):
        return None
    if i.is_sum:
        return i
    [step, *others] = i.steps
    if others or step.kind != "add" or step.alpha != 1 or step.value is None or not step.value.is_here:
        return None
    weight = i.taps[0].weight
    itself = Tap(step.value.value, 0, 0, torch.eye(i.channels, dtype=weight.dtype, device=weight.device))
    return replace(i, steps=()).with_taps((*i.taps, itself))


def _without_waiting(
    phased: PhasedInstruction,
    residuals: Mapping[int, Instruction],
    every: Mapping[int, Every],
    rows: Container[int],
) -> PhasedInstruction:
    """Lets the instruction read the parts of residual sums. It reads no sum that was
    composed itself, since its parts are ready a layer earlier. every: by value, its grid;
    rows: values known before the row's pixels."""
    i = phased.instruction
    if phased.scan is not None:
        return phased
    for tap in i.taps:
        inner = residuals.get(tap.source)
        if inner is not None and tap.read.is_here and inner.every == i.every:
            i = composed(inner, i)
    if i is phased.instruction:
        return phased
    return with_runs(i, phased.phase, phased.after, every, rows)
