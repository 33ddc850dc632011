"""A compiled kernel: its instructions, and what its cubin says about constants, memory and registers."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sass_simulator import elf
from sass_simulator.ampere import with_mbarriers
from sass_simulator.instruction import Instruction, parsed

Where = Callable[[Instruction], bool]
GENERIC = {"LD", "ST", "ATOM", "QSPC"}  # of a pointer that may be to shared or to global memory
LOCAL = {"LDL", "STL"}


def tool(name: str) -> str | None:
    """nvcc, nvdisasm, cuobjdump: from CUDA_HOME (/usr/local/cuda), the PATH, or what triton brings."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which(name, path=f"{home}/bin") or shutil.which(name)
    if found is None:
        try:
            import triton
        except ImportError:
            return None
        return shutil.which(name, path=str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin"))
    return found


def needed(name: str) -> str:
    found = tool(name)
    if found is None:
        raise RuntimeError(f"{name} is neither in CUDA_HOME nor on the PATH nor beside triton")
    return found


def compiled(source: Path | str, arch: str, cubin: Path, *options: str) -> Path:
    """Compiles a source for one architecture ("90"), with source lines -> the cubin."""
    command = [needed("nvcc"), "-std=c++17", "-O3", "-lineinfo", "-cubin", f"-arch=sm_{arch}", *options]
    done = subprocess.run([*command, "-o", str(cubin), str(source)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return cubin


@dataclass(frozen=True)
class Kernel:
    name: str  # mangled
    arch: int  # 90 for sm_90
    instructions: list[Instruction]
    labels: dict[str, int]  # index of the instruction
    constants: dict[int, bytes]  # bank -> what the cubin puts there
    parameters_at: int  # in bank 0
    parameter_bytes: int
    registers: int
    shared_bytes: int  # static, with what the system keeps for itself from sm_90 on
    local_bytes: int  # of a thread

    @staticmethod
    def load(cubin: Path, part_of_name: str) -> Kernel:
        """The kernel of a cubin whose mangled name contains this. Raises ValueError unless there is exactly one."""
        file = elf.Elf(cubin)
        fitting = [name for name in file.kernels() if part_of_name in name]
        if len(fitting) != 1:
            raise ValueError(f"{part_of_name} is part of {len(fitting)} names of {file.kernels()}")
        (name,) = fitting
        command = [needed("nvdisasm"), "-hex", "-gi", "-c", "-fun", str(file.symbols.index(name)), str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        arch = re.search(r"\.target\s+sm_(\d+)", text)
        assert arch is not None
        instructions, labels = parsed(text)[name]
        if int(arch[1]) < 90:
            instructions = with_mbarriers(instructions)
        at, size = struct.unpack("<HH", file.attribute(name, elf.PARAM_CBANK))
        banks = {
            bank: data
            for bank in range(1, 5)
            if (data := file.data(f".nv.constant{bank}.{name}") or file.data(f".nv.constant{bank}"))
        }
        return Kernel(
            name=name,
            arch=int(arch[1]),
            instructions=instructions,
            labels=labels,
            constants=banks,
            parameters_at=at,
            parameter_bytes=size,
            registers=int.from_bytes(file.attribute(name, elf.REGISTERS), "little"),
            shared_bytes=file.size(f".nv.shared.{name}"),
            local_bytes=int.from_bytes(file.attribute(name, elf.FRAME_SIZE), "little"),
        )

    def counts(self, where: Where = lambda instruction: True) -> Counter[str]:
        """How many instructions of each name, and of the costly sorts, the code has there: a count over the code,
        whether it runs or not."""
        chosen = [i for i in self.instructions if where(i)]
        found = Counter(i.name for i in chosen)
        found["generic accesses"] = sum(i.name in GENERIC for i in chosen)
        found["local accesses"] = sum(i.name in LOCAL for i in chosen)
        found["integer divisions"] = sum(is_integer_division(i) for i in chosen)
        return found


def is_integer_division(i: Instruction) -> bool:
    """Whether it begins a division or a modulo of integers: all but those by constants estimate a reciprocal, from an
    integer rounded up; of 64 bits, they may be calls instead."""
    if i.name == "I2F":
        return "RP" in i.modifiers
    return i.name == "CALL" and re.search(r"(div|rem)_[su]\d+", i.text) is not None


def of_lines(file: str, lines: Iterable[int] = ()) -> Where:
    """Instructions that come from these lines of a file, themselves or by what is inlined there; no lines: from all."""
    wanted = set(lines)

    def where(i: Instruction) -> bool:
        return any(path.endswith(file) and (not wanted or line in wanted) for path, line in i.lines)

    return where


def loops(kernel: Kernel) -> list[range]:
    """The innermost loops: indexes from each target of a backward branch to the branch."""
    found = []
    for i in kernel.instructions:
        if i.name == "BRA" and (label := re.search(r"`\(([^)]+)\)", i.text)):
            target = kernel.labels[label[1]]
            if target < i.index:
                found.append(range(target, i.index + 1))
    found.sort(key=len)
    innermost: list[range] = []
    for loop in found:
        if not any(inner[0] in loop and inner[-1] in loop for inner in innermost):
            innermost.append(loop)
    return innermost
