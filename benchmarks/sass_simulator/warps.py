"""What the lanes of a warp do together: shuffles, votes, matches, reductions and products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sass_simulator.accesses import Access
from sass_simulator.instruction import Instruction
from sass_simulator.machine import LANES, Array, Group, Machine, Mask, SimulationError
from sass_simulator.operations import Operation, operation

U32 = np.uint32
ONE_TURN = Access(wavefronts=1)


def active_of(mask: Mask, group: Group) -> Array:
    return group.whole if mask is None else mask


@operation("SHFL", modifiers="UP DOWN BFLY IDX")
def shfl(m: Machine, i: Instruction) -> Operation:
    """Another lane's number, and whether there is such a lane (PTX, shfl.sync)."""
    put_inside, put = m.put_predicate(i.operands[0]), m.put_u32(i.operands[1])
    a, by, clamp = (m.u32(i, t) for t in i.operands[2:5])
    mode = i.modifiers[0]
    lane = m.lane.astype(np.int64)

    def run(mask: Mask, group: Group) -> list[Access]:
        b, c = by().astype(np.int64) & 31, clamp().astype(np.int64)
        segment, limit = c >> 8 & 31, c & 31
        last = (lane & segment) | (limit & ~segment)
        if mode == "UP":
            other = lane - b
            inside = other >= last
        elif mode == "DOWN":
            other = lane + b
            inside = other <= last
        elif mode == "BFLY":
            other = lane ^ b
            inside = other <= last
        else:
            other = (lane & segment) | (b & ~segment)
            inside = other <= last
        source = m.first_lane + np.where(inside, other, lane)
        put(np.broadcast_to(a(), m.threads)[source], mask)
        put_inside(inside, mask)
        return [ONE_TURN] * m.warps

    return run


def per_warp(values: Array) -> Array:
    """[warps] -> the same number for all threads of a warp."""
    return np.repeat(values, LANES)


@operation("VOTE", "VOTEU", modifiers="ANY ALL EQ")
def vote(m: Machine, i: Instruction) -> Operation:
    """Over active lanes; a register gets one bit for each lane where the predicate is true."""
    results, (source,) = i.split
    condition, mode = m.predicate(source), i.modifiers[0]
    numbers = [m.put_u32(r) for r in results if "R" in r]
    predicates = [m.put_predicate(r) for r in results if "R" not in r]

    def run(mask: Mask, group: Group) -> None:
        on = active_of(mask, group).reshape(-1, LANES)
        true = on & condition().reshape(-1, LANES)
        decided = {"ANY": true.any(1), "ALL": (true == on).all(1)}.get(mode)
        if decided is None:
            decided = (true == on).all(1) | ~true.any(1)
        bits = (true.astype(np.uint64) << np.arange(LANES, dtype=np.uint64)).sum(1).astype(U32)
        target = group.wide if i.name == "VOTEU" else mask
        for put in numbers:
            put(per_warp(bits), target)
        for put in predicates:
            put(per_warp(decided), target)

    return run


# With what inactive lanes count as, of unsigned numbers.
REDUCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "SUM": (np.sum, 0),
    "OR": (np.bitwise_or.reduce, 0),
    "XOR": (np.bitwise_xor.reduce, 0),
    "AND": (np.bitwise_and.reduce, 0xFFFFFFFF),
    "MIN": (np.min, 0xFFFFFFFF),
    "MAX": (np.max, 0),
}


@operation("REDUX", "CREDUX", modifiers=f"S32 U32 {' '.join(REDUCTIONS)}")
def redux(m: Machine, i: Instruction) -> Operation:
    put, a = m.put_u32(i.operands[0]), m.u32(i, i.operands[1])
    signed = "S32" in i.modifiers
    name = next((x for x in i.modifiers if x in REDUCTIONS), "OR" if not i.modifiers else "SUM")
    reduce, idle = REDUCTIONS[name]
    if signed and name in ("MIN", "MAX"):
        idle = np.iinfo(np.int32).max if name == "MIN" else np.iinfo(np.int32).min

    def run(mask: Mask, group: Group) -> None:
        on = active_of(mask, group).reshape(-1, LANES)
        values = a().view(np.int32).astype(np.int64) if signed else a().astype(np.int64)
        reduced = reduce(np.where(on, np.broadcast_to(values, m.threads).reshape(-1, LANES), idle), axis=1)
        put(per_warp(reduced & 0xFFFFFFFF).astype(U32), group.wide)

    return run


@operation("R2UR", modifiers="BROADCAST FILL")
def r2ur(m: Machine, i: Instruction) -> Operation:
    """The number of the first active lane, for the whole warp."""
    results, sources = i.split
    put, a = m.put_u32(results[0]), m.u32(i, sources[0])
    if len(results) > 1:
        raise SimulationError(i, "it says in a predicate whether all lanes agree")

    def run(mask: Mask, group: Group) -> None:
        first = active_of(mask, group).reshape(-1, LANES).argmax(1)
        values = np.broadcast_to(a(), m.threads).reshape(-1, LANES)[np.arange(m.warps), first]
        put(per_warp(values), m.group(active_of(mask, group)).wide)

    return run


# -- products of matrices: sums[16, 8] = a[16, k] . b[k, 8] + c, each lane with its part as PTX lays them out


def halves(words: Array, bf16: bool) -> Array:
    """[registers, threads] of two numbers each -> float32 [registers, threads, 2]."""
    if bf16:
        return np.stack([words << U32(16), words & U32(0xFFFF0000)], -1).view(np.float32)
    return np.ascontiguousarray(words).view(np.float16).reshape(*words.shape, 2).astype(np.float32)


@operation("HMMA", modifiers="16816 1688 1684 F32 F16 BF16")
def hmma(m: Machine, i: Instruction) -> Operation:
    """Products in float32, summed in an order of our own: the hardware cuts sums to fewer bits on the way."""
    depth = {"16816": 16, "1688": 8, "1684": 4}[i.modifiers[0]]
    if "F32" not in i.modifiers:
        raise SimulationError(i, "sums of float16")
    n_a, n_b = depth // 4, depth // 8
    put, a, b, c = (
        m.put_words(i.operands[0]),
        m.words(i.operands[1], n_a),
        m.words(i.operands[2], n_b),
        m.words(i.operands[3], 4),
    )
    w, bf16 = m.warps, "BF16" in i.modifiers

    def run(mask: Mask, group: Group) -> None:
        x, y = halves(a(), bf16), halves(b(), bf16)
        left = x.reshape(n_a // 2, 2, w, 8, 4, 2).transpose(2, 1, 3, 0, 4, 5).reshape(w, 16, depth)
        right = y.reshape(n_b, w, 8, 4, 2).transpose(1, 0, 3, 4, 2).reshape(w, depth, 8)
        product = (left @ right).reshape(w, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, -1)
        put((product + c().view(np.float32)).view(U32), mask)

    return run
