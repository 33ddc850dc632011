"""What the CUDA sampler takes: registers of a thread, shared memory of a block, what it reads and keeps for an image.

python benchmarks/cuda_resources.py            writes docs/cuda_resources.md
python benchmarks/cuda_resources.py --plans    leaves its registers as they are

Registers are those of the installed module, built with nvcc for all GPUs (make setup), as cuobjdump says, which comes
with Triton. It plans with the module of the kernels on the host, which the tests build. It needs no GPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from sass_simulator.kernel import needed

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "cuda_resources.md"
MATHS = ("fp32", "tf32", "bf16", "fp16")
ARCHS = {"80": "A100", "86": "RTX 3090, L40S", "90a": "H100", "100": "B200", "120": "RTX 5090"}
# What a block may have of shared memory, by architecture: "Technical Specifications per Compute Capability" in NVIDIA's
# CUDA C++ Programming Guide. KB.
SHARED = {99: ("86", "120"), 163: ("80",), 227: ("90a", "100")}
# Of walk<math, tiles, blocks>, mangled.
WALK = re.compile(r"4walkILNS0_4MathE(\d)ELi(\d+)ELi(\d+)E")
# kHasClusters in csrc/cuda/kernels/device.h.
HAVE_CLUSTERS = {arch for arch in ARCHS if 90 <= int(arch.rstrip("a")) < 120}


class Kernel(NamedTuple):
    math: str
    tiles: int
    blocks: int  # that share images
    arch: str


class Usage(NamedTuple):
    registers: int  # of a thread
    stack: int  # bytes: where registers are spilled to


def usage_of(module: Path) -> dict[Kernel, Usage]:
    """Of each kernel in a compiled module, but those of clusters where there are none."""
    command = [needed("cuobjdump"), "-res-usage", str(module)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for arch, text in re.findall(r"^arch = sm_(\w+)$(.*?)(?=^arch = |\Z)", output, re.M | re.S):
        for name, registers, stack in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", text):
            if (match := WALK.search(name)) is None:
                continue
            math, tiles, blocks = (int(number) for number in match.groups())
            if blocks == 1 or arch in HAVE_CLUSTERS:
                found[Kernel(MATHS[math], tiles, blocks, arch)] = Usage(int(registers), int(stack))
    return found


Plans = dict[tuple[int, int], dict[str, Any]]


def register_rows(found: dict[Kernel, Usage]) -> list[str]:
    rows = []
    for kernel in sorted({kernel[:3] for kernel in found}, key=lambda k: (MATHS.index(k[0]), *k[1:])):
        usages = (found.get(Kernel(*kernel, arch)) for arch in ARCHS)
        cells = (str(usage.registers) if usage else "–" for usage in usages)
        rows.append(f"| {' | '.join(map(str, kernel))} | {' | '.join(cells)} |")
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

Written by `python benchmarks/cuda_resources.py` from what nvcc {nvcc} has built; a test compares it.
[cuda.md](cuda.md) explains the words.

## Registers of a thread
There is a kernel for each kind of numbers and, where there are registers for it, each number of tiles of 8
sites; and for 1 tile those for clusters of 2, 4 and 8 blocks, where the GPU has them. A block has 256 threads, so that
a thread can have 255 registers, the most that the instructions can name. None are spilled: the build fails
if they are.

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


def registers() -> str:
    """The page's first part."""
    from pixelcnn_fast import native

    module = native.required()
    found = usage_of(Path(str(module.__file__)))
    if missing := set(ARCHS) - {kernel.arch for kernel in found}:
        raise SystemExit(
            f"{module.__file__} has no kernels for {', '.join(sorted(missing))}: build it for all GPUs "
            "(make native, with nvcc), or leave the registers as they are with --plans"
        )
    archs = " | ".join(f"sm_{arch}" for arch in ARCHS)
    nvcc, rule = module.build_info()["cuda_version"], "---|" * len(ARCHS)
    return REGISTERS.format(nvcc=nvcc, archs=archs, rule=rule, rows="\n".join(register_rows(found)))


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
    parser.add_argument("--plans", action="store_true", help="leave the registers as they are")
    only_plans = parser.parse_args(arguments).plans
    sys.path.insert(0, str(ROOT))
    from tests.csrc.emulated import emulated

    first = TABLE.read_text().split("## Shared memory of a block")[0] if only_plans else registers()
    TABLE.write_text(first + plans(emulated()))


if __name__ == "__main__":
    main()
