"""What a newcomer waits for, from a clean clone on; it downloads PyTorch.

Rows are measured in a clean clone of this checkout's last commit, by the README's own commands, one after the other;
then come those of busy cores (cases/busy.py). What the commands print goes to a log beside the results. --quick: the
rows that take seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from cuda_resources import ARCHS
from measuring import MB, Cases, Found, Settings, Target, megabytes

from cases import busy
from pixelcnn_fast import native
from pixelcnn_fast.bench import report
from pixelcnn_fast.runtimes.cuda.compilers import compiler
from pixelcnn_fast.runtimes.cuda.kernels import Instance, digest, instances, sources
from pixelcnn_fast.runtimes.cuda.store import Store

TITLE = "Targets of the door"
ROOT = Path(__file__).resolve().parents[2]


class Clone:
    """A clean one, of the last commit."""

    def __init__(self, log: Path) -> None:
        self.log = log
        log.unlink(missing_ok=True)
        self._temporary = tempfile.TemporaryDirectory()  # which is removed when the clone is

    @cached_property
    def folder(self) -> Path:
        folder = Path(self._temporary.name) / "pixelcnn_fast"
        self.run("git", "clone", "-q", str(ROOT), str(folder), cwd=folder.parent)
        return folder

    def run(self, *command: str, cwd: Path | None = None) -> float:
        """-> seconds. Raises CalledProcessError if it fails."""
        began = time.perf_counter()
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            subprocess.run(command, cwd=cwd or self.folder, stdout=log, stderr=log, check=True)
        return time.perf_counter() - began

    @property
    def python(self) -> str:
        return str(self.folder / ".venv" / "bin" / "python")


def demo(clone: Clone) -> float:
    return clone.run("make", "demo")


def compiling(clone: Clone) -> float:
    clone.run("make", "setup")
    shutil.rmtree(clone.folder / "build", ignore_errors=True)
    return clone.run(clone.python, "setup.py", "-q", "build_ext", "--inplace")


def test(clone: Clone) -> float:
    clone.run("make", "setup")
    return clone.run("make", "test")


def test_all(clone: Clone) -> float:
    clone.run("make", "setup")
    return clone.run("make", "test-all")


def pip_install(clone: Clone) -> float:
    """Into a new environment, which finds PyTorch in the one that runs this."""
    folder = clone.folder.parent / "installed"
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    seconds = clone.run(python, "-m", "pip", "install", "-q", ".")
    clone.run(python, "-m", "pixelcnn_fast", "info", cwd=folder)
    return seconds


def module_size(clone: Clone) -> float:
    return os.path.getsize(str(native.required().__file__)) / MB


def cuda_lines(clone: Clone) -> float:
    """Nothing has moved out of csrc/cuda but the launch, to Python (runtimes/cuda/driver.py)."""
    files = (path for path in (ROOT / "csrc" / "cuda").rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
    return sum(len(path.read_text().splitlines()) for path in files)


def slowest_kernel(clone: Clone) -> float:
    """CPU seconds, of float32 and bf16, for all GPUs of docs/cuda_resources.md."""
    found, longest = compiler(), 0.0
    if found is None:
        raise RuntimeError("there is no compiler of kernels: pip install nvidia-cuda-nvrtc")
    for arch in map(int, ARCHS):
        for kernel in instances(["fp32", "bf16"], divmod(arch, 10)):
            before = cpu_seconds()
            found.compiled(sources(), arch, kernel.options)
            longest = max(longest, cpu_seconds() - before)
    return longest


def cpu_seconds() -> float:
    """Of this process, and of its children that have ended, such as nvcc."""
    return sum(os.times()[:4])


def cached_kernel(clone: Clone) -> float:
    """Found, whole, and of these sources."""
    found, store = compiler(), Store(clone.folder.parent / "kernels", digest())
    if found is None:
        raise RuntimeError("there is no compiler of kernels: pip install nvidia-cuda-nvrtc")
    store.put("kernel", found.compiled(sources(), 90, Instance("fp32", 1).options))
    digest.cache_clear()
    began = time.perf_counter()
    again = Store(store.folder, digest()).get("kernel")
    seconds = time.perf_counter() - began
    assert again is not None
    return seconds


class Row(NamedTuple):
    name: str
    must: float
    reach: float
    measure: Callable[[Clone], float]
    show: Callable[[float], str] = report.duration
    is_quick: bool = False


# In this order: demo first, as it is the first that a newcomer runs.
ROWS = {
    "demo": Row("clean clone to `make demo` done", 300, 210, demo),
    "compiling": Row("of that, compiling", 140, 80, compiling),
    "test": Row("`make test` after it, lint included", 360, 240, test),
    "test-all": Row("`make test-all`, the same", 1800, 1200, test_all),
    "pip": Row("`pip install .` into an environment that has torch", 180, 90, pip_install),
    "module": Row("compiled module", 8, 4, module_size, megabytes, True),
    "lines": Row("csrc/cuda, lines", 4000, 3200, cuda_lines, "{:,.0f}".format, True),
    "kernels": Row("the slowest kernel of float32 and bf16, CPU seconds", 25, 8, slowest_kernel),
    "cache": Row("a kernel from the cache on disk", 0.1, 0.1, cached_kernel, is_quick=True),
}


def cases(how: Settings) -> Cases:
    """Each row is a case; they share one clone."""
    clone = Clone(how.log)
    chosen = {name: row for name, row in ROWS.items() if row.is_quick or not how.quick}
    rows: Cases = {name: partial(measured, row, clone) for name, row in chosen.items()}
    return {**rows, **busy.cases(how)}


def measured(row: Row, clone: Clone) -> Found:
    value = row.measure(clone)
    yield Target(row.name, row.must, row.reach, value, [value], row.show, at_most=True)
