"""What an instruction takes of a multiprocessor: its pipe, for how long, and until when its results are there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sass_simulator.executor import MEMORY, SIGNALS, control_name, records_predicate
from sass_simulator.instruction import Instruction
from sass_simulator.rates import PIPES, Rates

SPECIAL = {"MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV", "UPOPC", "UFLO", "UBREV"}
DOUBLE = {"DADD", "DMUL", "DFMA", "DSETP"}
HALF = {"HADD2", "HMUL2", "HFMA2"}
SINGLE = {"FADD", "FMUL", "FFMA"}
CONSTANT = {"LDC", "ULDC", "LDCU"}
BEFORE_LANES = {"S2R", "S2UR", "R2UR", "VOTEU", "REDUX", "CREDUX", "CS2R"}
NO_PIPE = {"NOP", "BRA", "BSSY", "BSYNC", "BAR", "EXIT", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "YIELD", "BREAK", "CALL",
           "RET", "BRX", "MEMBAR", "ERRBAR", "CCTL", "NANOSLEEP", "PMTRIG"}  # fmt: skip
WAITS = {"SYNCS.PHASECHK": "barrier", "UCGABAR_WAIT": "cluster barrier"}  # and what they are called
UNCACHED = {"NA", "STRONG", "BYPASS"}


@dataclass(frozen=True)
class Cost:
    """What the model needs of one instruction of the code."""

    # "shared", "global", "copy" (from global to shared), "barrier", "wait", "mark", "depends", "signal", "phase" (that
    # it waits for), "fence", "forget" (L1), "plain"
    kind: str
    stall: int
    awaited: tuple[int, ...]
    written_board: int
    read_board: int
    latency: int
    pipe: str  # "": none
    interval: float
    stores: bool = False
    cached: bool = False
    result: int = -1  # HMMA: the first register of its sums,
    addend: int = -1  # and of those that it adds to
    board: int = 0  # DEPBAR: its scoreboard, and how many may still be under way
    pending: int = 0
    source: str = ""  # what a wait for its results is called
    guarded: bool = False  # the recording says whether its predicate let any lane through


def cost_of(i: Instruction, rates: Rates) -> Cost:
    latency = rates.latency
    kind, source, delay = "plain", "other results", latency["other"]
    pipe, interval = "integer", float(PIPES["integer"])
    name = i.name
    extra: dict[str, Any] = {}
    if name == "HMMA":
        parts = {"16816": 1.0, "1688": 0.5, "1684": 0.25}[i.modifiers[0]] * (
            2 if "TF32" in i.modifiers else 1
        )
        kind, pipe, interval, source = "product", "tensor", rates.tensor * parts, "products"
        registers = [int(r) if r != "Z" else -1 for r in re.findall(r"\bR(\d+|Z)", " ".join(i.operands))]
        extra = {"result": registers[0], "addend": registers[-1]}
        delay = latency["tensor"]
    elif name == "LDGSTS":
        kind, pipe, source = "copy", "", "global memory"
    elif name in ("LDG", "LD", "STG", "ST", "ATOMG", "ATOM", "REDG", "RED", "LDL", "STL"):
        kind, pipe, source = "global", "", "global memory"
        delay = latency["store"]
        stores = name in ("STG", "ST", "REDG", "RED", "STL")
        extra = {"stores": stores, "cached": name in ("LDG", "LD", "LDL") and not UNCACHED & set(i.modifiers)}
    elif control_name(i) in WAITS:
        kind, pipe, source, delay = "phase", "", WAITS[control_name(i)], latency["shared"]
    elif name in SIGNALS:
        kind, pipe, source = "signal", "", "shared memory"
        delay = latency["store shared" if name == "STAS" else "shared"]
    elif name == "MEMBAR" and not {"CTA", "SM"} & set(i.modifiers):
        kind, pipe = "fence", ""
    elif name == "CCTL" and "IVALL" in i.modifiers:
        kind, pipe = "forget", ""
    elif name in MEMORY:
        kind, pipe, source = "shared", "", "shared memory"
        delay = latency[
            "store shared" if name.startswith("ST") else "shuffle" if name == "SHFL"
            else "atomic shared" if name == "ATOMS" else "shared"
        ]  # fmt: skip
    elif name == "BAR":
        kind, pipe, delay = "barrier", "", latency["barrier"]
    elif name == "DEPBAR":
        found = re.match(r"SB(\d), (0x\w+)", ", ".join(i.operands))
        assert found is not None
        kind, pipe, extra = "wait", "", {"board": int(found[1]), "pending": int(found[2], 16)}
    elif name == "LDGDEPBAR":
        kind, pipe, source = "depends", "", "asynchronous copies"
    elif name == "PMTRIG":
        kind, pipe = "mark", ""
    elif name in NO_PIPE:
        pipe = ""
    elif name in SPECIAL or "SPECIAL" in i.modifiers:
        pipe, interval = "special", float(PIPES["special"])
        delay, source = latency["special"], "special functions"
    elif name in DOUBLE:
        pipe, interval, delay, source = "double", float(rates.double), latency["double"], "float64"
    elif name in HALF:
        pipe, interval = "half", float(PIPES["half"])
    elif name in SINGLE:
        pipe, interval = "single", float(rates.single)
    elif name in CONSTANT:
        pipe, delay, source = "", latency["constant"], "constants"
    elif name in BEFORE_LANES:
        is_uniform = name in ("R2UR", "VOTEU", "REDUX", "CREDUX")
        pipe, delay = "", latency["uniform" if is_uniform else "special"]
    elif name == "IMAD":
        pipe = "multiply"  # beside the integers' pipe
    return Cost(
        kind,
        i.stall,
        i.awaited_boards,
        i.written_board,
        i.read_board,
        delay,
        pipe,
        interval,
        source=source,
        guarded=records_predicate(i),
        **extra,
    )
