"""Programs and jobs as the compiled runtimes read them: structs of program/schema.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pixelcnn_fast.heads import Head, SamplingOptions
from pixelcnn_fast.native import native, why_not_native
from pixelcnn_fast.ops.library import address
from pixelcnn_fast.program import schema
from pixelcnn_fast.program.operands import ConditionOperand, Step
from pixelcnn_fast.program.phased import PhasedInstruction, PhasedProgram, Run
from pixelcnn_fast.program.steps import KINDS
from pixelcnn_fast.runtimes.job import Job

SIGNATURE = schema.signature(KINDS, *schema.STRUCTS, SamplingOptions)


def why_no_native_program(program: PhasedProgram, head: Head) -> str | None:
    if (module := native()) is None:
        return why_not_native()
    if module.SIGNATURE != SIGNATURE:
        return (
            "the compiled module was built from another program/schema.py: build it again, with `make native`"
        )
    why = _why_in_python_only(program, head)
    return why and f"{why}: use runtime 'eager'"


def _why_in_python_only(program: PhasedProgram, head: Head) -> str | None:
    if foreign := next((i for i in program.instructions if i.instruction.native is None), None):
        return f"{foreign.name}: {type(foreign.instruction).__name__} is computed in Python only"
    if head.native is None:
        return f"{head} is drawn in Python only"
    traits = next((traits for traits in schema.HEADS if traits.name == head.native), None)
    if traits is None:
        return f"{head} is drawn as {head.native!r}, which the compiled module does not know"
    if traits.single and (head.joint or head.uniforms != 1):
        return f"{head} draws several values or with several uniforms"
    expected = torch.float32 if head.drawn_levels is None else torch.int32
    if head.value_dtype is not expected:
        return f"{head} has values of {head.value_dtype}, the compiled runtimes draw {expected}"
    return None


def sampling_options(options: SamplingOptions) -> SamplingOptions:
    """As C++ can hold them: it has no larger integers."""
    most = torch.iinfo(torch.int32).max
    return options if options.top_k is None else replace(options, top_k=min(options.top_k, most))


def native_job(job: Job, conditions: Sequence[Tensor]) -> schema.Job:
    """The job by addresses of its tensors, which the caller keeps alive. They are dense,
    and ``known`` is uint8."""
    return schema.Job(
        options=sampling_options(job.options),
        images=job.values.shape[0],
        values=address(job.values),
        known=address(job.known),
        noise=address(job.noise),
        conditions=[*map(address, conditions)],
        parameters=address(job.parameters),
        log_probability=address(job.log_probability),
    )


def native_program(
    program: PhasedProgram, head: Head, borrowed: list[Tensor], dtype: torch.dtype
) -> schema.Program:
    """Values are numbered anew, from 0. Tensors, on the CPU in ``dtype``, are given by
    address, as C++ is built without PyTorch; ``borrowed`` keeps them alive."""
    number = {i.out: index for index, i in enumerate(program.instructions)}
    operands, front = program.condition_operands, program.wavefront
    channels, height, width = program.shape

    def array(tensor: Tensor | None) -> schema.Pointer:
        if tensor is None:
            return 0
        borrowed.append(tensor.detach().to("cpu", dtype).contiguous())
        return borrowed[-1].data_ptr()

    def numbered(x: int | ConditionOperand) -> int:
        return number[x] if isinstance(x, int) else operands.index(x)

    def native_run(run: Run) -> schema.Run:
        return schema.Run(number[run.source], run.dy, run.dx, run.width, array(run.weight))

    def native_step(step: Step) -> schema.Step:
        found = schema.Step(step.kind, step.alpha, scale=array(step.scale), shift=array(step.shift))
        if step.condition is not None:
            return replace(found, operand=operands.index(step.condition))
        if (value := step.value) is not None:
            return replace(found, operand=number[value.value], dy=value.dy, dx=value.dx)
        return found

    def native_instruction(phased: PhasedInstruction) -> schema.Instruction:
        i, scan = phased.instruction, phased.scan
        assert i.native is not None
        return schema.Instruction(
            out=number[i.out],
            channels=i.channels,
            phase=phased.phase,
            steps=[*map(native_step, i.steps)],
            lead=front.leads[i.out] if front else 0,
            after=phased.after,
            scan=scan.number if scan else -1,
            from_the_right=bool(scan and scan.from_the_right),
            row_runs=[*map(native_run, phased.row_runs)],
            pixel_runs=[*map(native_run, phased.pixel_runs)],
            kind=i.native,
            **i.native_start(numbered, array, channels),
        )

    assert head.native is not None
    return schema.Program(
        image_channels=channels,
        height=height,
        width=width,
        head=schema.Head(
            kind=head.native,
            distributions=program.distributions,
            parameters=program.parameters,
            uniforms=head.uniforms,
            levels=head.levels or 0,
            real=head.drawn_levels is None,
            **head.native_fields(),
        ),
        outputs=[number[output] for output in program.outputs],
        storage=[program.storage[value] for value in number],
        instructions=[*map(native_instruction, program.instructions)],
        conditions=[
            schema.ConditionOperand(o.index.shape[-1], o.varies_over_pixels, o.per_image) for o in operands
        ],
        lag=front.lag if front else 0,
    )
