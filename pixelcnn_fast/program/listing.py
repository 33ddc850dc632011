"""A runtime's program and its costs, as a listing for people."""

from __future__ import annotations

import math

from pixelcnn_fast.program.attention import Attention
from pixelcnn_fast.program.grids import cell, count
from pixelcnn_fast.program.phased import Phase, PhasedProgram


class ProgramListing:
    """``print`` shows instructions, live taps, phases, and the costs, for one runtime.

    ``row_flops``, ``pixel_flops``: floating-point operations per pixel and image of each
    phase, on average over pixels; ``weight_bytes``, with attention's tables;
    ``workspace_bytes``: per image of a batch, besides the weights; ``weights``: the matrices.
    """

    def __init__(self, program: PhasedProgram, runtime: str, pixel_weight_bytes: int) -> None:
        """runtime: what 'auto' stands for. pixel_weight_bytes: of a weight, and of what ``cpu``
        keeps for attention; only the pixel phase narrows it."""
        self._program, self._runtime = program, runtime
        self.weights = [run.weight for i in program.instructions for run in (*i.row_runs, *i.pixel_runs)]
        row_weights = sum(run.weight.numel() for i in program.instructions for run in i.row_runs)
        pixel_weights = sum(weight.numel() for weight in self.weights) - row_weights
        attentions = [i.instruction for i in program.instructions if isinstance(i.instruction, Attention)]
        of_pairs = sum(table.numel() for each in attentions for table in each.tables if table is not None)
        self.weight_bytes = (row_weights + of_pairs) * program.dtype.itemsize
        self.weight_bytes += pixel_weights * pixel_weight_bytes
        channels = {i.out: i.channels for i in program.instructions}
        rows, pixels = (
            sum(run.weight.numel() / math.prod(cell((i.instruction.every, run.every))) for i, run in runs)
            for runs in (
                [(i, run) for i in program.instructions for run in i.row_runs],
                [(i, run) for i in program.instructions for run in i.pixel_runs],
            )
        )
        for i in program.instructions:
            products = i.instruction.products(channels.__getitem__)
            rows, pixels = (rows + products, pixels) if i.phase is Phase.ROW else (rows, pixels + products)
        self.row_flops, self.pixel_flops = 2 * rows, 2 * pixels
        _, height, width = program.shape
        stored = sum(
            (count(width, s.every_x) + s.pad_left + s.pad_right) * s.rows * s.channels
            for s in program.storage.values()
        )
        attended = height * width * sum((s.keys + s.values) * s.channels for s in program.storage.values())
        partial = sum(
            count(width, i.instruction.every[1]) * i.channels for i in program.instructions if i.row_runs
        )
        attended_bytes = pixel_weight_bytes if runtime == "cpu" else program.dtype.itemsize
        self.workspace_bytes = (stored + partial) * program.dtype.itemsize + attended * attended_bytes

    def __str__(self) -> str:
        title, *lines = str(self._program).split("\n")
        runtime = f"program of runtime {self._runtime!r}, which 'auto' stands for here"
        costs = [
            f"  {self.weight_bytes / 1e6:.2f} MB of weights, "
            f"{self.workspace_bytes / 1e6:.2f} MB of workspace per image",
            f"  per pixel: {self.row_flops / 1e6:.3f} MFLOP in the row phase, "
            f"{self.pixel_flops / 1e6:.3f} MFLOP in the pixel phase",
        ]
        return "\n".join([runtime, title, *costs, *lines])

    __repr__ = __str__
