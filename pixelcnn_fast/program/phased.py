"""A phased program: when each instruction runs, and what is kept of each value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from pixelcnn_fast.program.program import Slot, Step, slots_of


class Phase(Enum):
    ROW = "row"  # sees only rows above: a whole row at once
    PIXEL = "pixel"  # needs the present row: pixel by pixel, before its last draw
    DRAWN = "drawn"  # after all of the pixel's levels are drawn


@dataclass(frozen=True)
class Run:
    """Horizontally adjacent taps as one matrix: ``weight`` [width * channels of source, channels of out] applied
    to the source's pixels (row + dy, column + dx ... column + dx + width - 1), which lie side by side in memory."""

    source: int
    dy: int
    dx: int
    width: int
    weight: Tensor


@dataclass(frozen=True)
class PhasedInstruction:
    """out = steps(bias + row runs + pixel runs), or steps(base). Row runs are summed for a whole row beforehand.

    after: how many draws of the pixel come before. With base LEVELS, ``pick`` are the image channels it reads, and
    ``table`` is as in ``Instruction``.
    """

    out: int
    channels: int
    name: str
    phase: Phase
    after: int
    row_runs: tuple[Run, ...]
    pixel_runs: tuple[Run, ...]
    bias: Tensor | None
    base: int | None
    pick: Tensor | None
    table: Tensor | None
    steps: tuple[Step, ...]

    def reads_levels(self, image_channels: int) -> list[int]:
        """The image channels that an input instruction reads."""
        return list(range(image_channels)) if self.pick is None else self.pick.tolist()


@dataclass(frozen=True)
class Storage:
    """What is kept of a value: the last ``rows`` rows, with zero columns on both sides."""

    channels: int
    rows: int
    pad_left: int
    pad_right: int


@dataclass(frozen=True)
class Wavefront:
    """At step t, value v is computed for every row y at column t - lag * y + leads[v], where that is in the grid.

    A step begins with the row phase and with the sums over row runs. So these may as well be computed for the next c
    steps at once, with a lag longer by c - 1: then a row starts that much later than the values above it. With a lag
    longer by 2c - 1, they may be computed while the c steps before those are still worked on.
    """

    lag: int
    leads: dict[int, int]


@dataclass(frozen=True)
class PhasedProgram:
    """Each pixel is drawn in as many draws as there are outputs: all image channels at once, or one after the other.

    Draw d reads ``outputs[d]`` and gives the image channels that ``drawn_by(d)`` names. slots: what the steps read
    of the condition. wavefront: None where rows are sampled one at a time.
    """

    shape: tuple[int, int, int]
    levels: int
    instructions: tuple[PhasedInstruction, ...]
    storage: dict[int, Storage]
    outputs: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    wavefront: Wavefront | None = None

    def in_phase(self, phase: Phase) -> list[PhasedInstruction]:
        return [i for i in self.instructions if i.phase is phase]

    def drawn_by(self, draw: int) -> slice:
        each = self.shape[0] // len(self.outputs)
        return slice(draw * each, (draw + 1) * each)

    @property
    def slots(self) -> list[Slot]:
        return slots_of(self.instructions)
