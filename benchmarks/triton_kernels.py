"""What Triton makes of the masked convolution's kernels, in machine code. Needs no GPU.

python benchmarks/triton_kernels.py            a table for an H100: the forward, both gradients, in bf16 and tf32
python benchmarks/triton_kernels.py --arch 80  for another GPU

To compare with another commit, check it out elsewhere and name that folder in PYTHONPATH; likewise a folder into which
`pip install --target FOLDER triton==3.6.0` has put another Triton. The layer is the one that the default PixelCNN has
most of: 3x3, mask B, 128 to 128 channels, on 64 feature maps of 32x32.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

from pixelcnn_fast.ops import triton_tuning
from pixelcnn_fast.ops.masked_conv2d import triton as masked_conv2d
from pixelcnn_fast.ops.masked_conv2d import triton_weight_gradient


class Device(NamedTuple):
    capability: int
    shared_memory: int  # bytes that a block may have
    multiprocessors: int
    matrix_instruction: str


DEVICES = {
    80: Device(80, 166_912, 108, "HMMA"),
    90: Device(90, 232_448, 132, "HGMMA"),
    100: Device(100, 232_448, 148, "UTCHMMA"),
    120: Device(120, 101_376, 170, "HMMA"),
}


class Driver:
    """What Triton asks a driver for when it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # Triton caches its kernels for each device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


class Launch(NamedTuple):
    """Of a kernel: its name, its keyword arguments, and what it compiled to."""

    name: str
    arguments: dict[str, Any]
    kernel: Any


@contextmanager
def compiling(device: Device) -> Iterator[list[Launch]]:
    """Launches are compiled for a device that is not here, and not run; what they are given may be on 'meta'."""
    launches: list[Launch] = []

    def launcher(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        assert 0 < math.prod(grid) < 2**31

        def launch(*args: Any, **kwargs: Any) -> None:
            assert not any(isinstance(argument, list) for argument in args), "Triton 3.6 takes tuples only"
            launches.append(Launch(kernel.__name__, kwargs, kernel.warmup(*args, grid=grid, **kwargs)))

        return launch

    def multiprocessors(_: torch.device) -> int:
        return device.multiprocessors

    with (
        patch.object(triton_tuning, "capability", lambda _: device.capability),
        patch.object(triton_tuning, "multiprocessors", multiprocessors),
        patch.object(triton_weight_gradient, "multiprocessors", multiprocessors),
        patch.object(triton.runtime.driver, "_active", Driver(device.capability)),
        patch.object(KernelInterface, "__getitem__", launcher),
    ):
        yield launches


def programs_at_once(device: Device, launch: Launch) -> int:
    """How many programs a multiprocessor holds: each has its registers, and 1 KB of shared memory for the system."""
    registers = 8 * math.ceil(registers_of(launch) / 8)
    by_shared_memory = (device.shared_memory + 1024) // (launch.kernel.metadata.shared + 1024)
    return min(65536 // (registers * 32 * launch.arguments["num_warps"]), by_shared_memory)


def registers_of(launch: Launch) -> int:
    """Of a thread."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(launch.kernel.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(usage.split("REG:")[1].split()[0])


def main_loop(sass: str) -> list[str]:
    """The instructions of the innermost loop that multiplies."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    found: list[str] = []
    for line in sass.splitlines():
        if "\t" not in line:
            labels[line.rstrip(":")] = len(instructions)
            continue
        instructions.append(line.split("\t")[1])
        back = re.search(r"\bBRA (\w+);", instructions[-1])
        body = instructions[labels.get(back[1], len(instructions)) :] if back else []
        if any("MMA" in instruction for instruction in body) and not (found and len(found) < len(body)):
            found = body
    return found


# Column -> the instructions of the loop that it counts.
COUNTED = {
    "products": r"MMA\b",
    "waits for them": r"WARPGROUP\.DEPBAR",
    "asynchronous copies": r"LDGSTS|UTMALDG",
    "other loads": r"\b(LDG|LDS|LDSM|LDL)\b",
}


def row(device: Device, what: str, launch: Launch) -> str:
    arguments, loop = launch.arguments, main_loop(launch.kernel.asm["sass"])
    # What a program adds up in a step of its loop: rows x columns sums, of which each gets `depth` more terms.
    rows, columns, depth = (
        arguments[f"BLOCK_{letter}"] for letter in ("IOP" if "outer" in launch.name else "POI")
    )
    executed = len(loop) * arguments["num_warps"] / (rows * columns * depth / 1024)
    cells = [
        "bf16" if arguments["PRECISION"] == "16 bit" else "tf32",
        what,
        f"{rows}×{columns}×{depth}",
        arguments["num_warps"],
        registers_of(launch),
        f"{launch.kernel.metadata.shared:,}",
        programs_at_once(device, launch),
        f"{len(loop)} ({executed:.2g})",
        *(sum(bool(re.search(pattern, i)) for i in loop) for pattern in COUNTED.values()),
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


HEADER = (
    *("multiplies", "pass", "tile", "warps", "registers", "shared memory", "programs at once"),
    "instructions (for 1,024 terms)",
    *COUNTED,
)


def table(device: Device) -> str:
    """Markdown. Instructions are those of a step of the kernel's loop, in one warp; in brackets, those of all warps for
    1,024 terms of sums."""
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.empty(64, 128, 32, 32, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
        weight, bias = x.new_empty(128, 128, 3, 3), x.new_empty(128)
        how = torch.empty(3, 3, dtype=torch.bool, device="meta"), (1, 1), (1, 1)
        with compiling(device) as launches:
            masked_conv2d.forward(x, weight, bias, *how)
            masked_conv2d.forward(x, weight, bias, *how, "relu", 1.0, x)
            masked_conv2d.input_gradient(x, weight, how[0], x.shape, *how[1:])
            triton_weight_gradient.weight_gradient(x, x, weight.shape, *how)
        products = [launch for launch in launches if "PRECISION" in launch.arguments]
        passes = "forward", "forward, relu and residual", "input gradient", "weight gradient"
        rows += [row(device, *each) for each in zip(passes, products, strict=True)]
    return "\n".join(["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, default=90, choices=sorted(DEVICES))
    device = DEVICES[parser.parse_args().arch]
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]  # torch adds it at run time
    print(f"sm_{device.capability}, triton {triton.__version__}\n\n{table(device)}")


if __name__ == "__main__":
    main()
