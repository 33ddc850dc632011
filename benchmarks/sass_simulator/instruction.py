"""One machine instruction, as nvdisasm prints it, with the schedule that the compiler wrote into it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

BITS = re.compile(r"/\* 0x([0-9a-f]{16}) \*/")
CODE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s*/\* 0x([0-9a-f]{16}) \*/")
LINE = re.compile(r'//## File "([^"]+)", line (\d+)(.*)')
LABEL = re.compile(r"^([.$][\w.$]*):\s*$")
PREDICATE = re.compile(r"^!?U?P(T|\d)$")


@dataclass(frozen=True)
class Instruction:
    index: int
    address: int
    text: str
    encoding: int  # 128 bits
    lines: tuple[tuple[str, int], ...]  # (file, line) of the source, from the innermost function outwards

    @cached_property
    def _parts(self) -> tuple[str, str, str]:
        found = re.match(r"(?:@(!?U?P\w+)\s+)?(\S+)\s*(.*)", self.text)
        assert found is not None
        return found[1] or "", found[2], re.sub(r'\(\*".*', "", found[3])

    @property
    def guard(self) -> str:
        """The predicate that it runs under; empty: none."""
        return self._parts[0]

    @cached_property
    def opcode(self) -> str:
        return self._parts[1]

    @cached_property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @cached_property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    @cached_property
    def operands(self) -> tuple[str, ...]:
        text = re.sub(r"\.reuse|\bdesc\[UR\d+\]|gdesc\[UR\d+\]", "", self._parts[2]).replace("] [", "][")
        return tuple(part.strip() for part in text.split(",") if part.strip())

    @property
    def split(self) -> tuple[list[str], list[str]]:
        """Operands that it writes, and those that it reads: predicates next to the first result are results."""
        operands = list(self.operands)
        n = 1
        if PREDICATE.match(operands[0]) and len(operands) > 1 and not PREDICATE.match(operands[1]):
            n = 2  # LOP3 P0, R4, ...
        while n < len(operands) - 1 and PREDICATE.match(operands[n]):
            n += 1
        return operands[:n], operands[n:]

    @property
    def line(self) -> str:
        """Where it comes from: innermost file and line."""
        return "{}:{}".format(self.lines[0][0].split("/")[-1], self.lines[0][1]) if self.lines else "?"

    # The schedule, bits 105 to 121.

    @cached_property
    def stall(self) -> int:
        """Cycles until the warp may issue its next instruction; a pair of instructions cannot issue in one cycle."""
        return max(self.encoding >> 105 & 15, 1)

    @cached_property
    def written_board(self) -> int:
        """The scoreboard that says when its results are there; 7: none."""
        return self.encoding >> 110 & 7

    @cached_property
    def read_board(self) -> int:
        """The scoreboard that says when its operands may be overwritten; 7: none."""
        return self.encoding >> 113 & 7

    @cached_property
    def awaited_boards(self) -> tuple[int, ...]:
        return tuple(board for board in range(6) if self.encoding >> (116 + board) & 1)

    @property
    def immediate(self) -> int:
        """The 32 bits of an immediate operand."""
        return self.encoding >> 32 & 0xFFFFFFFF

    def __str__(self) -> str:
        return f"{self.address:#06x} {self.text} ({self.line})"


def parsed(disassembly: str) -> dict[str, tuple[list[Instruction], dict[str, int]]]:
    """From the output of ``nvdisasm -hex -gi -c``: section -> (instructions, index of each label)."""
    sections: dict[str, tuple[list[Instruction], dict[str, int]]] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    lines: list[tuple[str, int]] = []
    pending: tuple[int, str, int] | None = None
    fresh = True  # whether the next line of source begins another list
    for text in disassembly.splitlines():
        if text.startswith(".text."):
            instructions, labels = sections.setdefault(text.split(":")[0].removeprefix(".text."), ([], {}))
            lines = []
        elif found := LINE.search(text):
            if fresh:
                lines, fresh = [], False
            lines.append((found[1], int(found[2])))
            if inlined := re.search(r'inlined at "([^"]+)", line (\d+)', found[3]):
                lines.append((inlined[1], int(inlined[2])))
        elif found := LABEL.match(text):
            labels[found[1]] = len(instructions)
        elif found := CODE.search(text):
            pending = int(found[1], 16), found[2], int(found[3], 16)
        elif pending and (found := BITS.search(text)):
            address, code, low = pending
            outwards = tuple(dict.fromkeys(lines))
            instructions.append(
                Instruction(len(instructions), address, code, int(found[1], 16) << 64 | low, outwards)
            )
            pending, fresh = None, True
    return sections
