"""What blocks of a cluster share, and mbarriers: phases that end once arrivals and bytes have come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from sass_simulator.accesses import Array

Block = TypeVar("Block")
RANK_SHIFT = 24  # an address in shared memory of a cluster: rank << 24 | offset
COUNTS = 1 << 20  # an mbarrier counts arrivals up to here


@dataclass(eq=False)
class Phase:
    """Of an mbarrier or of a cluster's barrier. events: how many it takes to end it, each an instruction of a warp."""

    events: int = 0
    over: bool = False


class Signal(NamedTuple):
    """What an instruction of a warp brings to phases: of its own block, and of blocks of the cluster.

    bytes: that go out to a block's shared memory with it; wavefronts: turns of the pipe that they take here.
    """

    own: tuple[Phase, ...] = ()
    remote: tuple[Phase, ...] = ()
    bytes: int = 0
    wavefronts: int = 0


@dataclass
class Mbarrier:
    """pending: arrivals that its phase still waits for; bytes: that are expected less those that came."""

    count: int
    cluster: Cluster[Any]
    phase: Phase = field(default_factory=Phase)
    before: Phase | None = None  # the last one that is over
    parity: int = 0
    pending: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        self.pending = self.count

    def come(self, arrivals: int, size: int) -> Phase:
        """Arrivals and bytes, as one event -> the phase that they count for."""
        phase = self.phase
        phase.events += 1
        self.pending -= arrivals
        self.bytes -= size
        if self.pending == 0 and self.bytes == 0:
            phase.over = True
            self.before, self.phase, self.pending = phase, Phase(), self.count
            self.parity ^= 1
            self.cluster.changes += 1
        return phase

    def of_parity(self, parity: int) -> Phase | None:
        """None: over before the first one began."""
        return self.phase if parity == self.parity else self.before


@dataclass
class Cluster(Generic[Block]):
    """size: how many blocks. changes: how many phases have ended in it."""

    size: int = 1
    blocks: list[Block] = field(default_factory=list)  # at their ranks
    changes: int = 0
    phase: Phase = field(default_factory=Phase)  # of the barrier of all threads
    alive: list[Array] = field(default_factory=list)  # of each block, which threads run,
    missing: list[Array] = field(default_factory=list)  # and which haven't arrived at the barrier

    def join(self, block: Block, threads: int) -> int:
        """Adds a block of so many threads -> its rank."""
        self.blocks.append(block)
        self.alive.append(np.ones(threads, np.bool_))
        self.missing.append(self.alive[-1])
        return len(self.blocks) - 1

    def leave(self, rank: int, threads: Array) -> None:
        """Threads that are at their end."""
        self.alive[rank] = self.alive[rank] & ~threads
        self.missing[rank] = self.missing[rank] & ~threads
        if self.phase.events:
            self._end_phase_if_all_are_there()

    def arrive(self, rank: int, threads: Array, warps: int) -> Phase:
        phase = self.phase
        phase.events += warps
        self.missing[rank] = self.missing[rank] & ~threads
        self._end_phase_if_all_are_there()
        return phase

    def _end_phase_if_all_are_there(self) -> None:
        if not any(threads.any() for threads in self.missing):
            self.phase.over = True
            self.phase, self.missing = Phase(), list(self.alive)
            self.changes += 1
