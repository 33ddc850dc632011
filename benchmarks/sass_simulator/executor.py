"""Runs blocks: all threads, in groups of those that are at the same instruction, whatever warp they belong to.

Of several groups, the one whose instruction comes first in the code goes on, and groups that meet become one: in code
as compilers write it, that brings lanes together again where their paths join. Threads that must wait for others (at
BSYNC, WARPSYNC, BAR) do so, as on the hardware. Each warp's instructions are recorded in the order of execution.

Blocks of a cluster take turns: each goes on until all its threads wait. A try to wait for a phase is one that waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# They register what they run.
from sass_simulator import floats, integers, loads_and_stores, mbarriers, warps  # noqa: F401
from sass_simulator.accesses import NOTHING
from sass_simulator.clusters import Phase
from sass_simulator.instruction import Instruction
from sass_simulator.machine import LANES, Array, Fetch, Group, Machine, SimulationError
from sass_simulator.operations import Operation, built

# No effect on registers: fences among them, as all writes are made in order.
IGNORED = {"NOP", "YIELD", "MEMBAR", "ERRBAR", "CCTL", "CGAERRBAR", "DEPBAR", "LDGDEPBAR", "NANOSLEEP", "PMTRIG",
           "ENDCOLLECTIVE", "FENCE"}  # fmt: skip
COPIES = {"LDGDEPBAR", "DEPBAR"}  # of them, what asynchronous copies wait for
MEMORY = {"LDS", "LDG", "LD", "LDL", "STS", "STG", "ST", "STL", "LDGSTS", "LDSM", "ATOMS", "ATOMG", "ATOM",
          "REDG", "RED", "SHFL"}  # fmt: skip
SIGNALS = {"STAS", "SYNCS", "UCGABAR_ARV"}
PATIENCE = 1024  # turns of the first group before another one has one: the first may wait for it in a loop
LONG = 16 * PATIENCE  # turns of a block before another one of its cluster goes on, for the same reason
LIMIT = 200_000_000  # of instructions, each counted once for all warps that execute it together


def control_name(i: Instruction) -> str:
    """What CONTROL knows an instruction by."""
    return "SYNCS.PHASECHK" if i.name == "SYNCS" and "PHASECHK" in i.modifiers else i.name


def records_predicate(i: Instruction) -> bool:
    """Whether the recording says of an instruction if its predicate let any lane of the warp through."""
    return bool(i.guard) and not any(i.name in names for names in (CONTROL, IGNORED, MEMORY, SIGNALS))


@dataclass
class Barrier:
    """One time that the block's warps meet at a barrier."""

    arrivals: int = 0


@dataclass
class Arrival:
    """Of a warp at a barrier. waits: whether it is its last one there (all its lanes have come) and it must wait."""

    barrier: Barrier
    waits: bool


@dataclass
class Recording:
    """What each warp executed: indexes of instructions; and, in order, what is to be known of some of them: an Access
    of those in MEMORY, a Signal (or NOTHING) of those in SIGNALS, phases that a wait is for, an Arrival of BAR, and of
    others with a predicate whether it let any lane through."""

    code: list[list[int]]
    infos: list[list[Any]]


@dataclass
class SetAside:
    """Threads that wait for phases, and where they go on."""

    phases: tuple[Phase, ...]
    threads: Array
    then: int


def execute(blocks: list[Machine]) -> list[Recording]:
    """All blocks of a cluster, or one."""
    executors = [Executor(machine) for machine in blocks]
    with np.errstate(all="ignore"):
        while sum([e.run(LONG) for e in executors]):
            pass
    if stuck := [(f" in block {e.m.rank}", *found) for e in executors for found in e.waiting()]:
        where, instruction, why = stuck[0]
        others = "".join(f";{block}, {text}: {i}" for block, i, text in stuck[1:])
        raise SimulationError(instruction, why + (where if len(blocks) > 1 else "") + others)
    return [e.recording for e in executors]


class Executor:
    def __init__(self, machine: Machine) -> None:
        self.m = machine
        self.instructions = machine.kernel.instructions
        self.code: list[list[int]] = [[] for _ in range(machine.warps)]
        self.groups: dict[int, Array] = {}  # instruction -> which threads
        self.alive = np.ones(machine.threads, np.bool_)
        self.parked: dict[tuple[str, int], Array] = {}  # (kind, number of the barrier) -> which threads
        self.resume = np.zeros(machine.threads, np.int64)  # where parked threads go on
        self.members = {
            ("BSYNC", n): np.zeros(machine.threads, np.bool_) for n in range(16)
        }  # who will meet there
        self.barriers: dict[int, Barrier] = {}
        self.arrived: dict[int, Array] = {}
        self.counted: set[int] = set()  # barriers for a certain number of threads
        self.votes: dict[int, Array] = {}
        self.vote_result = np.zeros((2, machine.threads), np.uint32)  # of BAR.RED: whether, and how many
        self.controls = [CONTROL.get(control_name(i)) for i in self.instructions]
        self.set_aside: list[SetAside] = []
        self.changes = 0  # how many phases of the cluster had ended when they last tried
        self.groups = {0: self.alive.copy()}
        self.steps = self.turns = 0
        self._prepared: dict[int, Callable[[Group], None]] = {}
        self.fetches: dict[int, tuple[Fetch, Fetch]] = {}  # operands of waits for a phase

    def run(self, most: int) -> bool:
        """At most so many turns, until all threads wait -> whether there was any."""
        first = self.turns
        while self.turns < first + most:
            if self.set_aside and self.changes != self.m.cluster.changes:
                self.try_again()
            if not self.groups:
                break
            self.turns += 1
            order = sorted(self.groups)
            at = order[self.turns // PATIENCE % len(order)] if self.turns % PATIENCE == 0 else order[0]
            later = [x for x in order if x > at]
            self.steps += self._advance(at, later[0] if later else len(self.instructions))
            if self.steps > LIMIT:
                raise SimulationError(self.instructions[at], f"still running after {LIMIT} instructions")
        return self.turns > first

    def waiting(self) -> list[tuple[Instruction, str]]:
        """Where threads wait."""
        places = [(int(self.resume[threads][0]), threads, kind) for (kind, _), threads in self.parked.items()]
        places += [(aside.then, aside.threads, "a phase") for aside in self.set_aside]
        return [
            (self.instructions[then - 1], f"{threads.sum()} threads wait here for ever ({kind})")
            for then, threads, kind in places
        ]

    @property
    def recording(self) -> Recording:
        return Recording(self.code, self.m.infos)

    def _advance(self, first: int, until: int) -> int:
        """Runs a group from an instruction to the first that decides where it goes, or to another group."""
        group = self.m.group(self.groups.pop(first))
        for at in range(first, until):
            if control := self.controls[at]:
                self._record(group, first, at + 1)
                control(self, self.instructions[at], group)
                return at + 1 - first
            if at not in self._prepared:
                self._prepared[at] = self.prepare(self.instructions[at])
            self._prepared[at](group)
        self._record(group, first, until)
        self.go(until, group.whole)
        return until - first

    def _record(self, group: Group, first: int, end: int) -> None:
        for warp in group.warps:
            self.code[warp].extend(range(first, end))

    def prepare(self, i: Instruction) -> Callable[[Group], None]:
        """An instruction that does not decide where threads go, with its predicate."""
        if i.name in COPIES:
            waits = built(self.m, i)
            return lambda group: waits(group.mask, group)
        if i.name in IGNORED:
            return lambda group: None
        run = built(self.m, i)
        guard = self.m.predicate(i.guard or "PT")
        if i.name in MEMORY or i.name in SIGNALS:
            return self._with_infos(i, run)
        if not i.guard:
            return lambda group: run(group.mask, group)

        def guarded(group: Group) -> None:
            mask = guard() & group.whole
            by_warp = mask.reshape(-1, LANES).any(1).tolist()
            for warp in group.warps:
                self.m.infos[warp].append(by_warp[warp])
            if any(by_warp):
                run(mask, group)

        return guarded

    def _with_infos(self, i: Instruction, run: Operation) -> Callable[[Group], None]:
        infos = self.m.infos

        def guarded(group: Group) -> None:
            mask = self.chosen(i, group) if i.guard else group.mask
            accesses = run(mask, group) if mask is None or mask.any() else [NOTHING] * self.m.warps
            for warp in group.warps:
                infos[warp].append(accesses[warp])

        return guarded

    def unknown(self) -> list[str]:
        """Instructions of the whole kernel that the simulator does not know, each with the reason."""
        found = []
        for i in self.instructions:
            try:
                if control_name(i) not in CONTROL:
                    self.prepare(i)
            except SimulationError as error:
                found.append(str(error))
        return found

    # -- where threads go

    def chosen(self, i: Instruction, group: Group) -> Array:
        """Threads of a group that an instruction's predicate lets through."""
        return group.whole & self.m.predicate(i.guard)() if i.guard else group.whole

    def go(self, to: int, threads: Array) -> None:
        if not threads.any():
            return
        if to >= len(self.instructions):
            raise SimulationError(self.instructions[-1], "threads run past the end")
        self.groups[to] = self.groups[to] | threads if to in self.groups else threads

    def go_each(self, to: Array, threads: Array) -> None:
        """to: each thread's instruction."""
        for index in np.unique(to[threads]).tolist():
            self.go(index, threads & (to == index))

    def pass_by(self, i: Instruction, group: Group, threads: Array) -> None:
        """Those that the predicate does not let through go on."""
        self.go(i.index + 1, group.whole & ~threads)

    def target(self, i: Instruction) -> int:
        found = re.search(r"`\(([^)]+)\)", i.text)
        if found is None or found[1] not in self.m.kernel.labels:
            raise SimulationError(i, "its target isn't known")
        return self.m.kernel.labels[found[1]]

    # -- waiting

    def park(self, key: tuple[str, int], threads: Array, then: int) -> None:
        if not threads.any():
            return
        self.parked[key] = self.parked[key] | threads if key in self.parked else threads
        self.resume[threads] = then

    def release(self, key: tuple[str, int], ready: Array) -> None:
        rest = self.parked.pop(key) & ~ready
        if rest.any():
            self.parked[key] = rest
        self.go_each(self.resume, ready)

    def release_those_that_met(self) -> None:
        """Lets lanes go on whose warp has all met, and warps whose block has."""
        for key, waiting in list(self.parked.items()):
            if key[0] == "BAR":
                if key[1] not in self.counted and (self.arrived[key[1]] | ~self.alive).all():
                    self.open_barrier(key[1])
                continue
            missing = (self.members[key] & self.alive & ~waiting).reshape(-1, LANES).any(1)
            ready = waiting & ~np.repeat(missing, LANES)
            if ready.any():
                self.release(key, ready)

    def wait_for(self, phases: dict[int, tuple[Phase, ...]], threads: Array, then: int) -> None:
        """phases: of each warp that has some of the threads."""
        waits: dict[tuple[Phase, ...], Array] = {}
        ready = threads.copy()
        for warp, its in phases.items():
            self.m.infos[warp].append(its)
            if not all(phase.over for phase in its):
                lanes = slice(warp * LANES, (warp + 1) * LANES)
                waits.setdefault(its, np.zeros_like(threads))[lanes] = threads[lanes]
                ready[lanes] = False
        self.go(then, ready)
        self.set_aside += [SetAside(its, mask, then) for its, mask in waits.items()]

    def try_again(self) -> None:
        self.changes = self.m.cluster.changes
        rest = []
        for aside in self.set_aside:
            if all(phase.over for phase in aside.phases):
                self.go(aside.then, aside.threads)
            else:
                rest.append(aside)
        self.set_aside = rest

    def open_barrier(self, number: int) -> None:
        votes = self.votes.pop(number, np.zeros_like(self.alive))
        everyone = self.arrived.pop(number)
        self.barriers.pop(number)
        self.vote_result[:, everyone] = np.array([[votes.any()], [votes.sum()]])
        if ("BAR", number) in self.parked:
            self.release(("BAR", number), self.parked["BAR", number])


Control = Callable[[Executor, Instruction, Group], None]
CONTROL: dict[str, Control] = {}  # by their names; control.py registers them


def control(*names: str) -> Callable[[Control], Control]:
    def register(function: Control) -> Control:
        for name in names:
            CONTROL[name] = function
        return function

    return register
