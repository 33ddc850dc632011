"""Drops what the outputs don't need: unread instructions, and taps whose weights are all zero."""

from __future__ import annotations

from dataclasses import replace

from pixelcnn_fast.program.program import Program, needed


def without_unread(program: Program) -> Program:
    """Drops the instructions whose values reach no output."""
    kept = needed(program.instructions, program.outputs)
    return program if len(kept) == len(program.instructions) else replace(program, instructions=tuple(kept))


def without_zeros(program: Program) -> Program:
    """Drops taps whose weights are all zero, such as those that were scaled by zero."""
    live = (i.with_taps(tap for tap in i.taps if tap.is_live) for i in program.instructions)
    return replace(program, instructions=tuple(live))
