"""Builds the native part for this machine's GPU, by CMake itself, and puts it beside the package's sources.

Unlike ``pip install`` and ``make native``, it does without setuptools, and it compiles for one architecture only: that
of the GPU, or without one that of an H100. Fails if the module does not load or has no CUDA kernels.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNEL = re.compile(rb"__device_stub__ZN3pcf4cuda\w+")  # what nvcc calls a kernel's side on the host


def tool(name: str, package: str = "", folder: str = "") -> str:
    """A program on PATH, or else in a Python package that brings it."""
    found = shutil.which(name)
    if found is None and package:
        found = shutil.which(name, path=getattr(importlib.import_module(package), folder))
    return found or sys.exit(f"{name} is missing")


def capability() -> tuple[int, int]:
    """Of the first GPU, or without one of an H100."""
    import torch

    return torch.cuda.get_device_capability(0) if torch.cuda.is_available() else (9, 0)


def architecture() -> str:
    """As CMake names it. Those of 9.0 have instructions of their own."""
    major, minor = capability()
    return "90a-real" if (major, minor) == (9, 0) else f"{major}{minor}-real"


def build(folder: Path) -> Path:
    """-> the module's file in the folder."""
    import pybind11

    cmake = tool("cmake", "cmake", "CMAKE_BIN_DIR")
    settings = {
        "CMAKE_MAKE_PROGRAM": tool("ninja", "ninja", "BIN_DIR"),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "PIXELCNN_FAST_NVCC": os.environ.get("CUDACXX") or tool("nvcc"),
        "PIXELCNN_FAST_CUDA_ARCHS": architecture(),
    }
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    configure = [
        cmake,
        "--fresh",
        "-S",
        str(ROOT),
        "-B",
        str(folder),
        "-G",
        "Ninja",
        "--log-level=NOTICE",
        *defines,
    ]
    for command in (configure, [cmake, "--build", str(folder)]):
        if (status := subprocess.run(command, check=False).returncode) != 0:
            sys.exit(status)
    return folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"


def put(module: Path, place: Path) -> None:
    """A module that a process beside has loaded is replaced: were it overwritten, that process would crash."""
    unfinished = place.with_name(f"{place.name}.unfinished")
    shutil.copy2(module, unfinished)
    unfinished.replace(place)


def main() -> None:
    module = build(ROOT / "build" / f"gpu-check-{sysconfig.get_config_var('SOABI')}")
    put(module, ROOT / "pixelcnn_fast" / module.name)
    from pixelcnn_fast import native

    info = native.required().build_info()
    print(json.dumps({name: info[name] for name in ("compiler", "cuda_version", "cuda_archs")}))
    if not info["cuda"]:
        sys.exit(f"the module is built without CUDA: {info['cuda_off']}")
    if not KERNEL.search(module.read_bytes()):  # the profilers would watch nothing, and find nothing wrong
        sys.exit("the module has no kernels in the namespace pcf::cuda")


if __name__ == "__main__":
    main()
