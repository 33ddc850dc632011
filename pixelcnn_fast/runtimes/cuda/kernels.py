"""Finds the CUDA sampler's kernels on disk, or has them compiled at their first use."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from pixelcnn_fast import native
from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.program.schema import MOST_BLOCKS
from pixelcnn_fast.runtimes.cuda import driver
from pixelcnn_fast.runtimes.cuda.compilers import compilers
from pixelcnn_fast.runtimes.cuda.driver import Launch, LoadedKernel
from pixelcnn_fast.runtimes.cuda.store import SUFFIX, Store, cache_folder

CLUSTERS = (2, 4, MOST_BLOCKS)  # blocks of a cluster
READY = "PIXELCNN_FAST_KERNELS"  # a folder of compiled kernels


class Instance(NamedTuple):
    """One of the kernels. math: what it multiplies; tiles: of sites, that a warp has
    registers for; cluster: how many blocks share their images (1: each has its own)."""

    math: str
    tiles: int
    cluster: int = 1

    def __str__(self) -> str:
        return f"{self.math}-{self.tiles}x{self.cluster}"

    def name_for(self, architecture: int) -> str:
        return f"{self}-sm_{architecture}"

    @property
    def options(self) -> list[str]:
        return [f"-DPCF_MATH={self.math}", f"-DPCF_TILES={self.tiles}", f"-DPCF_BLOCKS={self.cluster}"]


class Kernel(Protocol):
    """A kernel that is ready to be launched: ``LoadedKernel`` on a GPU."""

    def launch(self, how: Launch, parameters: bytes, stream: int) -> None:
        """Puts it on a stream of CUDA, and does not wait for it."""

    def clusters_at_once(self, how: Launch) -> int:
        """How many clusters the device runs at the same time."""
        ...


class Kernels(Protocol):
    """Where a runtime gets them: ``DeviceKernels``, but on the host in tests."""

    def get(self, instance: Instance) -> Kernel:
        """The kernel, compiled if need be."""
        ...


def largest_cluster(capability: tuple[int, int]) -> int:
    """From 12.0 on, sharing images would take too many registers."""
    return max(CLUSTERS) if (9, 0) <= tuple(capability) < (12, 0) else 1


def instances(maths: Iterable[str], capability: tuple[int, int] | None = None) -> list[Instance]:
    """All of these maths, or those that GPUs of a capability have."""
    most = max(CLUSTERS) if capability is None else largest_cluster(capability)
    found = [Instance(*each) for each in native.required().cuda_kernels()]
    return [
        instance for math in maths for instance in found if instance.math == math and instance.cluster <= most
    ]


@cache
def sources() -> dict[str, str]:
    """By the names that include them, from the module: with others, images would be wrong."""
    return native.required().cuda_kernel_sources()


@cache
def digest() -> str:
    text = "".join(f"{name}\0{text}\0" for name, text in sorted(sources().items()))
    return hashlib.sha256(text.encode()).hexdigest()


class DeviceKernels:
    """A GPU's kernels, each compiled or found when it is first asked for, then kept."""

    def __init__(self, device: int, capability: tuple[int, int], shared_bytes: int) -> None:
        self._device, self._capability, self._shared_bytes = device, capability, shared_bytes
        self._loaded: dict[Instance, LoadedKernel] = {}
        self._failed: dict[Instance, str] = {}  # why it can't be compiled
        self._lock = threading.Lock()

    def get(self, instance: Instance) -> LoadedKernel:
        """Raises RuntimeUnavailable, saying why; RuntimeError while a CUDA graph is captured."""
        if (found := self._loaded.get(instance)) is not None:
            return found
        with self._lock:
            if (found := self._loaded.get(instance)) is not None:
                return found
            if (why := self._failed.get(instance)) is not None:
                raise RuntimeUnavailable(why)
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "a kernel can't be loaded while a CUDA graph is captured: call sampler.prepare(n), for as many "
                    "images as are then drawn, before it"
                )
            try:
                compiled = cubin(instance, self._capability)
            except RuntimeUnavailable as error:
                self._failed[instance] = error.why
                raise
            found = self._loaded[instance] = LoadedKernel(compiled, self._device, self._shared_bytes)
            return found


@cache
def kernels_of(device: int) -> DeviceKernels:
    """Of a GPU, by PyTorch's number of it."""
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return DeviceKernels(device, capability, properties.shared_memory_per_block_optin)


def why_no_kernels() -> str | None:
    """Why there can't be any, as far as is known without compiling one; None if there can."""
    if not driver.version():
        return "no CUDA driver is installed: install NVIDIA's driver"
    if driver.version() < driver.OLDEST:
        return (
            f"the driver serves CUDA {version_text(driver.version())}, and 11.8 is needed: update the driver"
        )
    if not compilers() and not os.environ.get(READY):
        return (
            "there is no compiler for its kernels: install NVRTC (pip install nvidia-cuda-nvrtc), which PyTorch's CUDA "
            "wheels bring, or nvcc; or compile them elsewhere, with `python -m pixelcnn_fast compile`, and name their "
            f"folder in {READY}"
        )
    return None


def version_text(version: int) -> str:
    """13.0 of 13000."""
    return f"{version // 1000}.{version % 1000 // 10}"


def cubin(instance: Instance, capability: tuple[int, int]) -> bytes:
    """A kernel for a GPU: from the folder that PIXELCNN_FAST_KERNELS names, from
    the cache, or else compiled by the first compiler that can. Raises
    RuntimeUnavailable if it can't be had."""
    number, dotted = 10 * capability[0] + capability[1], "{}.{}".format(*capability)
    failures = []
    if folder := os.environ.get(READY):
        store, archs = _ready_store(folder), range(number, number // 10 * 10 - 1, -1)
        for arch in archs:  # this GPU's, or one of a smaller minor version
            if (found := store.get(instance.name_for(arch), strict=True)) is not None:
                return found
    for with_it in compilers():
        try:
            cache = Store(cache_folder() / f"{digest()[:16]}-{with_it.identity}", digest())
            if (found := cache.get(instance.name_for(number))) is not None:
                return found
            architecture = architecture_for(capability, with_it.architectures())
            if architecture is None:
                raise RuntimeUnavailable(
                    f"{with_it} knows no architecture for compute capability {dotted}: a newer one is needed (PyTorch "
                    "brings NVRTC)"
                )
            make = partial(with_it.compiled, sources(), architecture, instance.options)
            return cache.get_or_make(instance.name_for(number), make)
        except RuntimeUnavailable as error:
            failures.append(error.why)
        except (OSError, AttributeError, UnicodeError) as error:  # it is no compiler
            failures.append(f"{type(error).__name__}: {error}")
    there = f"{folder} has no kernel {instance} for" if folder else "no kernel for"
    nothing = (
        f"{there} compute capability {dotted}, and there is no compiler to make one: compile them elsewhere, with "
        f"`python -m pixelcnn_fast compile --arch {number}`"
    )
    raise RuntimeUnavailable(failures[0] if failures else nothing)


def why_not_ready(named: str) -> str | None:
    """Why the folder that PIXELCNN_FAST_KERNELS names is refused, or a kernel in it."""
    try:
        store = _ready_store(named)
        for path in sorted(store.folder.glob(f"*{SUFFIX}")):
            store.get(path.name.removesuffix(SUFFIX), strict=True)
    except RuntimeUnavailable as error:
        return error.why
    return None


def _ready_store(named: str) -> Store:
    try:
        folder = Path(named).expanduser()
        is_there = folder.is_dir()
    except (OSError, RuntimeError) as error:  # the latter: nobody's home
        why = getattr(error, "strerror", None) or error
        raise RuntimeUnavailable(f"{READY}={named} can't be used: {why}") from error
    if not is_there:
        raise RuntimeUnavailable(f"{READY}={named} is not a folder")
    return Store(folder, digest())


def architecture_for(capability: tuple[int, int], known: Iterable[int]) -> int | None:
    """The largest whose code the GPU executes: of its major version, no larger minor one."""
    major, minor = capability
    return max((arch for arch in known if arch // 10 == major and arch % 10 <= minor), default=None)
