"""The eager runtime: a phased program in plain PyTorch with caches, on any device.

Values lie channels-last with zero columns on both sides, so that a run's taps are one stretch of memory.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from pixelcnn_fast.heads import Head
from pixelcnn_fast.program.conditions import ConditionProgram
from pixelcnn_fast.program.formulas import apply_steps
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
                        found = caches.view(self._program.outputs[draw], y, x)
                        parameters = found.unflatten(-1, (-1, self._program.parameters))
                        job.draw_pixel(y, x, draw, draws, parameters, self._head)
                caches.pixel_phase(y, x, draws, job.values[:, :, y, x])
            caches.compute_row(Phase.FINISHED, y)


class _Caches:
    """Rows of each value of one batch, and each instruction's sum over its row runs."""

    def __init__(self, program: PhasedProgram, n: int, conditions: dict[ConditionOperand, Tensor]) -> None:
        self._program, self._n = program, n
        self.conditions = {operand: x.to(program.dtype) for operand, x in conditions.items()}
        self.dtype, self._width = program.dtype, program.shape[2]
        self._rows: dict[int, Tensor] = {}
        for value, s in program.storage.items():
            size = (s.rows, n, s.pad_left + self._width + s.pad_right, s.channels)
            self._rows[value] = torch.zeros(size, dtype=program.dtype, device=program.device)
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
            self.sum_of_row(i, y)

    def sum_of_row(self, i: PhasedInstruction, y: int) -> Tensor:
        """What an instruction's row runs add up to, for row y: [n, W, channels]."""
        windows = [(self._window(run, y, None), run.weight) for run in i.row_runs]
        self._partial[i.out] = self._sum(i.instruction, windows, None, (self._n, self._width))
        return self._partial[i.out]

    def sum_at_pixel(self, i: PhasedInstruction, y: int, x: int) -> Tensor:
        """What its row runs and its pixel runs add up to, at pixel (y, x): [n, channels]."""
        partial = self._partial[i.out][:, x] if i.row_runs else None
        windows = [(self._window(run, y, x), run.weight) for run in i.pixel_runs]
        return self._sum(i.instruction, windows, partial, (self._n,))

    def pixel_phase(self, y: int, x: int, after: int, values: Tensor, skip_output: bool = False) -> None:
        """Computes at pixel (y, x) what waits for ``after`` draws. values: [n, C], as far as drawn."""
        around = _Around(self, y, x, values.to(self._program.device))
        skipped = self._program.outputs if skip_output else ()
        for i in self._after[after]:
            if i.out not in skipped:
                around.compute(i)

    def _sum(
        self,
        i: Instruction,
        windows: list[tuple[Tensor, Tensor]],
        start: Tensor | None,
        shape: tuple[int, ...],
    ) -> Tensor:
        if start is None and i.bias is not None:
            start = i.bias.expand(*shape, i.channels)
        for window, weight in windows:
            if start is None:
                start = window @ weight
            elif len(shape) == 1:
                start = torch.addmm(start, window, weight)
            else:
                start = start + window @ weight
        return self._rows[i.out].new_zeros(*shape, i.channels) if start is None else start

    # -- views of the caches

    def view(self, value: int, y: int, x: int | None, dx: int = 0, width: int = 1) -> Tensor:
        """``width`` adjacent pixels from column x + dx of row y on, [n, width * channels]; if x
        is None, those of each pixel of the row, [n, W, width * channels], which overlap."""
        rows = self._rows[value]
        per_row, per_image, channels, _ = rows.stride()
        start = (y % rows.shape[0]) * per_row + (self._program.storage[value].pad_left + dx) * channels
        if x is None:
            return rows.as_strided((self._n, self._width, width * channels), (per_image, channels, 1), start)
        return rows.as_strided((self._n, width * channels), (per_image, 1), start + x * channels)

    def _window(self, run: Run, y: int, x: int | None) -> Tensor:
        return self.view(run.source, y + run.dy, x, run.dx, run.width)


class _Around(Surroundings):
    """Pixel (y, x), [n, channels], or if x is None row y, [n, W, channels]. drawn: [n, C]."""

    def __init__(self, caches: _Caches, y: int, x: int | None = None, drawn: Tensor | None = None) -> None:
        self._caches, self._y, self._x, self._drawn = caches, y, x, drawn
        self.dtype = caches.dtype

    def compute(self, i: PhasedInstruction) -> None:
        self._present = i
        x = apply_steps(i.instruction.start(self), i.instruction.steps, self.value, self.condition)
        self.value(Read(i.out)).copy_(x)

    def value(self, read: Read) -> Tensor:
        return self._caches.view(read.value, self._y + read.dy, self._x, read.dx)

    def summed(self, i: Instruction) -> Tensor:
        if self._x is None:
            return self._caches.sum_of_row(self._present, self._y)
        return self._caches.sum_at_pixel(self._present, self._y, self._x)

    def condition(self, operand: ConditionOperand) -> Tensor:
        x = self._caches.conditions[operand]
        if operand.varies_over_pixels:
            return x[:, self._y] if self._x is None else x[:, self._y, self._x]
        return x[:, None] if self._x is None else x

    def image(self) -> Tensor:
        assert self._drawn is not None, "only what runs after a draw may read the pixel's values"
        return self._drawn

    def zeros(self, channels: int) -> Tensor:
        raise AssertionError("taps are summed run by run")
