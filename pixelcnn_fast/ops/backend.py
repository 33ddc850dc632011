"""Which backend computes an op: the compiled one, Triton or the plain reference."""

from __future__ import annotations

from importlib import util

import torch

from pixelcnn_fast.native import native, why_not_native

BACKENDS = ("compiled", "triton", "reference")
DTYPES = {
    "compiled": (torch.float32, torch.float64, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}


def choose(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """Resolves 'auto' to the first backend that can compute on such tensors; other names stand for themselves.

    Raises ValueError for an unknown name, and, saying why, for a backend that can't.
    """
    if backend == "auto":
        if device.type == "cpu" and dtype in DTYPES["compiled"] and native():
            return "compiled"
        return next(name for name in BACKENDS if not why_not(name, device.type, dtype))
    if backend not in BACKENDS:
        raise ValueError(
            f"backend is {backend!r}, expected 'auto' or one of {', '.join(map(repr, BACKENDS))}"
        )
    if reason := why_not(backend, device.type, dtype):
        raise ValueError(f"backend {backend!r} can't compute this: {reason}")
    return backend


def why_not(backend: str, device: str, dtype: torch.dtype) -> str:
    """Why the backend can't compute on that type of device in that dtype; '' if it can."""
    if backend == "reference":
        return ""
    needed = "cpu" if backend == "compiled" else "cuda"
    if device != needed:
        return f"it computes on {needed} tensors, and these are on {device}"
    if dtype not in DTYPES[backend]:
        return f"it computes in {', '.join(str(d) for d in DTYPES[backend])}, not in {dtype}"
    if backend == "compiled":
        return "" if native() else why_not_native()
    return "" if util.find_spec("triton") else "Triton is not installed: pip install triton"
