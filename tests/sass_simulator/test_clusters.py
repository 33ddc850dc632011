"""Blocks of a cluster: what they exchange, what that costs, and what keeps them waiting."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sass_simulator import RATES, Kernel, Memory, Run, compiled, pack, simulate, unknown_instructions
from sass_simulator.machine import SimulationError

from tests.sass_simulator.needs import needs_nvcc
from tests.tiers import thorough

pytestmark = [needs_nvcc, thorough]
SOURCE = Path(__file__).parent / "clusters.cu"
LAYERS = SOURCE.parent / "layers.cu"
H100 = RATES["90"]
SHARED = 128 + 2 * 512 + 2 * 1024
NOBODY = 99


@cache
def cubin(source: Path, arch: str, folder: Path) -> Path:
    return compiled(source, arch, folder / f"{source.stem}_{arch}.cubin")


@cache
def kernel_of(arch: str, folder: Path, name: str) -> Kernel:
    return Kernel.load(cubin(SOURCE, arch, folder), name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


@pytest.fixture
def run(folder: Path) -> Callable[..., Run]:
    def of(
        name: str, memory: Memory, *parameters, threads=32, cluster=2, arch="90", blocks=None, **more
    ) -> Run:
        kernel = kernel_of(arch, folder, name)
        return simulate(kernel, pack(*parameters), memory, threads=threads, rates=RATES[arch], shared_bytes=SHARED,
                        cluster=cluster, blocks=(blocks or cluster, 1, 1), **more)  # fmt: skip

    return of


def exchanged(x: np.ndarray, rounds: int) -> np.ndarray:
    """x: [blocks, threads]."""
    for n in range(rounds):
        sent = np.roll(x, 1, axis=0)
        wide = sent.astype(np.uint64) * np.uint64(0x300000005)
        x = x * np.uint32(3) + sent + (wide >> np.uint64(32)).astype(np.uint32) + np.uint32(n)
    return x


@pytest.mark.parametrize("arch", ["90", "100", "120"])
@pytest.mark.parametrize("cluster", [2, 4])
def test_blocks_exchange_values_for_several_phases(run, cluster, arch):
    """The second of three clusters; the given block is any of it."""
    m, rounds = Memory(), 7
    x = np.random.default_rng(0).integers(0, 2**32, (3, cluster, 128), np.uint32)
    out = m.place(x.nbytes)
    result = run("exchange", m, m.place(x), out, np.int32(rounds), np.uint32(cluster), np.uint32(NOBODY), threads=128,
                 cluster=cluster, arch=arch, blocks=3 * cluster, block=(2 * cluster - 1, 0, 0))  # fmt: skip
    expected = np.zeros_like(x)
    expected[1] = exchanged(x[1], rounds)
    np.testing.assert_array_equal(m.read(out, x.size, np.uint32).reshape(x.shape), expected)
    sends = rounds * 128 * 12
    assert result.busy["cluster"] == pytest.approx(sends / RATES[arch].cluster_bytes)
    assert result.generic_accesses == 0 and result.executed({"STAS"}) == cluster * rounds * 4 * 2


@pytest.mark.parametrize("arch", ["90", "100", "120"])
@pytest.mark.parametrize("cluster", [2, 4])
def test_stores_to_a_neighbour_are_seen_behind_the_barrier(run, cluster, arch):
    m, times = Memory(), 5
    table, out = (m.place(cluster * 256) for _ in range(2))
    result = run("neighbours", m, table, out, np.int32(times), threads=64, cluster=cluster, arch=arch)
    thread, block = np.arange(64), np.arange(cluster)[:, None]
    expected = sum((block ^ 1) * 1000 + n + block * 1000 + n + 63 - thread + n for n in range(times))
    np.testing.assert_array_equal(m.read(out, cluster * 64, np.uint32).reshape(cluster, 64), expected)
    assert result.generic_accesses == cluster * times * 2 * 2  # of all blocks
    assert result.busy["cluster"] == pytest.approx(times * 64 * 8 / RATES[arch].cluster_bytes)


def per_time(run: Callable[..., Run], name: str, *parameters: int, **more) -> float:
    """What one time more costs. parameters: bytes of memory."""

    def cycles(times: int) -> float:
        m = Memory()
        return run(name, m, *map(m.place, parameters), np.int32(times), **more).cycles

    return (cycles(16) - cycles(8)) / 8


# Between what a hand-over waits for: a try that says yes, a branch or two, the next instruction's operands.
BETWEEN = 60


def test_numbers_that_go_to_and_fro_cost_latency_and_port(run):
    hand_over = H100.latency["cluster"] + 128 / H100.cluster_bytes + H100.latency["shared"]
    loaded = H100.latency["shared"]
    assert 0 <= per_time(run, "ping_pong", 256) - 2 * (hand_over + loaded) < 2 * BETWEEN


def test_arrivals_that_go_to_and_fro_cost_latency(run):
    hand_over = H100.latency["cluster"] + H100.latency["shared"]
    assert 0 <= per_time(run, "nudge") - 2 * hand_over < 2 * BETWEEN


def test_sends_pass_a_port(run):
    assert per_time(run, "flood", threads=256) == pytest.approx(2048 / H100.cluster_bytes, rel=0.05)


def test_a_barrier_of_the_cluster_costs_a_fence_and_a_latency(run):
    least = max(H100.l2_latency, H100.latency["cluster"]) + H100.latency["cluster"]
    assert 0 <= per_time(run, "barriers", threads=128) - least < BETWEEN


def test_without_a_cluster_its_barrier_is_that_of_the_block(run):
    m, x = Memory(), np.arange(128, dtype=np.uint32)[None]
    out = m.place(512)
    result = run("barriers", m, np.int32(4), cluster=1, threads=128)
    assert result.executed({"BAR"}) == 4 * 4 and result.executed({"UCGABAR_ARV"}) == 0
    run("exchange", m, m.place(x), out, np.int32(4), np.uint32(1), np.uint32(NOBODY), threads=128, cluster=1)
    np.testing.assert_array_equal(m.read(out, 128, np.uint32), exchanged(x, 4)[0])


def test_a_missing_arrival_is_a_deadlock_that_says_where(run):
    """Block 0 does not hear that block 1 has read what it sent, and block 1 waits for more."""
    waits = r"SYNCS.PHASECHK\S* .*\(clusters.cu:\d+\)"
    why = r"128 threads wait here for ever \(a phase\)"
    with pytest.raises(SimulationError, match=f"{waits}: {why} in block 0; in block 1, {why}: .*{waits}$"):
        m = Memory()
        run("exchange", m, m.place(1024), m.place(1024), np.int32(5), np.uint32(2), np.uint32(1), threads=128)
    # Of two rounds none waits for what was read.
    run("exchange", m, m.place(1024), m.place(1024), np.int32(2), np.uint32(2), np.uint32(1), threads=128)


@pytest.mark.parametrize(
    "which, match",
    [
        (0, "no mbarrier was begun at 0x1000400"),
        (1, "address 0x5000400 is of rank 5 of 2"),
        (2, "STS.*address 0x1000400 is misaligned or nobody's"),
        (3, r"UCGABAR_WAIT.*32 threads wait here for ever \(a phase\) in block 0; in block 1,.*PHASECHK"),
    ],
)
def test_what_a_cluster_may_not_do_is_an_error(run, which, match):
    with pytest.raises(SimulationError, match=match):
        run("wrong", Memory(), np.uint32(which))


def test_blocks_that_do_not_meet_take_what_each_takes_alone(folder):
    kernel = Kernel.load(cubin(LAYERS, "90", folder), "Defect0E")

    def result(**more) -> Run:
        m, count = Memory(), 4
        plan = np.array(
            [[128 + i % 2 * 4096, 128 + (i + 1) % 2 * 4096, 0, 8] for i in range(count)], np.uint32
        )
        places = m.place(8 * count * 8 * 512 + 4096), m.place(plan), m.place(8)
        return simulate(
            kernel, pack(*places, np.int32(count)), m, threads=256, rates=H100, shared_bytes=8320, **more
        )

    alone, one, four = result(), result(cluster=1), result(cluster=4, blocks=(4, 1, 1))
    for run in (one, four):
        assert run.cycles == alone.cycles and run.busy == alone.busy and run.waits == alone.waits
        assert run.timed == alone.timed and run.instructions == alone.instructions
    assert not alone.others and [block.cycles for block in four.others] == [alone.cycles] * 3


def test_the_slowest_block_says_how_long_and_how_many_bytes(run):
    m = Memory()
    result = run("uneven", m, m.place(4 * 4096 * 4), m.place(4 * 128), cluster=4)
    blocks = result.timed, *result.others
    assert result.cycles == result.others[-1].cycles > result.timed.cycles + 2 * H100.l2_latency
    assert result.timed.l2_bytes == max(block.l2_bytes for block in blocks) == result.others[-1].l2_bytes
    assert result.instructions == sum(result.timed.issued.values()) < sum(result.others[0].issued.values())


def test_the_cluster_must_fit_the_launch_and_the_gpu(run, folder):
    with pytest.raises(ValueError, match="3 blocks in x are no whole clusters of 2"):
        run("barriers", Memory(), np.int32(1), blocks=3)
    kernel = Kernel.load(cubin(LAYERS, "80", folder), "Defect0E")
    with pytest.raises(ValueError, match="sm_80 has no clusters"):
        simulate(kernel, bytes(kernel.parameter_bytes), Memory(), threads=256, rates=RATES["80"], cluster=2,
                 blocks=(2, 1, 1))  # fmt: skip


@pytest.mark.parametrize("arch", ["90", "100", "120"])
def test_no_instruction_of_a_cluster_is_unknown(folder, arch):
    for name in ("exchange", "ping_pong", "nudge", "flood", "neighbours", "barriers"):
        assert unknown_instructions(kernel_of(arch, folder, name)) == []
