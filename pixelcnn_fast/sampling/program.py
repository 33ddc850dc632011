"""The causal program: what a captured model becomes.

A program is a list of instructions on feature maps ("values") of one grid. An instruction sums taps, or takes a
value as it stands, and puts the sum through its steps. Values are real numbers in the model's dtype; outside the
grid every value is zero. Steps work channel by channel, but for 'layer_norm'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pixelcnn_fast.program.formulas import apply_steps

LEVELS = -1  # the base of the input instruction: the levels themselves


@dataclass(frozen=True)
class Tap:
    """``weight`` [channels of source, channels of out] applied to the source at (row + dy, column + dx)."""

    source: int
    dy: int
    dx: int
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Slot:
    """An operand that depends on the condition alone, or on nothing: elements of a recorded call's result.

    node: the call; index: [channels], or [H, W, channels] where the operand varies over pixels, into the flattened
    result, or with ``per_image`` into the flattened part of each image.
    """

    node: int
    index: Tensor
    per_image: bool

    @property
    def varies_over_pixels(self) -> bool:
        return self.index.dim() == 3

    def picked(self, channels: Tensor) -> Slot:
        return replace(self, index=self.index[..., channels])


@dataclass(frozen=True)
class Step:
    """One operation on an instruction's sum x, channel by channel.

    kind: a name in ``program.steps.KINDS``, which says what it reads and what alpha means: ``value`` at the same
    pixel, ``condition``, or ``scale`` and ``shift``, both [channels]. ``program.formulas`` has its formula.
    """

    kind: str
    alpha: float = 1.0
    value: int | None = None
    condition: Slot | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.kind} %{self.value}"
        return self.kind

    def picked(self, channels: Tensor) -> Step:
        """The same step on some of its channels; a value it reads must be exchanged by the caller."""
        if self.condition is not None:
            return replace(self, condition=self.condition.picked(channels))
        if self.scale is not None:
            return replace(self, scale=self.scale[channels], shift=self.shift[channels])
        return self


@dataclass(frozen=True)
class Instruction:
    """``out`` = steps(bias + sum of taps), or steps(base) where ``base`` is a value read at the same pixel.

    pick: the channels of base that are taken, in rising order (None: all). With base LEVELS they are image channels,
    and ``table`` [levels, width] turns each level into ``width`` channels: one-hot vectors, or an embedding.
    """

    out: int
    channels: int
    name: str
    taps: tuple[Tap, ...] = ()
    bias: Tensor | None = None
    base: int | None = None
    pick: Tensor | None = None
    table: Tensor | None = None
    steps: tuple[Step, ...] = ()

    @property
    def is_sum(self) -> bool:
        """Of taps, and nothing else."""
        return self.base is None and not self.steps and bool(self.taps)

    def reads(self) -> list[int]:
        """Every value this instruction reads, once per reading."""
        base = [] if self.base in (None, LEVELS) else [self.base]
        return [tap.source for tap in self.taps] + base + [s.value for s in self.steps if s.value is not None]


@dataclass(frozen=True)
class Program:
    """Instructions in an order in which each reads only values defined before it.

    ``shape``: (image channels, H, W); ``outputs``: the values that hold, one after the other,
    ``image channels * levels`` logits, channel index = image channel * levels + level; ``dtype``: what the model
    computes in; ``normalised``: whether the model's output is the log-softmax of these logits.
    """

    shape: tuple[int, int, int]
    levels: int
    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    normalised: bool = False

    def producer(self) -> dict[int, Instruction]:
        return {instruction.out: instruction for instruction in self.instructions}


def slots_of(instructions: Iterable) -> list[Slot]:
    """What the steps of captured or phased instructions read of the condition."""
    return [step.condition for i in instructions for step in i.steps if step.condition is not None]


def from_levels(instruction: Instruction, levels: Tensor, dtype: torch.dtype) -> Tensor:
    """What an input instruction starts from. levels: [..., image channels] -> [..., channels]."""
    if instruction.pick is not None:
        levels = levels[..., instruction.pick]
    return levels.to(dtype) if instruction.table is None else instruction.table[levels.long()].flatten(-2)


def evaluate(program: Program, levels: Tensor, condition: Callable[[Slot], Tensor]) -> Tensor:
    """The program's meaning, teacher-forced: all pixels at once, no phases.

    levels: integers [N, C, H, W]; condition: slot -> [N, channels] or [N, H, W, channels]
    -> logits [N, C, H, W, L].
    """
    values: dict[int, Tensor] = {}
    n, (c, height, width) = levels.shape[0], program.shape

    def operand(slot: Slot) -> Tensor:
        return condition(slot) if slot.varies_over_pixels else condition(slot)[:, None, None]

    for instruction in program.instructions:
        if instruction.base == LEVELS:
            x = from_levels(instruction, levels.permute(0, 2, 3, 1), program.dtype)
        elif instruction.base is not None:
            x = values[instruction.base]
            x = x if instruction.pick is None else x[..., instruction.pick]
        else:
            x = levels.new_zeros((n, height, width, instruction.channels), dtype=program.dtype)
            if instruction.bias is not None:
                x = x + instruction.bias
            for tap in instruction.taps:
                x = x + shifted(values[tap.source], tap.dy, tap.dx) @ tap.weight
        values[instruction.out] = apply_steps(x, instruction.steps, values.__getitem__, operand)
    logits = torch.cat([values[output] for output in program.outputs], -1)
    logits = logits.view(n, height, width, c, program.levels).permute(0, 3, 1, 2, 4)
    return logits.log_softmax(-1) if program.normalised else logits


def shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """x: [N, H, W, C] read at (row + dy, column + dx), zero outside -> [N, H, W, C]."""
    height, width = x.shape[1:3]
    out = torch.zeros_like(x)
    rows, columns = max(height - abs(dy), 0), max(width - abs(dx), 0)
    to_y, to_x, from_y, from_x = max(-dy, 0), max(-dx, 0), max(dy, 0), max(dx, 0)
    out[:, to_y : to_y + rows, to_x : to_x + columns] = x[:, from_y : from_y + rows, from_x : from_x + columns]
    return out


def rounded_weights(program: Program, dtype: torch.dtype) -> Program:
    """The program with its tap weights rounded to ``dtype`` (sums stay in the program's dtype)."""

    def rounded(tap: Tap) -> Tap:
        return replace(tap, weight=tap.weight.to(dtype).to(program.dtype))

    instructions = (replace(i, taps=tuple(map(rounded, i.taps))) for i in program.instructions)
    return replace(program, instructions=tuple(instructions))
