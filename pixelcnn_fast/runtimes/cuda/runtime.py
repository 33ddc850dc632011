"""The CUDA runtime: plans batches, and launches the kernels of csrc/cuda/kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.errors import NonFiniteLogits, RuntimeUnavailable
from pixelcnn_fast.heads import Head
from pixelcnn_fast.native import required
from pixelcnn_fast.ops.library import address
from pixelcnn_fast.program import schema
from pixelcnn_fast.program.conditions import ConditionProgram
from pixelcnn_fast.program.grids import WHOLE
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.runtimes import DTYPES, Precision
from pixelcnn_fast.runtimes.cuda import cost
from pixelcnn_fast.runtimes.cuda.driver import Launch
from pixelcnn_fast.runtimes.cuda.kernels import (
    CLUSTERS,
    Instance,
    Kernel,
    Kernels,
    kernels_of,
    largest_cluster,
    why_no_kernels,
)
from pixelcnn_fast.runtimes.cuda.pinned import on_device, on_host
from pixelcnn_fast.runtimes.job import Job, Runtime
from pixelcnn_fast.runtimes.native_program import native_job, native_program, why_no_native_program

# Used unless precision= says another.
MATH_BY_DTYPE = {dtype: math for math, dtype in DTYPES.items()}
OLDEST = (8, 0)  # compute capability: cp.async and mma.sync m16n8k16
MOST_KEPT = 6  # shapes with plans, besides that of one image


@dataclass(frozen=True)
class Limits:
    """Shared memory per block, multiprocessors, and the most blocks that can share images."""

    shared_bytes: int
    multiprocessors: int
    largest_cluster: int = 1


def limits_of(device: torch.device) -> Limits:
    found = torch.cuda.get_device_properties(device)
    shared_bytes = found.shared_memory_per_block_optin
    return Limits(shared_bytes, found.multi_processor_count, largest_cluster((found.major, found.minor)))


def why_not_cuda(program: PhasedProgram, head: Head) -> str | None:
    if (why := why_no_native_program(program, head)) is not None:
        return why
    if any(i.instruction.every != WHOLE for i in program.instructions):
        return "values on several grids, as of strided convolutions, are sampled by 'eager' only on a GPU: use 'eager'"
    if program.device.type != "cuda":
        return f"the model is on {program.device}: use model.cuda()"
    if torch.version.hip is not None:
        return "PyTorch is built for ROCm, and the kernels are for NVIDIA's GPUs: use 'eager'"
    capability = torch.cuda.get_device_capability(program.device)
    if capability < OLDEST:
        return (
            f"the GPU has compute capability {capability[0]}.{capability[1]}, but 8.0 is needed: use 'eager'"
        )
    if program.dtype not in MATH_BY_DTYPE:
        return f"the model is {program.dtype}, but the CUDA runtime sums in float32: use model.float()"
    return why_no_kernels()


class Shape(NamedTuple):
    """So many images to a cluster of so many blocks (1: no cluster)."""

    images: int
    cluster: int = 1


@dataclass
class DeviceJob:
    """A job with its memory on the device. error: -1, or the location of the first non-finite logits."""

    job: Job
    sampler: Any
    conditions: list[Tensor]  # one array, or none
    constants: Tensor
    workspace: Tensor
    error: Tensor

    @property
    def levels(self) -> Tensor:
        """The images, once the stream has come that far."""
        return self.job.values


@dataclass
class Launched:
    """A job at work. results: where each belongs, and what holds it once ``done`` has come;
    done: None on the host; constants: kept until then, as the runtime may forget them."""

    job: Job
    results: list[tuple[Tensor, Tensor]]
    error: Tensor
    done: torch.cuda.Event | None
    constants: Tensor | None = None


class CudaRuntime(Runtime):
    """Samples with a block, or a cluster of blocks, for every few images, as ``cost``
    chooses. kernels, limits: for tests, which run the kernels on the host. Raises
    RuntimeUnavailable, saying why."""

    def __init__(
        self,
        program: PhasedProgram,
        conditions: ConditionProgram,
        head: Head,
        precision: Precision = "same",
        kernels: Kernels | None = None,
        limits: Limits | None = None,
    ) -> None:
        if kernels is None and (why := why_not_cuda(program, head)) is not None:
            raise RuntimeUnavailable(why)
        self._program, self._conditions = program, conditions
        self.math = MATH_BY_DTYPE[program.dtype] if precision == "same" else precision
        self._limits = limits or limits_of(program.device)
        device = program.device
        self._kernels = kernels or kernels_of(
            torch.cuda.current_device() if device.index is None else device.index
        )
        self._borrowed: list[Tensor] = []  # what the description refers to
        self._description = native_program(program, head, self._borrowed, torch.float32)
        self.cost: Callable[[dict[str, Any], str, int, int, int], float] = cost.cycles
        self._samplers: dict[Shape, Any] = {}  # each has a copy of the weights
        self._refused: set[Shape] = set()
        self._constants: dict[Shape, Tensor] = {}
        try:
            # Of a block, as far as is known.
            self._most_images: int = self.sampler(Shape(1)).facts["most_images"]
        except ValueError as error:
            raise RuntimeUnavailable(str(error)) from error
        if self._most_in_memory(sampler := self.sampler(Shape(1))) == 0:
            raise RuntimeUnavailable(
                f"an image takes {sampler.workspace_bytes(1) / 2**20:.0f} MiB of the GPU's memory, and less than twice "
                "that is free"
            )

    def run(self, job: Job) -> None:
        if job.values.shape[0]:
            self._finished(self._launched(job))

    def run_each(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The device goes on while the host stores one; an error in preparing the next loses it."""
        before: Launched | None = None
        for job in jobs:
            launched = self._launched(job)
            if before is not None:
                yield self._finished(before)
            before = launched
        if before is not None:
            yield self._finished(before)

    def _launched(self, job: Job) -> Launched:
        """Waits for nothing. The next job of this stream reuses what the device no longer needs."""
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a CUDA graph can't capture a call that waits for its images: prepare a batch before it, and capture "
                "sampler.runtime('cuda').enqueue(batch), as docs/cuda.md shows"
            )
        batch, device = self.prepared(job), self._program.device
        self.enqueue(batch)
        results = [
            (place, on_host(found) if place.device.type == "cpu" else found)
            for place, found in zip(job.results, batch.job.results, strict=True)
        ]
        error = on_host(batch.error)
        done = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        return Launched(job, results, error, done, batch.constants)

    def _finished(self, launched: Launched) -> Job:
        if launched.done is not None:
            launched.done.synchronize()
        if (code := int(launched.error)) == schema.WAITED_IN_VAIN:
            raise RuntimeError(
                "threads of the CUDA sampler waited in vain for each other: please report this"
            )
        if code != -1:
            raise NonFiniteLogits(*self._location(code))
        for row in range(self._program.shape[1]):  # all of them were one launch
            launched.job.on_row(row)
        for place, found in launched.results:
            place.copy_(found)
        return launched.job

    def prepared(self, job: Job) -> DeviceJob:
        """The job on the device, for ``enqueue``."""
        device, images = self._program.device, job.values.shape[0]
        sampler = self.sampler(shape := self.shape(images))
        operands = self._program.condition_operands
        found = self._conditions(operands, job.given, images).values()
        conditions = [x.float().reshape(-1) for x in found]
        there = replace(
            job,
            values=on_device(job.values, device, job.values.dtype),
            known=None if job.known is None else on_device(job.known, device, torch.uint8),
            noise=on_device(job.noise, device, torch.float64),
        )
        if job.parameters is not None:
            there.parameters = torch.empty(job.parameters.shape, device=device)
        if job.log_probability is not None:
            there.log_probability = torch.zeros(job.log_probability.shape, dtype=torch.float64, device=device)
        return DeviceJob(
            there,
            sampler,
            [on_device(torch.cat(conditions), device, torch.float32)] if conditions else [],
            constants=self._constants_of(shape),
            workspace=torch.empty(sampler.workspace_bytes(images), dtype=torch.uint8, device=device),
            error=torch.full((1,), -1, dtype=torch.int64, device=device),
        )

    def enqueue(self, batch: DeviceJob) -> None:
        """Puts all on the current stream and waits for nothing: a CUDA graph can capture it."""
        with self._on_device():
            if images := batch.job.values.shape[0]:
                facts, stream = batch.sampler.facts, 0
                if self._program.device.type == "cuda":
                    stream = torch.cuda.current_stream(self._program.device).cuda_stream
                how, kernel = self._launch(batch.sampler, images), self._kernel(facts)
                addresses = map(address, (batch.constants, batch.workspace, batch.error))
                job = native_job(batch.job, batch.conditions)
                kernel.launch(how, batch.sampler.parameters(job, *addresses), stream)

    def _launch(self, sampler: Any, images: int) -> Launch:
        facts = sampler.facts
        return Launch(sampler.blocks(images), facts["threads"], facts["cluster"], facts["shared_bytes"])

    def _kernel(self, facts: dict[str, Any]) -> Kernel:
        return self._kernels.get(Instance(self.math, facts["tiles"], facts["cluster"]))

    def prepare(self, images: int) -> None:
        """Puts such a batch's kernel, and its weights, on the device; RuntimeUnavailable if it can't."""
        if images:
            with self._on_device():
                self._kernel(self.sampler(shape := self.shape(images)).facts)
                try:
                    self._constants_of(shape)
                except torch.OutOfMemoryError as error:
                    raise RuntimeUnavailable(f"the GPU has no memory for the weights: {error}") from error

    def _on_device(self) -> AbstractContextManager[object]:
        device = self._program.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def shape(self, images: int) -> Shape:
        """Of a batch: what ``cost`` takes for the fastest that fits."""
        while True:
            for shape in sorted(costs := self._costs(images), key=costs.__getitem__):
                if self._fits(shape) and (
                    shape.cluster == 1 or images <= shape.images * self.clusters_at_once(shape)
                ):
                    return shape

    def _costs(self, images: int) -> dict[Shape, float]:
        """Blocks of as few images as keep all busy, or more, and clusters that run at once."""
        multiprocessors, found = self._limits.multiprocessors, {}
        images = max(images, 1)

        def add(fewest: int, most: int, cluster: int, facts: dict[str, Any]) -> None:
            for each in range(fewest, min(most, images) + 1):
                blocks = min(-(-images // each) * cluster, multiprocessors)
                found[Shape(each, cluster)] = self.cost(facts, self.math, each, blocks, multiprocessors)

        waves = -(-images // (multiprocessors * self._most_images))
        add(-(-images // (multiprocessors * waves)), self._most_images, 1, self.sampler(Shape(1)).facts)
        for facts, most_in_memory in self._clusters:
            cluster = facts["cluster"]
            if waves == 1 and images <= most_in_memory:
                add(-(-images // (multiprocessors // cluster)), facts["most_images"], cluster, facts)
        return found

    @cached_property
    def _clusters(self) -> list[tuple[dict[str, Any], int]]:
        """For each size: what was planned for one image, and how many images memory holds."""
        most = min(self._limits.largest_cluster, self._limits.multiprocessors)
        shapes = (Shape(1, blocks) for blocks in CLUSTERS if blocks <= most)
        samplers = [self.sampler(shape) for shape in shapes if self._fits(shape)]
        return [(sampler.facts, self._most_in_memory(sampler)) for sampler in samplers]

    def sampler(self, shape: Shape) -> Any:
        """For launches of this shape; raises ValueError where it doesn't fit."""
        if (found := self._samplers.get(shape)) is None:
            found = self._samplers[shape] = self._planned(shape)
            # All but that of one image, which is always asked.
            for other in [*self._samplers][1:-MOST_KEPT]:
                self._samplers.pop(other, None), self._constants.pop(other, None)
        return found

    def _planned(self, shape: Shape) -> Any:
        shared_bytes = self._limits.shared_bytes
        return required().CudaSampler(self._description, self.math, shape.images, shared_bytes, shape.cluster)

    def _fits(self, shape: Shape) -> bool:
        if shape in self._refused or (shape.cluster == 1 and shape.images > self._most_images):
            return False
        try:
            self.sampler(shape)
        except ValueError:
            self._refused.add(shape)
            if shape.cluster == 1:
                # Then more images do not fit, either.
                self._most_images = min(self._most_images, shape.images - 1)
            return False
        return True

    def clusters_at_once(self, shape: Shape) -> int:
        """Asks the kernel, which is compiled for that."""
        sampler = self.sampler(shape)
        with self._on_device():
            return self._kernel(sampler.facts).clusters_at_once(self._launch(sampler, 1))

    def facts(self, images: int) -> dict[str, Any]:
        """What was planned: sites, column steps, bytes of weights, values and memory."""
        return self.sampler(self.shape(images)).facts

    def largest_batch(self) -> int:
        """As many images as keep all multiprocessors busy, or as half of the free memory holds."""
        each = next(images for images in range(self._most_images, 0, -1) if self._fits(Shape(images)))
        most_in_memory = self._most_in_memory(self.sampler(Shape(1)))
        return max(1, min(each * self._limits.multiprocessors, most_in_memory))

    def _most_in_memory(self, sampler: Any) -> int:
        device = self._program.device
        if device.type != "cuda":
            return sys.maxsize
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + kept
        return free // 2 // max(1, sampler.workspace_bytes(1))

    def workspace_bytes(self, images: int) -> int:
        return self.sampler(self.shape(images)).workspace_bytes(images)

    def _constants_of(self, shape: Shape) -> Tensor:
        if (found := self._constants.get(shape)) is None:
            data = torch.frombuffer(bytearray(self.sampler(shape).constants()), dtype=torch.uint8)
            found = self._constants[shape] = data.to(self._program.device)
        return found

    def _location(self, code: int) -> tuple[int, int, int, int]:
        """The (image, channel, row, column) that error_code() in site_draws.h has encoded."""
        pixel, found = code - 1, []
        for bits in (schema.LANE_BITS, schema.IMAGE_BITS, schema.CHANNEL_BITS):
            pixel, part = divmod(pixel, 1 << bits)
            found.append(part)
        lane, image, channel = found
        return image, channel + lane, *divmod(pixel, self._program.shape[2])
