"""Measures what a newcomer waits for, from a clean clone on, and says which targets are met.

    python benchmarks/door_targets.py                        all rows: an hour on 2 cores; it downloads PyTorch
    python benchmarks/door_targets.py --rows demo compiling  some of them
    python benchmarks/door_targets.py --baseline FOLDER      samplers on quiet cores, too, against a built checkout
    python benchmarks/door_targets.py --quick                the rows that take seconds

Rows are measured in a clean clone of this checkout's last commit, by the README's own commands, one after the other;
then come those of busy cores, which busy_targets.py explains. Leave the machine alone meanwhile. What the commands
print goes to a log beside the results. Writes FOLDER/<processor>-<isa>-door.json and .md; status 1 if a target is
missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import busy_targets
from cuda_resources import ARCHS
from targets import MB, Target, megabytes, options, write

from pixelcnn_fast import native
from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import output_folder
from pixelcnn_fast.runtimes.cuda.compilers import compiler
from pixelcnn_fast.runtimes.cuda.kernels import Instance, digest, instances, sources
from pixelcnn_fast.runtimes.cuda.runtime import largest_cluster
from pixelcnn_fast.runtimes.cuda.store import Store

ROOT = Path(__file__).resolve().parents[1]


class Clone:
    """A clean one, of the last commit."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder / "pixelcnn_fast", log
        self.run("git", "clone", "-q", str(ROOT), str(self.folder), cwd=folder)

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
        for kernel in instances(["fp32", "bf16"]):
            if kernel.cluster <= largest_cluster(divmod(arch, 10)):
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
BUSY = "busy"  # rows of busy_targets.py


def measured(args: argparse.Namespace, clone: Clone) -> Iterator[Target]:
    for name in args.rows:
        if name == BUSY:
            yield from busy_targets.targets(argparse.Namespace(**{**vars(args), "repeats": 9}))
        elif not args.quick or ROWS[name].is_quick:
            row = ROWS[name]
            print(f"{row.name} ...", file=sys.stderr, flush=True)
            try:
                value = row.measure(clone)
            except subprocess.CalledProcessError as error:
                print(f"{error}; see {clone.log}", file=sys.stderr)
                value = float("inf")
            yield Target(row.name, row.must, row.reach, value, [value], row.show, at_most=True)


def main() -> int:
    parser = options(__doc__, repeats=1)
    parser.add_argument(
        "--rows", nargs="+", choices=[*ROWS, BUSY], default=[*ROWS, BUSY], help="(default: all)"
    )
    parser.add_argument("--baseline", type=Path, metavar="FOLDER", help="a checkout with its native part built")
    args = parser.parse_args()
    folder = output_folder(args.out)
    log = folder / "door.log"
    log.unlink(missing_ok=True)
    found = report.machine()
    targets: list[Target] = []
    try:
        with tempfile.TemporaryDirectory() as temporary:
            for target in measured(args, Clone(Path(temporary), log)):
                targets.append(target)
    finally:  # an hour's figures are kept, whatever happens to the rest
        write(folder, "door", "Targets of the door", found, args.quick, targets, "", {})
    if BUSY in args.rows and not args.baseline:
        print(
            "not measured: samplers on quiet cores, against a built checkout of another commit (--baseline FOLDER)"
        )
    return int(any(target.verdict() == "no" for target in targets))


if __name__ == "__main__":
    sys.exit(main())
