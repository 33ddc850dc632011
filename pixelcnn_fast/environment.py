"""A report for people on what is installed, built and usable on this machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata, util

import torch

from pixelcnn_fast import cores
from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.native import native, why_not_native
from pixelcnn_fast.ops.backend import DTYPES, choose, why_not
from pixelcnn_fast.runtimes.cuda import compilers, driver, kernels, store


def report() -> str:
    """What serves here, and where something is missing, what to do about it."""
    no_triton = "not installed: `pip install triton` for an NVIDIA GPU; sampling works without it"
    sections = {
        f"pixelcnn_fast {version('pixelcnn_fast')}": {
            "Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
            "torch": torch.__version__,
            "numpy": version("numpy"),
            "triton": no_triton if util.find_spec("triton") is None else version("triton"),
        },
        "compiled module": _native_rows(),
        "CUDA": _cuda_rows(),
        "threads": {
            "torch uses": f"{torch.get_num_threads()} (torch.set_num_threads or OMP_NUM_THREADS changes it)",
            "processors": f"{os.cpu_count()}, of which this process may use {cores.usable()}",
        },
        "runtime that auto takes": _runtime_rows(),
        "backend that auto takes for ops": _backend_rows(),
    }
    lines = []
    for title, rows in sections.items():
        lines.append(title)
        lines += [f"  {label:<15} {text}" for label, text in rows.items()]
    return "\n".join(lines)


def version(distribution: str) -> str:
    """Its version, or a note that it isn't installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed: runs from a source folder)"


def _native_rows() -> dict[str, str]:
    module = native()
    if module is None:
        return {"missing": f"{why_not_native()}; until then the eager runtime serves"}
    info = module.build_info()
    try:
        chosen = f"{module.chosen_isa()} (PIXELCNN_FAST_ISA names another)"
    except ValueError as error:
        chosen = f"none: {error}"
    return {
        "file": str(module.__file__),
        "compiler": info["compiler"],
        "built for": ", ".join(info["isas"]),
        "processor has": ", ".join(module.isas()),
        "in use": chosen,
    }


def _cuda_rows() -> dict[str, str]:
    served = driver.version()
    rows = {
        "torch sees": _torch_devices(),
        "driver": f"serves CUDA {kernels.version_text(served)}" if served else "none",
        "kernels": _kernels() if native() else "are part of the compiled module",
    }
    if ready := os.environ.get(kernels.READY):
        why = kernels.why_not_ready(ready)
        rows[kernels.READY] = f"{ready} is taken from" if why is None else f"no kernel will do: {why}"
    for name in ("PIXELCNN_FAST_CUDA", "PIXELCNN_FAST_CUDA_ARCHS"):
        if name in os.environ:
            rows[name] = "is set, and has no meaning any more: kernels compile at their first use"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            rows[f"device {index}"] = (
                f"{found.name}, sm_{found.major}{found.minor}, {found.total_memory / 2**30:.0f} GiB, "
                f"{found.multi_processor_count} multiprocessors"
            )
    return rows


def _kernels() -> str:
    with_it = compilers.compiler()
    if with_it is None:
        return "no compiler: install NVRTC (pip install nvidia-cuda-nvrtc), or nvcc"
    try:
        found = f"compile at their first use, by {with_it} ({with_it.path}), and are"
    except (RuntimeUnavailable, AttributeError, OSError) as error:
        return f"no compiler that works: {getattr(error, 'why', error)}"
    try:
        why = store.why_not_kept(folder := store.cache_folder())
    except RuntimeUnavailable as error:
        return f"can't be had: {error.why}"
    return f"{found} kept in {folder}" if why is None else f"{found} not kept: {why}"


def _torch_devices() -> str:
    if torch.version.cuda is None:
        return "no device: this torch is built without CUDA"
    if not torch.cuda.is_available():
        return f"no device: torch is built with CUDA {torch.version.cuda}, but finds no GPU or no driver"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _runtime_rows() -> dict[str, str]:
    lack = "" if native() else ": the cpu runtime needs the compiled module"
    why = kernels.why_no_kernels() or lack[2:]
    on_cuda = f"eager: {why}" if why else "cuda"
    if not torch.cuda.is_available():
        on_cuda = "none: torch sees no device"
    return {"on the CPU": f"eager{lack}" if lack else "cpu", "on CUDA": on_cuda}


def _backend_rows() -> dict[str, str]:
    rows = {}
    for device, best in (("cpu", "compiled"), ("cuda", "triton")):
        chosen = choose("auto", torch.device(device), torch.float32)
        if chosen == best:
            other = f"; plain PyTorch for dtypes other than {', '.join(str(d) for d in DTYPES[best])}"
        else:
            other = f": {why_not(best, device, torch.float32)}"
        rows["on the CPU" if device == "cpu" else "on CUDA"] = chosen + other
    return rows
