"""When several rows can be sampled at once: each starts ``lag`` columns behind the row above.

A pixel needs its row's earlier pixels and, of the rows above, only columns up to a fixed distance to its right. So
pixel (y, x) can be drawn at step x + lag * y, together with all other pixels of that step. A value that is read to
the right within its row (a vertical stack does that) is computed ``lead`` columns ahead of the pixel drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from pixelcnn_fast.sampling.passes import Phase, PhasedInstruction, PhasedProgram


@dataclass(frozen=True)
class Wavefront:
    """At step t, value v is computed for every row y at column t - lag * y + leads[v], where that is in the grid.

    A step begins with the row phase and with the sums over row runs. So these may as well be computed for the next c
    steps at once, with a lag longer by c - 1: then a row starts that much later than the values above it. With a lag
    longer by 2c - 1, they may be computed while the c steps before those are still worked on.
    """

    lag: int
    leads: dict[int, int]


def wavefront(program: PhasedProgram) -> Wavefront | None:
    """The wavefront of the smallest lag, or None where no two rows can be in flight at once."""
    for lag in range(1, program.shape[2]):
        leads = _leads(program, lag)
        if leads is not None:
            return Wavefront(lag, leads)
    return None


def _leads(program: PhasedProgram, lag: int) -> dict[int, int] | None:
    """The least leads with which everything is computed before it is read, or None if the lag is too small."""
    after = {i.out: i.after for i in program.instructions}
    rows = {i.out for i in program.in_phase(Phase.ROW)}
    leads = {i.out: 0 for i in program.instructions}
    for i in reversed(program.instructions):
        for source, dy, dx, summed_first in _reads(i):
            # Columns by which the source must be ahead of its own row's pixel.
            ahead = leads[i.out] + dx + lag * dy
            if summed_first and source not in rows:
                ahead += 1
            if after[source] == 0:
                leads[source] = max(leads[source], ahead)
            elif ahead > 0 or (ahead == 0 and after[i.out] < after[source] and not summed_first):
                return None  # it would be read before it is drawn
    return leads


def _reads(i: PhasedInstruction) -> list[tuple[int, int, int, bool]]:
    """(value, dy, dx, whether a step begins with it) of everything an instruction reads."""
    taps = [
        (run.source, run.dy, run.dx + run.width - 1, runs is i.row_runs)
        for runs in (i.row_runs, i.pixel_runs)
        for run in runs
    ]
    here = [step.value for step in i.steps if step.value is not None]
    here += [i.base] if i.base is not None and i.base >= 0 else []
    return taps + [(value, 0, 0, False) for value in here]
