"""A phased program as the compiled runtimes read it: the structs of program/schema.py."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from pixelcnn_fast.heads import Head, SamplingOptions
from pixelcnn_fast.native import required
from pixelcnn_fast.program import schema
from pixelcnn_fast.program.operands import Step
from pixelcnn_fast.program.phased import PhasedInstruction, PhasedProgram, Run


def why_not_compiled(program: PhasedProgram, head: Head) -> str | None:
    """Why the compiled runtimes, whose module must be there, can't execute this program or draw from this head; None if
    they can."""
    if required().SIGNATURE != _signature():
        return (
            "the compiled module was built from another program/schema.py: build it again, with `make native`"
        )
    if foreign := next((i for i in program.instructions if i.instruction.native is None), None):
        kind = type(foreign.instruction).__name__
        return f"{foreign.name}: {kind} is computed in Python only: use runtime 'eager'"
    if head.native is None:
        return f"{head} is drawn in Python only: use runtime 'eager'"
    traits = next((traits for traits in schema.HEADS if traits.name == head.native), None)
    if traits is None:
        return (
            f"{head} is drawn as {head.native!r}, which the compiled module does not know: use runtime 'eager'"
        )
    if traits.single and (head.joint or head.uniforms != 1):
        return f"{head} draws several values or with several uniforms: use runtime 'eager'"
    if head.value_dtype is not getattr(torch, traits.value):
        return (
            f"{head} has values of {head.value_dtype}, the compiled runtimes draw {traits.value}: "
            "use runtime 'eager'"
        )
    return None


@cache
def _signature() -> str:
    return schema.signature(*schema.STRUCTS, SamplingOptions)


def sampling_options(options: SamplingOptions) -> SamplingOptions:
    """The options as C++ can hold them: it reads None as no limit, and has no integers that are larger."""
    most = torch.iinfo(torch.int32).max
    return options if options.top_k is None else replace(options, top_k=min(options.top_k, most))


def described(program: PhasedProgram, head: Head, borrowed: list[Tensor], dtype: torch.dtype) -> schema.Program:
    """The program as C++ reads it, with arrays in ``dtype`` on the CPU; ``borrowed`` keeps them alive."""
    return _Describer(program, head, borrowed, dtype).program()


class _Describer:
    """A phased program as the structs of program/schema.py; values are numbered anew, from 0."""

    def __init__(self, program: PhasedProgram, head: Head, borrowed: list[Tensor], dtype: torch.dtype) -> None:
        self._program, self._head, self._borrowed, self._dtype = program, head, borrowed, dtype
        self._front = program.wavefront
        self._number = {i.out: index for index, i in enumerate(program.instructions)}
        self._condition_operands = program.condition_operands

    def program(self) -> schema.Program:
        assert self._head.native is not None
        c, height, width = self._program.shape
        return schema.Program(
            image_channels=c,
            height=height,
            width=width,
            head=schema.Head(
                kind=self._head.native,
                distributions=self._program.distributions,
                parameters=self._program.parameters,
                uniforms=self._head.uniforms,
                levels=self._head.levels or 0,
            ),
            outputs=[self._number[output] for output in self._program.outputs],
            storage=[self._program.storage[value] for value in self._number],
            instructions=[self._instruction(i) for i in self._program.instructions],
            conditions=[
                schema.ConditionOperand(s.index.shape[-1], s.varies_over_pixels)
                for s in self._condition_operands
            ],
            lag=self._front.lag if self._front else 0,
        )

    def _instruction(self, phased: PhasedInstruction) -> schema.Instruction:
        i = phased.instruction
        assert i.native is not None
        return schema.Instruction(
            out=self._number[i.out],
            channels=i.channels,
            phase=phased.phase,
            steps=[self._step(step) for step in i.steps],
            lead=self._front.leads[i.out] if self._front else 0,
            after=phased.after,
            scan=-1 if phased.scan is None else phased.scan.number,
            from_the_right=phased.scan is not None and phased.scan.from_the_right,
            row_runs=[self._run(run) for run in phased.row_runs],
            pixel_runs=[self._run(run) for run in phased.pixel_runs],
            kind=i.native,
            **i.native_start(self._number.__getitem__, self._address, self._program.shape[0]),
        )

    def _run(self, run: Run) -> schema.Run:
        return schema.Run(self._number[run.source], run.dy, run.dx, run.width, self._address(run.weight))

    def _step(self, step: Step) -> schema.Step:
        operand = -1 if step.condition is None else self._condition_operands.index(step.condition)
        operand = operand if step.value is None else self._number[step.value.value]
        dy, dx = (0, 0) if step.value is None else (step.value.dy, step.value.dx)
        scale, shift = self._address(step.scale), self._address(step.shift)
        return schema.Step(step.kind, step.alpha, operand, scale, shift, dy, dx)

    def _address(self, tensor: Tensor | None) -> schema.Address:
        if tensor is None:
            return 0
        self._borrowed.append(tensor.detach().to("cpu", self._dtype).contiguous())
        return self._borrowed[-1].data_ptr()
