"""A phased program as the compiled runtimes take it: the structs of csrc/program.h."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.errors import InvalidProgram
from pixelcnn_fast.heads import Head, SamplingOptions
from pixelcnn_fast.native import required
from pixelcnn_fast.program.instructions import Convolution, FromLevels, Pointwise
from pixelcnn_fast.program.operands import Step
from pixelcnn_fast.program.phased import PhasedInstruction, PhasedProgram, Run


def why_not_compiled(head: Head) -> str | None:
    """Why the compiled runtimes can't draw from this head, or None if they can. The compiled module must be there."""
    if head.native is None:
        return f"{head} is drawn in Python only: use runtime 'eager'"
    traits = required().HEAD_TRAITS.get(head.native)
    if traits is None:
        return (
            f"{head} is drawn as {head.native!r}, which the compiled module does not know: use runtime 'eager'"
        )
    if traits["single"] and (head.joint or head.uniforms != 1):
        return f"{head} draws several values or with several uniforms: use runtime 'eager'"
    if head.value_dtype is not getattr(torch, value := traits["value"]):
        return (
            f"{head} has values of {head.value_dtype}, the compiled runtimes draw {value}: use runtime 'eager'"
        )
    return None


def sampling_options(options: SamplingOptions) -> Any:
    """The options as csrc/program.h has them; what is None keeps the default there, which means the same."""
    given = {name: value for name, value in asdict(options).items() if value is not None}
    if "top_k" in given:
        given["top_k"] = min(given["top_k"], torch.iinfo(torch.int32).max)
    return required().SamplingOptions(**given)


def described(program: PhasedProgram, head: Head, borrowed: list[Tensor], dtype: torch.dtype) -> Any:
    """The program as csrc/program.h has it, with arrays in ``dtype`` on the CPU; ``borrowed`` keeps them alive."""
    return _Describer(required(), program, head, borrowed, dtype).program()


class _Describer:
    """A phased program as the structs of csrc/program.h; values are numbered anew, from 0."""

    def __init__(
        self, module: Any, program: PhasedProgram, head: Head, borrowed: list[Tensor], dtype: torch.dtype
    ) -> None:
        self._module, self._program, self._head = module, program, head
        self._borrowed, self._dtype = borrowed, dtype
        self._front = program.wavefront
        self._number = {i.out: index for index, i in enumerate(program.instructions)}
        self._condition_operands = program.condition_operands

    def program(self) -> Any:
        storage = [self._program.storage[value] for value in self._number]
        c, height, width = self._program.shape
        return self._module.Program(
            image_channels=c,
            height=height,
            width=width,
            head=self._described_head(),
            outputs=[self._number[output] for output in self._program.outputs],
            storage=[self._module.Storage(s.channels, s.rows, s.pad_left, s.pad_right) for s in storage],
            instructions=[self._instruction(i) for i in self._program.instructions],
            conditions=[
                self._module.ConditionOperand(s.index.shape[-1], s.varies_over_pixels)
                for s in self._condition_operands
            ],
            lag=self._front.lag if self._front else 0,
        )

    def _described_head(self) -> Any:
        assert self._head.native is not None
        return self._module.Head(
            getattr(self._module.HeadKind, self._head.native),
            distributions=self._program.distributions,
            parameters=self._program.parameters,
            uniforms=self._head.uniforms,
            levels=self._head.levels or 0,
        )

    def _instruction(self, phased: PhasedInstruction) -> Any:
        i = phased.instruction
        return self._module.Instruction(
            out=self._number[i.out],
            channels=i.channels,
            phase=getattr(self._module.Phase, phased.phase.value),
            steps=[self._step(step) for step in i.steps],
            lead=self._front.leads[i.out] if self._front else 0,
            after=phased.after,
            scan=-1 if phased.scan is None else phased.scan.number,
            from_the_right=phased.scan is not None and phased.scan.from_the_right,
            **self._start(phased),
        )

    def _start(self, phased: PhasedInstruction) -> dict[str, Any]:
        """What an instruction's steps start from, which depends on its kind."""
        i, kinds = phased.instruction, self._module.InstructionKind
        if isinstance(i, FromLevels):
            return {"kind": kinds.from_levels, "input": self._input(i)}
        if isinstance(i, Pointwise):
            return {
                "kind": kinds.pointwise,
                "value": self._number[i.base.value],
                "dy": i.base.dy,
                "dx": i.base.dx,
            }
        if not isinstance(i, Convolution):
            raise InvalidProgram(f"csrc/program.h has no instruction like {i}")
        return {
            "kind": kinds.convolution,
            "bias": self._address(i.bias),
            "row_runs": [self._run(run) for run in phased.row_runs],
            "pixel_runs": [self._run(run) for run in phased.pixel_runs],
        }

    def _input(self, i: FromLevels) -> Any:
        channels = i.image_channels(self._program.shape[0]).tolist()
        assert channels == list(range(channels[0], channels[-1] + 1)), "each draw has its own input"
        return self._module.ImageInput(
            first=channels[0],
            count=len(channels),
            width=i.width,
            table=self._address(i.table),
            levels=0 if i.table is None else len(i.table),
        )

    def _run(self, run: Run) -> Any:
        return self._module.Run(self._number[run.source], run.dy, run.dx, run.width, self._address(run.weight))

    def _step(self, step: Step) -> Any:
        operand = -1 if step.condition is None else self._condition_operands.index(step.condition)
        operand = operand if step.value is None else self._number[step.value.value]
        dy, dx = (0, 0) if step.value is None else (step.value.dy, step.value.dx)
        kind = getattr(self._module.StepKind, step.kind)
        return self._module.Step(
            kind, step.alpha, operand, self._address(step.scale), self._address(step.shift), dy, dx
        )

    def _address(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        self._borrowed.append(tensor.detach().to("cpu", self._dtype).contiguous())
        return self._borrowed[-1].data_ptr()
