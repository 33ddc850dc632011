"""What the CUDA sampler takes: registers of a thread, shared memory of a block, what it reads and keeps for an image.

python benchmarks/cuda_resources.py                   writes docs/cuda_resources.md; some 15 minutes on two cores
python benchmarks/cuda_resources.py --plans           leaves its registers as they are
python benchmarks/cuda_resources.py --check fp32 bf16 compiles these kernels for all GPUs, and fails if one spills; with
                                                      --nvrtc FILE, by another NVRTC than the one that is found

Registers are those of kernels that NVRTC compiles, as cuobjdump says, which comes with Triton. It needs no GPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from column_steps import (
    DIAGONAL,
    GATED,
    PIXELCNN,
    ROW_LSTM,
    SHARED,
    ColumnSteps,
    Network,
    Planned,
    needed_compiler,
)
from sass_simulator.kernel import needed

from pixelcnn_fast.runtimes import DTYPES
from pixelcnn_fast.runtimes.cuda.compilers import Compiler, Nvrtc
from pixelcnn_fast.runtimes.cuda.kernels import Instance, instances, sources

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "cuda_resources.md"
MATHS = tuple(DTYPES)
ARCHS = {
    "80": "A100",
    "86": "RTX 3090",
    "89": "RTX 4090, L40S",
    "90": "H100",
    "100": "B200",
    "120": "RTX 5090",
}


class Usage(NamedTuple):
    registers: int  # of a thread
    stack: int  # bytes: where registers are spilled to


def usage_of(cubin: bytes) -> Usage:
    """Of the kernel in it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [needed("cuobjdump"), "-res-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", output)
    return Usage(int(registers), int(stack))


def cubins(
    kernels: Iterable[Instance],
    compiler: Compiler | None = None,
    is_wanted: Callable[[Instance, str], bool] = lambda instance, arch: True,
) -> Iterator[tuple[Instance, str, bytes]]:
    """Each kernel for each architecture that has it and is wanted. compiler: None for the one that is found."""
    with_it = compiler or needed_compiler()
    known = with_it.architectures()
    wanted = [
        (instance, arch)
        for instance in kernels
        for arch in ARCHS
        if int(arch) in known and instance.cluster <= ColumnSteps(arch, Path()).largest_cluster
        if is_wanted(instance, arch)
    ]
    with_lines = [(int(arch), [*instance.options, "-lineinfo"]) for instance, arch in wanted]
    for index, cubin in with_it.compiled_each(sources(), with_lines):
        yield *wanted[index], cubin


Plans = dict[tuple[int, int], dict[str, Any]]


def register_rows() -> list[str]:
    found = {(instance, arch): usage_of(cubin) for instance, arch, cubin in cubins(instances(MATHS))}
    rows = []
    for instance in instances(MATHS):
        cells = [str(u.registers) if (u := found.get((instance, arch))) else "–" for arch in ARCHS]
        rows.append(f"| {' | '.join(map(str, instance))} | {' | '.join(cells)} |")
    return rows


def plans_of_default(math: str, sizes: Iterable[int] = SHARED, most: int = 64) -> Plans:
    """(images of a block, KB of shared memory) -> the facts of the default PixelCNN's plan, where there is one.

    sizes: KB. most: images of a block, where so many fit.
    """
    from pixelcnn_fast.compiler import compile_model
    from pixelcnn_fast.models import PixelCNN
    from pixelcnn_fast.runtimes import Precision
    from pixelcnn_fast.runtimes.cuda.runtime import CudaRuntime, Limits
    from pixelcnn_fast.user_model.wrapped_model import WrappedModel

    model = WrappedModel(PixelCNN().eval(), (3, 32, 32))
    found = compile_model(model)
    precision: Precision = "same" if math == "fp32" else math  # type: ignore[assignment]  # it is one of MATHS
    plans = {}
    for kilobytes in sizes:
        limits = Limits(kilobytes << 10, multiprocessors=1)  # so that one block takes all images, if it can
        runtime = CudaRuntime(
            found.program_for("cuda"), found.conditions, model.head, precision, Planned(), limits
        )
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


def network_rows(networks: Sequence[Network] = (PIXELCNN, GATED, ROW_LSTM, DIAGONAL)) -> list[str]:
    from pixelcnn_fast.runtimes.cuda.runtime import CLUSTERS, Shape

    steps, rows = ColumnSteps("90", Path()), []
    for network in networks:
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

Written by `python benchmarks/cuda_resources.py` from what {compiler} compiles; a test compares it.
[cuda.md](cuda.md) explains the words.

## Registers of a thread
There is a kernel for each kind of numbers and, where there are registers for it, each number of tiles of 8
sites; and for 1 tile those for clusters of 2, 4 and 8 blocks, where the GPU has them. A block has 256 threads, so that
a thread can have 255 registers, the most that the instructions can name. None are spilled: a test compiles those of
float32 and bf16 for the H100, and for the others those with 250 registers or more.

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
    archs, rule = " | ".join(f"sm_{arch}" for arch in ARCHS), "---|" * len(ARCHS)
    rows = "\n".join(register_rows())
    return REGISTERS.format(compiler=needed_compiler(), archs=archs, rule=rule, rows=rows)


def plans() -> str:
    """What follows it."""
    rows = []
    for math in MATHS:
        rows += shared_rows(math, plans_of_default(math))
    gpus = [f"{kilobytes} KB: {', '.join(ARCHS[a] for a in archs)}" for kilobytes, archs in SHARED.items()]
    return PLANS.format(
        gpus=" | ".join(gpus),
        rule="---|" * len(SHARED),
        shared="\n".join(rows),
        columns=" | ".join(NETWORK_COLUMNS),
        networks="\n".join(network_rows()),
    )


def check(kernels: Sequence[Instance], compiler: Compiler | None = None) -> None:
    """Raises SystemExit if one spills."""
    spills = False
    for instance, arch, cubin in cubins(kernels, compiler):
        usage = usage_of(cubin)
        print(f"{instance} sm_{arch}: {usage.registers} registers, {usage.stack} bytes spilled", flush=True)
        spills |= usage.stack > 0
    if spills:
        raise SystemExit("a kernel spills registers")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plans", action="store_true", help="leave the registers as they are")
    parser.add_argument("--check", nargs="+", choices=MATHS, help="compile these kernels, and write nothing")
    parser.add_argument("--nvrtc", type=Path, metavar="FILE", help="with --check: the library")
    chosen = parser.parse_args(arguments)
    if chosen.check:
        return check(instances(chosen.check), chosen.nvrtc and Nvrtc(chosen.nvrtc.resolve()))
    first = TABLE.read_text().split("## Shared memory of a block")[0] if chosen.plans else registers()
    TABLE.write_text(first + plans())


if __name__ == "__main__":
    main()
