"""The eager runtime: a phased program in plain PyTorch with caches. It needs no compiler and runs on any device.

Values lie channels-last with zero columns on both sides, so that the taps of a run are one stretch of memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.program.conditions import Conditions
from pixelcnn_fast.program.phased import Phase, PhasedInstruction, PhasedProgram, Run
from pixelcnn_fast.program.program import LEVELS, Slot, apply_steps, from_levels
from pixelcnn_fast.runtimes.job import Job


class EagerRuntime:
    def __init__(self, program: PhasedProgram, conditions: Conditions) -> None:
        self._program, self._conditions = program, conditions

    @torch.no_grad()
    def run(self, job: Job) -> None:
        _, height, width = self._program.shape
        n, draws = job.levels.shape[0], len(self._program.outputs)
        caches = _Caches(self._program, n, self._conditions(self._program.slots, job.given, n))
        for y in range(height):
            job.on_row(y)
            caches.row_phase(y)
            for x in range(width):
                for draw in range(draws):
                    channels = self._program.drawn_by(draw)
                    wanted = job.wants(y, x, channels)
                    caches.pixel_phase(y, x, draw, skip_output=not wanted)
                    if wanted:
                        job.settle(y, x, channels, caches.logits(y, x, draw))
                    caches.read_levels(y, x, draw, job.levels[:, :, y, x])
                caches.pixel_phase(y, x, draws)


class _Caches:
    """The caches of one batch: rows of each value, and each instruction's sum over its row runs."""

    def __init__(self, program: PhasedProgram, n: int, conditions: dict[Slot, Tensor]) -> None:
        self._program, self._n, self._conditions = program, n, conditions
        self._width = program.shape[2]
        self._rows = {
            value: torch.zeros(
                s.rows,
                n,
                s.pad_left + self._width + s.pad_right,
                s.channels,
                dtype=program.dtype,
                device=program.device,
            )
            for value, s in program.storage.items()
        }
        self._partial: dict[int, Tensor] = {}
        draws = len(program.outputs)
        inputs = [i for i in program.instructions if i.base == LEVELS]
        others = [i for i in program.instructions if i.base != LEVELS and i.phase is not Phase.ROW]
        self._inputs = [[i for i in inputs if i.after == draw + 1] for draw in range(draws)]
        self._after = [[i for i in others if i.after == after] for after in range(draws + 1)]

    def row_phase(self, y: int) -> None:
        for i in self._program.instructions:
            if i.row_runs or i.phase is Phase.ROW:
                windows = [(self._row_windows(run, y), run.weight) for run in i.row_runs]
                self._partial[i.out] = self._sum(i, windows, None, (self._n, self._width))
            if i.phase is Phase.ROW:
                x = self._partial[i.out] if i.base is None else self._read_row(i.base, y)
                self._read_row(i.out, y).copy_(self._stepped(i, x, lambda v: self._read_row(v, y), y, None))

    def pixel_phase(self, y: int, x: int, after: int, skip_output: bool = False) -> None:
        """What can be computed of pixel (y, x) after that many of its draws, and not before."""
        for i in self._after[after]:
            if not (skip_output and i.out in self._program.outputs):
                self._at_pixel(i, y, x)

    def logits(self, y: int, x: int, draw: int) -> Tensor:
        """[n, C, L] of pixel (y, x), for the image channels of this draw."""
        return self._read(self._program.outputs[draw], y, x).view(self._n, -1, self._program.levels)

    def read_levels(self, y: int, x: int, draw: int, levels: Tensor) -> None:
        """levels: [n, C] of pixel (y, x), of which this draw gave some."""
        for i in self._inputs[draw]:
            value = from_levels(i, levels.to(self._program.device), self._program.dtype)
            self._read(i.out, y, x).copy_(apply_steps(value, i.steps, self._no_value, self._no_value))

    def _at_pixel(self, i: PhasedInstruction, y: int, x: int) -> None:
        if i.base is not None:
            total = self._read(i.base, y, x)
        else:
            partial = self._partial[i.out][:, x] if i.row_runs else None
            windows = [(self._window(run, y, x), run.weight) for run in i.pixel_runs]
            total = self._sum(i, windows, partial, (self._n,))
        self._read(i.out, y, x).copy_(self._stepped(i, total, lambda v: self._read(v, y, x), y, x))

    def _sum(
        self,
        i: PhasedInstruction,
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

    def _stepped(self, i: PhasedInstruction, total: Tensor, value, y: int, x: int | None) -> Tensor:
        """x: the column, or None for the whole row."""

        def condition(slot: Slot) -> Tensor:
            operand = self._conditions[slot].to(self._program.dtype)
            if slot.varies_over_pixels:
                return operand[:, y] if x is None else operand[:, y, x]
            return operand[:, None] if x is None else operand

        return apply_steps(total, i.steps, value, condition)

    @staticmethod
    def _no_value(_) -> Tensor:
        raise AssertionError("the passes keep operands away from the input instruction")

    # -- views of the caches

    def _slot(self, value: int, y: int) -> Tensor:
        rows = self._rows[value]
        return rows[y % rows.shape[0]]

    def _read(self, value: int, y: int, x: int) -> Tensor:
        """Pixel (y, x): [n, channels]."""
        return self._slot(value, y)[:, self._program.storage[value].pad_left + x]

    def _read_row(self, value: int, y: int) -> Tensor:
        """Row y: [n, W, channels]."""
        return self._slot(value, y).narrow(1, self._program.storage[value].pad_left, self._width)

    def _window(self, run: Run, y: int, x: int) -> Tensor:
        """What a run reads for pixel (y, x): [n, width * channels]."""
        start = self._program.storage[run.source].pad_left + x + run.dx
        return self._slot(run.source, y + run.dy).narrow(1, start, run.width).flatten(1)

    def _row_windows(self, run: Run, y: int) -> Tensor:
        """What a run reads for each pixel of row y: [n, W, width * channels], an overlapping view."""
        row = self._slot(run.source, y + run.dy)
        channels = row.shape[2]
        offset = row.storage_offset() + (self._program.storage[run.source].pad_left + run.dx) * channels
        size = (self._n, self._width, run.width * channels)
        return row.as_strided(size, (row.stride(0), channels, 1), offset)
