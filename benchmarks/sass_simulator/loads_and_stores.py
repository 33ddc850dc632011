"""Memory: constants, shared, global, local and generic loads, stores, atomics and asynchronous copies.

Asynchronous copies (LDGSTS) land when their warp waits for them (DEPBAR), and not before: without the wait, never.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sass_simulator.accesses import SECTOR, Access, busiest_bank
from sass_simulator.clusters import RANK_SHIFT
from sass_simulator.instruction import PREDICATE, Instruction
from sass_simulator.kernel import GENERIC
from sass_simulator.machine import (
    GLOBAL_BASE,
    LANES,
    SHARED_WINDOW,
    Array,
    Fetch,
    Group,
    Machine,
    Mask,
    SimulationError,
)
from sass_simulator.operations import Operation, operation

U32, U64 = np.uint32, np.uint64
SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "32": 4, "64": 8, "128": 16}
# Where data may be cached and who else sees it: of no effect on a block alone.
CACHING = (
    "E STRONG GPU SYS CTA SM WEAK CONSTANT NA EF EL LU BYPASS ACCESS LTC64B LTC128B LTC256B ZFILL PRIVATE"
)
SIZE_NAMES = " ".join(SIZES)


def size_of(i: Instruction) -> int:
    return next((SIZES[x] for x in i.modifiers if x in SIZES), 4)


def address(m: Machine, i: Instruction, text: str) -> Fetch:
    """``[R2.64+UR4+0x10]`` -> int64; registers scaled by .X4, .X8, .X16; a UR of 64 bits only beside .64. Generic
    addresses have 64 bits (E) in any case."""
    terms: list[Fetch] = []
    offset = 0
    generic = i.name in GENERIC and "E" in i.modifiers
    wide = ".64" in text or generic
    for part in re.findall(r"[+-]?[^+-]+", text.strip("[]")):
        part = part.removeprefix("+")
        if re.match(r"-?0x", part):
            offset += int(part, 16)
            continue
        register = re.match(r"(U?R[\dZ]+)(?:\.(64|U32|X4|X8|X16|INVALID\w+))*$", part)
        if register is None:
            raise SimulationError(i, f"no address: {text}")
        scale = int(found[1]) if (found := re.search(r"\.X(\d+)", part)) else 1
        whole = ".64" in part or (wide and part.startswith("UR")) or (generic and ".U32" not in part)
        fetch = (m.u64 if whole else m.u32)(i, register[1])
        terms.append(lambda f=fetch, s=scale: f().astype(np.int64) * s)  # type: ignore[misc]  # a default binds it

    def total() -> Any:
        result = np.full(m.threads, offset, np.int64)
        for term in terms:
            result += term()
        return result if wide else result & 0xFFFFFFFF

    return total


def gather(data: Array, at: Array, size: int) -> Array:
    """Bytes of a memory at some places -> [registers, places]."""
    if size >= 4:
        words = data[: data.size // 4 * 4].view(U32)
        return words[(at >> 2) + np.arange(size // 4)[:, None]]
    narrow = data.view({1: np.uint8, 2: np.uint16}[size])
    return narrow[at // size][None].astype(U32)


def scatter(data: Array, at: Array, values: Array, size: int) -> None:
    if size >= 4:
        data[: data.size // 4 * 4].view(U32)[(at >> 2) + np.arange(size // 4)[:, None]] = values
    else:
        data.view({1: np.uint8, 2: np.uint16}[size])[at // size] = values[0]


def extended(i: Instruction, values: Array) -> Array:
    """The sign of a narrow number repeated."""
    for name, kind in (("S8", np.int8), ("S16", np.int16)):
        if name in i.modifiers:
            return values.astype(kind).astype(np.int32).view(U32)
    return values


class Space:
    """A memory, and the check that what is asked for lies in it."""

    def __init__(self, m: Machine, i: Instruction, size: int) -> None:
        self.m, self.i, self.size = m, i, size

    def check(self, bad: Array, addresses: Array) -> None:
        if bad.any():
            raise SimulationError(self.i, f"address {int(addresses[bad][0]):#x} is misaligned or nobody's")

    def located(self, everyone: Array, active: Array) -> Array:
        """Addresses of active threads."""
        return everyone[active]

    def place(self, addresses: Array) -> Array:
        """Where they lie in data()."""
        raise NotImplementedError

    def data(self) -> Array:
        raise NotImplementedError

    def access(self, addresses: Array, active: Array) -> list[Access]:
        raise NotImplementedError

    def load(self, addresses: Array) -> Array:
        return gather(self.data(), self.place(addresses), self.size)

    def store(self, addresses: Array, values: Array) -> None:
        scatter(self.data(), self.place(addresses), values, self.size)


class Shared(Space):
    """Addresses have the block's rank in front: those of other blocks are nobody's here."""

    def data(self) -> Array:
        return self.m.shared

    def place(self, addresses: Array) -> Array:
        at = (addresses - (self.m.rank << RANK_SHIFT)) & 0xFFFFFFFF if self.m.rank else addresses
        self.check((at % self.size != 0) | (at + self.size > self.m.shared.size), addresses)
        return at

    def access(self, addresses: Array, active: Array) -> list[Access]:
        return [Access(wavefronts=n) for n in self.m.patterns.wavefronts(addresses, active, self.size)]


class Global(Space):
    def data(self) -> Array:
        return self.m.memory.bytes

    def place(self, addresses: Array) -> Array:
        at = addresses - GLOBAL_BASE
        outside = (at < 0) | (at + self.size > self.m.memory.bytes.size)
        self.check(outside | (at % self.size != 0), addresses)
        self.check(~self.m.memory.owned[at >> 2] | ~self.m.memory.owned[(at + self.size - 1) >> 2], addresses)
        return at

    def access(self, addresses: Array, active: Array) -> list[Access]:
        return [Access(sectors=s) for s in self.m.patterns.sectors(addresses, active, self.size)]


class Local(Space):
    """Each thread's own. A word of all threads lies side by side, so that a warp's access to it is 128 bytes."""

    def data(self) -> Array:
        return self.m.local.reshape(-1)

    def located(self, everyone: Array, active: Array) -> Array:
        per_thread = self.m.local.shape[1]
        outside = (everyone < 0) | (everyone + self.size > per_thread) | (everyone % self.size != 0)
        self.check(outside & active, everyone)
        return (everyone + np.arange(self.m.threads) * per_thread)[active]

    def place(self, addresses: Array) -> Array:
        return addresses

    def access(self, addresses: Array, active: Array) -> list[Access]:
        threads = np.arange(self.m.threads)
        interleaved = (addresses // 4 * self.m.threads + threads) * 4 - (1 << 40)  # apart from global memory
        sectors = self.m.patterns.sectors(interleaved, active, 4)
        more = self.m.threads * 4 // SECTOR  # from a word of all threads to the next
        words = range(max(self.size // 4, 1))
        return [
            Access(sectors=tuple(s + word * more for word in words for s in of_warp)) for of_warp in sectors
        ]


class OfCluster(Space):
    """Shared memory of the block whose rank is in front of the address."""

    def _blocks(self, addresses: Array) -> list[tuple[Shared, Array]]:
        """Blocks, with whose the addresses are."""
        blocks = self.m.cluster.blocks
        if len(blocks) == 1:
            return [(Shared(self.m, self.i, self.size), np.ones_like(addresses, np.bool_))]
        ranks = addresses >> RANK_SHIFT
        self.check(ranks >= len(blocks), addresses)
        return [(Shared(blocks[r], self.i, self.size), ranks == r) for r in np.unique(ranks).tolist()]

    def access(self, addresses: Array, active: Array) -> list[Access]:
        own = [Access(wavefronts=n) for n in self.m.patterns.wavefronts(addresses, active, self.size)]
        if len(self.m.cluster.blocks) == 1:
            return own
        away = active & (addresses >> RANK_SHIFT != self.m.rank)
        size = (away.reshape(-1, LANES).sum(1) * self.size).tolist()
        return [access._replace(remote=n) for access, n in zip(own, size, strict=True)]

    def load(self, addresses: Array) -> Array:
        result = np.zeros((max(self.size // 4, 1), addresses.size), U32)
        for space, there in self._blocks(addresses):
            result[:, there] = space.load(addresses[there])
        return result

    def store(self, addresses: Array, values: Array) -> None:
        for space, there in self._blocks(addresses):
            space.store(addresses[there], values[:, there])


class Generic(Space):
    """Shared memory or global memory, as each address says."""

    def __init__(self, m: Machine, i: Instruction, size: int) -> None:
        super().__init__(m, i, size)
        self.shared, self.other = OfCluster(m, i, size), Global(m, i, size)

    def _split(self, addresses: Array) -> Array:
        return addresses >> 32 == SHARED_WINDOW

    def access(self, addresses: Array, active: Array) -> list[Access]:
        inside = self._split(addresses)
        a = self.shared.access(addresses & 0xFFFFFFFF, active & inside)
        b = self.other.access(addresses, active & ~inside)
        return [Access(x.wavefronts, y.sectors, x.remote) for x, y in zip(a, b, strict=True)]

    def load(self, addresses: Array) -> Array:
        inside = self._split(addresses)
        result = np.zeros((max(self.size // 4, 1), addresses.size), U32)
        result[:, inside] = self.shared.load(addresses[inside] & 0xFFFFFFFF)
        result[:, ~inside] = self.other.load(addresses[~inside])
        return result

    def store(self, addresses: Array, values: Array) -> None:
        inside = self._split(addresses)
        self.shared.store(addresses[inside] & 0xFFFFFFFF, values[:, inside])
        self.other.store(addresses[~inside], values[:, ~inside])


SPACES: dict[str, type[Space]] = {
    "LDS": Shared, "STS": Shared, "ATOMS": Shared, "LDG": Global, "STG": Global, "ATOMG": Global, "REDG": Global,
    "LD": Generic, "ST": Generic, "ATOM": Generic, "RED": Global, "LDL": Local, "STL": Local,
}  # fmt: skip


def asked(space: Space, fetch: Fetch, mask: Mask, group: Group) -> tuple[Array, Array, list[Access]]:
    """(threads, their addresses, each warp's access)."""
    active = group.whole if mask is None else mask
    everyone = fetch()
    return active, space.located(everyone, active), space.access(everyone, active)


@operation("LDS", "LDG", "LD", "LDL", modifiers=f"{CACHING} {SIZE_NAMES} U")
def load(m: Machine, i: Instruction) -> Operation:
    results, texts = i.split
    if len(results) > 1 or len([t for t in texts if not PREDICATE.match(t)]) != 1:
        raise SimulationError(i, "a form of load that isn't known")
    space, fetch, put = SPACES[i.name](m, i, size_of(i)), address(m, i, texts[0]), m.put_words(results[0])
    words = max(space.size // 4, 1)

    def run(mask: Mask, group: Group) -> list[Access]:
        active, at, access = asked(space, fetch, mask, group)
        values = extended(i, space.load(at))
        if active.all():
            put(values, None)
        else:
            wide = np.zeros((words, m.threads), U32)
            wide[:, active] = values
            put(wide, active)
        return access

    return run


@operation("STS", "STG", "ST", "STL", modifiers=f"{CACHING} {SIZE_NAMES}")
def store(m: Machine, i: Instruction) -> Operation:
    space, fetch = SPACES[i.name](m, i, size_of(i)), address(m, i, i.operands[0])
    values = m.words(i.operands[1], max(space.size // 4, 1))

    def run(mask: Mask, group: Group) -> list[Access]:
        active, at, access = asked(space, fetch, mask, group)
        space.store(at, values()[:, active])
        return access

    return run


@operation("LDGSTS", modifiers=f"{CACHING} {SIZE_NAMES}")
def ldgsts(m: Machine, i: Instruction) -> Operation:
    """cp.async; where its own predicate is false (fewer bytes are read than written: none), it writes zeros."""
    if "ZFILL" in i.modifiers:
        raise SimulationError(i, "a copy of a number of bytes that only the register says")
    to_space, from_space = Shared(m, i, size_of(i)), Global(m, i, size_of(i))
    to, source = address(m, i, i.operands[0]), address(m, i, i.operands[1])
    there = m.predicate(i.operands[2] if len(i.operands) > 2 else "PT")

    def run(mask: Mask, group: Group) -> list[Access]:
        active = group.whole if mask is None else mask
        read = active & there()
        targets, sources = to(), source()
        values = np.zeros((to_space.size // 4, m.threads), U32)
        values[:, read] = from_space.load(sources[read])
        by_warp = active.reshape(-1, LANES)
        for warp in np.flatnonzero(by_warp.any(1)).tolist():
            lanes = np.flatnonzero(by_warp[warp]) + warp * LANES
            m.copies[warp].append(partial(to_space.store, targets[lanes], values[:, lanes]))
        a, b = to_space.access(targets, active), from_space.access(sources, read)
        return [Access(x.wavefronts, y.sectors) for x, y in zip(a, b, strict=True)]

    return run


@operation("LDGDEPBAR")
def commit(m: Machine, i: Instruction) -> Operation:
    """The copies that a warp has begun since the last one are a group, which a scoreboard counts."""
    board = i.written_board

    def run(mask: Mask, group: Group) -> None:
        for warp in group.warps:
            m.groups[warp][board].append(m.copies[warp])
            m.copies[warp] = []

    return run


@operation("DEPBAR", modifiers="LE")
def wait(m: Machine, i: Instruction) -> Operation:
    """All groups of a scoreboard land, but for so many of the last ones."""
    found = re.match(r"SB(\d), (0x\w+)", ", ".join(i.operands))
    if found is None:
        raise SimulationError(i, "a wait for something else")
    board, left = int(found[1]), int(found[2], 16)

    def run(mask: Mask, group: Group) -> None:
        for warp in group.warps:
            groups = m.groups[warp][board]
            while len(groups) > left:
                for land in groups.pop(0):
                    land()

    return run


def matrices(i: Instruction) -> tuple[int, bool]:
    """(how many matrices of 8 x 8 numbers of 16 bits, whether transposed)."""
    unknown = set(i.modifiers) - {"16", "M88", "MT88", "2", "4", "1"}
    if unknown or "16" not in i.modifiers:
        raise SimulationError(i, "a form of ldmatrix that isn't known")
    return next((int(x) for x in i.modifiers if x in ("2", "4")), 1), "MT88" in i.modifiers


def row_addresses(everyone: Array, count: int) -> Array:
    """Lane 8k + r says where row r of matrix k begins -> [warps, matrices, rows]."""
    return everyone.reshape(-1, LANES)[:, : count * 8].reshape(-1, count, 8)


def row_access(rows: Array) -> list[Access]:
    """Each matrix is 128 bytes, and takes a turn or more."""
    words = rows[..., None] // 4 + np.arange(4)
    turns = busiest_bank(words.reshape(*rows.shape[:2], 32)).sum(1).tolist()
    return [Access(wavefronts=n) for n in turns]


@operation("LDSM", modifiers="16 M88 MT88 1 2 4")
def ldsm(m: Machine, i: Instruction) -> Operation:
    count, transposed = matrices(i)
    fetch, put = address(m, i, i.operands[1]), m.put_words(i.operands[0])
    space = Shared(m, i, 16)

    def run(mask: Mask, group: Group) -> list[Access]:
        nobody = m.rank << RANK_SHIFT  # what lanes that don't take part read
        rows = row_addresses(np.where(group.whole if mask is None else mask, fetch(), nobody), count)
        read = gather(m.shared, space.place(rows.reshape(-1)), 16).T.copy().view(np.uint16)
        tiles = read.reshape(m.warps, count, 8, 8)
        if transposed:
            tiles = tiles.swapaxes(2, 3)
        values = np.ascontiguousarray(tiles).view(U32).reshape(m.warps, count, LANES)
        put(values.swapaxes(0, 1).reshape(count, -1), mask)
        return row_access(rows)

    return run


@operation("LDC", modifiers=f"{SIZE_NAMES}")
def ldc(m: Machine, i: Instruction) -> Operation:
    size, text = size_of(i), i.operands[1]
    if size == 16:
        found = re.match(r"(c\[0x\w+\])\[(0x\w+)\]$", text)
        if found is None:
            raise SimulationError(i, "16 bytes at an address that isn't fixed")
        parts = [m.constant(i, f"{found[1]}[{int(found[2], 16) + 4 * n:#x}]", 4) for n in range(4)]
        put = m.put_words(i.operands[0])
        return lambda mask, group: put(np.array([p() for p in parts], U32)[:, None], mask)
    fetch = m.constant(i, text, size)
    if size == 8:
        put64 = m.put_u64(i.operands[0])
        return lambda mask, group: put64(np.broadcast_to(fetch(), m.threads), mask)
    put32 = m.put_u32(i.operands[0])
    return lambda mask, group: put32(extended(i, np.asarray(fetch()).astype(U32)), mask)


# -- atomics

KINDS: dict[str, Any] = {
    "S32": np.int32,
    "U64": U64,
    "64": U64,
    "S64": np.int64,
    "F32": np.float32,
    "F64": np.float64,
}
ATOMICS: dict[str, Callable[[Any, Any], Any]] = {
    "ADD": lambda a, b: a + b,
    "MIN": min,
    "MAX": max,
    "AND": lambda a, b: a & b,
    "OR": lambda a, b: a | b,
    "XOR": lambda a, b: a ^ b,
    "EXCH": lambda a, b: b,
}


@operation("ATOMS", "ATOMG", "ATOM", "REDG", "RED",
           modifiers=f"{CACHING} S32 U32 U64 64 S64 F32 F64 FTZ RN CAS POPC INC {' '.join(ATOMICS)}")  # fmt: skip
def atomic(m: Machine, i: Instruction) -> Operation:
    kind = next((KINDS[x] for x in i.modifiers if x in KINDS), U32)
    size = np.dtype(kind).itemsize
    name = next(x for x in i.modifiers if x in ATOMICS or x in ("CAS", "POPC", "INC"))
    at = next(n for n, t in enumerate(i.operands) if t.startswith("["))
    results = [r for r in i.operands[:at] if not PREDICATE.match(r)]
    space, fetch = SPACES[i.name](m, i, size), address(m, i, i.operands[at])
    put = m.put_words(results[0]) if results else None
    values = [m.words(t, size // 4) for t in i.operands[at + 1 :]]

    def run(mask: Mask, group: Group) -> list[Access]:
        active, addresses, access = asked(space, fetch, mask, group)
        given = [np.ascontiguousarray(v()[:, active].T).view(kind)[:, 0] for v in values]
        before = np.zeros(addresses.size, kind)
        for n in range(addresses.size):  # one after the other, as some lanes may have the same address
            one = addresses[n : n + 1]
            old = np.ascontiguousarray(space.load(one).T).view(kind)[0, 0]
            before[n] = old
            if name == "CAS":
                new = given[1][n] if old == given[0][n] else old
            elif name == "POPC":  # of ATOMS: adds one for each lane
                new = old + kind(1)
            elif name == "INC":
                new = kind(0) if old >= given[0][n] else old + kind(1)
            else:
                new = ATOMICS[name](old, given[0][n])
            space.store(one, np.array([new], kind).view(U32)[:, None])
        if put is not None:
            wide = np.zeros((size // 4, m.threads), U32)
            wide[:, active] = before.view(U32).reshape(-1, size // 4).T
            put(wide, active)
        return access

    return run
