"""What a block takes: known sums, and defects that cost about what they should."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sass_simulator import RATES, Kernel, Memory, Run, compiled, pack, simulate
from sass_simulator.executor import Recording
from sass_simulator.instruction import Instruction
from sass_simulator.timing import timed

from tests.sass_simulator.needs import needs_nvcc
from tests.tiers import thorough

pytestmark = [needs_nvcc, thorough]
SOURCE = Path(__file__).parent / "layers.cu"
DEFECTS = ("none", "load", "barrier", "conflict", "division")
H100 = RATES["90"]
FRAGMENTS, WARPS = 8, 8


@pytest.fixture(scope="module")
def cubin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(SOURCE, "90", tmp_path_factory.mktemp("cubins") / "layers.cubin")


def run_layers(cubin: Path, defect: str, count: int, **more) -> Run:
    kernel = Kernel.load(cubin, f"Defect{DEFECTS.index(defect)}E")
    memory, values = Memory(), 16 * count
    first, size = -(-values // 128) * 128, 32 * 128
    plan = np.array(
        [[first + i % 2 * size, first + (i + 1) % 2 * size, 0, 8] for i in range(count)], np.uint32
    )
    weights = memory.place(WARPS * count * FRAGMENTS * 512 + 4096)  # zeros; read ahead of the end, too
    addresses = weights, memory.place(plan), memory.place(8)
    return simulate(kernel, pack(*addresses, np.int32(count)), memory, threads=256, rates=H100,
                    shared_bytes=first + 2 * size, **more)  # fmt: skip


@cache
def both(cubin: Path, defect: str, l2_rate: float | None = None) -> tuple[Run, Run]:
    return run_layers(cubin, defect, 4, l2_rate=l2_rate), run_layers(cubin, defect, 12, l2_rate=l2_rate)


def per_layer(cubin: Path, defect: str, l2_rate: float | None = None) -> float:
    few, many = both(cubin, defect, l2_rate)
    return (many.cycles - few.cycles) / 8


def busy_per_layer(cubin: Path, defect: str, part: str) -> float:
    few, many = both(cubin, defect)
    return (many.busy[part] - few.busy[part]) / 8


def test_what_a_layer_keeps_busy(cubin):
    """64 KB / 2 of weights through L2; 8 products of 8 cycles for each of two warps of a scheduler; wavefronts: two of
    each LDS.64 and STS.64, one of each warp's layer record."""
    expected = {
        "l2": WARPS * FRAGMENTS * 512 / H100.l2_bytes,
        "tensor": 2 * FRAGMENTS * H100.tensor,
        "shared": WARPS * (2 * FRAGMENTS + 2 + 1),
    }
    # A layer's record comes once from global memory: a turn and a quarter of a cycle.
    assert {part: busy_per_layer(cubin, "none", part) for part in expected} == pytest.approx(expected, abs=1)


def test_a_layer_takes_at_least_what_its_busiest_part_takes(cubin):
    # L2: 512 cycles. Then a barrier, the record, values and a chain of sums, while loads go on.
    assert 512 <= per_layer(cubin, "none") < 900


def test_a_product_waits_for_the_sums_of_the_one_before(cubin):
    """With a port so wide that it does not matter: a record, values, a chain of products, some 40 cycles for what
    becomes of the sums, a barrier."""
    products = FRAGMENTS * H100.latency["tensor"]
    least = 2 * H100.latency["shared"] + products + 40 + H100.latency["barrier"]
    assert least <= per_layer(cubin, "none", 4096.0) < 1.15 * least


def test_a_slower_port_takes_longer(cubin):
    few, many = (run_layers(cubin, "none", count, l2_rate=16) for count in (4, 12))
    least = WARPS * FRAGMENTS * 512 / 16
    assert (many.cycles - few.cycles) / 8 == pytest.approx(least, rel=0.1)


# What each costs on the critical path of a layer: at least, at most.
COSTS = {
    "load": (0.75 * H100.l2_latency, 1.25 * H100.l2_latency),  # some of it is spent on other loads' way
    "barrier": (H100.latency["barrier"], 100),
    "division": (3 * H100.latency["special"], 300),  # two conversions and a reciprocal, and what lies between
}


@pytest.mark.parametrize("defect", COSTS)
def test_a_defect_costs_about_what_it_should(cubin, defect):
    least, most = COSTS[defect]
    wide = 4096.0  # bytes a cycle: else the port would catch up in the meantime
    assert least <= per_layer(cubin, defect, wide) - per_layer(cubin, "none", wide) <= most


def test_bank_conflicts_cost_their_turns(cubin):
    """A lane's 8 bytes in the same two banks as those of 15 others: 16 turns each half, instead of one."""
    more = WARPS * FRAGMENTS * (32 - 2)
    assert busy_per_layer(cubin, "conflict", "shared") - busy_per_layer(cubin, "none", "shared") == more
    assert 0.5 * more < per_layer(cubin, "conflict") - per_layer(cubin, "none") < 1.1 * more


def test_the_code_that_runs_is_part_of_the_code(cubin):
    run = both(cubin, "none")[1]
    assert 16 * 96 < run.code_bytes <= 16 * len(run.kernel.instructions)


@pytest.mark.parametrize("on, products, cycles", [(True, 2, H100.latency["tensor"] * 2), (False, 0, 4)])
def test_a_product_that_its_predicate_leaves_out_takes_a_slot_alone(on, products, cycles):
    text, stall = "@P0 HMMA.16816.F32.BF16 R4, R8, R12, R4", 2 << 105
    boards = 7 << 110 | 7 << 113  # neither scoreboard is set
    code = [Instruction(n, 16 * n, text, stall | boards, ()) for n in range(2)]
    result = timed(code, Recording([[0, 1]], [[on, on]]), H100, H100.l2_bytes, 0)
    assert result.busy.get("tensor", 0) == products * H100.tensor / 4 and result.busy["issue"] == 2 / 4
    assert result.cycles == pytest.approx(cycles, abs=4)


def test_divisions_are_counted(cubin):
    assert [both(cubin, defect)[1].integer_divisions for defect in DEFECTS] == [0, 0, 0, 0, WARPS * 12]


def test_a_profile_names_the_line_that_costs(cubin):
    lines = SOURCE.read_text().splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if "if (kDefect == kLoad)" in line)
    _, run = both(cubin, "load", 4096.0)
    first = run.profile(6).splitlines()[1]
    assert first.startswith(f"layers.cu:{number} ") and "global memory" in first
