"""The compiled part; get at it with pixelcnn_fast.native.native()."""

from collections.abc import Callable
from enum import Enum
from typing import Any, TypedDict

class BuildInfo(TypedDict):
    compiler: str
    isas: list[str]
    cuda: bool
    cuda_version: str
    cuda_archs: list[str]
    cuda_off: str

class CudaDevice(TypedDict):
    name: str
    capability: tuple[int, int]
    memory: int
    multiprocessors: int
    shared_memory: int

def build_info() -> BuildInfo:
    """How the module was built; cuda_off says why the CUDA part was not."""

def isas() -> list[str]:
    """The instruction sets that were built and this processor has, lowest first."""

def chosen_isa() -> str:
    """The instruction set in use. Raises ValueError if PIXELCNN_FAST_ISA names one that is not available."""

def force_isa(name: str) -> None:
    """Uses this instruction set from now on; '' restores the default. Raises ValueError if it is not available."""

def cuda_devices() -> list[CudaDevice]:
    """The CUDA devices. Raises RuntimeError where there are none, saying why."""

def cuda_driver_version() -> int:
    """The newest CUDA version that the driver supports, such as 13000; 0 without a driver."""

class NonFiniteLogits(ValueError):
    """args: image, channel, row, column."""

class StepKind:
    """An enumeration of the kinds in pixelcnn_fast.program.steps.KINDS, by name: getattr(StepKind, name)."""

class Phase(Enum):
    row = ...
    pixel = ...
    drawn = ...

# The structs of csrc/program.h. Arrays are addresses (Tensor.data_ptr()), 0 for none; they are read while a
# CpuSampler is built, and not afterwards.

class Step:
    def __init__(self, kind: StepKind, alpha: float, operand: int, scale: int, shift: int) -> None: ...

class Run:
    def __init__(self, source: int, dy: int, dx: int, width: int, weight: int) -> None: ...

class Storage:
    def __init__(self, channels: int, rows: int, pad_left: int, pad_right: int) -> None: ...

class InstructionKind(Enum):
    from_levels = ...
    convolution = ...
    pointwise = ...

class ImageInput:
    def __init__(self, first: int, count: int, width: int, table: int, levels: int) -> None: ...

class ConditionOperand:
    def __init__(self, channels: int, varies_over_pixels: bool) -> None: ...

class Instruction:
    def __init__(
        self,
        out: int,
        channels: int,
        kind: InstructionKind,
        phase: Phase,
        input: ImageInput = ...,
        bias: int = 0,
        row_runs: list[Run] = ...,
        pixel_runs: list[Run] = ...,
        value: int = -1,
        *,
        steps: list[Step],
        lead: int,
        after: int,
    ) -> None: ...

class HeadKind(Enum):
    categorical = ...

class Head:
    def __init__(self, kind: HeadKind, distributions: int, parameters: int, uniforms: int) -> None: ...

class Program:
    def __init__(
        self,
        image_channels: int,
        height: int,
        width: int,
        head: Head,
        outputs: list[int],
        storage: list[Storage],
        instructions: list[Instruction],
        conditions: list[ConditionOperand],
        lag: int,
    ) -> None: ...

class SamplingOptions:
    def __init__(self, *, temperature: float = 1, top_k: int = 0, top_p: float = 1) -> None: ...

class CpuSampler:
    def __init__(self, program: Program, float64: bool, bf16_weights: bool) -> None:
        """Uses the instruction set chosen now. Raises ValueError for bf16 weights with float64."""

    def run(
        self,
        images: int,
        values: int,
        known: int,
        noise: int,
        conditions: list[int],
        options: SamplingOptions,
        parameters: int,
        log_probability: int,
        threads: int,
        on_row: Callable[[int], object],
    ) -> None:
        """Fills levels, without the GIL; addresses of arrays as in Job of csrc/program.h. Raises NonFiniteLogits."""

    def weight_bytes(self) -> int: ...
    def workspace_bytes(self, images: int, threads: int) -> int: ...

class CudaSampler:
    """Only in a build with the CUDA part."""

    def __init__(
        self,
        program: Program,
        math: str,
        pipeline: bool,
        shared_bytes: int,
        multiprocessors: int,
        largest_cluster: int,
    ) -> None:
        """Raises ValueError, saying why, where the program does not fit the variant."""

    def run(
        self,
        images: int,
        constants: int,
        workspace: int,
        values: int,
        known: int,
        noise: int,
        conditions: int,
        options: SamplingOptions,
        parameters: int,
        log_probability: int,
        error: int,
        stream: int,
        on_row: Callable[[int], object],
    ) -> None:
        """Enqueues a batch, without the GIL; device addresses as in DeviceJob of csrc/cuda/sampler.h."""

    def constants(self) -> bytes: ...
    def workspace_bytes(self, images: int) -> int: ...
    def pipelines(self, images: int) -> int: ...
    @property
    def uses_clusters(self) -> bool: ...
    @property
    def facts(self) -> dict[str, Any]: ...
