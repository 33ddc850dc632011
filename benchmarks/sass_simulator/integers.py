"""Integers, bits, predicates and moves."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from sass_simulator.instruction import PREDICATE, Instruction
from sass_simulator.machine import SHARED_WINDOW, Fetch, Group, Machine, Mask, SimulationError
from sass_simulator.operations import Operation, operation

U32, U64 = np.uint32, np.uint64
LOW = U64(0xFFFFFFFF)
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
TYPES = "U32 S32 U64 S64"


def combination(i: Instruction) -> Callable[[Any, Any], Any]:
    """How a comparison's result is combined with a predicate."""
    chosen = [
        f for name, f in (("AND", np.logical_and), ("OR", np.logical_or), ("XOR", np.logical_xor))
        if name in i.modifiers
    ]  # fmt: skip
    if len(chosen) != 1:
        raise SimulationError(i, "no way to combine predicates")
    return chosen[0]


def wide_term(machine: Machine, i: Instruction, text: str) -> Fetch:
    """A term of a sum whose carry counts: -x is ~x + 1, so that 0 - 0 carries as 1 - 0 does."""
    fetch = machine.u32(i, text)
    if text.startswith("-") and not text.startswith("-0x"):
        inverted = machine.u32(i, "~" + text[1:])
        return lambda: inverted().astype(U64) + U64(1)
    return lambda: fetch().astype(U64)


@operation("IADD3", "IADD", modifiers="X 64")
def iadd3(m: Machine, i: Instruction) -> Operation:
    results, sources = i.split
    if "64" in i.modifiers:
        if any(not r.endswith("T") for r in results[1:]) or any(PREDICATE.match(s) for s in sources):
            raise SimulationError(i, "64 bits with carries")
        put64, terms = m.put_u64(results[0]), [m.u64(i, s) for s in sources]
        return lambda mask, group: put64(sum((t() for t in terms[1:]), terms[0]()), mask)
    carries_in = [m.predicate(s) for s in sources if PREDICATE.match(s)]
    numbers = [s for s in sources if not PREDICATE.match(s)]
    put = m.put_u32(results[0])
    carries = [m.put_predicate(r) for r in results[1:] if not r.endswith("T")]
    if not carries and not carries_in:
        plain = [m.u32(i, s) for s in numbers]
        return lambda mask, group: put(sum((t() for t in plain[1:]), plain[0]()), mask)
    wide = [wide_term(m, i, s) for s in numbers]
    position = [n for n, r in enumerate(results[1:]) if not r.endswith("T")]

    def run(mask: Mask, group: Group) -> None:
        total: Any = sum((t() for t in wide[1:]), wide[0]())
        for carry in carries_in:
            total = total + carry()
        over = total >> U64(32)
        put((total & LOW).astype(U32), mask)
        for n, put_carry in zip(position, carries, strict=True):
            put_carry(over > (n if len(carries) > 1 else 0), mask)

    return run


@operation("VIADD")
def viadd(m: Machine, i: Instruction) -> Operation:
    put, a, b = m.put_u32(i.operands[0]), m.u32(i, i.operands[1]), m.u32(i, i.operands[2])
    return lambda mask, group: put(a() + b(), mask)


@operation("IABS")
def iabs(m: Machine, i: Instruction) -> Operation:
    put, a = m.put_u32(i.operands[0]), m.s32(i, i.operands[1])
    return lambda mask, group: put(np.abs(a()).view(U32), mask)


@operation("IMAD", modifiers="MOV U32 S32 IADD SHL X WIDE HI")
def imad(m: Machine, i: Instruction) -> Operation:
    results, sources = i.split
    texts = [s for s in sources if not PREDICATE.match(s)]
    carries_in = [m.predicate(s) for s in sources if PREDICATE.match(s)]
    carries = [m.put_predicate(r) for r in results[1:]]
    if "WIDE" not in i.modifiers and "HI" not in i.modifiers:
        if carries:
            raise SimulationError(i, "a carry of 32 bits")
        put, a, b, c = m.put_u32(results[0]), m.u32(i, texts[0]), m.u32(i, texts[1]), m.u32(i, texts[2])
        if "X" not in i.modifiers:
            return lambda mask, group: put(a() * b() + c(), mask)
        return lambda mask, group: put(a() * b() + c() + sum(p().astype(U32) for p in carries_in), mask)
    unsigned = "U32" in i.modifiers
    factors = [(m.u32 if unsigned else m.s32)(i, t) for t in texts[:2]]
    addend = m.u64(i, texts[2])
    kind = U64 if unsigned else np.int64
    wide = "WIDE" in i.modifiers
    put = m.put_u64(results[0]) if wide else m.put_u32(results[0])

    def run(mask: Mask, group: Group) -> None:
        product = (factors[0]().astype(kind) * factors[1]().astype(kind)).view(U64)
        total = product + addend()
        carried = total < product
        for carry in carries_in:
            more = total + carry()
            carried = carried | (more < total)
            total = more
        put(total if wide else (total >> U64(32)).astype(U32), mask)
        for put_carry in carries:
            put_carry(carried, mask)

    return run


@operation("ISETP", modifiers=f"LT LE GT GE EQ NE AND OR XOR EX {TYPES}")
def isetp(m: Machine, i: Instruction) -> Operation:
    results, operands = list(i.operands[:2]), list(i.operands[2:])
    (name,) = (x for x in i.modifiers if x in COMPARISONS)
    compare, combine = COMPARISONS[name], combination(i)
    kind: type[np.generic]
    if "U64" in i.modifiers or "S64" in i.modifiers:
        kind = U64 if "U64" in i.modifiers else np.int64
        a, b = m.u64(i, operands[0]), m.u64(i, operands[1])
    else:
        kind = U32 if "U32" in i.modifiers else np.int32
        a, b = m.u32(i, operands[0]), m.u32(i, operands[1])
    with_it = m.predicate(operands[2])
    lower = m.predicate(operands[3]) if "EX" in i.modifiers else None
    put, put_other = m.put_predicate(results[0]), m.put_predicate(results[1])
    two = not results[1].endswith("T")
    strict = COMPARISONS.get(name.replace("E", "T") if name in ("LE", "GE") else name)
    assert strict is not None

    def run(mask: Mask, group: Group) -> None:
        x, y = a().view(kind), b().view(kind)
        if lower is None:
            result = compare(x, y)
        elif name == "NE":
            result = (x != y) | lower()
        else:  # the upper halves decide, unless they are the same
            result = ((x == y) & lower()) | (strict(x, y) if name != "EQ" else False)
        put(combine(result, with_it()), mask)
        if two:
            put_other(combine(np.logical_not(result), with_it()), mask)

    return run


def looked_up(lut: int, a: Any, b: Any, c: Any) -> Any:
    """The function of three bits whose value for a, b, c is bit 4a + 2b + c of the table."""
    simple: dict[int, Callable[[], Any]] = {
        0xC0: lambda: a & b,
        0xFC: lambda: a | b,
        0x3C: lambda: a ^ b,
        0x80: lambda: a & b & c,
        0xFE: lambda: a | b | c,
        0x96: lambda: a ^ b ^ c,
        0xF8: lambda: a | (b & c),
        0xEA: lambda: (a & b) | c,
        0x30: lambda: a & ~b,
        0x0C: lambda: ~a & b,
        0x33: lambda: ~b,
        0x0F: lambda: ~a,
    }
    if lut in simple:
        return simple[lut]()
    result: Any = a & ~a
    for index in range(8):
        if lut >> index & 1:
            result = result | (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
    return result


@operation("LOP3", modifiers="LUT")
def lop3(m: Machine, i: Instruction) -> Operation:
    results, sources = i.split
    predicates = [m.put_predicate(r) for r in results if PREDICATE.match(r)]
    (number,) = (r for r in results if not PREDICATE.match(r))
    put = m.put_u32(number)
    a, b, c = (m.u32(i, s) for s in sources[:3])
    lut = int(sources[3], 16)
    also = m.predicate(sources[4])

    def run(mask: Mask, group: Group) -> None:
        result = looked_up(lut, a(), b(), c())
        put(result, mask)
        for put_predicate in predicates:
            put_predicate((result != 0) | also(), mask)

    return run


@operation("PLOP3", modifiers="LUT")
def plop3(m: Machine, i: Instruction) -> Operation:
    puts = [m.put_predicate(r) for r in i.operands[:2]]
    a, b, c = (m.predicate(s) for s in i.operands[2:5])
    tables = [int(s, 16) for s in i.operands[5:7]]

    def run(mask: Mask, group: Group) -> None:
        results = [looked_up(table, a(), b(), c()) for table in tables]  # before either is written
        for put, result in zip(puts, results, strict=True):
            put(result, mask)

    return run


@operation("SHF", modifiers=f"L R W HI {TYPES}")
def shf(m: Machine, i: Instruction) -> Operation:
    """A window of the 64 bits that two registers make, shifted."""
    put = m.put_u32(i.operands[0])
    low, by, high = (m.u32(i, s) for s in i.operands[1:4])
    bits = 64 if "U64" in i.modifiers or "S64" in i.modifiers else 32
    wrap, left, upper = "W" in i.modifiers, "L" in i.modifiers, "HI" in i.modifiers
    signed = not left and ("S32" in i.modifiers or "S64" in i.modifiers)

    def run(mask: Mask, group: Group) -> None:
        pair = low() | high().astype(U64) << U64(32)
        amount = by() & U32(bits - 1) if wrap else np.minimum(by(), U32(bits))
        within = np.minimum(amount, U32(63)).astype(U64)  # a shift by all 64 bits is not defined in C
        beyond = amount > 63
        if left:
            shifted = np.where(beyond, U64(0), pair << within)
        elif signed:
            shifted = (pair.view(np.int64) >> within.astype(np.int64)).view(U64)
        else:
            shifted = np.where(beyond, U64(0), pair >> within)
        put((shifted >> U64(32) if upper else shifted & LOW).astype(U32), mask)

    return run


@operation("LEA", modifiers="HI X SX32")
def lea(m: Machine, i: Instruction) -> Operation:
    """b + (a << n), or b + the upper half of that, with a carry in and out."""
    results, sources = i.split
    carry_in = m.predicate(sources.pop()) if PREDICATE.match(sources[-1]) else None
    by = int(sources.pop(), 16)
    put = m.put_u32(results[0])
    carries = [m.put_predicate(r) for r in results[1:]]
    b = wide_term(m, i, sources[1])
    if "HI" not in i.modifiers:
        a = m.u32(i, sources[0])
        shifted: Fetch = lambda: (a() << U32(by)).astype(U64)  # noqa: E731
    else:
        low = m.u32(i, sources[0])
        high: Fetch
        if "SX32" in i.modifiers:
            high = lambda: (low().view(np.int32) >> np.int32(31)).view(U32)  # noqa: E731
        else:
            high = m.u32(i, sources[2])
        shifted = lambda: (low() | high().astype(U64) << U64(32)) >> U64(32 - by) & LOW  # noqa: E731

    def run(mask: Mask, group: Group) -> None:
        total = shifted() + b()
        if carry_in is not None:
            total = total + carry_in()
        put((total & LOW).astype(U32), mask)
        for put_carry in carries:
            put_carry(total > LOW, mask)

    return run


@operation("PRMT")
def prmt(m: Machine, i: Instruction) -> Operation:
    """Four bytes chosen among eight; an index with bit 3 repeats the byte's sign."""
    put = m.put_u32(i.operands[0])
    low, selector, high = (m.u32(i, s) for s in i.operands[1:4])

    def run(mask: Mask, group: Group) -> None:
        pair = low() | high().astype(U64) << U64(32)
        chosen = selector()
        result: Any = U32(0)
        for byte in range(4):
            index = chosen >> U32(4 * byte) & U32(15)
            value = (pair >> ((index & U32(7)).astype(U64) * U64(8)) & U64(255)).astype(U32)
            value = np.where(index > 7, np.where(value > 127, U32(255), U32(0)), value)
            result = result | value << U32(8 * byte)
        put(result, mask)

    return run


@operation("SEL", modifiers="64")
def sel(m: Machine, i: Instruction) -> Operation:
    if "64" in i.modifiers:
        put, a, b = m.put_u64(i.operands[0]), m.u64(i, i.operands[1]), m.u64(i, i.operands[2])
    else:
        put, a, b = m.put_u32(i.operands[0]), m.u32(i, i.operands[1]), m.u32(i, i.operands[2])
    chosen = m.predicate(i.operands[3])
    return lambda mask, group: put(np.where(chosen(), a(), b()), mask)


def extreme(smallest: Any, a: Any, b: Any) -> Any:
    return np.where(smallest, np.minimum(a, b), np.maximum(a, b))


@operation("VIMNMX", "IMNMX", "VIADDMNMX", "VIMNMX3", modifiers="U32 S32 RELU")
def vimnmx(m: Machine, i: Instruction) -> Operation:
    """The smaller of integers where the predicate is true, else the larger; of VIADDMNMX: of a + b and c. RELU: 0 if
    that is negative."""
    results, sources = i.split
    if any(not r.endswith("T") for r in results[1:]):
        raise SimulationError(i, "it says in a predicate which one it took")
    put = m.put_u32(results[0])
    fetch = m.u32 if "U32" in i.modifiers else m.s32
    numbers = [fetch(i, s) for s in sources[:-1]]
    smallest = m.predicate(sources[-1])
    adds, relu = i.name == "VIADDMNMX", "RELU" in i.modifiers

    def run(mask: Mask, group: Group) -> None:
        values = [n() for n in numbers]
        if adds:
            values = [values[0] + values[1], values[2]]
        result = values[0]
        for value in values[1:]:
            result = extreme(smallest(), result, value)
        if relu:
            result = np.maximum(result, 0)
        put(result.view(U32), mask)

    return run


@operation("MOV", modifiers="64")
def mov(m: Machine, i: Instruction) -> Operation:
    if "64" in i.modifiers:
        put, a = m.put_u64(i.operands[0]), m.u64(i, i.operands[1])
    else:
        put, a = m.put_u32(i.operands[0]), m.u32(i, i.operands[1])
    return lambda mask, group: put(a(), mask)


@operation("POPC")
def popc(m: Machine, i: Instruction) -> Operation:
    put, a = m.put_u32(i.operands[0]), m.u32(i, i.operands[1])
    return lambda mask, group: put(np.bitwise_count(a()).astype(U32), mask)


@operation("FLO", modifiers="U32 SH")
def flo(m: Machine, i: Instruction) -> Operation:
    """The highest one bit; .SH: zeros above it. All ones if there is none."""
    results, sources = i.split
    if "U32" not in i.modifiers or len(results) > 1:
        raise SimulationError(i, "of signed numbers, or with a predicate")
    put, a, zeros = m.put_u32(results[0]), m.u32(i, sources[0]), "SH" in i.modifiers

    def run(mask: Mask, group: Group) -> None:
        value = a()
        exponent = np.frexp(value.astype(np.float64))[1] - 1
        bit = 31 - exponent if zeros else exponent
        put(np.where(value == 0, U32(0xFFFFFFFF), bit.astype(U32)), mask)

    return run


@operation("BREV")
def brev(m: Machine, i: Instruction) -> Operation:
    put, a = m.put_u32(i.operands[0]), m.u32(i, i.operands[1])

    def run(mask: Mask, group: Group) -> None:
        value = a()
        for by, ones in (
            (1, 0x55555555),
            (2, 0x33333333),
            (4, 0x0F0F0F0F),
            (8, 0x00FF00FF),
            (16, 0x0000FFFF),
        ):
            value = (value & U32(ones)) << U32(by) | value >> U32(by) & U32(ones)
        put(value, mask)

    return run


@operation("BMSK", modifiers="C W")
def bmsk(m: Machine, i: Instruction) -> Operation:
    """Ones: as many as the second operand says, from the bit on that the first one says."""
    put, at, count = m.put_u32(i.operands[0]), m.u32(i, i.operands[1]), m.u32(i, i.operands[2])
    wrap = "W" in i.modifiers

    def run(mask: Mask, group: Group) -> None:
        limit = (lambda x: x & U32(31)) if wrap else (lambda x: np.minimum(x, U32(32)))
        ones = (U64(1) << limit(count()).astype(U64)) - U64(1)
        put(((ones << limit(at()).astype(U64)) & LOW).astype(U32), mask)

    return run


@operation("P2R")
def p2r(m: Machine, i: Instruction) -> Operation:
    """Predicates as bits, where the mask has ones, else bits of another register."""
    put, other, wanted = m.put_u32(i.operands[0]), m.u32(i, i.operands[2]), m.u32(i, i.operands[3])
    rows = m.predicates["UP" if i.operands[1].startswith("U") else "P"]

    def run(mask: Mask, group: Group) -> None:
        bits = sum(rows[n].astype(U32) << U32(n) for n in range(7))
        put(bits & wanted() | other() & ~wanted(), mask)

    return run


@operation("R2P")
def r2p(m: Machine, i: Instruction) -> Operation:
    bits, wanted = m.u32(i, i.operands[1]), int(i.operands[2], 16)
    puts = [(n, m.put_predicate(f"P{n}")) for n in range(7) if wanted >> n & 1]

    def run(mask: Mask, group: Group) -> None:
        values = bits()
        for n, put in puts:
            put((values >> U32(n) & U32(1)).astype(np.bool_), mask)

    return run


@operation("S2R")
def s2r(m: Machine, i: Instruction) -> Operation:
    """Special registers; SR_CgaCtaId: the rank in the cluster."""
    put, name = m.put_u32(i.operands[0]), i.operands[1]
    index = np.arange(m.threads, dtype=U32)
    nx, ny, _ = m.shape
    values: dict[str, Any] = {
        "SR_TID.X": index % U32(nx),
        "SR_TID.Y": index // U32(nx) % U32(ny),
        "SR_TID.Z": index // U32(nx * ny),
        "SR_CTAID.X": U32(m.block[0]),
        "SR_CTAID.Y": U32(m.block[1]),
        "SR_CTAID.Z": U32(m.block[2]),
        "SR_LANEID": m.lane,
        "SR_CgaCtaId": U32(m.rank),
        "SR_SWINHI": U32(SHARED_WINDOW),
        "SR_EQMASK": U32(1) << m.lane,
        "SR_LTMASK": (U32(1) << m.lane) - U32(1),
        "SR_LEMASK": (U32(2) << m.lane) - U32(1),
    }
    if name not in values:
        raise SimulationError(i, f"the special register {name} is not known")
    return lambda mask, group: put(values[name], mask)


@operation("CS2R", modifiers="32")
def cs2r(m: Machine, i: Instruction) -> Operation:
    # SR_CgaSize chooses where constants of the cluster lie: here. SR_CLOCKHI changes after 2^32 cycles.
    if i.operands[1] not in ("SRZ", "SR_CgaSize", "SR_CLOCKHI"):
        raise SimulationError(i, "a clock: the machine is executed first and timed afterwards")
    zero = np.zeros(1 if "32" in i.modifiers else 2, U32)[:, None]
    put = m.put_words(i.operands[0])
    return lambda mask, group: put(zero, mask)
