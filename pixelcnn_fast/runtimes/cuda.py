"""The compiled CUDA runtime, csrc/cuda/sampler.cu, fed with a phased program."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.errors import NonFiniteLogits
from pixelcnn_fast.heads import Head
from pixelcnn_fast.native import native, required, why_not_native
from pixelcnn_fast.ops.library import address
from pixelcnn_fast.program.conditions import Conditions
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.program.recurrence import recurrent
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.runtimes.cuda_cost import TILE, gpu_like, microseconds_per_pixel
from pixelcnn_fast.runtimes.job import Job
from pixelcnn_fast.runtimes.pack import described, sampling_options, why_not_compiled

VARIANTS = ("auto", "block", "pipeline")
# What is multiplied if precision= does not say; sums and pointwise steps are float32.
MATH_BY_DTYPE = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
OLDEST = (8, 0)  # compute capability: cp.async and mma.sync m16n8k16


@dataclass(frozen=True)
class Limits:
    """What the device offers to a launch: shared memory per block, multiprocessors, blocks per cluster."""

    shared_bytes: int
    multiprocessors: int
    largest_cluster: int


def limits_of(device: torch.device) -> Limits:
    index = torch.cuda.current_device() if device.index is None else device.index
    found = required().cuda_devices()[index]
    largest_cluster = {9: 16, 10: 16, 12: 8}.get(found["capability"][0], 1)
    return Limits(found["shared_memory"], found["multiprocessors"], largest_cluster)


def why_not_cuda(program: PhasedProgram, head: Head) -> str | None:
    """Why the compiled CUDA runtime can't serve this program and head, or None if it can."""
    if (module := native()) is None:
        return why_not_native()
    if (why := why_not_compiled(head)) is not None:
        return why
    if program.device.type != "cuda":
        return f"the model is on {program.device}: use model.cuda()"
    if not (info := module.build_info())["cuda"]:
        return f"this build has no CUDA part ({info['cuda_off']}): rebuild where nvcc is installed"
    capability = torch.cuda.get_device_capability(program.device)
    if capability < OLDEST:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, but 8.0 is needed: use 'eager'"
    if recurrent(i.instruction for i in program.instructions):
        return "the model has a recurrence, which this runtime does not know yet: use 'eager'"
    if program.dtype not in MATH_BY_DTYPE:
        return f"the model is {program.dtype}, but the CUDA runtime sums in float32: use model.float()"
    return None


@dataclass
class DeviceJob:
    """A job's tensors on the device. error: -1, or the location of the first logits that are not finite."""

    job: Job
    variant: str
    levels: Tensor
    known: Tensor | None
    noise: Tensor
    conditions: Tensor | None
    logits: Tensor | None
    log_probability: Tensor | None
    constants: Tensor
    workspace: Tensor
    error: Tensor


class CudaRuntime:
    """Puts the weights on the device once. ``explain(images)`` says which variant a batch gets, and why.

    precision: as for ``Sampler``. variant: 'block', 'pipeline', or 'auto'.
    module, limits: for tests, which run the kernels on the host.
    """

    def __init__(
        self,
        program: PhasedProgram,
        conditions: Conditions,
        head: Head,
        precision: Precision = "same",
        variant: str = "auto",
        module: Any = None,
        limits: Limits | None = None,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}, expected one of {', '.join(map(repr, VARIANTS))}")
        if module is None and (why := why_not_cuda(program, head)) is not None:
            raise RuntimeError(f"runtime 'cuda' is not available: {why}")
        self._program, self._conditions, self._variant = program, conditions, variant
        self.math = MATH_BY_DTYPE[program.dtype] if precision == "same" else precision
        self._limits = limits or limits_of(program.device)
        name = torch.cuda.get_device_name(program.device) if program.device.type == "cuda" else ""
        self._gpu = gpu_like(name, self._limits.multiprocessors)
        self._samplers: dict[str, Any] = {}
        self._why_not: dict[str, str] = {}
        self._constants: dict[str, Tensor] = {}
        borrowed: list[Tensor] = []  # alive until the C++ side has packed its copies
        description = described(program, head, borrowed, torch.float32)
        for name in ("block", "pipeline"):
            if variant in ("auto", name):
                self._add(name, description, module or native())
        if not self._samplers:
            raise RuntimeError(f"runtime 'cuda' is not available: {'; '.join(self._why_not.values())}")

    def run(self, job: Job) -> None:
        if job.values.shape[0] == 0:
            return
        batch = self.prepared(job)
        self.enqueue(batch)
        if (code := int(batch.error)) != -1:  # waits for the device
            raise NonFiniteLogits(*self._location(code))
        job.values.copy_(batch.levels)
        if job.parameters is not None and batch.logits is not None:
            job.parameters.copy_(batch.logits)
        if job.log_probability is not None and batch.log_probability is not None:
            job.log_probability.copy_(batch.log_probability)

    def prepared(self, job: Job) -> DeviceJob:
        """The job on the device, with all the memory that it takes."""
        device = self._program.device
        name, _ = self.choose(job.values.shape[0])
        operands = self._program.condition_operands
        found = self._conditions(operands, job.given, job.values.shape[0])
        conditions = [found[operand].float().reshape(-1) for operand in operands]
        return DeviceJob(
            job,
            name,
            levels=job.values.to(device),
            known=None if job.known is None else job.known.to(device, torch.uint8),
            noise=job.noise.to(device, torch.float64),
            conditions=torch.cat(conditions).to(device) if conditions else None,
            logits=None if job.parameters is None else torch.empty(job.parameters.shape, device=device),
            log_probability=None if job.log_probability is None else job.log_probability.to(device),
            constants=self._constants_of(name),
            workspace=torch.empty(
                self._samplers[name].workspace_bytes(job.values.shape[0]), dtype=torch.uint8, device=device
            ),
            error=torch.full((1,), -1, dtype=torch.int64, device=device),
        )

    def enqueue(self, batch: DeviceJob) -> None:
        """Puts everything on the current stream and waits for nothing, so a CUDA graph can capture it."""
        device = self._program.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self._samplers[batch.variant].run(
                images=batch.levels.shape[0],
                constants=batch.constants.data_ptr(),
                workspace=batch.workspace.data_ptr(),
                values=batch.levels.data_ptr(),
                known=address(batch.known),
                noise=batch.noise.data_ptr(),
                conditions=address(batch.conditions),
                options=sampling_options(batch.job.options),
                parameters=address(batch.logits),
                log_probability=address(batch.log_probability),
                error=batch.error.data_ptr(),
                stream=torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0,
                on_row=batch.job.on_row,
            )

    def choose(self, images: int) -> tuple[str, str]:
        """The variant for a batch, and why."""
        if "pipeline" not in self._samplers:
            return "block", self._why_not.get("pipeline", "it was asked for")
        if "block" not in self._samplers:
            return "pipeline", self._why_not.get("block", "it was asked for")
        times = {name: self.predicted_microseconds_per_pixel(name, images) for name in self._samplers}
        best, other = sorted(times, key=lambda name: times[name])
        return best, f"predicted {times[best]:.1f} us a pixel for {images} images, {other} {times[other]:.1f}"

    def predicted_microseconds_per_pixel(self, variant: str, images: int) -> float:
        sampler = self._samplers[variant]
        return microseconds_per_pixel(sampler.facts, variant, self._gpu, images, sampler.uses_clusters)

    def facts(self, variant: str) -> dict[str, Any]:
        """What was planned: stages, bytes of weights, workspace and shared memory, launches per row."""
        return self._samplers[variant].facts

    def explain(self, images: int) -> str:
        name, why = self.choose(images)
        return f"{name} ({self.math}): {why}"

    def largest_batch(self) -> int:
        """As many images as keep every multiprocessor busy, or as many as half of the free memory holds."""
        most = TILE * self._limits.multiprocessors
        if self._program.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._program.device)
            most = min(most, free // 2 // self.workspace_bytes(TILE) * TILE)
        return max(TILE, most)

    def weight_bytes(self) -> int:
        return max(s.facts["pixel_weight_bytes"] + s.facts["row_weight_bytes"] for s in self._samplers.values())

    def workspace_bytes(self, images: int) -> int:
        return self._samplers[self.choose(images)[0]].workspace_bytes(images)

    def _add(self, name: str, description: Any, module: Any) -> None:
        try:
            self._samplers[name] = module.CudaSampler(
                description,
                self.math,
                name == "pipeline",
                self._limits.shared_bytes,
                self._limits.multiprocessors,
                self._limits.largest_cluster,
            )
        except ValueError as error:
            self._why_not[name] = f"no variant {name!r}: {error}"

    def _constants_of(self, name: str) -> Tensor:
        if name not in self._constants:
            data = bytearray(self._samplers[name].constants())
            self._constants[name] = torch.frombuffer(data, dtype=torch.uint8).to(self._program.device)
        return self._constants[name]

    def _location(self, code: int) -> tuple[int, int, int, int]:
        """The (image, channel, row, column) that error_code() in csrc/cuda/worker.h has encoded."""
        row, column = divmod(code >> 40, self._program.shape[2])
        return code >> 16 & 0xFFFFFF, code & 0xFFFF, row, column
