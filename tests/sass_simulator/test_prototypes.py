"""The model gives what an earlier, simpler one gave on sketches of the sampler's inner loop, which lie beside the
checkout where it is developed. The earlier one followed one path by hand, gave every LDS.64 two wavefronts and every
LDS.128 four, saw no stores on L2's port, no L1 and no pipe but the tensor units'. So the two differ, by less than 7 %.
"""

from pathlib import Path

import numpy as np
import pytest
from sass_simulator import RATES, Kernel, Memory, compiled, pack, simulate

from tests.sass_simulator.needs import needs_nvcc
from tests.tiers import thorough

ROOT = Path(__file__).parents[2]
FOLDERS = [parent / "shared" / "prototypes" / "cuda_walk" for parent in ROOT.parents[:2]]
FOUND = [folder for folder in FOLDERS if folder.is_dir()]
pytestmark = [
    needs_nvcc,
    pytest.mark.skipif(not FOUND, reason="../shared/prototypes/cuda_walk is not there"),
    thorough,
]


def cycles(kernel: Kernel, name: str, sites: int, layers: int) -> float:
    """Of a block that walks some layers; sites: tiles of 8. Every layer has a residual."""
    memory, known_first = Memory(), name == "known_first"
    fragments = 40 if known_first else 16
    values, records = sites * 256 * fragments, -(-layers * 32 // 128) * 128
    weights = memory.place(8 * layers * fragments * 512)
    sums, stored = 8 * sites * 512, 8 * sites * 256
    above = memory.place(layers * sums)
    rows = memory.place(layers * stored + sites * 8192)
    plan = [
        [fragments - 8, records, records, records, 0, i * stored, 0, records + values]
        if known_first
        else [fragments, records, records + values, records + 2 * values, i * sums, i * stored, 0, 0]
        for i in range(layers)
    ]
    places = np.int32(layers * fragments), above, rows, memory.place(np.array(plan, np.uint32))
    run = simulate(
        kernel,
        pack(weights, *places, np.int32(layers), np.int32(1)),
        memory,
        threads=256,
        rates=RATES["90"],
        shared_bytes=records + 4 * values + sites * 16384,
    )
    assert run.generic_accesses == run.local_accesses == run.integer_divisions == 0
    return run.cycles


@pytest.mark.parametrize(
    "name, sites, expected",
    [("walk_step", 1, 1684), ("walk_step", 8, 4153), ("known_first", 1, 3381), ("known_first", 8, 7511)],
)
def test_a_layer_takes_what_the_prototype_said(name, sites, expected, tmp_path):
    cubin = compiled(FOUND[0] / f"{name}.cu", "90", tmp_path / "walk.cubin")
    kernel = Kernel.load(cubin, f"walkILi{sites}E")
    few, many = (cycles(kernel, name, sites, layers) for layers in (4, 8))
    assert (many - few) / 4 == pytest.approx(expected, rel=0.07)
