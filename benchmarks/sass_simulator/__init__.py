"""Runs the machine code (SASS) of compiled CUDA kernels on the CPU, and says how long a multiprocessor would take.

A block's threads are executed, so branches, trip counts and addresses are real ones, and the memory afterwards can be
compared with what the kernel should have computed; then the instructions that each warp executed are timed together
(timing.py), at the rates of one file (rates.py). Blocks of a cluster are executed and timed together.

    kernel = Kernel.load(compiled("kernel.cu", "90"), "name")
    memory = Memory()
    address = memory.place(array)
    run = simulate(kernel, pack(address, 3), memory, threads=256, rates=RATES["90"])
    run.cycles, run.busy, run.profile(10)

What it leaves out: the instruction cache, DRAM, blocks of other clusters (but for their share of L2, ``l2_rate``), what
sends of several blocks do to each other on their way, wgmma and TMA. An instruction that it does not know is an error.
"""

from sass_simulator.kernel import Kernel, compiled
from sass_simulator.machine import Memory
from sass_simulator.rates import RATES, Rates
from sass_simulator.run import Run, pack, simulate, unknown_instructions

__all__ = [
    "RATES",
    "Kernel",
    "Memory",
    "Rates",
    "Run",
    "compiled",
    "pack",
    "simulate",
    "unknown_instructions",
]
