"""A phased program as a listing for people, with what it costs."""

from __future__ import annotations

from pixelcnn_fast.program.phased import Phase, PhasedInstruction, PhasedProgram, Run
from pixelcnn_fast.program.program import LEVELS


class ProgramListing:
    """``print`` it: instructions, live taps, phases, bytes of weights, FLOPs per pixel.

    ``row_flops`` and ``pixel_flops``: floating-point operations per pixel and image of each phase;
    ``weight_bytes``; ``workspace_bytes``: what a batch needs per image, besides the weights.
    """

    def __init__(self, program: PhasedProgram, pixel_weight_bytes: int) -> None:
        """pixel_weight_bytes: of one weight of the pixel phase; those of the row phase are never narrowed."""
        self._program = program
        row_weights = sum(run.weight.numel() for i in program.instructions for run in i.row_runs)
        pixel_weights = sum(run.weight.numel() for i in program.instructions for run in i.pixel_runs)
        self.weight_bytes = row_weights * program.dtype.itemsize + pixel_weights * pixel_weight_bytes
        self.row_flops, self.pixel_flops = 2 * row_weights, 2 * pixel_weights
        width = program.shape[2]
        stored = sum((width + s.pad_left + s.pad_right) * s.rows * s.channels for s in program.storage.values())
        partial = sum(width * i.channels for i in program.instructions if i.row_runs)
        self.workspace_bytes = (stored + partial) * program.dtype.itemsize

    def __str__(self) -> str:
        c, height, width = self._program.shape
        lines = [
            f"causal program for {c}x{height}x{width} images of {self._program.levels} levels, "
            f"{str(self._program.dtype).removeprefix('torch.')}, {len(self._program.instructions)} instructions",
            f"  {self.weight_bytes / 1e6:.2f} MB of weights, "
            f"{self.workspace_bytes / 1e6:.2f} MB of workspace per image",
            f"  per pixel: {self.row_flops / 1e6:.3f} MFLOP in the row phase, "
            f"{self.pixel_flops / 1e6:.3f} MFLOP in the pixel phase",
        ]
        front = self._program.wavefront
        if front is not None:
            lines.append(f"  wavefront: a row can start {front.lag} columns behind the row above")
        meaning = {
            Phase.ROW: "row phase: a whole row at once",
            Phase.PIXEL: "pixel phase: before the pixel is drawn (row taps are summed in the row phase)",
            Phase.DRAWN: "after the pixel is drawn",
        }
        draws = len(self._program.outputs)
        for phase in Phase:
            for after in range(draws + 1):
                instructions = [i for i in self._program.in_phase(phase) if i.after == after]
                if instructions:
                    title = (
                        meaning[phase]
                        if after == 0 or phase is Phase.DRAWN
                        else f"after draw {after} of {draws}"
                    )
                    lines += ["", title, *map(self._line, instructions)]
        return "\n".join(lines)

    __repr__ = __str__

    def _line(self, i: PhasedInstruction) -> str:
        if i.base == LEVELS:
            channels = i.reads_levels(self._program.shape[0])
            reads = ["levels" if i.pick is None else f"levels of channel {', '.join(map(str, channels))}"]
        elif i.base is not None:
            reads = [f"%{i.base}"]
        else:
            reads = [f"row {_taps(run)}" for run in i.row_runs] + [
                f"pixel {_taps(run)}" for run in i.pixel_runs
            ]
        storage = self._program.storage[i.out]
        kept = (
            "" if i.out in self._program.outputs else f"  (keeps {storage.rows} row{'s' * (storage.rows > 1)})"
        )
        steps = "".join(f" | {step}" for step in i.steps)
        return f"  %{i.out:<4} {i.name:<24} {i.channels:>5} ch = {' + '.join(reads) or 'bias'}{steps}{kept}"


def _taps(run: Run) -> str:
    columns = f"{run.dx:+d}" if run.width == 1 else f"{run.dx:+d}..{run.dx + run.width - 1:+d}"
    return f"%{run.source}({run.dy:+d}, {columns})"
