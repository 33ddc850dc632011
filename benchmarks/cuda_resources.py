"""What the CUDA sampler takes: registers of a thread, shared memory of a block, what it reads and keeps for an image.

python benchmarks/cuda_resources.py            writes docs/cuda_resources.md (some minutes); needs nvcc but no GPU
python benchmarks/cuda_resources.py --plans    leaves its registers as they are, which alone take nvcc

It plans with the module of the kernels on the host, which the tests build.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "csrc" / "cuda" / "kernels" / "kernels.cu"
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


def network_row(name: str, facts: dict[str, Any], width: int) -> str:
    """What one image takes a column step; or a pixel, where rows are sampled one at a time, in several sweeps each."""
    sweeps, by_rows = facts["sweeps"], len(facts["sweeps"]) > 1

    def taken(what: str) -> float:
        each = sum(sweep["steps"] * sweep[what] for sweep in sweeps)
        return each / (width if by_rows else sweeps[0]["steps"])

    cells = (
        f"{facts['turns'] * sum(sweep['steps'] for sweep in sweeps):,}",
        f"{taken('records'):.4g}",
        f"{taken('weight_bytes'):,.0f}",
        f"{taken('value_bytes'):,.0f}",
        f"{facts['cluster'] * facts['workspace_bytes']:,}",
        f"{facts['shared_bytes']:,}",
    )
    return f"| {name}{', a pixel' * by_rows} | {facts['cluster']} | {' | '.join(cells)} |"


def network_rows(names: Sequence[str] = ("PIXELCNN", "GATED", "ROW_LSTM", "DIAGONAL")) -> list[str]:
    """names: of networks in column_steps.py."""
    import column_steps

    from pixelcnn_fast.runtimes.cuda import CLUSTERS, Shape

    steps, rows = column_steps.ColumnSteps("90a", Path()), []
    for network in (getattr(column_steps, name) for name in names):
        for shape in (Shape(1), Shape(1, max(CLUSTERS))):
            facts = steps.runtime(network).sampler(shape).facts
            rows.append(network_row(network.name, facts, network.shape[2]))
    return rows


NETWORK_COLUMNS = (
    "column steps of an image",
    "records of one",
    "weights that a block reads",
    "values that it copies",
    "values kept for the image",
    "shared memory of a block",
)
REGISTERS = """\
# What the CUDA sampler's kernels take

Written by `python benchmarks/cuda_resources.py` with nvcc {nvcc}; a test compares it.
[cuda.md](cuda.md) explains the words.

## Registers of a thread
There is a kernel for each kind of numbers and, where there are registers for it, each number of tiles of 8
sites; and for 1 tile those for clusters of 2, 4 and 8 blocks, where the GPU has them. A block has 256 threads, so that
a thread can have 255 registers, the most that the instructions can name. Spilled bytes would stand in
brackets; the build fails if there are any.

| multiplies | tiles | blocks | {archs} |
|---|---|---|{rule}
{rows}

"""
PLANS = """\
## Shared memory of a block
Bytes, and in brackets the records of a column step, for the default `PixelCNN()`, 3×32×32, by what a block
may have of shared memory. Where it has less, a column step takes more records, or fewer images fit (–).

| multiplies | images | tiles | {gpus} |
|---|---|---|{rule}
{shared}

## What lies where, for each network of the budget
Bytes, of one image in bf16 on an H100, in a block and in a cluster of 8. The networks are the default `PixelCNN()`, a
Gated PixelCNN of 64 channels and 7 blocks, and LSTMs of 128 units and 12 layers. In a column step, a block reads its
weights from L2, and copies to shared memory some of the values of earlier column steps, which lie in global memory.
Each block of a cluster has all of them. A Diagonal BiLSTM is sampled a row at a time, in sweeps with column steps of
their own, so what it takes is given for a pixel: that of a row's column steps, divided by the row's pixels.

| network | blocks | {columns} |
|---|---|---|---|---|---|---|---|
{networks}
"""


def registers(nvcc: str) -> str:
    """The page's first part."""
    rows = []
    for math in MATHS:
        rows += register_rows(math, compiled(nvcc, KERNELS, math, list(ARCHS)))
    archs = " | ".join(f"sm_{arch}" for arch in ARCHS)
    return REGISTERS.format(
        nvcc=nvcc_version(nvcc), archs=archs, rule="---|" * len(ARCHS), rows="\n".join(rows)
    )


def plans(module: ModuleType) -> str:
    """What follows it."""
    rows = []
    for math in MATHS:
        rows += shared_rows(math, plans_of_default(module, math))
    gpus = [f"{kilobytes} KB: {', '.join(ARCHS[a] for a in archs)}" for kilobytes, archs in SHARED.items()]
    return PLANS.format(
        gpus=" | ".join(gpus),
        rule="---|" * len(SHARED),
        shared="\n".join(rows),
        columns=" | ".join(NETWORK_COLUMNS),
        networks="\n".join(network_rows()),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", action="store_true", help="leave the registers as they are, which take nvcc")
    only_plans = parser.parse_args(arguments).plans
    sys.path.insert(0, str(ROOT))
    from tests.csrc.emulated import emulated

    nvcc = shutil.which(os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin/nvcc") or shutil.which("nvcc")
    if only_plans:
        first = TABLE.read_text().split("## Shared memory of a block")[0]
    elif nvcc is None:
        raise SystemExit("nvcc is needed: set CUDA_HOME, or leave the registers as they are with --plans")
    else:
        first = registers(nvcc)
    TABLE.write_text(first + plans(emulated()))


if __name__ == "__main__":
    main()
