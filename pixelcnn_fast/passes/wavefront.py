"""Finds out whether rows can be sampled at once, each starting ``lag`` columns behind the row above.

A pixel needs the earlier pixels of its row and, in the rows above, only columns up to a
fixed distance to its right. So pixel (y, x) can be drawn in column step x + lag * y, with
all others of that step. A value that is read to the right within its row, such as one of a
vertical stack, is computed ``lead`` columns ahead of the pixel that is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pixelcnn_fast.program.grids import WHOLE
from pixelcnn_fast.program.operands import Read
from pixelcnn_fast.program.phased import Phase, PhasedInstruction, PhasedProgram, Wavefront


def with_wavefront(program: PhasedProgram) -> PhasedProgram:
    """The program with the wavefront of the smallest lag, if two rows can be in flight at once."""
    return _with_first_of(range(1, program.shape[2]), program)


def one_row_at_a_time(program: PhasedProgram) -> PhasedProgram:
    """Gives a program without a wavefront one in which each row starts after the row above has ended, if it can."""
    if program.wavefront is not None:
        return program
    width = program.shape[2]
    longest = 3 * width + sum(abs(read.dx) for _, read, _ in program.timed_reads()) + 1
    return _with_first_of(range(width, longest + 1), program)


def _with_first_of(lags: Iterable[int], program: PhasedProgram) -> PhasedProgram:
    if any(i.scan or i.phase is Phase.FINISHED for i in program.instructions):
        return program  # rows are sampled in turn
    if any(i.instruction.every != WHOLE for i in program.instructions):
        return program  # those in flight would be at different places of a cell
    reads = list(program.timed_reads())[::-1]
    for lag in lags:
        if (leads := _leads(program, reads, lag)) is not None:
            return replace(program, wavefront=Wavefront(lag, leads))
    return program


def _leads(
    program: PhasedProgram, reads: Sequence[tuple[PhasedInstruction, Read, bool]], lag: int
) -> dict[int, int] | None:
    """The least leads with which everything is computed before it is read; None for too small a lag."""
    after = {i.out: i.after for i in program.instructions}
    leads = {i.out: 0 for i in program.instructions}
    longest = program.shape[2] + lag * program.shape[1]
    while True:
        before = dict(leads)
        for i, read, begins in reads:
            # Columns by which the value must be ahead of its own row's pixel.
            ahead = leads[i.out] + read.dx + lag * read.dy + begins
            if after[read.value] == 0:
                leads[read.value] = max(leads[read.value], ahead)
            elif ahead > 0 or (ahead == 0 and after[i.out] < after[read.value] and not begins):
                return None  # it would be read before it is drawn
        if leads == before:
            return leads
        if max(leads.values()) > longest:
            return None  # a recurrence would need itself before it is computed
