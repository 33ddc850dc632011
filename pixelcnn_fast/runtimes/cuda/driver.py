"""Loads and launches kernels through NVIDIA's driver."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import NamedTuple

from pixelcnn_fast.errors import RuntimeUnavailable

NAME = b"pixelcnn_fast_walk"  # of the kernel, in csrc/cuda/kernels/kernel.cu
OLDEST = 11080  # the first version with cuLaunchKernelEx

# Of cuda.h.
MOST_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION


class Attribute(ctypes.Structure):
    """CUlaunchAttribute, for a cluster's size."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("value", ctypes.c_uint * 16),
    )


class Configuration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("n_attributes", ctypes.c_uint),
    )


class Launch(NamedTuple):
    """So many blocks of so many threads, ``cluster`` of which are one; shared_bytes: of a block."""

    blocks: int
    threads: int
    cluster: int
    shared_bytes: int


def configuration(launch: Launch, stream: int = 0) -> Configuration:
    found = Configuration((launch.blocks, 1, 1), (launch.threads, 1, 1), launch.shared_bytes, stream or None)
    if launch.cluster > 1:
        found.attributes = ctypes.pointer(Attribute(CLUSTER_DIMENSION, b"", (launch.cluster, 1, 1)))
        found.n_attributes = 1
    return found


@cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeUnavailable(f"no CUDA driver is installed ({error}): install NVIDIA's driver") from error


def _call(name: str, *arguments: object) -> None:
    status = getattr(_library(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeUnavailable(f"CUDA error {status} of {name}: {(text.value or b'unknown').decode()}")


def version() -> int:
    """The newest CUDA version that the driver serves, such as 13000; 0 if there is no driver."""
    found = ctypes.c_int()
    with suppress(RuntimeUnavailable):
        _call("cuDriverGetVersion", ctypes.byref(found))
        return found.value
    return 0


@contextmanager
def _current(device: int) -> Iterator[None]:
    """PyTorch's context of a device, which its calls may not have made this thread's yet."""
    _call("cuCtxPushCurrent_v2", _context(device))
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


@cache
def _context(device: int) -> ctypes.c_void_p:
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDeviceGet", ctypes.byref(handle), device)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    return context


class LoadedKernel:
    """A kernel on a device. Raises RuntimeUnavailable where the driver does not take it, and for each failure.
    shared_bytes: the most that a block may have, set once, as threads with different plans share it."""

    def __init__(self, cubin: bytes, device: int, shared_bytes: int) -> None:
        self._device = device
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        with _current(device):
            _call("cuModuleLoadData", ctypes.byref(module), cubin)
            _call("cuModuleGetFunction", ctypes.byref(self._function), module, NAME)
            _call("cuFuncSetAttribute", self._function, MOST_SHARED_BYTES, shared_bytes)

    def launch(self, how: Launch, parameters: bytes, stream: int) -> None:
        """Enqueues it, and waits for nothing. parameters: what it takes, by value."""
        values = ctypes.create_string_buffer(parameters, len(parameters))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(values))
        config = configuration(how, stream)
        with _current(self._device):
            _call("cuLaunchKernelEx", ctypes.byref(config), self._function, pointers, None)

    def clusters_at_once(self, how: Launch) -> int:
        """How many clusters the device runs at once; 0 where it has none."""
        count, config = ctypes.c_int(), configuration(how)
        with suppress(RuntimeUnavailable), _current(self._device):
            _call("cuOccupancyMaxActiveClusters", ctypes.byref(count), self._function, ctypes.byref(config))
            return count.value
        return 0
