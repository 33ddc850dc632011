"""Drops what the outputs don't need: instructions that nobody reads, and taps whose weights are all zero."""

from __future__ import annotations

from dataclasses import replace

from pixelcnn_fast.program.program import Convolution, Instruction, Program


def without_unread(program: Program) -> Program:
    """The same program without the instructions whose values reach no output."""
    needed = set(program.outputs)
    kept: list[Instruction] = []
    for instruction in reversed(program.instructions):
        if instruction.out in needed:
            needed.update(read.value for read in instruction.reads())
            kept.append(instruction)
    if len(kept) == len(program.instructions):
        return program
    return replace(program, instructions=tuple(reversed(kept)))


def without_zeros(program: Program) -> Program:
    """The same program without taps whose weights are all zero, such as those that were scaled by zero."""

    def live(i: Instruction) -> Instruction:
        if not isinstance(i, Convolution):
            return i
        return replace(i, taps=tuple(tap for tap in i.taps if bool(tap.weight.any())))

    return replace(program, instructions=tuple(map(live, program.instructions)))
