"""What the CUDA sampler takes for an image, by rule of thumb: good enough to choose how many blocks share it.

A column step is a chain of records, and meanwhile its weights come from L2. The rates are what
benchmarks/cuda_budget.py finds for an H100: a record takes a block about 1,050 cycles, whatever it computes; blocks of
a cluster wait for each other's values as well; one multiprocessor gets 64 bytes a cycle. So clusters pay where weights
are many, and a small network is faster on one block.
"""

from __future__ import annotations

from typing import Any

RECORD, HOP = 1050, 260  # cycles
L2_BYTES = 64  # a cycle


def cycles(facts: dict[str, Any]) -> float:
    """Of one image, by what was planned for a block or a cluster: ``CudaSampler.facts``."""
    record = RECORD + (HOP if facts["cluster"] > 1 else 0)

    def of_step(sweep: dict[str, Any]) -> float:
        chain, weights = sweep["records"] * record, sweep["weight_bytes"] / L2_BYTES
        return float((chain**4 + weights**4) ** 0.25)  # the longer of them, and some of the other

    return facts["turns"] * sum(sweep["steps"] * of_step(sweep) for sweep in facts["sweeps"])


def most_blocks(facts: dict[str, Any]) -> float:
    """In place of ``cycles``, to test clusters with small networks: they are as large as they can be."""
    return -float(facts["cluster"])
