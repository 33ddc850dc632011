"""Builds pixelcnn_fast._native with CMake and Ninja; everything else is in pyproject.toml.

Environment:
  PIXELCNN_FAST_NATIVE=1|0       0 installs the pure-Python package, which needs no compiler
  CXX, CXXFLAGS, CMAKE_BUILD_PARALLEL_LEVEL: as usual
No CUDA toolkit is needed, on a GPU either: its kernels compile at their first use.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from setuptools import Extension, __version__, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
NOT_ASKED = ("PIXELCNN_FAST_CUDA", "PIXELCNN_FAST_CUDA_ARCHS")  # any more
PURE = "set PIXELCNN_FAST_NATIVE=0 to install the pure-Python package, which samples with the eager runtime"


def fail(cause: str, remedy: str) -> NoReturn:
    """Ends the build with one sentence; SystemExit, so that no traceback follows it."""
    raise SystemExit(f"\npixelcnn_fast: {cause}: {remedy}.")


def choice(variable: str, *values: str) -> str:
    """The environment variable's value; the first of ``values`` is the default."""
    value = os.environ.get(variable) or values[0]
    if value not in values:
        fail(f"{variable}={value} is not understood", f"use one of {', '.join(values)}")
    return value


def package(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def tool(name: str, directory: str) -> str:
    """A build tool from its Python package, else from PATH, which may lack the environment's own folder."""
    path = shutil.which(name, path=getattr(package(name), directory, "")) or shutil.which(name)
    return path or fail(f"the build tool {name} is missing", f"pip install {name}, or {PURE}")


def cxx_compiler() -> list[str]:
    """The C++ compiler and its leading arguments (CXX may be 'ccache g++')."""
    named = shlex.split(os.environ.get("CXX", ""))
    for words in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if path := shutil.which(words[0]):
            return [path, *words[1:]]
    cause = f"the C++ compiler CXX={named[0]} does not exist" if named else "no C++ compiler was found"
    fail(cause, f"install GCC 11 or newer or Clang (on Debian: apt install g++), name it with CXX, or {PURE}")


def check_python_headers() -> None:
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        fail(
            f"Python's headers are missing ({include}/Python.h)",
            f"install them (Debian, Ubuntu: apt install python3-dev), or {PURE}",
        )


def compile_native() -> Path:
    """Configures and builds in a folder that later builds reuse -> the module's file."""
    compiler = cxx_compiler()
    check_python_headers()
    settings = {
        "CMAKE_CXX_COMPILER": ";".join(compiler),
        "CMAKE_CXX_FLAGS": os.environ.get("CXXFLAGS", ""),
        "Python_EXECUTABLE": sys.executable,
    }
    pybind11 = package("pybind11") or fail("pybind11 is missing", f"pip install pybind11, or {PURE}")
    cmake = tool("cmake", "CMAKE_BIN_DIR")
    # These move with pip's temporary build environment, so they do not make a build folder stale.
    movable = {
        "CMAKE_MAKE_PROGRAM": tool("ninja", "BIN_DIR"),
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    folder = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"
    forget_stale(folder, settings, compiler)
    defines = [f"-D{name}={value}" for name, value in (settings | movable).items()]
    configure = [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", "--log-level=NOTICE"]
    for command in [[*configure, *defines], [cmake, "--build", folder]]:
        if subprocess.run([str(word) for word in command], check=False).returncode:
            fail("the native part does not build, for the reason above", f"fix it, or {PURE}")
    return folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"


def forget_stale(folder: Path, settings: dict[str, str], compiler: list[str]) -> None:
    """Removes a build folder made with other settings, by another compiler or elsewhere: CMake would keep them."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    record = json.dumps([str(ROOT), settings, version], indent=1)
    mark = folder / "settings.json"
    if not mark.exists() or mark.read_text() != record:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(record)


class BuildNativeFirst(build):
    """A missing compiler should be reported before hundreds of lines about copied files."""

    sub_commands = sorted(build.sub_commands, key=lambda command: command[0] != "build_ext")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        module = compile_native()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(module, target)


if int(__version__.partition(".")[0]) < 77:
    fail(
        f"setuptools {__version__} is older than 77, so it cannot read pyproject.toml",
        "pip install 'setuptools>=77', or leave out --no-build-isolation, so that pip brings one",
    )
native = choice("PIXELCNN_FAST_NATIVE", "1", "0") == "1"
for variable in NOT_ASKED:
    if variable in os.environ:
        print(
            f"pixelcnn_fast: {variable} has no meaning any more: kernels compile at their first use",
            flush=True,
        )
setup(
    ext_modules=[Extension("pixelcnn_fast._native", sources=[])] if native else [],
    cmdclass={"build": BuildNativeFirst, "build_ext": CMakeBuild},
)
