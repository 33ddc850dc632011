"""The causal program that a captured model becomes: a list of instructions on one grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.operands import ConditionOperand, Convert

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class AnyProgram:
    """What all programs have in common, phased or not.

    shape: (image channels, H, W). parameters: how many numbers describe a distribution,
    such as one logit per level. joint: whether one distribution gives all channels of a
    pixel, or each has its own. outputs: the values that hold, one after the other, the
    ``distributions * parameters`` numbers of a pixel, channel index = distribution *
    parameters + parameter. dtype: what the model computes in. normalised: whether it gives
    the log-softmax of these numbers. branches: what each ``if`` on the image, and number
    that Python reads off it, was at capture.
    """

    shape: tuple[int, int, int]
    parameters: int
    instructions: tuple[Any, ...]
    outputs: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    normalised: bool = False
    joint: bool = False
    branches: tuple[str, ...] = ()

    @property
    def distributions(self) -> int:
        return 1 if self.joint else self.shape[0]

    def converted(self, convert: Convert) -> Self:
        """The same program with its weights, tables and other constants converted."""
        return replace(self, instructions=tuple(i.converted(convert) for i in self.instructions))

    def _title(self, kind: str) -> list[str]:
        size = "x".join(map(str, self.shape))
        dtype = str(self.dtype).removeprefix("torch.")
        outputs = f"{self.distributions * self.parameters} outputs per pixel"
        first = f"{kind} for {size} images, {outputs}, {dtype}, {len(self.instructions)} instructions"
        return [first, *(f"  taken for granted: {branch}" for branch in self.branches)]


@dataclass(frozen=True, eq=False)
class Program(AnyProgram):
    """Instructions, each of which reads only values defined before it, but for recurrences."""

    instructions: tuple[Instruction, ...]

    def __str__(self) -> str:
        outputs = ", ".join(f"%{output}" for output in self.outputs)
        return "\n".join(
            [*self._title("program"), *(f"  {i}" for i in self.instructions), f"  outputs: {outputs}"]
        )

    def producer(self) -> dict[int, Instruction]:
        return {instruction.out: instruction for instruction in self.instructions}


def needed(instructions: Iterable[Instruction], outputs: Iterable[int]) -> list[Instruction]:
    """The instructions whose values reach the outputs, in order."""
    producer = {i.out: i for i in instructions}
    values, found = list(outputs), set[int]()
    while values:
        if (value := values.pop()) not in found:
            found.add(value)
            values.extend(read.value for read in producer[value].reads())
    return [i for i in producer.values() if i.out in found]


def condition_operands(instructions: Iterable[Instruction]) -> list[ConditionOperand]:
    """Everything that is read of the condition, each operand once."""
    return list(dict.fromkeys(operand for i in instructions for operand in i.given()))
