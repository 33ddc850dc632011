"""What the CUDA sampler takes for a batch, by rule of thumb: good enough to choose how images share multiprocessors.

A column step is a chain of records, and meanwhile its weights come from L2. The rates are what
benchmarks/cuda_budget.py finds for an H100: with few sites, a record takes a block about 1,050 cycles, whatever it
computes; blocks of a cluster wait for each other's values as well. So clusters pay where weights are many, and a small
network is faster on one block. Where many blocks read at once, fewer blocks with more images each may be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RECORD, HOP = 1050, 260  # cycles, with one tile of sites
BARRIER, RESULTS = 900, 500  # the same with more of them, the second for each
L2_BYTES, L2_BYTES_SHARED = 64, 37  # a cycle, for a multiprocessor that reads alone, and for each if all do
TILE_SITES = 8
# Bytes of weights that are multiplied with a tile of sites in a cycle.
MULTIPLIED = {"fp32": 64, "bf16": 256, "fp16": 256}


def cycles(facts: dict[str, Any], math: str, images: int, blocks: int, multiprocessors: int) -> float:
    """Of a block, or a cluster, with so many images, while so many blocks are at work. facts: ``CudaSampler.facts`` of
    one with one image."""
    l2_bytes = min(L2_BYTES, L2_BYTES_SHARED * max(1, multiprocessors / blocks))
    tiles = -(-images * facts["rows"] // TILE_SITES)

    def of_step(sweep: dict[str, Any]) -> float:
        chain = sweep["records"] * (RECORD + (HOP if facts["cluster"] > 1 else 0))
        if tiles > 1:  # products take so long that all warps want the tensor units at once
            chain = (
                sweep["records"] * (BARRIER + tiles * RESULTS)
                + tiles * sweep["weight_bytes"] / MULTIPLIED[math]
            )
        read = (sweep["weight_bytes"] + images * sweep["value_bytes"]) / l2_bytes
        return float((chain**4 + read**4) ** 0.25)  # the longer of them, and some of the other

    return facts["turns"] * sum(sweep["steps"] * of_step(sweep) for sweep in facts["sweeps"])


def prefers(blocks: int) -> Callable[..., float]:
    """In place of ``cycles``, to test small networks: clusters of so many blocks, or of as near to that as there can
    be, with as few images as they can have."""
    return lambda facts, *_: abs(float(facts["cluster"]) - blocks)
