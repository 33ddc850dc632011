"""What a batch should cost on a GPU, from bytes, products and barriers: a model to be confirmed or refuted.

It chooses the variant, and `make gpu-check` prints its figures beside the measured ones. docs/cuda.md explains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TILE, WARPS, FRAGMENT = 8, 8, 1024

# Cycles; assumptions until a GPU has been measured.
PRODUCT = 33  # of one warp: a fragment of weights, two chains of dependent mma.sync
INSTRUCTION = 200  # addresses, steps, storing
FETCH = 600  # the row phase's sums out of L2: `block` waits for them, `pipeline` has them ready
BARRIER = 40  # __syncthreads of 8 warps
DRAW = 1500
HAND_OVER = {True: 900, False: 1800}  # by whether it goes through distributed shared memory
ROW_RATE = 1500  # FLOP per cycle and multiprocessor of the row phase, which L1 bounds
LAUNCH_US = 4


@dataclass(frozen=True)
class Gpu:
    """l2_bytes: what L2 gives to all multiprocessors together, per cycle; l2_bytes_of_one: to one at most."""

    multiprocessors: int
    ghz: float
    l2_bytes: int
    l2_bytes_of_one: int = 64


GPUS = {
    "A100": Gpu(108, 1.41, 3000),
    "H100": Gpu(132, 1.75, 3200),
    "B200": Gpu(148, 1.85, 4500),
}


def gpu_like(name: str, multiprocessors: int) -> Gpu:
    """The figures of a known GPU whose name this one's contains, else an H100's scaled to its multiprocessors."""
    for known, gpu in GPUS.items():
        if known in name:
            return gpu
    h100 = GPUS["H100"]
    return Gpu(multiprocessors, h100.ghz, h100.l2_bytes * multiprocessors // h100.multiprocessors)


def microseconds_per_pixel(facts: dict[str, Any], variant: str, gpu: Gpu, images: int, cluster: bool) -> float:
    """The time that a pixel of the whole batch takes. facts: those of the variant's plan."""
    tiles = -(-images // TILE)
    cycles = _block(facts, gpu, tiles) if variant == "block" else _pipeline(facts, gpu, tiles, cluster)
    return cycles / gpu.ghz / 1e3


def seconds(
    facts: dict[str, Any], variant: str, gpu: Gpu, images: int, cluster: bool, height: int, width: int
) -> float:
    """The seconds that one batch takes, with its row phases and launches."""
    tiles = -(-images // TILE)
    flop = tiles * width * facts["row_weight_bytes"] / FRAGMENT * 2 * 4096
    row = flop / (ROW_RATE * gpu.multiprocessors) / gpu.ghz / 1e3 + (facts["row_launches"] + 1) * LAUNCH_US
    row += (
        (facts["row_depths"] - facts["row_launches"]) * HAND_OVER[False] / gpu.ghz / 1e3
    )  # barriers of blocks
    return height * (width * microseconds_per_pixel(facts, variant, gpu, images, cluster) + row) / 1e6


def _products(weight_bytes: int) -> float:
    return weight_bytes / FRAGMENT / WARPS * PRODUCT


def _block(facts: dict[str, Any], gpu: Gpu, tiles: int) -> float:
    rate = min(gpu.l2_bytes_of_one, gpu.l2_bytes / min(tiles, gpu.multiprocessors))
    step = max(facts["pixel_weight_bytes"] / rate, _products(facts["pixel_weight_bytes"]))
    step += facts["stage_instructions"][0] * (INSTRUCTION + FETCH)
    step += (facts["stage_barriers"][0] + 2) * BARRIER + DRAW
    return step * -(-tiles // gpu.multiprocessors)


def _pipeline(facts: dict[str, Any], gpu: Gpu, tiles: int, cluster: bool) -> float:
    stages = facts["stages"]
    steps = [
        instructions * INSTRUCTION + barriers * BARRIER
        for instructions, barriers in zip(facts["stage_instructions"], facts["stage_barriers"], strict=True)
    ]
    early = facts["stage_early_bytes"]
    late = [weights - e for weights, e in zip(facts["stage_weight_bytes"], early, strict=True)]
    hand_over = HAND_OVER[cluster]
    latency = sum(steps) + sum(map(_products, late)) + (stages - 1) * hand_over + HAND_OVER[False] + DRAW
    slowest = max(
        s + _products(a) + _products(b) + hand_over / 2 for s, a, b in zip(steps, early, late, strict=True)
    )
    slowest = max(slowest, steps[-1] + _products(late[-1]) + DRAW)
    pipelines = max(1, gpu.multiprocessors // stages)
    return max(latency, -(-tiles // pipelines) * slowest)
