"""The CUDA kernels on the host, built from tests/csrc/emulation, for a runtime that plans as on a GPU."""

import fcntl
import importlib.util
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from gpu.build import tool

from pixelcnn_fast.runtimes.cuda.driver import Launch
from pixelcnn_fast.runtimes.cuda.kernels import Instance

ROOT = Path(__file__).parents[2]


def skip_without_tools() -> None:
    """Skips a test that builds, where ``configured`` would not find what it needs."""
    import pytest

    for name in ("cmake", "ninja", "pybind11"):
        if not shutil.which(name):
            pytest.importorskip(name)


def configured(source: Path, folder: Path, *settings: str) -> str:
    """Configures a build of ``source`` in ``folder``, by the environment's tools -> cmake, to build it with."""
    import pybind11

    cmake = tool("cmake", "cmake", "CMAKE_BIN_DIR")
    options = [
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'ninja', 'BIN_DIR')}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        *settings,
    ]
    run(cmake, "-S", str(source), "-B", str(folder), "-G", "Ninja", "--log-level=ERROR", *options)
    return cmake


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def build(target: str, sanitizer: str = "") -> Path:
    """Compiles a target of tests/csrc/emulation -> its folder. Only what has changed is compiled again."""
    python = f"{sys.version_info.major}{sys.version_info.minor}"
    folder = ROOT / "build" / f"emulation-{sanitizer or python}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # several processes may be testing
        fcntl.flock(lock, fcntl.LOCK_EX)
        cmake = configured(ROOT / "tests" / "csrc" / "emulation", folder, f"-DEMULATION_SANITIZE={sanitizer}")
        run(cmake, "--build", str(folder), "--target", target, "-j2")
    return folder


@cache
def emulated() -> ModuleType:
    (library,) = build("emulated").glob("emulated*.so")
    spec = importlib.util.spec_from_file_location("emulated", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _library(instance: Instance) -> str:
    """Compiled when it is first asked for."""
    name = f"walk_{instance.math}_{instance.tiles}x{instance.cluster}"
    return str(build(name) / f"lib{name}.so")


class EmulatedKernel:
    """One of them, as ``kernels.Kernel``."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._library = _library(instance)

    def launch(self, how: Launch, parameters: bytes, stream: int) -> None:
        assert how.cluster == self._instance.cluster
        emulated().launch(self._library, how.blocks, how.shared_bytes, parameters)

    def clusters_at_once(self, how: Launch) -> int:
        return 1 << 20


class EmulatedKernels:
    """As ``kernels.Kernels``, in place of a GPU's."""

    def get(self, instance: Instance) -> EmulatedKernel:
        return EmulatedKernel(instance)
