"""Builds the native part by CMake itself, and puts it beside the package's sources.

Unlike ``pip install`` and ``make native``, it does without setuptools. Fails if the module does not load, or if there
is no compiler of CUDA kernels.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str, package: str = "", folder: str = "") -> str:
    """A program on PATH, or else in a Python package that brings it."""
    found = shutil.which(name)
    if found is None and package:
        found = shutil.which(name, path=getattr(importlib.import_module(package), folder))
    return found or sys.exit(f"{name} is missing")


def build(folder: Path) -> Path:
    """-> the module's file in the folder."""
    import pybind11

    cmake = tool("cmake", "cmake", "CMAKE_BIN_DIR")
    settings = {
        "CMAKE_MAKE_PROGRAM": tool("ninja", "ninja", "BIN_DIR"),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    options = [
        "-G",
        "Ninja",
        "--log-level=NOTICE",
        *(f"-D{name}={value}" for name, value in settings.items()),
    ]
    configure = [cmake, "--fresh", "-S", str(ROOT), "-B", str(folder), *options]
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
    from pixelcnn_fast.runtimes.cuda.compilers import compiler

    info = native.required().build_info()
    found = compiler()
    print(json.dumps({"compiler": info["compiler"], "compiler of kernels": str(found)}))
    if found is None:
        sys.exit("there is no compiler of kernels: neither NVRTC nor nvcc")


if __name__ == "__main__":
    main()
