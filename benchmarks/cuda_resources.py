"""What the CUDA sampler's kernels take: registers, shared memory, blocks on a multiprocessor. Needs nvcc but no GPU.

python benchmarks/cuda_resources.py        writes docs/cuda_resources.md (a few minutes)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "cuda_resources.md"
MATHS = ("fp32", "tf32", "bf16", "fp16")
KERNELS = {  # pattern of its mangled name -> (name, threads)
    "run_row_depthI": ("row phase", 128),
    "run_row_depthsI": ("row phase, all depths", 128),
    "sample_row_in_blocks": ("block", 256),
    "sample_row_in_pipelinesILNS0_4MathE.ELb0": ("pipeline", 256),
    "sample_row_in_pipelinesILNS0_4MathE.ELb1": ("pipeline, cluster", 256),
}


@dataclass(frozen=True)
class Arch:
    shared_of_block: int  # bytes that a block can ask for
    shared_of_multiprocessor: int
    multiprocessors: int  # of the GPU named
    largest_cluster: int
    gpu: str


ARCHS = {
    "80": Arch(163 << 10, 164 << 10, 108, 1, "A100"),
    "86": Arch(99 << 10, 100 << 10, 84, 1, "RTX 3090 class"),
    "89": Arch(99 << 10, 100 << 10, 142, 1, "L40S"),
    "90a": Arch(227 << 10, 228 << 10, 132, 16, "H100"),
    "100": Arch(227 << 10, 228 << 10, 148, 16, "B200"),
    "120": Arch(99 << 10, 100 << 10, 170, 8, "RTX 5090"),
}
REGISTERS, WARPS, RESERVED = (
    65536,
    {"86": 48, "89": 48, "120": 48},
    1024,
)  # of a multiprocessor; shared bytes per block


def nvcc_version(nvcc: str) -> str:
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    (version,) = re.findall(r"release [\d.]+, V([\d.]+)", output)
    return version


def compiled(nvcc: str, math: str, archs: list[str]) -> dict[tuple[str, str], tuple[int, int]]:
    """(kernel, arch) -> (registers, bytes spilled), as ptxas reports them."""
    with tempfile.TemporaryDirectory() as folder:
        steps = ROOT / "pixelcnn_fast" / "program" / "steps.py"
        subprocess.run(
            [sys.executable, ROOT / "csrc" / "steps_header.py", steps, f"{folder}/steps.h"], check=True
        )
        command = [nvcc, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", f"-I{folder}", f"-DPCF_MATH={math}"]
        command += ["-Xptxas=-v", "-c"]
        command += [f"--generate-code=arch=compute_{a},code=[sm_{a}]" for a in archs]
        command += ["-o", f"{folder}/kernels.o", str(ROOT / "csrc" / "cuda" / "kernels.cu")]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {}
    for part in output.split("Compiling entry function ")[1:]:
        mangled, arch = re.findall(r"^'(\w+)' for 'sm_(\w+)'", part)[0]
        (kernel,) = (name for pattern, (name, _) in KERNELS.items() if re.search(pattern, mangled))
        registers = max(int(n) for n in re.findall(r"Used (\d+) registers", part))
        found[kernel, arch] = registers, max(int(n) for n in re.findall(r"(\d+) bytes spill stores", part))
    return found


def shared_bytes(kernel: str, math: str, arch: str, plans) -> int | None:
    """Shared memory for the default PixelCNN; None if the variant does not serve it."""
    if kernel.startswith("row phase"):
        return 0
    plan = plans.get((math, arch, "block" if kernel == "block" else "pipeline"))
    return None if plan is None else plan["shared_bytes"]


def occupancy(arch: str, registers: int, shared: int, threads: int) -> int:
    """Blocks on a multiprocessor; registers come in groups of 8 for each thread of a warp."""
    warps = threads // 32
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32) // warps
    by_shared = ARCHS[arch].shared_of_multiprocessor // (shared + RESERVED)
    return min(by_registers, by_shared, WARPS.get(arch, 64) // warps, 32)


def rows(compiled_rows, math: str, plans) -> list[str]:
    lines = []
    threads_of = dict(KERNELS.values())
    for (kernel, arch), (registers, spilled) in sorted(compiled_rows.items()):
        if kernel == "pipeline, cluster" and ARCHS[arch].largest_cluster == 1:
            continue  # never launched there
        shared = shared_bytes(kernel, math, arch, plans)
        blocks = "" if shared is None else occupancy(arch, registers, shared, threads_of[kernel])
        shared_text = "does not fit" if shared is None else f"{shared:,}"
        lines.append(f"| {kernel} | {math} | sm_{arch} | {registers} | {spilled} | {shared_text} | {blocks} |")
    return lines


def plans_of_default(module, maths=MATHS, archs=tuple(ARCHS)) -> dict[tuple[str, str, str], dict]:
    """(math, arch, variant) -> the plan's facts; module: any module that has CudaSampler."""
    from pixelcnn_fast.capture.wrapped_model import WrappedModel
    from pixelcnn_fast.compiler import compiled
    from pixelcnn_fast.models import PixelCNN
    from pixelcnn_fast.runtimes import Precision
    from pixelcnn_fast.runtimes.cuda import CudaRuntime, Limits

    model = WrappedModel(PixelCNN().eval(), (3, 8, 8))  # the size of images changes neither
    found = compiled(model)
    plans = {}
    for math in maths:
        for name in archs:
            for variant in ("block", "pipeline"):
                arch = ARCHS[name]
                limits = Limits(arch.shared_of_block, arch.multiprocessors, arch.largest_cluster)
                precision: Precision = "same" if math == "fp32" else math
                try:
                    runtime = CudaRuntime(
                        found.program, found.conditions, model.head, precision, variant, module, limits
                    )
                except RuntimeError:
                    continue
                plans[math, name, variant] = runtime.facts(variant)
    return plans


def table(nvcc: str, module) -> str:
    plans = plans_of_default(module)
    lines = [
        "# What the CUDA sampler's kernels take",
        "",
        f"Written by `python benchmarks/cuda_resources.py` with nvcc {nvcc_version(nvcc)}; a test compares it. Shared",
        "memory is that of the default `PixelCNN()`. Blocks: how many a multiprocessor holds at once.",
        "",
        "| kernel | multiplies | target | registers | spilled bytes | shared memory | blocks |",
        "|---|---|---|---|---|---|---|",
    ]
    for math in MATHS:
        lines += rows(compiled(nvcc, math, list(ARCHS)), math, plans)
    return "\n".join(lines) + "\n"


def main() -> None:
    from pixelcnn_fast.native import native

    nvcc = shutil.which(os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin/nvcc") or shutil.which("nvcc")
    module = native()
    if nvcc is None or module is None or not module.build_info()["cuda"]:
        raise SystemExit("nvcc and a build with the CUDA part are needed: set CUDA_HOME, then make native")
    TABLE.write_text(table(nvcc, module))


if __name__ == "__main__":
    main()
