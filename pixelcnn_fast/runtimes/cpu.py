"""The CPU runtime: executes a phased program with the compiled module (csrc/cpu).

A pixel is drawn through Sampler.sample, call.run, CpuRuntime.run and, in csrc/cpu/sampler,
SamplerOf::run and, on each thread, Walk: work, draw_pixels, draw_values, draw_one.
HeadDrawer::draw has the head's formula.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pixelcnn_fast import cores
from pixelcnn_fast.errors import NonFiniteLogits
from pixelcnn_fast.heads import Head
from pixelcnn_fast.native import required
from pixelcnn_fast.program.conditions import ConditionProgram
from pixelcnn_fast.program.operands import ConditionOperand
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.runtimes.job import Job, Runtime
from pixelcnn_fast.runtimes.native_program import native_job, native_program, why_no_native_program


def why_not_cpu(program: PhasedProgram, head: Head) -> str | None:
    if (why := why_no_native_program(program, head)) is not None:
        return why
    if program.device.type != "cpu":
        return f"the model is on {program.device}, but this runtime works on the CPU: use model.cpu()"
    if program.dtype not in (torch.float32, torch.float64):
        return f"the model is {program.dtype}, but this runtime needs float32 or float64: use model.float()"
    return None


class CpuRuntime(Runtime):
    """Packs the weights once; ``run`` may then be called from several threads. precision:
    'bf16' is that of the weights, and, where the processor multiplies it, of values."""

    def __init__(
        self, program: PhasedProgram, conditions: ConditionProgram, head: Head, precision: Precision = "same"
    ) -> None:
        if (why := why_not_cpu(program, head)) is not None:
            raise RuntimeError(f"runtime 'cpu' is not available: {why}")
        self._native = required()
        self._program, self._conditions = program, conditions
        borrowed: list[Tensor] = []  # alive until C++ has its copies
        description = native_program(program, head, borrowed, program.dtype)
        self._sampler = self._native.CpuSampler(description, program.dtype == torch.float64, precision)
        self._constants: dict[ConditionOperand, Tensor] = {}
        self._together: dict[tuple[int, int], int] = {}  # by images and threads: found out once

    @property
    def _threads(self) -> int:
        """As many as PyTorch has, and no more than cores, for which they would wait."""
        return min(torch.get_num_threads(), cores.usable())

    def run(self, job: Job) -> None:
        conditions = self._operands(job)
        known = None if job.known is None else job.known.to(torch.uint8).contiguous()
        for written in (job.values, job.parameters, job.log_probability):
            assert written is None or written.is_contiguous()
        batch = replace(job, known=known, noise=job.noise.contiguous())
        try:
            self._sampler.run(native_job(batch, conditions), self._threads, job.on_row)
        except self._native.NonFiniteLogits as error:
            raise NonFiniteLogits(*error.args) from None

    def _operands(self, job: Job) -> list[Tensor]:
        """What steps read of the condition. Constants are kept, once for all images."""
        operands, images = self._program.condition_operands, len(job.values)
        wanted = [operand for operand in operands if operand not in self._constants]
        found = dict(self._constants)
        for operand, x in self._conditions(wanted, job.given, images).items():
            found[operand] = (x if operand.per_image else x[:1]).to(self._program.dtype).contiguous()
            if images and not operand.per_image:
                self._constants[operand] = found[operand]
        return [found[operand] for operand in operands]

    def together(self, images: int) -> int:
        key = images, self._threads
        if key not in self._together:
            self._together[key] = self._sampler.together(*key)
        return self._together[key]

    def tune(self, images: int) -> None:
        self._sampler.tune(images, self._threads)

    def workspace_bytes(self, images: int) -> int:
        return self._sampler.workspace_bytes(self._sampler.chosen(images, self._threads))
