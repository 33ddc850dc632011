"""Collects the instructions of a program that a pass writes anew."""

from __future__ import annotations

from dataclasses import replace

from pixelcnn_fast.program.instruction import Instruction


class Emitter:
    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self._numbers = 0

    def number(self) -> int:
        """A new value's number, ahead of its instruction: a recurrence's values need each other."""
        self._numbers += 1
        return self._numbers - 1

    def emit(self, i: Instruction, out: int | None = None) -> int:
        """Adds a copy of the instruction -> its value, ``out`` or a new one."""
        self.instructions.append(replace(i, out=self.number() if out is None else out))
        return self.instructions[-1].out
