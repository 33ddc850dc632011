"""What the CUDA sampler's kernels take: registers of a thread, shared memory of a block. Needs nvcc but no GPU.

python benchmarks/cuda_resources.py        writes docs/cuda_resources.md (some minutes)

It plans with the module of the kernels on the host, which the tests build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "csrc" / "cuda" / "kernels.cu"
TABLE = ROOT / "docs" / "cuda_resources.md"
MATHS = ("fp32", "tf32", "bf16", "fp16")
ARCHS = {"80": "A100", "86": "RTX 3090", "89": "L40S", "90a": "H100", "100": "B200", "120": "RTX 5090"}
# What a block may have of shared memory, by architecture: "Technical Specifications per Compute Capability" in NVIDIA's
# CUDA C++ Programming Guide. KB.
SHARED = {99: ("86", "89", "120"), 163: ("80",), 227: ("90a", "100")}
# Of walk<math, tiles, blocks>, mangled.
TILES = re.compile(r"4walkILNS0_4MathE\dELi(\d+)ELi(\d+)E")
# kHasClusters in csrc/cuda/kernels/device.h.
HAVE_CLUSTERS = {arch for arch in ARCHS if 90 <= int(arch.rstrip("a")) < 120}


@dataclass(frozen=True)
class Registers:
    count: int  # of a thread
    spilled: int  # bytes

    def __str__(self) -> str:
        return f"{self.count} ({self.spilled} bytes spilled)" if self.spilled else f"{self.count}"


Kernel = tuple[int, int, str]  # tiles, blocks that share images, architecture


def nvcc_version(nvcc: str) -> str:
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    (version,) = re.findall(r"release [\d.]+, V([\d.]+)", output)
    return version


def compiled(nvcc: str, source: Path, math: str, archs: list[str]) -> dict[Kernel, Registers]:
    """Of each kernel of a source, compiled as CMake's release build does."""
    with tempfile.TemporaryDirectory() as folder:
        steps = ROOT / "pixelcnn_fast" / "program" / "steps.py"
        subprocess.run(
            [sys.executable, ROOT / "csrc" / "steps_header.py", steps, f"{folder}/steps.h"], check=True
        )
        command = [nvcc, "-O3", "-DNDEBUG", "-std=c++17", f"-I{ROOT / 'csrc'}", f"-I{folder}"]
        command += [f"-DPCF_MATH={math}", "-Xptxas=-v", "--threads=2"]
        command += ["-c", str(source), "-o", f"{folder}/kernels.o"]
        command += [f"--generate-code=arch=compute_{a},code=[sm_{a}]" for a in archs]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {}
    for part in output.split("Compiling entry function ")[1:]:
        mangled, arch = re.findall(r"^'(\w+)' for 'sm_(\w+)'", part)[0]
        ((tiles, blocks),) = TILES.findall(mangled)
        if blocks != "1" and arch not in HAVE_CLUSTERS:
            continue
        found[int(tiles), int(blocks), arch] = Registers(
            max(int(n) for n in re.findall(r"Used (\d+) registers", part)),
            max(int(n) for n in re.findall(r"(\d+) bytes spill stores", part)),
        )
    return found


Plans = dict[tuple[int, int], dict[str, Any]]


def register_rows(math: str, found: dict[Kernel, Registers]) -> list[str]:
    rows = []
    for tiles, blocks in sorted({kernel[:2] for kernel in found}):
        cells = " | ".join(str(found.get((tiles, blocks, arch), "–")) for arch in ARCHS)
        rows.append(f"| {math} | {tiles} | {blocks} | {cells} |")
    return rows


def plans_of_default(module: ModuleType, math: str, sizes: Iterable[int] = SHARED, most: int = 64) -> Plans:
    """(images of a block, KB of shared memory) -> the facts of the default PixelCNN's plan, where there is one.

    module: any that has CudaSampler. sizes: KB. most: images of a block, where so many fit.
    """
    from pixelcnn_fast.capture.wrapped_model import WrappedModel
    from pixelcnn_fast.compiler import compiled
    from pixelcnn_fast.models import PixelCNN
    from pixelcnn_fast.runtimes import Precision
    from pixelcnn_fast.runtimes.cuda import CudaRuntime, Limits

    model = WrappedModel(PixelCNN().eval(), (3, 32, 32))
    found = compiled(model)
    precision: Precision = "same" if math == "fp32" else math  # type: ignore[assignment]  # it is one of MATHS
    plans = {}
    for kilobytes in sizes:
        limits = Limits(kilobytes << 10, multiprocessors=1)  # so that one block takes all images, if it can
        runtime = CudaRuntime(found.program, found.conditions, model.head, precision, module, limits)
        for images in range(1, min(most, runtime.facts(1)["most_images"]) + 1):
            facts = runtime.facts(images)
            if facts["images"] == images:
                plans[images, kilobytes] = facts
    return plans


def shared(plan: dict[str, Any] | None) -> str:
    return "–" if plan is None else f"{plan['shared_bytes']:,} ({plan['records']})"


def shared_rows(math: str, plans: Plans) -> list[str]:
    rows = []
    for images in sorted({images for images, _ in plans}):
        tiles = next(plan["tiles"] for (n, _), plan in plans.items() if n == images)
        cells = " | ".join(shared(plans.get((images, kilobytes))) for kilobytes in SHARED)
        rows.append(f"| {math} | {images} | {tiles} | {cells} |")
    return rows


def table(nvcc: str, module: ModuleType) -> str:
    registers, memory = [], []
    for math in MATHS:
        registers += register_rows(math, compiled(nvcc, KERNELS, math, list(ARCHS)))
        memory += shared_rows(math, plans_of_default(module, math))
    gpus = [f"{kilobytes} KB: {', '.join(ARCHS[a] for a in archs)}" for kilobytes, archs in SHARED.items()]
    lines = [
        "# What the CUDA sampler's kernels take",
        "",
        f"Written by `python benchmarks/cuda_resources.py` with nvcc {nvcc_version(nvcc)}; a test compares it.",
        "[cuda.md](cuda.md) explains the words.",
        "",
        "## Registers of a thread",
        "There is a kernel for each kind of numbers and, where there are registers for it, each number of tiles of 8",
        "sites; and for 1 tile one for clusters of 4 blocks, where the GPU has them. A block has 256 threads, so that",
        "a thread can have 255 registers, the most that the instructions can name. Spilled bytes would stand in",
        "brackets; the build fails if there are any.",
        "",
        "| multiplies | tiles | blocks | " + " | ".join(f"sm_{arch}" for arch in ARCHS) + " |",
        "|---|---|---|" + "---|" * len(ARCHS),
        *registers,
        "",
        "## Shared memory of a block",
        "Bytes, and in brackets the records of a column step, for the default `PixelCNN()`, 3×32×32, by what a block",
        "may have of shared memory. Where it has less, a column step takes more records, or fewer images fit (–).",
        "",
        "| multiplies | images | tiles | " + " | ".join(gpus) + " |",
        "|---|---|---|" + "---|" * len(SHARED),
        *memory,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.csrc.emulated import emulated

    nvcc = shutil.which(os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin/nvcc") or shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("nvcc is needed: set CUDA_HOME")
    TABLE.write_text(table(nvcc, emulated()))


if __name__ == "__main__":
    main()
