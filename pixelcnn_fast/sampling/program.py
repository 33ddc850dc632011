"""The causal program: what a captured model becomes.

A program is a list of instructions on feature maps ("values") of one grid. An instruction sums taps, or takes a
value as it stands, and puts the sum through its steps. Values are real numbers in the model's dtype; outside the
grid every value is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = -1  # the base of the input instruction: the levels themselves

ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda x, alpha: F.relu(x),
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, alpha),
    "elu": lambda x, alpha: F.elu(x, alpha),
    "silu": lambda x, alpha: F.silu(x),
    "sigmoid": lambda x, alpha: torch.sigmoid(x),
    "tanh": lambda x, alpha: torch.tanh(x),
}


@dataclass(frozen=True)
class Tap:
    """``weight`` [channels of source, channels of out] applied to the source at (row + dy, column + dx)."""

    source: int
    dy: int
    dx: int
    weight: Tensor


@dataclass(frozen=True)
class Step:
    """One operation on an instruction's sum x, channel by channel.

    kind 'affine': scale * x + shift, both [channels]; 'add': x + alpha * value; 'multiply': x * value;
    'add_condition': x + alpha * condition [N, channels]; 'multiply_condition'; or a name in ``ACTIVATIONS``.
    """

    kind: str
    alpha: float = 1.0
    value: int | None = None
    condition: int | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.kind} %{self.value}"
        if self.condition is not None:
            return f"{self.kind} {self.condition}"
        return self.kind


@dataclass(frozen=True)
class Instruction:
    """``out`` = steps(bias + sum of taps), or steps(base) where ``base`` is a value read at the same pixel."""

    out: int
    channels: int
    name: str
    taps: tuple[Tap, ...] = ()
    bias: Tensor | None = None
    base: int | None = None
    steps: tuple[Step, ...] = ()

    def reads(self) -> list[int]:
        """Every value this instruction reads, once per reading."""
        base = [] if self.base in (None, LEVELS) else [self.base]
        return [tap.source for tap in self.taps] + base + [s.value for s in self.steps if s.value is not None]


@dataclass(frozen=True)
class Program:
    """Instructions in an order in which each reads only values defined before it.

    ``shape``: (image channels, H, W); ``output``: the value with ``image channels * levels`` logits,
    channel index = image channel * levels + level; ``dtype``: what the model computes in.
    """

    shape: tuple[int, int, int]
    levels: int
    instructions: tuple[Instruction, ...]
    output: int
    dtype: torch.dtype
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def producer(self) -> dict[int, Instruction]:
        return {instruction.out: instruction for instruction in self.instructions}


def apply_steps(
    x: Tensor, steps: Sequence[Step], value: Callable[[int], Tensor], condition: Callable[[int], Tensor]
) -> Tensor:
    """x: [..., channels] through ``steps``; ``value`` and ``condition`` give operands that broadcast against x."""
    for step in steps:
        if step.kind == "affine":
            x = x * step.scale + step.shift
        elif step.kind == "add":
            x = x + step.alpha * value(step.value)
        elif step.kind == "multiply":
            x = x * value(step.value)
        elif step.kind == "add_condition":
            x = x + step.alpha * condition(step.condition)
        elif step.kind == "multiply_condition":
            x = x * condition(step.condition)
        else:
            x = ACTIVATIONS[step.kind](x, step.alpha)
    return x


def evaluate(program: Program, levels: Tensor, conditions: Sequence[Tensor] = ()) -> Tensor:
    """The program's meaning, teacher-forced: all pixels at once, no phases.

    levels: integers [N, C, H, W]; conditions: [N, channels] each -> logits [N, C, H, W, L].
    """
    values: dict[int, Tensor] = {}
    n, (c, height, width) = levels.shape[0], program.shape
    for instruction in program.instructions:
        if instruction.base == LEVELS:
            x = levels.permute(0, 2, 3, 1).to(program.dtype)
        elif instruction.base is not None:
            x = values[instruction.base]
        else:
            x = levels.new_zeros((n, height, width, instruction.channels), dtype=program.dtype)
            if instruction.bias is not None:
                x = x + instruction.bias
            for tap in instruction.taps:
                x = x + shifted(values[tap.source], tap.dy, tap.dx) @ tap.weight
        values[instruction.out] = apply_steps(
            x, instruction.steps, values.__getitem__, lambda i: conditions[i][:, None, None, :]
        )
    logits = values[program.output]
    return logits.view(n, height, width, c, program.levels).permute(0, 3, 1, 2, 4)


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
