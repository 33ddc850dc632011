"""A module of the CUDA kernels, built for the host from tests/csrc/emulation."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def build(target: str, sanitizer: str = "") -> Path:
    """Compiles a target of tests/csrc/emulation -> its folder. Only what has changed is compiled again."""
    import cmake
    import ninja
    import pybind11

    python = f"{sys.version_info.major}{sys.version_info.minor}"
    folder = ROOT / "build" / f"emulation-{sanitizer or python}"
    tool = shutil.which("cmake", path=cmake.CMAKE_BIN_DIR)
    configure = [
        tool,
        "-S",
        ROOT / "tests" / "csrc" / "emulation",
        "-B",
        folder,
        "-G",
        "Ninja",
        "--log-level=ERROR",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=ninja.BIN_DIR)}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DEMULATION_SANITIZE={sanitizer}",
    ]
    for command in (configure, [tool, "--build", folder, "--target", target, "-j2"]):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@cache
def emulated() -> ModuleType:
    (library,) = build("emulated").glob("emulated*.so")
    spec = importlib.util.spec_from_file_location("emulated", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
