"""Floating point. A fused multiply-add of float32 is rounded from float64, so once in some 2^29 it is off by one bit;
estimates (MUFU) are exact to the last bit, where the hardware's are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sass_simulator.instruction import Instruction
from sass_simulator.integers import combination
from sass_simulator.machine import Fetch, Group, Machine, Mask, SimulationError
from sass_simulator.operations import Operation, operation

U32, U64, F32, F64 = np.uint32, np.uint64, np.float32, np.float64
ROUNDING = "RM RP RZ RN"


def flushed(x: Any) -> Any:
    """Denormal numbers as zero, as .FTZ has it."""
    return np.where(np.abs(x) < F32(1.17549435e-38), np.copysign(F32(0), x), x).astype(F32)


def rounded(i: Instruction) -> Callable[[Any], Any]:
    """float64 -> float32 as the instruction says, with .SAT and .FTZ."""
    down, up, cut = (name in i.modifiers for name in ("RM", "RP", "RZ"))
    saturate, flush = "SAT" in i.modifiers, "FTZ" in i.modifiers

    def finish(exact: Any) -> Any:
        result = exact.astype(F32)
        if down or up or cut:
            too_high, too_low = result > exact, result < exact
            if down:
                wrong, to = too_high, F32(-np.inf)
            elif up:
                wrong, to = too_low, F32(np.inf)
            else:
                wrong, to = np.where(exact > 0, too_high, too_low), F32(0)
            result = np.where(wrong, np.nextafter(result, to), result)
        if saturate:
            result = np.where(np.isnan(result), F32(0), np.clip(result, F32(0), F32(1)))
        return flushed(result) if flush else result

    return finish


def sources(m: Machine, i: Instruction, texts: tuple[str, ...]) -> list[Fetch]:
    fetches = [m.f32(i, t) for t in texts]
    if "FTZ" not in i.modifiers:
        return fetches
    return [lambda f=f: flushed(f()) for f in fetches]  # type: ignore[misc]  # a default binds the loop's variable


@operation("FADD", "FMUL", "FFMA", modifiers=f"FTZ SAT {ROUNDING}")
def arithmetic(m: Machine, i: Instruction) -> Operation:
    put, values = m.put_f32(i.operands[0]), sources(m, i, i.operands[1:])
    plain = not set(i.modifiers) - {"RN"}
    if i.name == "FADD" and plain:
        a, b = values
        return lambda mask, group: put(a() + b(), mask)
    if i.name == "FMUL" and plain:
        a, b = values
        return lambda mask, group: put(a() * b(), mask)
    finish = rounded(i)

    def run(mask: Mask, group: Group) -> None:
        first, second, *third = (v().astype(F64) for v in values)
        exact = first + second if i.name == "FADD" else first * second
        put(finish(exact + third[0] if third else exact), mask)

    return run


FLOAT_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NUM": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "NE": lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b),
    "LTU": lambda a, b: ~(a >= b),
    "LEU": lambda a, b: ~(a > b),
    "GTU": lambda a, b: ~(a <= b),
    "GEU": lambda a, b: ~(a < b),
    "EQU": lambda a, b: (a == b) | np.isnan(a) | np.isnan(b),
    "NEU": np.not_equal,
    "NAN": lambda a, b: np.isnan(a) | np.isnan(b),
}


@operation("FSETP", "DSETP", modifiers=f"AND OR XOR FTZ {' '.join(FLOAT_COMPARISONS)}")
def setp(m: Machine, i: Instruction) -> Operation:
    (name,) = (x for x in i.modifiers if x in FLOAT_COMPARISONS)
    compare, combine = FLOAT_COMPARISONS[name], combination(i)
    results, texts = i.operands[:2], i.operands[2:4]
    a, b = sources(m, i, texts) if i.name == "FSETP" else [m.f64(i, t) for t in texts]
    with_it = m.predicate(i.operands[4])
    put, put_other = (m.put_predicate(r) for r in results)

    def run(mask: Mask, group: Group) -> None:
        result, other = compare(a(), b()), with_it()
        put_other(combine(np.logical_not(result), other), mask) if not results[1].endswith("T") else None
        put(combine(result, other), mask)

    return run


@operation("FSEL")
def fsel(m: Machine, i: Instruction) -> Operation:
    put, a, b = m.put_f32(i.operands[0]), m.f32(i, i.operands[1]), m.f32(i, i.operands[2])
    chosen = m.predicate(i.operands[3])
    return lambda mask, group: put(np.where(chosen(), a(), b()), mask)


@operation("FMNMX", "FMNMX3", modifiers="NAN FTZ")
def fmnmx(m: Machine, i: Instruction) -> Operation:
    """Where the predicate is true the smallest, else the largest; of a number and NaN the number, but for .NAN."""
    results, texts = i.split
    if any(not r.endswith("T") for r in results[1:]):
        raise SimulationError(i, "it says in a predicate which one it took")
    put, numbers, smallest = m.put_f32(results[0]), sources(m, i, tuple(texts[:-1])), m.predicate(texts[-1])
    least, most = (np.minimum, np.maximum) if "NAN" in i.modifiers else (np.fmin, np.fmax)

    def run(mask: Mask, group: Group) -> None:
        result, *others = (n() for n in numbers)
        for other in others:
            result = np.where(smallest(), least(result, other), most(result, other))
        put(result, mask)

    return run


@operation("FCHK", modifiers="DIVIDE")
def fchk(m: Machine, i: Instruction) -> Operation:
    """Whether a quotient needs the slow way: its operands, or what is computed for it, may leave the range."""
    put, a, b = m.put_predicate(i.operands[0]), m.f32(i, i.operands[1]), m.f32(i, i.operands[2])

    def run(mask: Mask, group: Group) -> None:
        x, y = (np.abs(v()).view(U32).astype(np.int32) >> 23 for v in (a, b))  # exponents
        odd = (x == 255) | (y == 255) | (y == 0) | (y >= 252) | (x - y >= 126) | (x - y <= -124)
        put((odd | (x <= 24)) & (np.abs(a()) > 0) | odd & (y == 0), mask)

    return run


def high_word(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """An estimate whose operand and result are the upper halves of float64 numbers."""

    def of(x: Any) -> Any:
        wide = (x.view(U32).astype(U64) << U64(32)).view(F64)
        return (f(wide).view(U64) >> U64(32)).astype(U32).view(F32)

    return of


ESTIMATES: dict[str, Callable[[Any], Any]] = {
    "RCP": lambda x: 1 / x.astype(F64),
    "RSQ": lambda x: 1 / np.sqrt(x.astype(F64)),
    "SQRT": lambda x: np.sqrt(x.astype(F64)),
    "EX2": lambda x: np.exp2(x.astype(F64)),
    "LG2": lambda x: np.log2(x.astype(F64)),
    "SIN": lambda x: np.sin(x.astype(F64)),
    "COS": lambda x: np.cos(x.astype(F64)),
    "TANH": lambda x: np.tanh(x.astype(F64)),
    "RCP64H": high_word(lambda x: 1 / x),
    "RSQ64H": high_word(lambda x: 1 / np.sqrt(x)),
}


@operation("MUFU", modifiers=" ".join(ESTIMATES))
def mufu(m: Machine, i: Instruction) -> Operation:
    put, a, estimate = m.put_f32(i.operands[0]), m.f32(i, i.operands[1]), ESTIMATES[i.modifiers[0]]
    return lambda mask, group: put(np.asarray(estimate(a())).astype(F32), mask)


# -- conversions

BITS = {"F16": 16, "F32": 32, "F64": 64, "U32": 32, "S32": 32, "U64": 64, "S64": 64}
INTEGERS: dict[str, Any] = {"U32": U32, "S32": np.int32, "U64": U64, "S64": np.int64}
TO_INTEGER: dict[str, Callable[[Any], Any]] = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}


def whole(i: Instruction) -> Callable[[Any], Any]:
    chosen = [TO_INTEGER[x] for x in i.modifiers if x in TO_INTEGER]
    return chosen[0] if chosen else np.rint


@operation("I2F", "I2FP", modifiers=f"F16 F32 F64 U32 S32 U64 S64 {ROUNDING}")
def i2f(m: Machine, i: Instruction) -> Operation:
    """An integer, of 32 bits with a sign unless it says otherwise, as a number, float32 unless it says otherwise."""
    kind = next((x for x in i.modifiers if x in INTEGERS), "S32")
    fetch = m.u64(i, i.operands[1]) if BITS[kind] == 64 else m.u32(i, i.operands[1])
    if "F64" in i.modifiers:
        put64 = m.put_f64(i.operands[0])
        return lambda mask, group: put64(fetch().view(INTEGERS[kind]).astype(F64), mask)
    if "F16" in i.modifiers:
        put16 = m.put_u32(i.operands[0])
        return lambda mask, group: put16(
            fetch().view(INTEGERS[kind]).astype(np.float16).view(np.uint16).astype(U32), mask
        )
    put, finish = m.put_f32(i.operands[0]), rounded(i)
    return lambda mask, group: put(finish(fetch().view(INTEGERS[kind]).astype(F64)), mask)


@operation("F2I", "F2IP", modifiers="F32 F64 F16 U32 S32 U64 S64 FTZ NTZ TRUNC FLOOR CEIL")
def f2i(m: Machine, i: Instruction) -> Operation:
    """The integer is of 32 bits with a sign unless it says otherwise, and stays within its type; NaN becomes zero in 32
    bits, and the lowest number in 64."""
    kind = next((x for x in i.modifiers if x in INTEGERS), "S32")
    wide_source = "F64" in i.modifiers
    if "F16" in i.modifiers or i.name == "F2IP":
        raise SimulationError(i, "from float16, or of a pair")
    a = m.f64(i, i.operands[1]) if wide_source else m.f32(i, i.operands[1])
    put = m.put_u64(i.operands[0]) if BITS[kind] == 64 else m.put_u32(i.operands[0])
    limits, to_integer = np.iinfo(INTEGERS[kind]), whole(i)

    def run(mask: Mask, group: Group) -> None:
        value = to_integer(a().astype(F64))
        inside = (value >= limits.min) & (value < float(limits.max) + 1)
        number = np.where(inside, value, 0).astype(INTEGERS[kind])
        number = np.where(value < limits.min, limits.min, np.where(value > limits.max, limits.max, number))
        nan = U64(1 << 63).view(INTEGERS[kind]) if BITS[kind] == 64 else 0
        number = np.where(np.isnan(value), nan, number).astype(INTEGERS[kind])
        put(number.view(U64 if BITS[kind] == 64 else U32), mask)

    return run


@operation("FRND", modifiers="TRUNC FLOOR CEIL FTZ")
def frnd(m: Machine, i: Instruction) -> Operation:
    put, (a,), to_integer = m.put_f32(i.operands[0]), sources(m, i, i.operands[1:]), whole(i)
    return lambda mask, group: put(to_integer(a()), mask)


def as_bf16(x: Any) -> Any:
    """float32 -> the upper 16 bits of the nearest bfloat16."""
    bits = np.asarray(x, F32).view(U32)
    near = (bits + U32(0x7FFF) + (bits >> U32(16) & U32(1))) >> U32(16)
    return np.where(np.isnan(x), U32(0x7FFF), near)


def as_f16(x: Any) -> Any:
    return np.asarray(x, F32).astype(np.float16).view(np.uint16).astype(U32)


NARROW = {"BF16": as_bf16, "F16": as_f16}


@operation("F2F", modifiers=f"F64 F32 F16 BF16 FTZ {ROUNDING}")
def f2f(m: Machine, i: Instruction) -> Operation:
    if i.modifiers[:2] == ("F64", "F32"):
        put64, a = m.put_f64(i.operands[0]), m.f32(i, i.operands[1])
        return lambda mask, group: put64(a().astype(F64), mask)
    if i.modifiers[:2] in (("F16", "F32"), ("BF16", "F32")):
        put16, c, narrow = m.put_u32(i.operands[0]), m.f32(i, i.operands[1]), NARROW[i.modifiers[0]]
        return lambda mask, group: put16(narrow(c()), mask)
    if i.modifiers[:2] == ("F32", "F64"):
        put, b, finish = m.put_f32(i.operands[0]), m.f64(i, i.operands[1]), rounded(i)
        return lambda mask, group: put(finish(b()), mask)
    raise SimulationError(i, "a conversion that isn't known")


@operation("F2FP", modifiers="BF16 F16 F32 PACK_AB RZ UNPACK_B")
def f2fp(m: Machine, i: Instruction) -> Operation:
    """Two numbers packed into a register, the second one in its lower half."""
    put, values = m.put_u32(i.operands[0]), [m.f32(i, t) for t in i.operands[1:]]
    if "PACK_AB" not in i.modifiers or "RZ" in i.modifiers or len(values) != 2:
        raise SimulationError(i, "a conversion that isn't known")
    narrow = NARROW["BF16" if "BF16" in i.modifiers else "F16"]
    high, low = values
    return lambda mask, group: put(narrow(high()) << U32(16) | narrow(low()), mask)


# -- two float16 numbers in a register


@operation("HADD2", "HMUL2", "HFMA2", modifiers="F32 MMA")
def half2(m: Machine, i: Instruction) -> Operation:
    """HADD2.F32: a float16 number as float32. The others: two numbers at once."""
    numbers = [t for t in i.operands[1:]]
    if len(numbers) == {"HADD2": 3, "HMUL2": 3, "HFMA2": 4}[i.name]:  # an immediate pair is printed as two
        del numbers[next(n for n, t in enumerate(numbers) if not _is_register(t)) + 1]
    values = [m.f16(i, t) for t in numbers]
    if "F32" in i.modifiers:
        put32, (a, b) = m.put_f32(i.operands[0]), values
        return lambda mask, group: put32((a() + b())[0], mask)
    put = m.put_u32(i.operands[0])

    def run(mask: Mask, group: Group) -> None:
        first, second, *third = (v().astype(F64) for v in values)
        exact = first + second if i.name == "HADD2" else first * second
        low, high = as_f16((exact + third[0] if third else exact).astype(F32))
        put(low | high << U32(16), mask)

    return run


def _is_register(text: str) -> bool:
    return "R" in text or text.startswith("c[")


# -- float64


def fused(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once: the product's error is known exactly (Dekker 1971), and so is the sum's (Knuth)."""
    product = a * b
    split = 134217729.0  # 2^27 + 1
    a1 = a * split - (a * split - a)
    b1 = b * split - (b * split - b)
    a2, b2 = a - a1, b - b1
    lost = a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2)
    total = product + c
    part = total - product
    result = total + (lost + ((product - (total - part)) + (c - part)))
    return np.where(np.isfinite(result), result, total)


@operation("DADD", "DMUL", "DFMA", modifiers=ROUNDING)
def doubles(m: Machine, i: Instruction) -> Operation:
    """Directed rounding (only in estimates of integer divisions) goes to the neighbour of the nearest number."""
    put, values = m.put_f64(i.operands[0]), [m.f64(i, t) for t in i.operands[1:]]
    up, down = "RP" in i.modifiers, "RM" in i.modifiers
    if "RZ" in i.modifiers:
        raise SimulationError(i, "rounding towards zero")

    def run(mask: Mask, group: Group) -> None:
        first, second, *third = (v() for v in values)
        if i.name == "DADD":
            result = first + second
        else:
            result = fused(first, second, third[0] if third else F64(0)) if third else first * second
        if up or down:
            result = np.nextafter(result, F64(np.inf if up else -np.inf))
        put(np.asarray(result), mask)

    return run
