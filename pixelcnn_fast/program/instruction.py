"""The interface of instructions: what a pass, a runtime or a check may ask any of them.

An instruction computes one value, a feature map on a grid of the image's pixels: it
puts what it starts from through steps. Values are real numbers in the model's dtype,
and zero where they do not exist: outside the image, and between the pixels of their
grid. Steps work channel by channel, unless their kind reads all channels of its operand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.program.grids import WHOLE, Every
from pixelcnn_fast.program.operands import (
    AddressOf,
    ConditionOperand,
    Connection,
    Convert,
    Exchange,
    Number,
    Read,
    Step,
    Tap,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class Surroundings(ABC):
    """What an instruction finds around the pixels that are evaluated, whose axes are [...] below."""

    dtype: torch.dtype

    @abstractmethod
    def value(self, read: Read) -> Tensor:
        """What is read there, [..., channels of the value]."""

    @abstractmethod
    def whole(self, value: int) -> Tensor:
        """A value at all pixels, [n, H * W, channels]; any numbers where it is not known yet."""

    @abstractmethod
    def condition(self, operand: ConditionOperand) -> Tensor:
        """What is read of the condition, [n, ..., channels], with 1 for the axes that it does not vary along."""

    @abstractmethod
    def pixels(self) -> Tensor:
        """The pixels that are evaluated of an image, y * W + x: [...] without the images."""

    @abstractmethod
    def image(self) -> Tensor:
        """The pixels' own levels, [..., image channels]."""

    @abstractmethod
    def zeros(self, channels: int) -> Tensor:
        """Zeros, [..., channels]."""

    def summed(self, i: Instruction) -> Tensor:
        """The bias and the sum of an instruction's taps, [..., channels]."""
        if not i.taps:
            zeros = self.zeros(i.channels)
            return zeros if i.bias is None else zeros + i.bias
        first, *others = (self.value(tap.read) @ tap.weight for tap in i.taps)
        for product in others:
            first += product
        return first if i.bias is None else first.add_(i.bias)


@dataclass(frozen=True, eq=False)
class Instruction(ABC):
    """Computes one value: it puts what it starts from through steps.

    out: the value; channels: how many it has; name: the module that it comes from; every:
    its grid. The methods here answer for taps and steps, a kind of instruction for the
    rest. One with operands, or constants, of its own must answer all questions about them
    (``REQUIRED``), or its class can't be defined.
    """

    out: int
    channels: int
    name: str
    steps: tuple[Step, ...] = field(default=(), kw_only=True)
    every: Every = field(default=WHOLE, kw_only=True)

    native: ClassVar[str | None] = None  # its kind in program/schema.py, if compiled runtimes have it
    REQUIRED: ClassVar = {
        "operands": ("channelwise", "connections", "rewired", "picked"),
        "constants": ("converted", "picked"),
    }

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for method, others in cls.REQUIRED.items():
            missing = [other for other in others if other not in vars(cls)]
            if method in vars(cls) and missing:
                raise TypeError(
                    f"{cls.__name__} has {method}() of its own, so it needs {', '.join(missing)}() as well"
                )

    # -- what it starts from

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The weighted reads that it sums, if it starts from a sum."""
        return ()

    @property
    def bias(self) -> Tensor | None:
        """What is added to the sum of its taps, [channels]; None: zero."""
        return None

    @property
    def is_sum(self) -> bool:
        """Whether it is a sum of taps without steps."""
        return bool(self.taps) and not self.steps

    @property
    def reads_levels(self) -> bool:
        """Whether it starts from its own pixel's levels, so that it comes after they are drawn."""
        return False

    def levels_seen(self, image_channels: int) -> np.ndarray | None:
        """Which image channels of its pixel each channel reads: bool [channels, image channels]; or None."""
        return None

    def repeated(self) -> tuple[Read, Tensor | None] | None:
        """The value from which its steps start as it is, and its channels (None: all), if there is one."""
        return None

    @abstractmethod
    def start(self, around: Surroundings) -> Tensor:
        """What the steps start from, [..., channels]."""

    @abstractmethod
    def sources(self) -> list[str]:
        """What the steps start from, for listings."""

    # -- what it reads

    def reads(self) -> list[Read]:
        """Everything that it reads, once per read: taps first, then operands."""
        return [*(tap.read for tap in self.taps), *self.operands()]

    def operands(self) -> list[Read]:
        """What it reads without a weight: what it starts from, and what its steps read."""
        return [read for step in self.steps for read in step.reads()]

    def given(self) -> list[ConditionOperand]:
        """What it reads of the condition."""
        return [step.condition for step in self.steps if step.condition is not None]

    def attended(self) -> dict[int, str]:
        """The values that it reads at many pixels, none of which lies outside the image, and so are kept of all
        of them: as 'keys' or as 'values', or 'keys values'."""
        return {}

    def channelwise(self) -> list[tuple[int, Tensor | None]]:
        """The operands that it reads channel by channel: (value, the channels read; None: all)."""
        return [(r.value, None) for step in self.steps if not step.reads_all_channels for r in step.reads()]

    def connections(self, channels_of: Callable[[int], int]) -> Iterator[Connection]:
        """What it reads, in the order of ``reads()``. channels_of: how many channels a value has."""
        for tap in self.taps:
            yield Connection(tap.read, tap.connected, tap)
        for step in self.steps:
            for read in step.reads():
                yield Connection(read, step.connected(self.channels, channels_of(read.value)))

    # -- the same with something else in its place

    @property
    def picked_together(self) -> int:
        """How many neighbouring channels can only be picked together."""
        return 1

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        """The same instruction on some of its channels, of which those that are ``picked_together`` stay so.

        exchanged: maps a value and some of its channels to the value that holds exactly
        those; whole: maps a value that is read whole to its replacement. Taps go on reading
        the same values.
        """
        steps = tuple(step.picked(channels, exchanged, whole) for step in self.steps)
        return replace(self, channels=len(channels), steps=steps)

    def rewired(self, operand: Callable[[Read], Read], tap: Callable[[Tap], Tap]) -> Self:
        """The same instruction with other operands and taps."""
        rewired = replace(self, steps=tuple(step.rewired(operand) for step in self.steps))
        return rewired.with_taps(map(tap, self.taps)) if self.taps else rewired

    def keeping(self, dtype: torch.dtype) -> Self:
        """The same instruction, which rounds to this what it keeps of all pixels, if it does."""
        return self

    def with_taps(self, taps: Iterable[Tap], bias: Tensor | None = None) -> Self:
        """The same instruction with other taps, if it has any. bias: in place of its own, unless None."""
        return self

    def converted(self, convert: Convert) -> Self:
        """The same instruction with its weights, tables and other constants converted."""
        return replace(self, steps=tuple(step.converted(convert) for step in self.steps))

    def products(self, channels_of: Callable[[int], int]) -> float:
        """Multiplications and additions at a pixel, on average, of what it starts from, besides those of its taps."""
        return 0.0

    def native_start(self, number: Number, address: AddressOf, image_channels: int) -> dict[str, Any]:
        """What its steps start from, as fields of ``schema.Instruction``."""
        return {}

    # -- what must hold for it, and how it is shown

    def constants(self, channels_of: Callable[[int], int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """Its constants, each with the shape that it must have."""
        for step in self.steps:
            for constant in (step.scale, step.shift):
                if constant is not None:
                    yield constant, (self.channels,)

    def rules(self, channels_of: Callable[[int], int], image_channels: int) -> Iterator[tuple[bool, str]]:
        """The rules for what it starts from, each with whether it holds."""
        yield from ()

    def said_of(self, read: Read, image_channels: int) -> str:
        """What is said of an operand that lets the output see too much. Raises Unsupported if perhaps it does not."""
        return f"it reads ({read.dy:+d}, {read.dx:+d})"

    def line(self, sources: Sequence[str]) -> str:
        """Its line in a listing."""
        steps = "".join(f" | {step}" for step in self.steps)
        of = "" if self.every == WHOLE else f" every {self.every[0]}x{self.every[1]}"
        found = " + ".join(sources) or "constant"
        return f"%{self.out:<4} {self.name:<24} {self.channels:>5} ch{of} = {found}{steps}"

    def __str__(self) -> str:
        return self.line(self.sources())
