"""Decides when each instruction runs, and splits taps into those of rows and those of pixels."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import torch

from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.passes.split_channels import draws_needed
from pixelcnn_fast.program.grids import Every, count
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.operands import Tap
from pixelcnn_fast.program.phased import Phase, PhasedInstruction, PhasedProgram, Run, Scan, Storage
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.receptive_field.fields import receptive_fields
from pixelcnn_fast.program.recurrence import Component, components


def computed_by_rows(ordered: Sequence[Component]) -> set[int]:
    """The values that can be known before a row's pixels. ordered: the program's components."""
    rows: set[int] = set()
    for component in ordered:
        given = rows | component.values
        reads = [read for i in component.instructions for read in i.reads()]
        by_levels = any(i.reads_levels for i in component.instructions)
        if not by_levels and all(read.dy < 0 or (read.dy == 0 and read.value in given) for read in reads):
            rows |= component.values
    return rows


def computed_by_finished_rows(ordered: Sequence[Component], rows: set[int]) -> set[int]:
    """The values that need pixels to their right in the present row, given those known before it."""
    late: set[int] = set()
    for component in ordered:
        reads = [read for i in component.instructions for read in i.reads() if read.dy == 0]
        if any((read.dx > 0 and read.value not in rows) or read.value in late for read in reads):
            late |= component.values
    return late


def split_phases(program: Program) -> PhasedProgram:
    """Gives each instruction a phase. Raises Unsupported if a layer reads ahead of the
    present pixel, or the output needs what is computed of a finished row."""
    fields, every = receptive_fields(program), {i.out: i.every for i in program.instructions}
    draws, ordered = len(program.outputs), components(program.instructions)
    known = computed_by_rows(ordered)
    finished = computed_by_finished_rows(ordered, known)
    if finished.intersection(program.outputs):
        first = next(i for c in ordered if c.values & finished for i in c.instructions)
        raise Unsupported(
            f"{first.name}: it needs its whole row, and the model's output needs it in that row. Shift what it gives "
            "down by a row; runtime='reference' samples any causal model as it is"
        )
    scans: dict[int, tuple[Scan, set[int]]] = {}
    for number, c in enumerate(c for c in ordered if c.goes_along_rows and c.values <= known | finished):
        scans |= dict.fromkeys(c.values, (Scan(number, c.is_from_the_right), c.values))
    in_order = [i for c in ordered for i in c.instructions] if scans else list(program.instructions)
    instructions: list[PhasedInstruction] = []
    for i in in_order:
        for read in i.reads():
            if read.dy > 0:
                raise Unsupported(
                    f"{i.name}: tap ({read.dy:+d}, {read.dx:+d}) reads ahead of the present pixel, and a later "
                    "layer shifts it back; shift the input of this layer instead"
                )
        after = min(int(draws_needed(fields[i.out]).max()), draws)
        if i.out in program.outputs:  # runtimes keep the logits of one draw at a time
            after = program.outputs.index(i.out)
        scan, members = scans.get(i.out, (None, set[int]()))
        phase = Phase.DRAWN if after == draws else Phase.PIXEL
        if i.out in finished or i.out in known:
            phase = Phase.FINISHED if i.out in finished else Phase.ROW
        instructions.append(replace(with_runs(i, phase, after, every, known, members), scan=scan))
    return PhasedProgram(**{**vars(program), "instructions": tuple(instructions)}, storage=_storage(program))


def with_runs(
    i: Instruction,
    phase: Phase,
    after: int,
    every: Mapping[int, Every],
    known: Container[int],
    members: Container[int] = (),
) -> PhasedInstruction:
    """An instruction whose taps are grouped into runs, each summed as soon as what it reads is there.

    every: by value, its grid; known: values that are there before the row's pixels; members: those of its own scan.
    """

    def in_row(tap: Tap) -> bool:
        there = tap.source in known or phase is Phase.FINISHED
        return tap.dy < 0 or (there and tap.source not in members)

    views: dict[int, Tap] = {}
    row_runs = _runs([tap for tap in i.taps if in_row(tap)], every, views)
    pixel_runs = _runs([tap for tap in i.taps if not in_row(tap)], every, views)
    taps = tuple(views[id(tap)] for tap in i.taps)
    return PhasedInstruction(i.with_taps(taps), phase, after, row_runs, pixel_runs)


def _runs(taps: list[Tap], every: Mapping[int, Every], views: dict[int, Tap]) -> tuple[Run, ...]:
    """Groups taps into runs, and puts each by its id, as a view of its run's weight, into ``views``."""
    groups: list[list[Tap]] = []
    for tap in sorted(taps, key=lambda t: (t.source, t.dy, t.dx % every[t.source][1], t.dx)):
        last, by = groups[-1][-1] if groups else None, every[tap.source][1]
        if last is not None and (last.source, last.dy, last.dx + by) == (tap.source, tap.dy, tap.dx):
            groups[-1].append(tap)
        else:
            groups.append([tap])
    runs = []
    for group in groups:
        first, width = group[0], len(group)
        weight = torch.cat([tap.weight for tap in group]) if width > 1 else first.weight
        views |= {id(tap): replace(tap, weight=x) for tap, x in zip(group, weight.chunk(width), strict=True)}
        runs.append(Run(first.source, first.dy, first.dx, width, weight, every[first.source]))
    return tuple(runs)


def _storage(program: Program) -> dict[int, Storage]:
    storage = {i.out: Storage(i.channels, 1, 0, 0, *i.every) for i in program.instructions}
    for i in program.instructions:
        attended = i.attended()
        for value, how in attended.items():
            storage[value] = replace(storage[value], **dict.fromkeys(how.split(), True))
        for value, dy, dx in ((r.value, r.dy, r.dx) for r in i.reads() if r.value not in attended):
            s = storage[value]
            storage[value] = replace(
                s,
                rows=max(s.rows, 1 + -dy // s.every_y),
                pad_left=max(s.pad_left, -dx // s.every_x),
                pad_right=max(s.pad_right, count(dx, s.every_x)),
            )
    return storage
