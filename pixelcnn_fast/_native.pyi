"""The compiled part; get at it with pixelcnn_fast.environment.native()."""

from typing import TypedDict

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

def build_info() -> BuildInfo:
    """How the module was built; cuda_off says why the CUDA part was not."""

def isas() -> list[str]:
    """The instruction sets that were built and this processor has, lowest first."""

def chosen_isa() -> str:
    """The instruction set in use. Raises ValueError if PIXELCNN_FAST_ISA names one that is not available."""

def force_isa(name: str) -> None:
    """Uses this instruction set from now on; '' the default. Raises ValueError if it is not available."""

def cuda_devices() -> list[CudaDevice]:
    """The CUDA devices. Raises RuntimeError where there are none, saying why."""

def cuda_driver_version() -> int:
    """The newest CUDA version that the driver serves, such as 13000; 0 where there is no driver."""
