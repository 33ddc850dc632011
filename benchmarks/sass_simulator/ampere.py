"""Mbarriers before sm_90, which are ordinary words of shared memory there, as instructions of sm_90.

An arrival is ATOMS.ARRIVE. To ask for a phase, a thread loads the upper word of the state and compares its highest bit
with the parity; only with what follows it in a loop does that wait, and how often the loop runs depends on time. So the
comparison becomes the SYNCS.PHASECHK that waits. The load stays, and what it finds is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sass_simulator.instruction import Instruction

ARRIVAL = re.compile(r"ATOMS\.ARRIVE\.64 RZ, (\[.*\])$")
LOAD = re.compile(r"LDS (R\d+), \[((?:R\d+\+)?)(0x\w+)\]$")
COMPARISON = re.compile(r"LOP3\.LUT (P\d), RZ, (R\d+), 0x80000000, (R\w+), 0x48, !PT$")
APART = 4  # instructions from the load to the comparison, at most


def with_mbarriers(instructions: Sequence[Instruction]) -> list[Instruction]:
    return [_translated(instructions, i) for i in instructions]


def _translated(instructions: Sequence[Instruction], i: Instruction) -> Instruction:
    text = _plain(i)
    if found := ARRIVAL.search(text):
        return replace(i, text=f"{text[: found.start()]}SYNCS.ARRIVE.TRANS64.A1T0 RZ, {found[1]}, RZ")
    if found := COMPARISON.search(text):
        predicate, loaded, parity = found.groups()
        if where := _loaded_from(instructions, i.index, loaded):
            wait = f"SYNCS.PHASECHK.TRANS64.TRYWAIT {predicate}, {where}, {parity}"
            return replace(i, text=text[: found.start()] + wait)
    return i


def _plain(i: Instruction) -> str:
    return i.text.replace(".reuse", "")


def _loaded_from(instructions: Sequence[Instruction], at: int, register: str) -> str | None:
    """The state's address, if the register is its upper word, and the address still in its register."""
    since: set[str] = set()  # written
    for i in reversed(instructions[max(at - APART, 0) : at]):
        if found := LOAD.search(_plain(i)):
            result, base, offset = found.groups()
            if result == register:
                still_there = base.rstrip("+") not in {*since, register}
                return f"[{base}{int(offset, 16) - 4:#x}]" if still_there else None
        since |= {text for text in i.split[0] if text.startswith("R")} if i.operands else set()
    return None
