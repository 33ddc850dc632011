"""Estimates how long the CUDA sampler takes for a batch, to choose how images share multiprocessors.

A column step is a chain of records, while its weights come from L2. Clusters pay where
weights are many; where many blocks read at once, fewer may be faster.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pixelcnn_fast.program.schema import TILE_SITES


class Constants(NamedTuple):
    """Cycles of a record with one tile of sites, and more in a cluster; of one with more
    tiles, and for each of them; bytes a cycle from L2, alone, and if all read; bytes of
    weights multiplied in a cycle. ``gpu.sweep`` fits them."""

    record: float = 1050
    hop: float = 260
    barrier: float = 900
    results: float = 500
    l2_bytes: float = 64
    l2_bytes_shared: float = 37
    multiplied: float = 256
    multiplied_fp32: float = 64


CONSTANTS = Constants()


def cycles(
    facts: dict[str, Any],
    math: str,
    images: int,
    blocks: int,
    multiprocessors: int,
    by: Constants = CONSTANTS,
) -> float:
    """Of a block or cluster with so many images. facts: ``CudaSampler.facts`` for one image."""
    l2_bytes = min(by.l2_bytes, by.l2_bytes_shared * max(1, multiprocessors / blocks))
    tiles = -(-images * facts["rows"] // TILE_SITES)
    multiplied = by.multiplied_fp32 if math == "fp32" else by.multiplied

    def of_step(sweep: dict[str, Any]) -> float:
        record, products = by.record + (by.hop if facts["cluster"] > 1 else 0), 0.0
        if tiles > 1:  # all warps want the tensor units at once
            record, products = by.barrier + tiles * by.results, tiles * sweep["weight_bytes"] / multiplied
        chain = sweep["records"] * record + products
        read = (sweep["weight_bytes"] + images * sweep["value_bytes"]) / l2_bytes
        return float((chain**4 + read**4) ** 0.25)  # the longer, and some of the other

    return facts["turns"] * sum(sweep["steps"] * of_step(sweep) for sweep in facts["sweeps"])
