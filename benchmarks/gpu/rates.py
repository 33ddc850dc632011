"""Compiles and runs rates.cu: what this GPU does in a cycle, whatever the library does with it.

Also says what the budget assumes of each rate, if the simulator that it stands on is there.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu.build import tool

SOURCE = Path(__file__).with_name("rates.cu")
# Figure of rates.cu -> the same in a row of sass_simulator.rates.RATES.
ASSUMED: dict[str, Callable[[Any], float]] = {
    "multiprocessors": lambda rates: rates.multiprocessors,
    "L2 to one multiprocessor, 64 KB in flight, bytes a cycle": lambda rates: rates.l2_bytes,
    "L2 to each of all, in step, bytes a cycle": lambda rates: rates.l2_bytes_shared,
    "L1 latency, cycles": lambda rates: rates.latency["l1"],
    "L2 latency, cycles": lambda rates: rates.l2_latency,
    "shared memory latency, cycles": lambda rates: rates.latency["shared"],
    "mma.sync, each waiting for the one before, cycles": lambda rates: rates.latency["tensor"],
    "mma.sync, 8 chains of two warps a scheduler, cycles": lambda rates: rates.tensor,
    "__syncthreads of 256 threads, cycles": lambda rates: rates.latency["barrier"],
    "arrival of 8 warps at their block's mbarrier, cycles": lambda rates: rates.latency["mbarrier"],
    "arrival at another block's mbarrier, cycles": lambda rates: rates.latency["cluster"],
    "4 bytes to another block by st.async, cycles": lambda rates: rates.latency["cluster"],
    "st.async to one other block, bytes a cycle": lambda rates: rates.cluster_bytes,
    "SM clock while all multiply, GHz": lambda rates: rates.clock,
    "DRAM, read, TB/s": lambda rates: rates.dram_bytes / 1e12,
}


def compiled(folder: Path, architecture: str) -> Path:
    """-> the program. architecture: as in nvcc's -arch."""
    program = folder / "rates"
    nvcc = os.environ.get("CUDACXX") or tool("nvcc")
    warnings = ["-Xcompiler=-Wall,-Wextra", "-Xptxas=--warn-on-spills,-Werror"]
    command = [nvcc, "-std=c++17", "-O3", f"-arch={architecture}", *warnings, "-o", str(program), str(SOURCE)]
    subprocess.run(command, check=True)
    return program


def assumed(major: int, minor: int) -> dict[str, float]:
    """For a compute capability; empty if it is not among the simulator's, or if that is not there."""
    try:
        table = importlib.import_module("sass_simulator.rates").RATES
    except ModuleNotFoundError:
        return {}
    rates = table.get(f"{major}{minor}")
    return {} if rates is None else {name: of(rates) for name, of in ASSUMED.items()}


def main() -> None:
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    print(json.dumps({"assumed": assumed(major, minor)}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(Path(folder), f"sm_{major}{minor}")
        sys.exit(subprocess.run([program], check=False).returncode)


if __name__ == "__main__":
    main()
