"""Sends to shared memory of a cluster's blocks, arrivals at mbarriers, and at the barrier of a cluster.

Sends (STAS) and arrivals are made at once: what a missing wait would break is the emulation's to find.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from sass_simulator.accesses import NOTHING, Access
from sass_simulator.clusters import COUNTS, RANK_SHIFT, Mbarrier, Phase, Signal
from sass_simulator.instruction import Instruction
from sass_simulator.loads_and_stores import SIZE_NAMES, Shared, address, size_of
from sass_simulator.machine import LANES, Array, Group, Machine, Mask, SimulationError
from sass_simulator.operations import Operation, operation

NO_SIGNAL = Signal()


def owner(m: Machine, i: Instruction, at: int) -> Machine:
    """The block in whose shared memory an address of the cluster lies."""
    rank = at >> RANK_SHIFT
    if rank >= len(m.cluster.blocks):
        raise SimulationError(i, f"address {at:#x} is of rank {rank} of {len(m.cluster.blocks)}")
    return m.cluster.blocks[rank]


def mbarrier(m: Machine, i: Instruction, at: int) -> Mbarrier:
    block = owner(m, i, at)
    if at not in block.mbarriers and m.kernel.arch < 90:
        _begin_from_memory(m, i, at)
    if at not in block.mbarriers:
        raise SimulationError(i, f"no mbarrier was begun at {at:#x}")
    return block.mbarriers[at]


def same(values: Array) -> bool:
    return bool((values == values[0]).all())


@operation("STAS", modifiers=SIZE_NAMES)
def send(m: Machine, i: Instruction) -> Operation:
    """Lanes' numbers go to the address in the first register; the mbarrier in the second one counts their bytes."""
    found, size = re.match(r"\[R(\d+)\.64\]$", i.operands[0]), size_of(i)
    if found is None:
        raise SimulationError(i, f"no addresses: {i.operands[0]}")
    to, at, values = (
        m.u32(i, f"R{found[1]}"),
        m.u32(i, f"R{int(found[1]) + 1}"),
        m.words(i.operands[1], size // 4),
    )

    def run(mask: Mask, group: Group) -> list[Signal | Access]:
        active = group.whole if mask is None else mask
        targets, barriers, sent = to().astype(np.int64), at(), values()
        ranks, their = targets[active] >> RANK_SHIFT, barriers[active]
        if (their >> RANK_SHIFT != ranks).any():
            raise SimulationError(i, "numbers go to another block than their mbarrier's")
        for rank in ranks[:1].tolist() if same(ranks) else np.unique(ranks).tolist():
            space = Shared(owner(m, i, rank << RANK_SHIFT), i, size)
            space.store(targets[active][ranks == rank], sent[:, active][:, ranks == rank])
        turns = m.patterns.wavefronts(targets, active, size)
        one = mbarrier(m, i, int(their[0])) if same(their) else None
        result: list[Signal | Access] = [NOTHING] * m.warps
        for warp, lanes in enumerate(active.reshape(-1, LANES).sum(1).tolist()):
            if not lanes:
                continue
            if one is not None:
                phases: tuple[Phase, ...] = (one.come(0, lanes * size),)
            else:
                part = slice(warp * LANES, warp * LANES + LANES)
                each, counts = np.unique(barriers[part][active[part]], return_counts=True)
                counted = zip(each.tolist(), counts.tolist(), strict=True)
                phases = tuple(mbarrier(m, i, where).come(0, n * size) for where, n in counted)
            result[warp] = Signal(remote=phases, bytes=lanes * size, wavefronts=turns[warp])
        return result

    return run


# Arrivals, bytes expected, bytes that come; None: as many as the operand says.
EFFECTS: dict[str, tuple[int | None, int | None, int | None]] = {
    "": (1, None, 0), "A1TR": (1, None, 0), "A1T0": (1, 0, 0), "A0TR": (0, None, 0), "ART0": (None, 0, 0),
    "A0TX": (0, 0, None),
}  # fmt: skip


@operation("SYNCS", modifiers=f"EXCH 64 ARRIVE TRANS64 RED CCTL IV {' '.join(EFFECTS)}")
def syncs(m: Machine, i: Instruction) -> Operation:
    """mbarrier.init (EXCH), .inval (CCTL), .expect_tx, .complete_tx, .arrive. For waits (PHASECHK) see executor.py."""
    where = next(n for n, text in enumerate(i.operands) if text.startswith("["))
    if any(text not in ("RZ", "URZ") for text in i.operands[:where]):
        raise SimulationError(i, "an mbarrier's state as a result")
    fetch = address(m, i, i.operands[where])
    if "CCTL" in i.modifiers:
        return _for_lanes(m, fetch, lambda at, thread: _end(m, i, at))
    if "EXCH" in i.modifiers:
        state = m.words(i.operands[-1], 2)
        return _for_lanes(m, fetch, lambda at, thread: _begin(m, i, at, *state()[:, thread].tolist()))
    operand = m.u32(i, i.operands[-1])
    effect = EFFECTS[next((x for x in i.modifiers if x in EFFECTS), "")]

    def arrive(at: int, thread: int) -> Signal:
        number = int(np.broadcast_to(operand(), m.threads)[thread])
        arrivals, expected, come = (number if n is None else n for n in effect)
        barrier = mbarrier(m, i, at)
        if arrivals > barrier.pending:
            raise SimulationError(i, f"{arrivals} arrivals where {barrier.pending} are due")
        barrier.bytes += expected
        if not arrivals and not come:
            return NO_SIGNAL
        phase = barrier.come(arrivals, come)
        return Signal(own=(phase,)) if at >> RANK_SHIFT == m.rank else Signal(remote=(phase,))

    return _for_lanes(m, fetch, arrive)


def _for_lanes(m: Machine, fetch: Callable[[], Any], act: Callable[[int, int], Signal]) -> Operation:
    """Lane by lane: few do such things."""

    def run(mask: Mask, group: Group) -> list[Signal | Access]:
        active = group.whole if mask is None else mask
        addresses = fetch()
        result: list[Signal | Access] = [NOTHING] * m.warps
        for thread in np.flatnonzero(active).tolist():
            warp, signal = thread // LANES, act(int(addresses[thread]), thread)
            before = result[warp]
            if isinstance(before, Signal):
                signal = Signal(before.own + signal.own, before.remote + signal.remote)
            result[warp] = signal
        return result

    return run


def _begin_from_memory(m: Machine, i: Instruction, at: int) -> None:
    """Before sm_90 a store begins it (ampere.py): each word of the state counts up to its highest bits."""
    low, high = Shared(m, i, 8).load(np.array([at]))[:, 0].tolist()
    count = (1 << 30) - low
    if high == (1 << 31) - count and 0 < count < COUNTS:
        m.mbarriers[at] = Mbarrier(count, m.cluster)


def _begin(m: Machine, i: Instruction, at: int, low: int, high: int) -> Signal:
    """The state counts up: arrivals that are missing, twice, from bit 1 and from bit 43 on."""
    count = COUNTS - (low >> 1)
    if low & 1 or high != COUNTS - count << 11 or not 0 < count < COUNTS:
        raise SimulationError(i, f"{high:08x}{low:08x} is no mbarrier at its beginning")
    if at % 8 or at >> RANK_SHIFT != m.rank or (at & (1 << RANK_SHIFT) - 1) + 8 > m.shared.size:
        raise SimulationError(i, f"address {at:#x} is misaligned or nobody's")
    m.mbarriers[at] = Mbarrier(count, m.cluster)
    return NO_SIGNAL


def _end(m: Machine, i: Instruction, at: int) -> Signal:
    mbarrier(m, i, at)
    del owner(m, i, at).mbarriers[at]
    return NO_SIGNAL


@operation("UCGABAR_ARV")
def arrive_at_cluster(m: Machine, i: Instruction) -> Operation:
    """At the barrier of all threads of the cluster, without waiting."""

    def run(mask: Mask, group: Group) -> list[Signal | Access]:
        active = group.whole if mask is None else mask
        if (active & ~m.cluster.missing[m.rank]).any():
            raise SimulationError(i, "threads come twice to the cluster's barrier, which has not opened")
        warps = np.flatnonzero(active.reshape(-1, LANES).any(1)).tolist()
        phase = m.cluster.arrive(m.rank, active, len(warps))
        result: list[Signal | Access] = [NOTHING] * m.warps
        for warp in warps:
            m.joined[warp] = phase
            result[warp] = Signal(remote=(phase,))
        return result

    return run
