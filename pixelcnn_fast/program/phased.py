"""A phased program: when each instruction runs, and what is kept of each value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from pixelcnn_fast.program.grids import WHOLE, Every
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.operands import ConditionOperand, Convert, Read
from pixelcnn_fast.program.program import AnyProgram, condition_operands
from pixelcnn_fast.program.schema import Phase, Storage

if TYPE_CHECKING:
    from typing_extensions import Self

HEADINGS = {
    Phase.ROW: "row phase: a whole row at once",
    Phase.PIXEL: "pixel phase: before the pixel is drawn (row taps are summed in the row phase)",
    Phase.DRAWN: "after the pixel is drawn",
    Phase.FINISHED: "after the row is finished, for the rows below",
}


@dataclass(frozen=True)
class Run:
    """Taps on horizontal neighbours as one matrix: ``weight`` [width * channels of source,
    channels of out] applied to ``width`` pixels of the source's grid ``every``, from
    (row + dy, column + dx) on, which lie side by side in memory."""

    source: int
    dy: int
    dx: int
    width: int
    weight: Tensor
    every: Every = WHOLE

    @property
    def last_dx(self) -> int:
        return self.dx + (self.width - 1) * self.every[1]

    def __str__(self) -> str:
        columns = f"{self.dx:+d}" if self.width == 1 else f"{self.dx:+d}..{self.last_dx:+d}"
        return f"%{self.source}({self.dy:+d}, {columns})"


class Scan(NamedTuple):
    """Adjacent instructions that go through a row pixel by pixel, before or after its pixels are drawn."""

    number: int
    from_the_right: bool

    def __str__(self) -> str:
        return f"scan {self.number} from the {'right' if self.from_the_right else 'left'}"


@dataclass(frozen=True, eq=False)
class PhasedInstruction:
    """An instruction, when it runs, and its taps grouped into runs; a tap's weight is a view of its run's.

    after: how many draws of the pixel come before it. Row runs are summed for a whole row
    beforehand. scan: what it is part of, if anything, in the phases row and finished; all
    others there take a whole row at once.
    """

    instruction: Instruction
    phase: Phase
    after: int
    row_runs: tuple[Run, ...] = ()
    pixel_runs: tuple[Run, ...] = ()
    scan: Scan | None = None

    @property
    def out(self) -> int:
        return self.instruction.out

    @property
    def channels(self) -> int:
        return self.instruction.channels

    @property
    def name(self) -> str:
        return self.instruction.name

    def converted(self, convert: Convert) -> Self:
        """The same instruction with its weights, tables and other constants converted."""
        row_runs, pixel_runs = (
            tuple(replace(run, weight=convert(run.weight)) for run in runs)
            for runs in (self.row_runs, self.pixel_runs)
        )
        own = self.instruction.converted(convert)
        return replace(self, instruction=own, row_runs=row_runs, pixel_runs=pixel_runs)


@dataclass(frozen=True)
class Wavefront:
    """At step t, value v is computed for every row y at column t - lag * y + leads[v], where that is in the grid.

    A step begins with the row phase and the sums over row runs. With a lag longer by c - 1,
    each row starts that much later than the values above it, which may be computed for c
    steps at once; with one longer by 2c - 1, even during the c steps before those.
    """

    lag: int
    leads: dict[int, int]


@dataclass(frozen=True, eq=False)
class PhasedProgram(AnyProgram):
    """Each pixel is drawn in as many draws as there are outputs: all image channels at once, or in turn.

    Draw d reads ``outputs[d]`` and gives the next image channels; all draws give equally
    many. condition_operands: what steps read of the condition. wavefront: None if rows are
    sampled one at a time.
    """

    instructions: tuple[PhasedInstruction, ...]
    storage: dict[int, Storage] = field(kw_only=True)
    wavefront: Wavefront | None = None

    def in_phase(self, phase: Phase) -> list[PhasedInstruction]:
        return [i for i in self.instructions if i.phase is phase]

    def timed_reads(self) -> Iterator[tuple[PhasedInstruction, Read, bool]]:
        """Yields each instruction's reads that reach furthest right, and whether a wavefront's
        step must know them as it begins: what row runs read besides values of the row phase,
        and what a recurrence computes later in a step."""
        rows = {i.out for i in self.in_phase(Phase.ROW)}
        defined: set[int] = set()
        for i in self.instructions:
            for runs in (i.row_runs, i.pixel_runs):
                for run in runs:
                    begins = run.source not in defined or (runs is i.row_runs and run.source not in rows)
                    yield i, Read(run.source, run.dy, run.last_dx), begins
            furthest = {
                (read.value, read.dy): read for read in sorted(i.instruction.operands(), key=lambda r: r.dx)
            }
            for read in furthest.values():
                yield i, read, read.value not in defined
            defined.add(i.out)

    @property
    def condition_operands(self) -> list[ConditionOperand]:
        return condition_operands(i.instruction for i in self.instructions)

    def __str__(self) -> str:
        lines = self._title("causal program")
        if self.wavefront is not None:
            lines.append(f"  wavefront: a row can start {self.wavefront.lag} columns behind the row above")
        for phase in Phase:
            for after in range(len(self.outputs) + 1):
                instructions = [i for i in self.in_phase(phase) if i.after == after]
                between = after > 0 and phase not in (Phase.DRAWN, Phase.FINISHED)
                heading = f"after draw {after} of {len(self.outputs)}" if between else HEADINGS[phase]
                if instructions:
                    lines += ["", heading, *map(self._line, instructions)]
        return "\n".join(lines)

    def _line(self, i: PhasedInstruction) -> str:
        runs = [f"row {run}" for run in i.row_runs] + [f"pixel {run}" for run in i.pixel_runs]
        storage = self.storage[i.out]
        keeps = (
            "all pixels"
            if storage.keys or storage.values
            else f"{storage.rows} row{'s' * (storage.rows > 1)}"
        )
        kept = "" if i.out in self.outputs else f"  (keeps {keeps})"
        scan = f"  ({i.scan})" if i.scan else ""
        return f"  {i.instruction.line(runs or i.instruction.sources())}{kept}{scan}"
