"""Splits the instructions of a program by when they can run."""

from __future__ import annotations

from dataclasses import replace

import torch

from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.passes.fuse import _without_unread
from pixelcnn_fast.passes.split_channels import draws_needed
from pixelcnn_fast.program.fields import receptive_fields
from pixelcnn_fast.program.phased import Phase, PhasedInstruction, PhasedProgram, Run, Storage
from pixelcnn_fast.program.program import LEVELS, Program, Tap


def computed_by_rows(program: Program) -> set[int]:
    """The values that can be computed for a whole row at once: from rows above, and from such values."""
    rows: set[int] = set()
    for i in program.instructions:
        operands = i.reads()[len(i.taps) :]
        if i.base != LEVELS and all(tap.dy < 0 or (tap.dy == 0 and tap.source in rows) for tap in i.taps):
            if rows.issuperset(operands):
                rows.add(i.out)
    return rows


def split_phases(program: Program) -> PhasedProgram:
    """Raises Unsupported for a causal program that reads ahead and shifts back, which is not supported yet."""
    program = _without_unread(_without_zeros(program))
    fields = receptive_fields(program)
    draws = len(program.outputs)
    row_values = computed_by_rows(program)
    instructions: list[PhasedInstruction] = []
    afters: dict[int, int] = {}
    for i in program.instructions:
        for tap in i.taps:
            if tap.dy > 0 or (tap.dy == 0 and tap.dx > 0 and tap.source not in row_values):
                raise Unsupported(
                    f"{i.name}: tap ({tap.dy:+d}, {tap.dx:+d}) reads ahead of the present pixel and a later layer "
                    "shifts it back; shift the input of this layer instead"
                )
        in_row = [tap.dy < 0 or tap.source in row_values for tap in i.taps]
        after = min(int(draws_needed(fields[i.out]).max()), draws)
        if i.out in program.outputs:  # runtimes keep the logits of one draw at a time
            after = program.outputs.index(i.out)
        here = [tap.source for tap in i.taps if (tap.dy, tap.dx) == (0, 0)] + i.reads()[len(i.taps) :]
        assert all(afters[value] <= after for value in here), f"{i.name} reads of its pixel what is drawn later"
        afters[i.out] = after
        if i.out in row_values:
            phase = Phase.ROW
        else:
            phase = Phase.DRAWN if after == draws else Phase.PIXEL
        instructions.append(
            PhasedInstruction(
                i.out,
                i.channels,
                i.name,
                phase,
                after,
                row_runs=_runs([tap for tap, row in zip(i.taps, in_row, strict=True) if row]),
                pixel_runs=_runs([tap for tap, row in zip(i.taps, in_row, strict=True) if not row]),
                bias=i.bias,
                base=i.base,
                pick=i.pick,
                table=i.table,
                steps=i.steps,
            )
        )
    return PhasedProgram(
        program.shape,
        program.levels,
        tuple(instructions),
        _storage(program),
        program.outputs,
        program.dtype,
        program.device,
    )


def _without_zeros(program: Program) -> Program:
    """Weights that were scaled by zero read nothing."""
    instructions = (
        replace(i, taps=tuple(tap for tap in i.taps if bool(tap.weight.any()))) for i in program.instructions
    )
    return replace(program, instructions=tuple(instructions))


def _runs(taps: list[Tap]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for tap in sorted(taps, key=lambda t: (t.source, t.dy, t.dx)):
        last = runs[-1] if runs else None
        if last is not None and (last.source, last.dy, last.dx + last.width) == (tap.source, tap.dy, tap.dx):
            runs[-1] = replace(last, width=last.width + 1, weight=torch.cat([last.weight, tap.weight]))
        else:
            runs.append(Run(tap.source, tap.dy, tap.dx, 1, tap.weight))
    return tuple(runs)


def _storage(program: Program) -> dict[int, Storage]:
    taps = [tap for i in program.instructions for tap in i.taps]
    storage = {}
    for i in program.instructions:
        reads = [tap for tap in taps if tap.source == i.out]
        storage[i.out] = Storage(
            i.channels,
            rows=1 + max((-tap.dy for tap in reads), default=0),
            pad_left=max((-tap.dx for tap in reads if tap.dx < 0), default=0),
            pad_right=max((tap.dx for tap in reads if tap.dx > 0), default=0),
        )
    return storage
