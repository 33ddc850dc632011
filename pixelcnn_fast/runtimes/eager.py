"""The eager runtime: a phased program in plain PyTorch with caches, on any device.

Of each value, the rows and columns of its grid lie channels-last with zero columns on both
sides, so that a run's taps are one stretch of memory.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from pixelcnn_fast.heads import Head
from pixelcnn_fast.program.conditions import ConditionProgram
from pixelcnn_fast.program.formulas import apply_steps
from pixelcnn_fast.program.grids import count, meeting, stretch
from pixelcnn_fast.program.instruction import Instruction, Surroundings
from pixelcnn_fast.program.operands import ConditionOperand, Read
from pixelcnn_fast.program.phased import Phase, PhasedInstruction, PhasedProgram, Run
from pixelcnn_fast.runtimes.job import Job, Runtime


class EagerRuntime(Runtime):
    def __init__(self, program: PhasedProgram, conditions: ConditionProgram, head: Head) -> None:
        self._program, self._conditions, self._head = program, conditions, head

    @torch.no_grad()
    def run(self, job: Job) -> None:
        _, height, width = self._program.shape
        n, draws = job.values.shape[0], len(self._program.outputs)
        caches = _Caches(self._program, n, self._conditions(self._program.condition_operands, job.given, n))
        for y in range(height):
            job.on_row(y)
            caches.compute_row(Phase.ROW, y)
            for x in range(width):
                for draw in range(draws):
                    wanted = job.wants(y, x, draw, draws)
                    caches.pixel_phase(y, x, draw, job.values[:, :, y, x], skip_output=not wanted)
                    if wanted:
                        found = caches.at(Read(self._program.outputs[draw]), y, x)
                        assert found is not None, "an output is there for every pixel"
                        parameters = found.unflatten(-1, (-1, self._program.parameters))
                        job.draw_pixel(y, x, draw, draws, parameters, self._head)
                caches.pixel_phase(y, x, draws, job.values[:, :, y, x])
            caches.compute_row(Phase.FINISHED, y)


class _Caches:
    """Rows of each value of one batch, and each instruction's sum over its row runs."""

    def __init__(self, program: PhasedProgram, n: int, conditions: dict[ConditionOperand, Tensor]) -> None:
        self._program, self._n = program, n
        self.conditions = {operand: x.to(program.dtype) for operand, x in conditions.items()}
        self.dtype, self.device, self.shape = program.dtype, program.device, program.shape
        _, height, self._width = program.shape
        self._rows: dict[int, Tensor] = {}
        for value, s in program.storage.items():
            columns = s.pad_left + count(self._width, s.every_x) + s.pad_right
            size = (s.rows, n, columns, s.channels)
            self._rows[value] = torch.zeros(size, dtype=program.dtype, device=program.device)
        self.whole = {  # what attention reads: values at all pixels, [n, H * W, channels]
            value: torch.zeros(
                n, height * self._width, s.channels, dtype=program.dtype, device=program.device
            )
            for value, s in program.storage.items()
            if s.keys or s.values
        }
        self._partial: dict[int, Tensor] = {}
        at_pixels = [*program.in_phase(Phase.PIXEL), *program.in_phase(Phase.DRAWN)]
        draws = len(program.outputs)
        self._after = [[i for i in at_pixels if i.after == after] for after in range(draws + 1)]
        self._by_rows = {
            phase: [
                list(group) for _, group in groupby(program.in_phase(phase), key=lambda i: i.scan or i.out)
            ]
            for phase in (Phase.ROW, Phase.FINISHED)
        }
        self._partly = [i for i in program.instructions if i.row_runs and i.phase not in self._by_rows]

    def compute_row(self, phase: Phase, y: int) -> None:
        """Computes a phase of row y; the first also sums what others see of rows above."""
        for group in self._by_rows[phase]:
            scan = group[0].scan
            if scan is None:
                _Around(self, y).compute(group[0])
                continue
            for i in group:
                if i.row_runs:
                    self.sum_of_row(i, y)
            for x in reversed(range(self._width)) if scan.from_the_right else range(self._width):
                around = _Around(self, y, x)
                for i in group:
                    around.compute(i)
        for i in self._partly if phase is Phase.ROW else ():
            if y % i.instruction.every[0] == 0:
                self.sum_of_row(i, y)

    def sum_of_row(self, i: PhasedInstruction, y: int) -> Tensor:
        """What an instruction's row runs add up to, for row y: [n, columns of its grid, channels]."""
        total = self.zeros(i.channels, i.instruction.every[1])
        if i.instruction.bias is not None:
            total += i.instruction.bias
        for run in i.row_runs:
            if (met := self.along(run, y, i.instruction.every[1])) is not None:
                columns, window = met
                total[:, columns] += window @ run.weight
        self._partial[i.out] = total
        return total

    def sum_at_pixel(self, i: PhasedInstruction, y: int, x: int) -> Tensor:
        """What its row runs and its pixel runs add up to, at pixel (y, x): [n, channels]."""
        start = i.instruction.bias
        if i.row_runs:
            start = self._partial[i.out][:, x // i.instruction.every[1]]
        elif start is None:
            start = self.zeros(i.channels)
        for run in i.pixel_runs:
            if (window := self.at(run, y, x)) is not None:
                start = torch.addmm(start, window, run.weight)
        return start.expand(self._n, -1)

    def pixel_phase(self, y: int, x: int, after: int, values: Tensor, skip_output: bool = False) -> None:
        """Computes at pixel (y, x) what waits for ``after`` draws. values: [n, C], as far as drawn."""
        around = _Around(self, y, x, values.to(self._program.device))
        skipped = self._program.outputs if skip_output else ()
        for i in self._after[after]:
            if i.out not in skipped:
                around.compute(i)

    # -- views of the caches

    def zeros(self, channels: int, every_x: int | None = None) -> Tensor:
        """[n, channels], or for a row of a grid with ``every_x``: [n, columns, channels]."""
        columns = () if every_x is None else (count(self._width, every_x),)
        return torch.zeros(self._n, *columns, channels, dtype=self.dtype, device=self._program.device)

    def at(self, run: Run | Read, y: int, x: int) -> Tensor | None:
        """What a run, or an operand, reads at pixel (y, x): [n, width * channels]; None if it is not there."""
        source, width = _source(run)
        of = self._program.storage[source]
        row, column = y + run.dy, x + run.dx
        if row % of.every_y or column % of.every_x:
            return None
        rows, start = self._row(source, row)
        _, per_image, channels, _ = rows.stride()
        start += column // of.every_x * channels
        return rows.as_strided((self._n, width * channels), (per_image, 1), start)

    def along(self, run: Run | Read, y: int, every_x: int) -> tuple[slice, Tensor] | None:
        """What a run, or an operand, reads along row y -> (the columns of a grid with
        ``every_x`` that find it, of each [n, columns, width * channels], which overlap); None
        if none does."""
        source, width = _source(run)
        of = self._program.storage[source]
        met = meeting(self._width, every_x, of.every_x, run.dx)
        if (y + run.dy) % of.every_y or not met.reader:
            return None
        rows, start = self._row(source, y + run.dy)
        _, per_image, channels, _ = rows.stride()
        size = (self._n, len(met.source), width * channels)
        strides = (per_image, met.source.step * channels, 1)
        return stretch(met.reader), rows.as_strided(size, strides, start + met.source.start * channels)

    def channels(self, value: int) -> int:
        return self._program.storage[value].channels

    def _row(self, value: int, y: int) -> tuple[Tensor, int]:
        """-> (the rows that are kept of a value, where in their memory row y begins after its padding)"""
        rows, of = self._rows[value], self._program.storage[value]
        per_row, _, channels, _ = rows.stride()
        return rows, (y // of.every_y % len(rows)) * per_row + of.pad_left * channels


def _source(run: Run | Read) -> tuple[int, int]:
    """What is read, and of how many of its columns."""
    return (run.source, run.width) if isinstance(run, Run) else (run.value, 1)


class _Around(Surroundings):
    """Pixel (y, x), [n, channels], or if x is None the columns of row y that are in the
    grid of the present instruction, [n, columns, channels]. drawn: [n, C]."""

    def __init__(self, caches: _Caches, y: int, x: int | None = None, drawn: Tensor | None = None) -> None:
        self._caches, self._y, self._x, self._drawn = caches, y, x, drawn
        self.dtype = caches.dtype

    def compute(self, i: PhasedInstruction) -> None:
        """Computes an instruction where its value exists."""
        self._present, (rows, columns) = i, i.instruction.every
        if self._y % rows or (self._x or 0) % columns:
            return
        x = apply_steps(i.instruction.start(self), i.instruction.steps, self.value, self.condition)
        self.value(Read(i.out)).copy_(x)
        if i.out in self._caches.whole:
            self._caches.whole[i.out][:, self.pixels()] = x

    def value(self, read: Read) -> Tensor:
        channels, columns = self._caches.channels(read.value), self._present.instruction.every[1]
        if self._x is not None:
            found = self._caches.at(read, self._y, self._x)
            return self._caches.zeros(channels) if found is None else found
        met = self._caches.along(read, self._y, columns)
        whole = self._caches.zeros(channels, columns)
        if met is None or met[1].shape == whole.shape:
            return whole if met is None else met[1]
        whole[:, met[0]] = met[1]
        return whole

    def summed(self, i: Instruction) -> Tensor:
        if self._x is None:
            return self._caches.sum_of_row(self._present, self._y)
        return self._caches.sum_at_pixel(self._present, self._y, self._x)

    def condition(self, operand: ConditionOperand) -> Tensor:
        x = self._caches.conditions[operand]
        if operand.varies_over_pixels:
            row = x[:, self._y]
            return row[:, :: self._present.instruction.every[1]] if self._x is None else row[:, self._x]
        return x[:, None] if self._x is None else x

    def whole(self, value: int) -> Tensor:
        return self._caches.whole[value]

    def pixels(self) -> Tensor:
        _, _, width = self._caches.shape
        row = torch.arange(width, device=self._caches.device) if self._x is None else self._x
        return torch.as_tensor(self._y * width + row, device=self._caches.device)

    def image(self) -> Tensor:
        assert self._drawn is not None, "only what runs after a draw may read the pixel's values"
        return self._drawn

    def zeros(self, channels: int) -> Tensor:
        raise AssertionError("taps are summed run by run")
