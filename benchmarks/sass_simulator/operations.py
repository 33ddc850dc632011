"""The table of what instructions do. Each entry makes, once for an instruction, the function that runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sass_simulator.instruction import Instruction
from sass_simulator.machine import Group, Machine, Mask, SimulationError

# Runs an instruction for the threads of the mask, which are all of the group's but for the instruction's predicate.
# What it returns, of an instruction that accesses memory: what it asks for, for each warp (accesses.py).
Operation = Callable[[Mask, Group], Any]
Build = Callable[[Machine, Instruction], Operation]
BUILDERS: dict[str, Build] = {}
MODIFIERS: dict[str, frozenset[str]] = {}  # those that an instruction may have here

# Of the uniform datapath, by another name: what is written for all threads of a warp.
UNIFORM = {f"U{name}": name for name in (
    "IADD3", "IMAD", "LEA", "SHF", "LOP3", "MOV", "PRMT", "ISETP", "SEL", "PLOP3", "POPC", "FLO", "BREV", "BMSK",
    "IABS", "VIMNMX", "VIADD", "FADD", "FMUL", "FFMA", "FSETP", "FSEL", "FMNMX", "P2R", "I2FP",
)}  # fmt: skip
UNIFORM |= {"ULDC": "LDC", "LDCU": "LDC", "S2UR": "S2R", "UIADD": "IADD"}


def operation(*names: str, modifiers: str = "") -> Callable[[Build], Build]:
    """Registers a builder. modifiers: those that it handles; any other in an instruction is an error."""

    def register(build: Build) -> Build:
        for name in names:
            BUILDERS[name] = build
            MODIFIERS[name] = frozenset(modifiers.split())
        return build

    return register


def built(machine: Machine, i: Instruction) -> Operation:
    """The instruction as a function, without its predicate. Raises SimulationError if it isn't known."""
    uniform = i.name in UNIFORM
    name = UNIFORM.get(i.name, i.name)
    if name not in BUILDERS:
        raise SimulationError(i, "unknown instruction")
    unknown = set(i.modifiers) - MODIFIERS[name]
    if unknown:
        raise SimulationError(i, f"unknown modifiers {sorted(unknown)}")
    run = BUILDERS[name](machine, i)
    if not uniform:
        return run
    return lambda mask, group: run(group.wide if mask is group.mask else _warps_of(mask, machine), group)


def _warps_of(mask: Mask, machine: Machine) -> Mask:
    """All threads of the warps that have threads in the mask."""
    return None if mask is None else machine.group(mask).wide
