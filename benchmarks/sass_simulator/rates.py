"""The rates that the model assumes, each with its source. Nothing else can be adjusted.

Sources:
  [model]  the rates that issue 16 fixed for the budget; `make gpu-check` is to measure them
  [guide]  CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions" (results per cycle and
           multiprocessor, by compute capability) and "Technical Specifications"
  [hopper] Luo et al. 2024, "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking"
  [cluster] Luo et al. 2024, "Dissecting the NVIDIA Hopper Architecture through Microbenchmarking and Multiple Level
           Analysis": latency from multiprocessor to multiprocessor, and 3.3 TB/s over 132 of them at 1.755 GHz
  [ampere] Abdelkhalik et al. 2022, "Demystifying the Nvidia Ampere Architecture through Microbenchmarking"
  [vendor] NVIDIA's data sheets and white papers of the GPU
  [assumed] no published figure is known to us: taken from the nearest architecture
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Of a multiprocessor, each issuing one instruction a cycle; a warp belongs to scheduler warp % 4 [guide].
SCHEDULERS = 4
TAKEN_BRANCH = 8  # cycles more until a warp issues from elsewhere [assumed]
OPERANDS_READ = 12  # cycles until a memory instruction has read its registers [assumed]


# Cycles from issue to result, if nothing is in the way [hopper] for shared memory, L1 and tensor units, [cluster] for
# what goes to another block of a cluster, else [assumed]. "mbarrier": from an arrival to those who wait in its block.
LATENCY: dict[str, int] = {
    "shared": 33, "l1": 38, "tensor": 33, "special": 25, "constant": 30, "barrier": 30, "shuffle": 25, "uniform": 12,
    "store": 20, "store shared": 10, "atomic shared": 64, "double": 20, "other": 20,
    "mbarrier": 30, "cluster": 180,
}  # fmt: skip


@dataclass(frozen=True)
class Rates:
    gpu: str
    clock: float  # GHz
    multiprocessors: int
    l2_bytes: float  # a cycle that one multiprocessor alone reads from L2
    l2_bytes_shared: float  # the same, of each while all read
    l2_latency: int  # cycles
    dram_bytes: float  # a second
    l1_bytes: int  # L1 and shared memory together
    tensor: int  # cycles that a product of m16n8k16 in 16 bits takes a scheduler's tensor unit
    double: int  # cycles that an instruction of float64 takes a scheduler's pipe
    single: int = 1  # the same of float32
    cluster_bytes: float = 14  # a cycle that a block sends to others of its cluster [cluster]
    latency: dict[str, int] = field(default_factory=lambda: dict(LATENCY))

    def milliseconds(self, cycles: float) -> float:
        return cycles / self.clock / 1e6


# Cycles that an instruction of a warp takes a scheduler's pipe: 32 lanes over what the pipe does a cycle [guide]:
# 64 integer or logical results a multiprocessor, 16 special functions and conversions.
PIPES = {"integer": 2, "special": 8, "half": 1}

RATES = {
    # 1.755 GHz, 64 and 37 bytes, 265 cycles, 3.0 TB/s [model]. A product of m16n8k16 takes 4 cycles at wgmma's peak;
    # mma.sync reaches 62 % of that [hopper]: 6.5. 8, as on A100, is what the model assumes until it is measured.
    "90": Rates("H100 SXM", 1.755, 132, 64, 37, 265, 3.0e12, 256 << 10, tensor=8, double=2),
    # 1.41 GHz, 108, 1.555 TB/s (40 GB), 192 KB, 1,024 multiply-adds a cycle and multiprocessor; 64 bytes, and 5,120 for
    # all together [vendor]; 200 cycles [ampere]; half as many float32 and float64 results as H100 [guide]
    "80": Rates("A100", 1.41, 108, 64, 47, 200, 1.555e12, 192 << 10, tensor=8, double=4, single=2),
    # 148, 8 TB/s [vendor]; its clock, L2 and mma.sync (its peak is tcgen05's) [assumed]
    "100": Rates("B200", 1.85, 148, 64, 37, 265, 8.0e12, 256 << 10, tensor=8, double=2),
    # 2.41 GHz, 170, 1.79 TB/s, 128 KB, 209.5 TFLOPS of 16 bits with float32 sums: 256 multiply-adds a cycle and
    # multiprocessor [vendor]; 2 float64 results a cycle and multiprocessor [guide]; L2 [assumed]
    "120": Rates("RTX 5090", 2.41, 170, 64, 37, 265, 1.79e12, 128 << 10, tensor=32, double=64),
}
