"""The compiled CPU runtime, csrc/cpu/sampler/sampler.cpp, fed with a phased program."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.environment import native, why_not_native
from pixelcnn_fast.sampling.conditions import Conditions
from pixelcnn_fast.sampling.drawing import Drawing, NonFiniteLogits
from pixelcnn_fast.sampling.job import Job
from pixelcnn_fast.sampling.passes import PhasedInstruction, PhasedProgram, Run
from pixelcnn_fast.sampling.program import LEVELS, Step
from pixelcnn_fast.sampling.wavefront import wavefront


def why_not_cpu(program: PhasedProgram) -> str | None:
    """Why the compiled CPU runtime can't serve this program, or None if it can."""
    if native() is None:
        return why_not_native()
    if program.device.type != "cpu":
        return f"the model is on {program.device}, the compiled runtime works on the CPU: use model.cpu()"
    if program.dtype not in (torch.float32, torch.float64):
        return f"the model is {program.dtype}, the compiled runtime computes in float32 or float64: use model.float()"
    return None


class CpuRuntime:
    """Packs the weights once; ``run`` may then be called from several threads."""

    def __init__(self, program: PhasedProgram, conditions: Conditions, bf16_weights: bool) -> None:
        if (why := why_not_cpu(program)) is not None:
            raise RuntimeError(f"runtime 'cpu' is not available: {why}")
        self._native = native()
        self._program, self._conditions, self._slots = program, conditions, program.slots
        borrowed: list[Tensor] = []  # alive until the C++ side has packed its copies
        description = described(program, borrowed, program.dtype)
        self._sampler = self._native.CpuSampler(description, program.dtype == torch.float64, bf16_weights)

    def run(self, job: Job) -> None:
        operands = self._conditions(self._slots, job.given, job.levels.shape[0])
        conditions = [operands[slot].to(self._program.dtype).contiguous() for slot in self._slots]
        known = None if job.known is None else job.known.to(torch.uint8).contiguous()
        noise = job.noise.contiguous()
        for written in (job.levels, job.logits, job.log_probability):
            assert written is None or written.is_contiguous()
        try:
            self._sampler.run(
                images=job.levels.shape[0],
                values=job.levels.data_ptr(),
                known=0 if known is None else known.data_ptr(),
                noise=noise.data_ptr(),
                conditions=[c.data_ptr() for c in conditions],
                options=sampling_options(self._native, job.drawing),
                parameters=0 if job.logits is None else job.logits.data_ptr(),
                log_probability=0 if job.log_probability is None else job.log_probability.data_ptr(),
                threads=torch.get_num_threads(),
                on_row=job.on_row,
            )
        except self._native.NonFiniteLogits as error:
            raise NonFiniteLogits(*error.args) from None

    def weight_bytes(self) -> int:
        return self._sampler.weight_bytes()

    def workspace_bytes(self, images: int) -> int:
        return self._sampler.workspace_bytes(images, torch.get_num_threads())


def sampling_options(module: Any, drawing: Drawing) -> Any:
    """Those of csrc/program.h, which has its own way to say None."""
    given = {name: value for name, value in asdict(drawing).items() if value is not None}
    if "top_k" in given:
        given["top_k"] = min(given["top_k"], torch.iinfo(torch.int32).max)
    return module.SamplingOptions(**given)


def described(program: PhasedProgram, borrowed: list[Tensor], dtype: torch.dtype) -> Any:
    """The program as csrc/program.h has it, its arrays in ``dtype`` on the CPU; ``borrowed`` keeps them alive."""
    return _Describer(native(), program, borrowed, dtype).program()


class _Describer:
    """A phased program as the structs of csrc/program.h; values are numbered anew, from 0."""

    def __init__(self, module: Any, program: PhasedProgram, borrowed: list[Tensor], dtype: torch.dtype) -> None:
        self._module, self._program, self._borrowed, self._dtype = module, program, borrowed, dtype
        self._front = wavefront(program)
        self._number = {i.out: index for index, i in enumerate(program.instructions)}
        self._slots = program.slots

    def program(self) -> Any:
        storage = [self._program.storage[value] for value in self._number]
        c, height, width = self._program.shape
        return self._module.Program(
            image_channels=c, height=height, width=width, head=self._head(),
            outputs=[self._number[output] for output in self._program.outputs],
            storage=[self._module.Storage(s.channels, s.rows, s.pad_left, s.pad_right) for s in storage],
            instructions=[self._instruction(i) for i in self._program.instructions],
            conditions=[self._module.ConditionOperand(s.index.shape[-1], s.varies_over_pixels) for s in self._slots],
            lag=self._front.lag if self._front else 0,
        )  # fmt: skip

    def _instruction(self, i: PhasedInstruction) -> Any:
        return self._module.Instruction(
            out=self._number[i.out], channels=i.channels, phase=getattr(self._module.Phase, i.phase.value),
            steps=[self._step(step) for step in i.steps],
            lead=self._front.leads[i.out] if self._front else 0, after=i.after, **self._own(i),
        )  # fmt: skip

    def _own(self, i: PhasedInstruction) -> dict[str, Any]:
        """What an instruction has as one of its kind."""
        kinds = self._module.InstructionKind
        if i.base == LEVELS:
            return {"kind": kinds.from_levels, "input": self._input(i)}
        if i.base is not None:
            return {"kind": kinds.pointwise, "value": self._number[i.base]}
        return {
            "kind": kinds.convolution,
            "bias": self._address(i.bias),
            "row_runs": [self._run(run) for run in i.row_runs],
            "pixel_runs": [self._run(run) for run in i.pixel_runs],
        }

    def _input(self, i: PhasedInstruction) -> Any:
        channels = i.reads_levels(self._program.shape[0])
        assert channels == list(range(channels[0], channels[-1] + 1)), "cut gives each draw its own input"
        return self._module.ImageInput(
            first=channels[0], count=len(channels), width=i.channels // len(channels),
            table=self._address(i.table), levels=0 if i.table is None else len(i.table),
        )  # fmt: skip

    def _head(self) -> Any:
        return self._module.Head(
            self._module.HeadKind.categorical, distributions=self._program.shape[0],
            parameters=self._program.levels, uniforms=1,
        )  # fmt: skip

    def _run(self, run: Run) -> Any:
        return self._module.Run(self._number[run.source], run.dy, run.dx, run.width, self._address(run.weight))

    def _step(self, step: Step) -> Any:
        operand = -1 if step.condition is None else self._slots.index(step.condition)
        operand = operand if step.value is None else self._number[step.value]
        kind = getattr(self._module.StepKind, step.kind)
        return self._module.Step(
            kind, step.alpha, operand, self._address(step.scale), self._address(step.shift)
        )

    def _address(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        self._borrowed.append(tensor.detach().to("cpu", self._dtype).contiguous())
        return self._borrowed[-1].data_ptr()
