"""Instructions that decide where threads go: branches, the ends of threads, and waits for lanes, warps and phases."""

from __future__ import annotations

import re

import numpy as np

from sass_simulator.clusters import RANK_SHIFT, Phase
from sass_simulator.executor import Arrival, Barrier, Executor, control
from sass_simulator.instruction import Instruction
from sass_simulator.loads_and_stores import address
from sass_simulator.machine import LANES, Group, SimulationError
from sass_simulator.mbarriers import mbarrier


@control("BRA")
def branch(e: Executor, i: Instruction, group: Group) -> None:
    """BRA, perhaps with a second condition as its operand."""
    if "DIV" in i.modifiers:  # taken where lanes are apart: here they wait for each other instead
        return warpsync(e, i, group)
    if set(i.modifiers) - {"U", "CONV", "INC"}:
        raise SimulationError(i, "a form of branch that isn't known")
    threads = e.chosen(i, group)
    for text in i.operands:
        if re.match(r"!?U?P[T\d]$", text):
            threads = threads & e.m.predicate(text)()
    e.go(e.target(i), threads)
    e.pass_by(i, group, threads)
    return None


@control("CALL")
def call(e: Executor, i: Instruction, group: Group) -> None:
    """The return address is in registers already."""
    if "REL" not in i.modifiers:
        raise SimulationError(i, "a call to an absolute address")
    threads = e.chosen(i, group)
    e.go(e.target(i), threads)
    e.pass_by(i, group, threads)


@control("RET", "BRX", "BRXU")
def indirect(e: Executor, i: Instruction, group: Group) -> None:
    """RET: to an offset in the kernel. BRX: to one that is relative to the next instruction."""
    found = re.match(r"(U?R\d+)\s*(-?0x\w+)?", i.operands[0])
    if found is None or "ABS" in i.modifiers:
        raise SimulationError(i, "its target isn't known")
    offset = i.address + 16 + int(found[2] or "0", 16) if i.name != "RET" else 0
    threads = e.chosen(i, group)
    to = (e.m.u32(i, found[1])().view(np.int32).astype(np.int64) + offset) // 16
    e.go_each(to, threads)
    e.pass_by(i, group, threads)


@control("EXIT")
def leave(e: Executor, i: Instruction, group: Group) -> None:
    threads = e.chosen(i, group)
    e.alive = e.alive & ~threads
    e.m.cluster.leave(e.m.rank, threads)
    e.pass_by(i, group, threads)
    e.release_those_that_met()


@control("BPT", "KILL")
def trap(e: Executor, i: Instruction, group: Group) -> None:
    threads = e.chosen(i, group)
    if threads.any():
        raise SimulationError(i, "the kernel traps")
    e.pass_by(i, group, threads)


# -- lanes of a warp that meet again


def barrier_of(i: Instruction, text: str) -> tuple[str, int]:
    if not re.match(r"B\d+$", text):
        raise SimulationError(i, "no barrier")
    return "BSYNC", int(text[1:])


@control("BSSY")
def bssy(e: Executor, i: Instruction, group: Group) -> None:
    key, threads = barrier_of(i, i.operands[0]), e.chosen(i, group)
    here = np.repeat(threads.reshape(-1, LANES).any(1), LANES)
    e.members[key] = np.where(here, threads, e.members[key])
    e.go(i.index + 1, group.whole)


@control("BSYNC")
def bsync(e: Executor, i: Instruction, group: Group) -> None:
    threads = e.chosen(i, group)
    e.pass_by(i, group, threads)
    e.park(barrier_of(i, i.operands[0]), threads, i.index + 1)
    e.release_those_that_met()


@control("BREAK")
def leave_barrier(e: Executor, i: Instruction, group: Group) -> None:
    """These lanes will not come to the barrier."""
    key = barrier_of(i, i.operands[-1])
    e.members[key] = e.members[key] & ~e.chosen(i, group)
    e.go(i.index + 1, group.whole)
    e.release_those_that_met()


@control("BMOV")
def bmov(e: Executor, i: Instruction, group: Group) -> None:
    """A barrier to a register, as a mask of lanes, and back."""
    threads = e.chosen(i, group)
    here = np.repeat(threads.reshape(-1, LANES).any(1), LANES)
    to, source = i.operands
    if to.startswith("B"):
        key = barrier_of(i, to)
        first = e.m.first_lane + np.repeat(threads.reshape(-1, LANES).argmax(1), LANES)
        bits = np.broadcast_to(e.m.u32(i, source)(), e.m.threads)[first] >> e.m.lane & np.uint32(1)
        e.members[key] = np.where(here, bits.astype(np.bool_), e.members[key])
    else:
        key = barrier_of(i, source)
        members = e.members[key].reshape(-1, LANES).astype(np.uint64)
        bits = (members << np.arange(LANES, dtype=np.uint64)).sum(1).astype(np.uint32)
        e.m.put_u32(to)(np.repeat(bits, LANES), threads)
        if "CLEAR" in i.modifiers:
            e.members[key] = e.members[key] & ~here
    e.go(i.index + 1, group.whole)


@control("WARPSYNC")
def warpsync(e: Executor, i: Instruction, group: Group) -> None:
    """Lanes wait until those that a mask names have come, too."""
    threads = e.chosen(i, group)
    here = np.repeat(threads.reshape(-1, LANES).any(1), LANES)
    if "ALL" in i.modifiers:
        wanted = here
    else:  # the mask is the same in all lanes that have come
        masks = np.broadcast_to(e.m.u32(i, i.operands[0])(), e.m.threads)
        first = e.m.first_lane + np.repeat(threads.reshape(-1, LANES).argmax(1), LANES)
        wanted = here & (masks[first] >> e.m.lane & np.uint32(1)).astype(np.bool_)
    key = "WARPSYNC", i.index
    e.members[key] = np.where(here, wanted, e.members.get(key, np.zeros_like(here)))
    e.pass_by(i, group, threads)
    e.park(key, threads, i.index + 1)
    e.release_those_that_met()


# -- warps of a block


@control("BAR")
def barrier(e: Executor, i: Instruction, group: Group) -> None:
    """BAR.SYNC number, threads; BAR.ARV comes without waiting; BAR.RED also counts a predicate over the block."""
    known = {"SYNC", "ARV", "RED", "OR", "AND", "POPC", "DEFER_BLOCKING"}
    if set(i.modifiers) - known or not i.operands[0].startswith("0x"):
        raise SimulationError(i, "a form of barrier that isn't known")
    threads, number = e.chosen(i, group), int(i.operands[0], 16)
    counts = [int(t, 16) for t in i.operands[1:] if t.startswith("0x")]
    barrier = e.barriers.setdefault(number, Barrier())
    before = e.arrived.get(number, np.zeros_like(threads))
    if (before & threads).any():
        raise SimulationError(i, "threads come twice to a barrier that has not opened")
    arrived = e.arrived[number] = before | threads
    waits = "ARV" not in i.modifiers
    for warp in group.warps:
        lanes = slice(warp * LANES, (warp + 1) * LANES)
        complete = bool((arrived | ~e.alive)[lanes].all())
        e.m.infos[warp].append(Arrival(barrier, waits and complete) if threads[lanes].any() else None)
        barrier.arrivals += int(threads[lanes].any())
    if "RED" in i.modifiers:
        if "AND" in i.modifiers:
            raise SimulationError(i, "whether all of a block agree")
        vote = e.m.predicate(i.operands[-1])() & threads
        e.votes[number] = e.votes.get(number, np.zeros_like(threads)) | vote
    e.pass_by(i, group, threads)
    if waits:
        e.park(("BAR", number), threads, i.index + 1)
    else:
        e.go(i.index + 1, threads)
    e.counted |= {number} if counts else set()
    if counts and int(arrived.sum()) == counts[0]:
        e.open_barrier(number)
    e.release_those_that_met()


@control("B2R")
def barrier_result(e: Executor, i: Instruction, group: Group) -> None:
    """What BAR.RED found."""
    if "RESULT" not in i.modifiers:
        raise SimulationError(i, "a form that isn't known")
    threads = e.chosen(i, group)
    e.m.put_u32(i.operands[0])(e.vote_result[1], threads)
    for text in i.operands[1:]:
        e.m.put_predicate(text)(e.vote_result[0] != 0, threads)
    e.go(i.index + 1, group.whole)


# -- phases of mbarriers and of a cluster's barrier


@control("SYNCS.PHASECHK")
def wait_for_phase(e: Executor, i: Instruction, group: Group) -> None:
    """mbarrier.try_wait.parity: it waits until the phase of this parity is over, and says so."""
    if set(i.modifiers) != {"PHASECHK", "TRANS64", "TRYWAIT"}:
        raise SimulationError(
            i, "a form of asking for a phase that isn't known: one that doesn't wait can't be timed"
        )
    threads = e.chosen(i, group)
    if i.index not in e.fetches:
        e.fetches[i.index] = address(e.m, i, i.operands[1]), e.m.u32(i, i.operands[2])
    where, parity = (np.broadcast_to(fetch(), e.m.threads) for fetch in e.fetches[i.index])
    asked = np.where(threads, where << 1 | parity >> 31, -1).reshape(-1, LANES)
    known: dict[int, Phase | None] = {}
    for key in np.unique(asked).tolist():
        if key >= 0:
            if key >> 1 >> RANK_SHIFT != e.m.rank:
                raise SimulationError(i, f"address {key >> 1:#x} is another block's")
            known[key] = mbarrier(e.m, i, key >> 1).of_parity(key & 1)
    phases: dict[int, tuple[Phase, ...]] = {}
    for warp in group.warps:
        its = [known[key] for key in dict.fromkeys(asked[warp].tolist()) if key >= 0]
        phases[warp] = tuple(phase for phase in its if phase is not None)
    e.m.put_predicate(i.operands[0])(True, threads)
    e.pass_by(i, group, threads)
    e.wait_for(phases, threads, i.index + 1)


@control("UCGABAR_WAIT")
def wait_for_cluster(e: Executor, i: Instruction, group: Group) -> None:
    threads = e.chosen(i, group)
    phases: dict[int, tuple[Phase, ...]] = {warp: () for warp in group.warps}
    for warp in np.flatnonzero(threads.reshape(-1, LANES).any(1)).tolist():
        phase = e.m.joined[warp]
        if phase is None:
            raise SimulationError(i, "threads wait at the cluster's barrier without having come")
        phases[warp] = (phase,)
    e.pass_by(i, group, threads)
    e.wait_for(phases, threads, i.index + 1)
