"""The causal program: what a captured model becomes.

A program is a list of instructions on feature maps ("values") of one grid. An instruction sums taps, or takes a
value as it stands, and puts the sum through its steps. Values are real numbers in the model's dtype; outside the
grid every value is zero. Steps work channel by channel, but for 'layer_norm'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = -1  # the base of the input instruction: the levels themselves

ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda x, alpha: F.relu(x),
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, alpha),
    "elu": lambda x, alpha: F.elu(x, alpha),
    "gelu": lambda x, alpha: F.gelu(x),
    "gelu_tanh": lambda x, alpha: F.gelu(x, approximate="tanh"),
    "silu": lambda x, alpha: F.silu(x),
    "softplus": lambda x, alpha: F.softplus(x, alpha),
    "power": lambda x, alpha: x**alpha,
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

    kind 'affine': scale * x + shift, both [channels]; 'add': x + alpha * value; 'multiply': x * value;
    'add_condition': x + alpha * condition; 'multiply_condition'; a name in ``ACTIVATIONS``; or 'layer_norm':
    (x - mean) / sqrt(variance + alpha), with mean and variance over all channels of ``value``.
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


def apply_steps(
    x: Tensor, steps: Sequence[Step], value: Callable[[int], Tensor], condition: Callable[[Slot], Tensor]
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
        elif step.kind == "layer_norm":
            variance, mean = torch.var_mean(value(step.value), -1, correction=0, keepdim=True)
            x = (x - mean) * (variance + step.alpha).rsqrt()
        else:
            x = ACTIVATIONS[step.kind](x, step.alpha)
    return x


def from_levels(instruction: Instruction, levels: Tensor, dtype: torch.dtype) -> Tensor:
    """What an input instruction starts from. levels: [..., image channels] -> [..., channels]."""
    if instruction.pick is not None:
        levels = levels[..., instruction.pick]
    return levels.to(dtype) if instruction.table is None else instruction.table[levels.long()].flatten(-2)
