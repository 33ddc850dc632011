"""How long multiprocessors take for what the warps of a block, or of all blocks of a cluster, executed.

Each warp issues in order; an instruction waits for its stall count, its scoreboards, its scheduler's slot and its pipe.
Stall counts and scoreboards are in the code: the compiler wrote them. What the model has, and how it counts:

- four schedulers, each issuing one instruction a cycle; their pipes (tensor, float64, special functions, integers)
  take one instruction in so many cycles;
- an instruction whose predicate lets no lane through takes its slot and nothing else;
- products of a chain wait for the sums of the one before (registers of HMMA);
- shared memory is one pipe: turns of its banks (accesses.py), of loads, stores, shuffles, in the order of issue;
- L2 is one port, in order: bytes of the sectors that are loaded or stored over the bytes a cycle; then its latency;
- L1: loads find sectors that a load before has brought, as far as the bytes last that shared memory leaves, the oldest
  going first; a sector on its way is waited for. Not for NA (no_allocate), STRONG, volatile and BYPASS: these go to L2;
  stores go to L2 and leave L1 as it is. A hit takes the pipe of shared memory a turn for each 128 bytes;
- a barrier opens when the last warp has come, and takes its latency;
- a phase of an mbarrier ends when its last arrival has come and the last of its bytes: an own arrival after the latency
  of a barrier, one of another block after that from multiprocessor to multiprocessor. Warps that wait go on then, and
  know it after the latency of shared memory.

Of a cluster, each block has a multiprocessor: all of the above, at the same rates. And between them:

- what a block sends passes a port, in order, bytes over the bytes a cycle, and comes after the latency from
  multiprocessor to multiprocessor; also what it sends to itself. It takes the sender's pipe of shared memory as a store
  does, and the receiver's not at all;
- loads from other blocks' shared memory by a generic pointer pass the same port; stores too;
- the cluster's barrier opens that latency after the last warp has come;
- a fence (MEMBAR) of more than the block lets the warp go on a round trip after its stores have passed their ports: the
  latency of L2 or that from multiprocessor to multiprocessor, the larger one. CCTL.IVALL empties L1. Of a block without
  a cluster both are free.

Of several warps that could issue, the one that has waited longest goes first.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sass_simulator.accesses import NOTHING, SECTOR, Access
from sass_simulator.clusters import Phase, Signal
from sass_simulator.costs import cost_of
from sass_simulator.executor import Arrival, Recording
from sass_simulator.instruction import Instruction
from sass_simulator.rates import OPERANDS_READ, SCHEDULERS, TAKEN_BRANCH, Rates


class L1:
    """Sectors that loads brought, the oldest first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // SECTOR
        self.arrival: OrderedDict[int, float] = OrderedDict()

    def missing(self, sectors: Sequence[int]) -> list[int]:
        return [s for s in sectors if s not in self.arrival]

    def latest(self, sectors: Sequence[int]) -> float:
        return max((self.arrival.get(s, 0.0) for s in sectors), default=0.0)

    def bring(self, sectors: Sequence[int], at: float) -> None:
        for sector in sectors:
            self.arrival[sector] = at
        while len(self.arrival) > self.capacity:
            self.arrival.popitem(last=False)

    def forget(self) -> None:
        self.arrival.clear()


@dataclass
class Timed:
    """Cycles, and where they went.

    waits: cycles of warps by (reason, index of the instruction that waited), the stall counts under "stall".
    """

    cycles: float
    busy: dict[str, float]
    waits: dict[tuple[str, int], float]
    issued: Counter[int]
    marks: list[list[float]]  # per warp: when it executed each PMTRIG (pmevent)
    ends: list[float]
    l2_bytes: int
    l1_hits: int


class Warp:
    __slots__ = (
        *("at", "block", "boards", "code", "copies", "histories", "info", "infos"),
        *("length", "makers", "number", "pipes", "ready", "scheduler", "stored", "sums"),
    )

    def __init__(self, block: Multiprocessor, number: int, code: list[int], infos: list[Any]) -> None:
        self.block, self.number = block, number
        self.scheduler = number % SCHEDULERS
        self.pipes = block.pipes[self.scheduler]
        self.code, self.infos, self.length = code, infos, len(code)
        self.at = self.info = 0
        self.ready = 0.0  # when it may issue, but for what is checked at the issue
        self.boards = [0.0] * 6
        self.makers = ["other results"] * 6  # what the scoreboards stand for
        # Of LDGDEPBAR: when the copies until then are there.
        self.histories: list[list[float]] = [[] for _ in range(6)]
        self.sums: dict[int, float] = {}
        self.copies = self.stored = 0.0  # when its copies are there, and its stores have passed their ports


class Multiprocessor:
    """What one block keeps busy, and what is counted."""

    def __init__(self, warps: int, l1_bytes: int) -> None:
        self.slots = [0.0] * SCHEDULERS
        self.pipes: list[dict[str, float]] = [
            dict.fromkeys(("tensor", "double", "special", "integer", "multiply", "half", "single"), 0.0)
            for _ in range(SCHEDULERS)
        ]
        self.cache = L1(l1_bytes)
        self.shared = self.l2 = self.port = 0.0  # when the pipe, the ports to L2 and to the cluster are free
        self.busy: dict[str, float] = defaultdict(float)
        self.waits: dict[tuple[str, int], float] = defaultdict(float)
        self.issued: Counter[int] = Counter()
        self.marks: list[list[float]] = [[] for _ in range(warps)]
        self.ends = [0.0] * warps
        self.l2_total = self.hits = 0

    def timed(self) -> Timed:
        self.busy["issue"] = sum(self.issued.values())
        apart = {name: float(self.busy[name]) for name in ("shared", "l2")}
        if "cluster" in self.busy:
            apart["cluster"] = self.busy["cluster"]
        return Timed(
            cycles=max(self.ends, default=0.0),
            busy={name: cycles / SCHEDULERS for name, cycles in self.busy.items() if name not in apart}
            | apart,
            waits=self.waits,
            issued=self.issued,
            marks=self.marks,
            ends=self.ends,
            l2_bytes=self.l2_total,
            l1_hits=self.hits,
        )


class Phases:
    """Of mbarriers and clusters' barriers: what has come, and which warps wait."""

    def __init__(self) -> None:
        self.came: dict[Phase, list[float]] = defaultdict(list)  # when, of each event
        self.over: dict[Phase, float] = {}
        self.waiting: dict[Phase, list[tuple[float, int]]] = {}  # since when, and who

    def come(self, phase: Phase, at: float) -> list[tuple[float, int]]:
        """-> those who waited for it, if this was the last event."""
        came = self.came[phase]
        came.append(at)
        if len(came) < phase.events or not phase.over:
            return []
        self.over[phase] = max(came)
        return self.waiting.pop(phase, [])


def timed(
    instructions: list[Instruction], recording: Recording, rates: Rates, l2_rate: float, l1_bytes: int
) -> Timed:
    """Of a block alone."""
    return timed_together(instructions, [recording], rates, l2_rate, l1_bytes)[0]


def timed_together(
    instructions: list[Instruction], recordings: list[Recording], rates: Rates, l2_rate: float, l1_bytes: int
) -> list[Timed]:
    """Of the blocks of a cluster. l2_rate: of each."""
    used = set().union(*(set(code) for recording in recordings for code in recording.code))
    costs = {index: cost_of(instructions[index], rates) for index in used}
    blocks = [Multiprocessor(len(recording.code), l1_bytes) for recording in recordings]
    warps = [
        Warp(block, number, code, infos)
        for block, recording in zip(blocks, recordings, strict=True)
        for number, (code, infos) in enumerate(zip(recording.code, recording.infos, strict=True))
    ]
    together = len(blocks) > 1
    phases = Phases()
    barriers: dict[int, list[tuple[float, int]]] = {}  # arrivals, with the warps that wait
    arrived: Counter[int] = Counter()
    l1_latency, l2_latency = rates.latency["l1"], rates.l2_latency
    travel = rates.latency["cluster"]
    round_trip = max(travel, l2_latency)
    queue = [(0.0, identity) for identity in range(len(warps))]
    heapq.heapify(queue)
    while queue:
        now, identity = heapq.heappop(queue)
        warp = warps[identity]
        block = warp.block
        index = warp.code[warp.at]
        cost = costs[index]
        slots, scheduler = block.slots, warp.scheduler
        off = cost.guarded and not warp.infos[warp.info]  # no lane: it takes a slot and nothing else
        # What it waits for; the last of it gives the wait its name.
        need, why = warp.ready, ""
        for board in cost.awaited:
            if warp.boards[board] > need:
                need, why = warp.boards[board], warp.makers[board]
        if cost.kind == "product" and not off:
            ready = warp.sums.get(cost.addend, 0.0)
            if ready > need:
                need, why = ready, "products"
        elif cost.kind == "wait":
            history = warp.histories[cost.board]
            if len(history) > cost.pending and history[-1 - cost.pending] > need:
                need, why = history[-1 - cost.pending], "asynchronous copies"
        elif cost.kind == "phase":
            unfinished = [phase for phase in warp.infos[warp.info] if phase not in phases.over]
            if unfinished:
                phases.waiting.setdefault(unfinished[0], []).append((now, identity))
                continue
            for phase in warp.infos[warp.info]:
                if phases.over[phase] > need:
                    need, why = phases.over[phase], cost.source
        if cost.pipe and not off and warp.pipes[cost.pipe] > need:
            need, why = warp.pipes[cost.pipe], f"{cost.pipe} pipe"
        if slots[scheduler] > need:
            need, why = slots[scheduler], "issue slot"
        if need > now:
            heapq.heappush(queue, (need, identity))
            block.waits[why, index] += need - now
            continue
        slots[scheduler] = now + 1
        block.issued[index] += 1
        done = now + cost.latency
        warp.info += cost.guarded
        if cost.pipe and not off:
            warp.pipes[cost.pipe] = now + cost.interval
            block.busy[cost.pipe] += cost.interval
            if cost.kind == "product":
                warp.sums[cost.result] = done
        read = now + OPERANDS_READ
        kind = cost.kind
        arrival: Arrival | None = None
        if kind in ("shared", "global", "copy"):
            access: Access = warp.infos[warp.info]
            warp.info += 1
            off = access == NOTHING
            if turns := access.wavefronts:
                start = max(now, block.shared)
                block.shared = shared = start + turns
                block.busy["shared"] += turns
                if kind == "shared":
                    done = shared - 1 + cost.latency
                elif kind == "global":  # of a generic pointer
                    done = max(done, shared - 1 + rates.latency["shared"])
            if access.remote:
                block.port = port = max(now, block.port) + access.remote / rates.cluster_bytes
                block.busy["cluster"] += access.remote / rates.cluster_bytes
                if cost.stores:
                    warp.stored = max(warp.stored, port)
                else:
                    done = max(done, port + travel)
            if sectors := access.sectors:
                asked: Sequence[int] = sectors
                if cost.cached:
                    asked = block.cache.missing(sectors)
                    done = max(done, now + l1_latency, block.cache.latest(sectors))
                    if found := len(sectors) - len(asked):
                        block.hits += found
                        turns = -(-found * SECTOR // 128)
                        block.shared = shared = max(now, block.shared) + turns
                        block.busy["shared"] += turns
                        done = max(done, shared - 1 + l1_latency)
                if asked:
                    size = len(asked) * SECTOR
                    block.l2 = l2 = max(now, block.l2) + size / l2_rate
                    block.busy["l2"] += size / l2_rate
                    block.l2_total += size
                    if cost.stores:
                        warp.stored = max(warp.stored, l2)
                    else:
                        done = max(done, l2 + l2_latency)
                    if cost.cached:
                        block.cache.bring(asked, done)
            if kind == "copy":
                warp.copies = max(warp.copies, done)
        elif kind == "barrier":
            arrival = warp.infos[warp.info]
            warp.info += 1
        elif kind == "depends":
            done = max(warp.copies, now + 1)
            warp.histories[cost.written_board % 6].append(done)
        elif kind == "mark":
            block.marks[warp.number].append(now)
        elif kind == "phase":
            warp.info += 1
        elif kind == "signal":
            signal: Signal | Access = warp.infos[warp.info]
            warp.info += 1
            off = isinstance(signal, Access)
            if isinstance(signal, Signal):
                comes = now + travel
                if signal.bytes:
                    block.shared = max(now, block.shared) + signal.wavefronts
                    block.busy["shared"] += signal.wavefronts
                    block.port = max(now, block.port) + signal.bytes / rates.cluster_bytes
                    block.busy["cluster"] += signal.bytes / rates.cluster_bytes
                    comes = block.port + travel
                arrivals = [(phase, now + rates.latency["mbarrier"]) for phase in signal.own]
                arrivals += [(phase, comes) for phase in signal.remote]
                for phase, at in arrivals:
                    for since, waiting in phases.come(phase, at):
                        other = warps[waiting]
                        heapq.heappush(queue, (phases.over[phase], waiting))
                        reason = costs[other.code[other.at]].source, other.code[other.at]
                        other.block.waits[reason] += phases.over[phase] - since
        elif together and kind == "forget":
            block.cache.forget()
        if off:
            done = read = now + 1
        if cost.written_board < 6:
            warp.boards[cost.written_board] = max(warp.boards[cost.written_board], done)
            warp.makers[cost.written_board] = cost.source
        if cost.read_board < 6:
            if read > warp.boards[cost.read_board]:
                warp.boards[cost.read_board] = read
                warp.makers[cost.read_board] = "operands read"
        warp.at += 1
        ready = now + cost.stall
        if warp.at == warp.length:
            block.ends[warp.number] = max(ready, done)
        elif warp.code[warp.at] != index + 1:
            ready += TAKEN_BRANCH
        block.waits["stall", index] += ready - now - 1
        if together and kind == "fence":
            fenced = max(ready, max(now, warp.stored) + round_trip)
            block.waits["fence", index] += fenced - ready
            ready = fenced
        warp.ready = ready
        if arrival is None:
            if warp.at < warp.length:
                heapq.heappush(queue, (ready, identity))
            continue
        key = id(arrival.barrier)
        arrived[key] += 1
        here = barriers.setdefault(key, [])
        here.append((ready, identity if arrival.waits else -1))
        if not arrival.waits and warp.at < warp.length:
            heapq.heappush(queue, (ready, identity))
        if arrived[key] == arrival.barrier.arrivals:
            opens = max(time for time, _ in here) + cost.latency
            for time, waiting in here:
                if waiting >= 0:
                    other = warps[waiting]
                    other.block.waits["barrier", other.code[other.at - 1]] += opens - time
                    other.ready = opens
                    if other.at < other.length:
                        heapq.heappush(queue, (opens, waiting))
    assert not phases.waiting
    return [block.timed() for block in blocks]
